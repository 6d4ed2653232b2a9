"""Processes of a bed as /proc shows them, found by what only they have on their command line."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

PROC = Path("/proc")


def find(fits: Callable[[list[str]], bool]) -> Iterator[int]:
    """Ids of processes whose command line fits."""
    for entry in PROC.glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # ended since
            words = entry.read_bytes().decode(errors="replace").split("\0")
            if words[0] and fits(words):
                yield int(entry.parent.name)


def virtual_machines() -> dict[str, int]:
    """Process id by UUID, of all QEMUs of this machine."""
    found: dict[str, int] = {}
    for pid in find(lambda words: "qemu" in words[0] and "-uuid" in words[:-1]):
        with contextlib.suppress(OSError, ValueError):
            words = (PROC / str(pid) / "cmdline").read_bytes().decode().split("\0")
            found[words[words.index("-uuid") + 1]] = pid
    return found


def resident_kib(pid: int) -> int | None:
    """None when it has ended."""
    with contextlib.suppress(OSError, ValueError):
        for line in (PROC / str(pid) / "status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1])
    return None
