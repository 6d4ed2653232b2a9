"""Who started a guest, a daemon or a directory, so that a later run can tell it is left over."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Self


@dataclass(frozen=True)
class Owner:
    """A process; its start time tells it from a later one of the same id."""

    pid: int
    started_ticks: int  # clock ticks since the machine's boot

    @classmethod
    def this_process(cls) -> Self:
        pid = os.getpid()
        started = _started_ticks(pid)
        assert started is not None, "this process runs"
        return cls(pid, started)

    def is_alive(self) -> bool:
        return _started_ticks(self.pid) == self.started_ticks

    def __str__(self) -> str:
        return f"process {self.pid} started at tick {self.started_ticks}"


def owner_of(text: str) -> Owner | None:
    """The owner that a text names, as `str(owner)` put it there; None where it names none."""
    found = re.search(r"process (\d+) started at tick (\d+)", text)
    return Owner(int(found.group(1)), int(found.group(2))) if found else None


def _started_ticks(pid: int) -> int | None:
    """Field 22 of /proc/PID/stat; None where there is no such process, or only its remains."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else int(fields[18])
