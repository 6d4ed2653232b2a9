"""This machine around a run: its state directory, control groups, and what a run may leave."""

import os
import shutil
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import psutil

from shared.errors import ConfigError

RUNS_KEPT = 8  # newest directories of earlier runs
OURS = "hrapaq"  # part of the names of our guests, and so of their control groups
CGROUP_DEPTH_MAX = 5
CGROUP_ROOT = Path("/sys/fs/cgroup")


def default_state_root(environment: Mapping[str, str], user_id: int) -> Path:
    """/var/lib/hrapaq for root, else below XDG_STATE_HOME or ~/.local/state."""
    if user_id == 0:
        return Path("/var/lib/hrapaq")
    state = environment.get("XDG_STATE_HOME")
    root = Path(state) if state else Path(environment.get("HOME", "/")) / ".local/state"
    return root / "hrapaq"


def make_state_directory(asked_for: Path | None, root: Path) -> Path:
    """The directory of this run, made; below `root` older ones than the newest eight are removed.

    ConfigError where it cannot be made.
    """
    try:
        if asked_for is not None:
            asked_for.mkdir(parents=True, exist_ok=True)
            return asked_for.resolve()
        root.mkdir(parents=True, exist_ok=True)
        for old in sorted(root.glob("run-*"))[: -RUNS_KEPT or None]:
            shutil.rmtree(old, ignore_errors=True)
        made = root / f"run-{time.strftime('%Y%m%d-%H%M%S')}"
        made.mkdir(exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{error.filename}: {error.strerror}; name another place with --state-dir"
        ) from error
    return made


def cgroup_version(root: Path = CGROUP_ROOT) -> str:
    """v2, v1, hybrid (v1 controllers beside a v2 tree) or none."""
    if (root / "cgroup.controllers").exists():
        return "v2"
    if (root / "memory").is_dir() or (root / "cpu").is_dir():
        return "hybrid" if (root / "unified").is_dir() else "v1"
    return "none"


def our_cgroups(root: Path = CGROUP_ROOT, mark: str = f"{OURS}-demo") -> list[Path]:
    """Control groups of our guests, the deepest first, so that they can be removed in order."""
    found = []
    for directory, below, _ in os.walk(root):
        path = Path(directory)
        if len(path.relative_to(root).parts) >= CGROUP_DEPTH_MAX:
            below.clear()
        if any(mark in part.replace("\\x2d", "-") for part in path.parts):
            found.append(path)
    return sorted(found, key=lambda path: len(path.parts), reverse=True)


def remove_cgroups(groups: Iterable[Path]) -> list[Path]:
    """Removes those that are empty; returns what could not be removed."""
    stuck = []
    for group in groups:
        try:
            group.rmdir()
        except FileNotFoundError:
            continue
        except OSError:
            stuck.append(group)
    return stuck


def processes_with(words: Iterable[str]) -> list[tuple[int, str]]:
    """Processes other than ours whose command line holds one of the words: (pid, command)."""
    looked_for = tuple(words)
    found = []
    for process in psutil.process_iter(["cmdline"]):
        command = " ".join(process.info["cmdline"] or ())  # None: not ours to see
        if process.pid != os.getpid() and any(word in command for word in looked_for):
            found.append((process.pid, command[:120]))
    return found
