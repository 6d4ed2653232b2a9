"""`hrapaq up` as a process, in a directory of its own, as a person would run and ask it."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

T = TypeVar("T")

WITHIN_S = 90.0


class Run:
    """One `hrapaq up` in a directory of its own, invisible to any other on this machine."""

    def __init__(self, directory: Path, *more: str) -> None:
        directory.mkdir(exist_ok=True)
        self.directory = directory
        self.state = directory / "state"
        self.report_path = directory / "report.json"
        runtime = directory / "runtime"
        runtime.mkdir()
        self.environment = {**os.environ, "XDG_RUNTIME_DIR": str(runtime)}
        self.run_file = runtime / "hrapaq" / "up.json"
        words = ("up", "--json", str(self.report_path))
        command = (*hrapaq(), *words, "--state-dir", str(self.state), *more)
        with (directory / "output").open("wb") as output:
            self.process = subprocess.Popen(
                command, env=self.environment, stdout=output, stderr=subprocess.STDOUT
            )

    def ask(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Another `hrapaq` command, which finds the run by itself."""
        return subprocess.run(
            (*hrapaq(), *words), env=self.environment, capture_output=True, text=True, check=False
        )

    def status(self) -> dict[str, Any] | None:
        done = self.ask("status", "--json")
        return dict(json.loads(done.stdout)) if done.returncode == 0 else None

    def memory_limits(self) -> set[int]:
        """As telemetry last brought them to the controller, in bytes."""
        amounts = [one for vm in self.vms() for one in vm["resources"]]
        limits = {one["limit"] for one in amounts if one["resource"] == "memory"}
        return limits - {None}

    def vms(self) -> list[dict[str, Any]]:
        """As the controller shows them; empty while it does not answer."""
        done = self.ask("vms", "--json")
        return list(json.loads(done.stdout)["vms"]) if done.returncode == 0 else []

    def children(self) -> dict[str, int]:
        """Process ids of bus, controller and agent as they are now, by name."""
        found: dict[str, int] = {}
        marks = {"nats": "nats.conf", "controller": "controller.toml", "agent": "agent.toml"}
        for name, mark in marks.items():
            for pid in processes_with(str(self.state), mark):
                found[name] = pid
        return found

    def output(self) -> str:
        return (self.directory / "output").read_text()

    def report(self) -> dict[str, Any]:
        return dict(json.loads(self.report_path.read_text()))


def hrapaq() -> tuple[str, ...]:
    return (sys.executable, "-c", "from controller.ctl import main; main()")


def processes_with(*marks: str) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            line = entry.read_bytes().decode(errors="replace")
            if all(mark in line for mark in marks) and "controller.ctl" not in line:
                found.append(int(entry.parent.name))
    return found


def until(condition: Callable[[], T], run: Run, what: str, within_s: float = WITHIN_S) -> T:
    """The first value of the condition that counts as true, asked again and again."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if value := condition():
            return value
        assert run.process.poll() is None, f"it ended before {what}:\n{run.output()}"
        time.sleep(0.1)
    pytest.fail(f"not within {within_s:g} s: {what}\n{run.output()}")


@contextlib.contextmanager
def running(directory: Path, *more: str) -> Iterator[Run]:
    run = Run(directory, *more)
    try:
        yield run
    finally:
        run.process.kill()
        run.process.wait()
