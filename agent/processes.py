"""What this machine's processes do together, by role: from /proc/PID/stat, once per sample.

Only numbers and names of the table (agent.roles) come out of here: arguments, environments and
paths are not even opened, and a process's own name goes no further than its look-up. A process
that is not ours to see (hidepid) counts as unread. What a process used that began and ended
between two samples is in no role: it is what the machine's use has above the sum of them.
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from agent.roles import AGENT, KERNEL, UNREAD, role_of
from shared.clock import SECOND_NS
from shared.telemetry import RoleUse

PROCESSES_MAX = 2048  # read per sample, those with the lowest numbers: 15 us each

_KERNEL_THREAD = 0x0020_0000  # PF_KTHREAD in the flags: no process can give itself that
_FIELDS_MIN = 22  # after the name: state is the first, resident pages the last that is read
_STAT_BYTES_MAX = 1024


@dataclass(frozen=True, slots=True)
class Process:
    """One line of /proc/PID/stat."""

    pid: int
    parent_pid: int
    comm: str
    flags: int
    cpu_ticks: int  # counter, user and system
    started_ticks: int  # since boot; with the pid, who it is
    resident_pages: int


@dataclass(frozen=True, slots=True)
class Seen:
    """What is kept of a look for the next one."""

    tick_ns: int
    cpu_ticks: Mapping[tuple[int, int], int]  # by pid and start
    newest_started_ticks: int


class ProcessWatch:
    """Reads the processes below `root`; `own_pid` and its children are the agent.

    A look sooner than `interval_ns_min` after the last one brings what that one brought: samples
    out of turn need no processes, and ticks of 10 ms say little of a short while.
    """

    def __init__(
        self, root: Path, own_pid: int, interval_ns_min: int = 0, processes_max: int = PROCESSES_MAX
    ) -> None:
        self._proc = root / "proc"
        self._own_pid = own_pid
        self._interval_ns_min = interval_ns_min
        self._processes_max = processes_max
        self._seen: Seen | None = None
        self._found: tuple[RoleUse, ...] = ()
        self._units = Units(os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE"))

    def look(self, tick_ns: int) -> tuple[RoleUse, ...]:
        """Use by role since the last look; CPU is unknown at the first."""
        if self._seen is not None and tick_ns - self._seen.tick_ns < self._interval_ns_min:
            return self._found
        processes, unread = read_processes(self._proc, self._processes_max)
        found = uses(self._seen, processes, tick_ns, self._own_pid, self._units)
        self._found = (*found, RoleUse(UNREAD, unread)) if unread else found
        self._seen = seen_of(processes, tick_ns)
        return self._found


@dataclass(frozen=True, slots=True)
class Units:
    ticks_per_s: int
    page_bytes: int


def read_processes(proc: Path, processes_max: int = PROCESSES_MAX) -> tuple[list[Process], int]:
    """Those that can be read, lowest numbers first, and how many were left unread."""
    try:
        # Plain names: a path object for each of thousands would cost as much as its file.
        pids = sorted(int(name) for name in os.listdir(proc) if name.isdecimal())  # noqa: PTH208
    except OSError:
        return [], 0
    found, unread = [], max(0, len(pids) - processes_max)
    for pid in pids[:processes_max]:
        try:
            process = parse_stat(pid, _read(f"{proc}/{pid}/stat"))
        except PermissionError:
            unread += 1
            continue
        except OSError:
            continue  # ended since
        if process is not None:
            found.append(process)
    return found, unread


def parse_stat(pid: int, data: bytes) -> Process | None:
    """/proc/PID/stat; None for a text of another form. A name may hold blanks and brackets."""
    head, _, rest = data.rpartition(b")")
    _, _, comm = head.partition(b"(")
    words = rest.split()
    if len(words) < _FIELDS_MIN:
        return None
    try:
        return Process(
            pid,
            parent_pid=int(words[1]),
            comm=comm.decode(errors="replace"),
            flags=int(words[6]),
            cpu_ticks=int(words[11]) + int(words[12]),
            started_ticks=int(words[19]),
            resident_pages=max(0, int(words[21])),
        )
    except ValueError:
        return None


def uses(
    before: Seen | None, now: Iterable[Process], tick_ns: int, own_pid: int, units: Units
) -> tuple[RoleUse, ...]:
    """Sums by role, in the order of their names."""
    interval_ns = 0 if before is None else tick_ns - before.tick_ns
    sums: dict[str, list[int]] = {}  # role -> processes, ticks, pages
    for process in now:
        of_role = sums.setdefault(_role(process, own_pid), [0, 0, 0])
        of_role[0] += 1
        of_role[1] += _ticks_since(before, process)
        of_role[2] += process.resident_pages
    return tuple(
        RoleUse(
            role,
            count,
            _millicores(ticks, interval_ns, units.ticks_per_s),
            pages * units.page_bytes,
        )
        for role, (count, ticks, pages) in sorted(sums.items())
    )


def seen_of(processes: Iterable[Process], tick_ns: int) -> Seen:
    ticks = {(one.pid, one.started_ticks): one.cpu_ticks for one in processes}
    return Seen(tick_ns, ticks, max((started for _, started in ticks), default=0))


def _role(process: Process, own_pid: int) -> str:
    if own_pid in (process.pid, process.parent_pid):
        return AGENT
    return KERNEL if process.flags & _KERNEL_THREAD else role_of(process.comm)


def _ticks_since(before: Seen | None, process: Process) -> int:
    """CPU since the last look. A process that began since has used all of it in between; one
    that is older and was not seen then, because there were too many, is known from now on."""
    if before is None:
        return 0
    earlier = before.cpu_ticks.get((process.pid, process.started_ticks))
    if earlier is not None:
        return max(0, process.cpu_ticks - earlier)
    return process.cpu_ticks if process.started_ticks >= before.newest_started_ticks else 0


def _millicores(ticks: int, interval_ns: int, ticks_per_s: int) -> int | None:
    if interval_ns <= 0:
        return None
    return ticks * 1000 * SECOND_NS // (ticks_per_s * interval_ns)


def _read(path: str) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(descriptor, _STAT_BYTES_MAX)
    finally:
        os.close(descriptor)
