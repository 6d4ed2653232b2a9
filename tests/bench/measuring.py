"""What the benchmarks share: real programs as processes, their costs from /proc, and tables."""

import contextlib
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from controller.up.configs import Addresses
from shared.ports import free_ports
from shared.testing import NatsServer, dying_with_us

T = TypeVar("T")

MIB = 1 << 20
START_S = 30.0
STOP_S = 10.0
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class BenchError(Exception):
    """A benchmark cannot be run here; the text says why."""


class Program:
    """One of our programs as a child process, with the file that it logs into."""

    def __init__(
        self, name: str, *words: str, log: Path, group: "MemoryGroup | None" = None
    ) -> None:
        self.name = name
        self.started_s = 0.0  # by the monotonic clock
        self._command: Sequence[str] = (sys.executable, "-m", *words)
        self._group = group
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None, "not running"
        return self._process.pid

    def log_text(self) -> str:
        return self._log.read_text(errors="replace")

    def has_ended(self) -> bool:
        return self._process is None or self._process.poll() is not None

    def __enter__(self) -> Self:
        command = self._command if self._group is None else self._group.command(self._command)
        self.started_s = time.monotonic()
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                dying_with_us(command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process is not None
        self._process.terminate()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def wait_for(
    what: str, look: Callable[[], T | None], *programs: Program, within_s: float = START_S
) -> T:
    """What `look` finds once it finds something; BenchError when a program ends meanwhile, or
    when it takes longer."""
    deadline = time.monotonic() + within_s
    while (found := look()) is None:
        for program in programs:
            if program.has_ended():
                raise BenchError(f"{program.name} ended:\n{program.log_text()[-2000:]}")
        if time.monotonic() > deadline:
            raise BenchError(f"waited {within_s:.0f} s for {what}")
        time.sleep(0.05)
    return found


def loopback(nats: NatsServer) -> Addresses:
    """The bus as it runs, and free ports for everything else."""
    commands, admin, controller, agent = (f"127.0.0.1:{port}" for port in free_ports(4))
    return Addresses(nats.url, commands, admin, controller, agent)


# ---- costs of a process, from /proc ----


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes. Shared pages count in full in `resident`, by their share in `proportional`."""

    resident: int
    proportional: int
    private: int

    def __add__(self, other: "Memory") -> "Memory":
        return Memory(
            self.resident + other.resident,
            self.proportional + other.proportional,
            self.private + other.private,
        )


def memory_of(pid: int) -> Memory:
    kib = dict.fromkeys(("Rss:", "Pss:", "Private_Clean:", "Private_Dirty:"), 0)
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, amount = line.split()[:2]
        if name in kib:
            kib[name] = int(amount)
    private = kib["Private_Clean:"] + kib["Private_Dirty:"]
    return Memory(kib["Rss:"] * 1024, kib["Pss:"] * 1024, private * 1024)


def memory_after(code: str) -> Memory:
    """Of a fresh Python that has run these lines and waits since."""
    command = (sys.executable, "-c", f"{code}\nprint(flush=True)\ninput()")
    with subprocess.Popen(
        dying_with_us(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        if not process.stdout.readline():
            raise BenchError(f"Python ended before it had run {code!r}")
        memory = memory_of(process.pid)
        process.stdin.write(b"\n")
    return memory


class MemoryGroup:
    """`with MemoryGroup() as group:` a control group, whose pages the kernel counts once each.

    Without root, or without a memory controller, there is none and it says nothing.
    """

    def __init__(self) -> None:
        name = f"hrapaq-bench-{os.getpid()}"
        self._version_1 = Path("/sys/fs/cgroup/memory").is_dir()
        self._place = Path("/sys/fs/cgroup", "memory" if self._version_1 else "", name)
        self._there = False

    def __enter__(self) -> Self:
        with contextlib.suppress(OSError):
            self._place.mkdir()
            self._there = True
        return self

    def __exit__(self, *_: object) -> None:
        if self._there:
            self._place.rmdir()

    def command(self, words: Sequence[str]) -> Sequence[str]:
        """The same command, begun inside."""
        if not self._there:
            return words
        return ("sh", "-c", 'echo $$ >"$0" && exec "$@"', str(self._place / "cgroup.procs"), *words)

    def usage(self) -> tuple[int, int] | None:
        """Bytes: all of it, and what is no cache of files."""
        names = (
            ("memory.usage_in_bytes", ("total_cache",))
            if self._version_1
            else ("memory.current", ("file",))
        )
        try:
            total = int((self._place / names[0]).read_text())
            lines = (self._place / "memory.stat").read_text().splitlines()
        except OSError:
            return None
        counted = {name: int(amount) for name, amount in map(str.split, lines)}
        return total, total - sum(counted[name] for name in names[1])


def cpu_seconds(pid: int) -> float:
    """User and system time of all threads so far; the kernel counts it in hundredths."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / TICKS_PER_S


def children_of(pid: int) -> list[int]:
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        found += map(int, path.read_text().split())
    return found


# ---- tables ----


def say(line: str = "") -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def say_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """The first column to the left, figures to the right."""
    widths = [max(len(row[i]) for row in (heads, *rows)) for i in range(len(heads))]
    for row in (heads, *rows):
        first, *figures = row
        cells = [first.ljust(widths[0])]
        cells += [each.rjust(width) for each, width in zip(figures, widths[1:], strict=True)]
        say("  ".join(cells).rstrip())
    say()


def machine() -> str:
    load = os.getloadavg()[0]
    words = f"{os.cpu_count()} cores ({_cpu_model()}), load {load:.1f} at the start"
    return f"{words}, Linux {platform.release()}, Python {platform.python_version()}"


def mib(amount_bytes: float) -> str:
    return f"{amount_bytes / MIB:.1f}"


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of the values does not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def _cpu_model() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
