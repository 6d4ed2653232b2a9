"""The machine's own readings from /proc and /sys; parsers are pure, the root is a parameter.

psutil is not used here: its /proc is one global for the whole process, it gives seconds as floats
where counters are integers, and it knows no PSI. What remains is a few short text formats.
A file that is missing or unreadable leaves its fields None and nothing else.
"""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from agent.need import Look
from agent.sample import NodeCounters

_SECTOR_BYTES = 512  # the unit of diskstats, whatever the disk's own sectors are
_KIB = 1024
_DISKSTATS_FIELDS_MIN = 14
_DECIMAL = re.compile(r"[0-9]{1,15}(\.[0-9]{1,9})?")
_MEMINFO_HEAD = 256  # characters; MemTotal and MemAvailable stand in the first three lines
_LOOK_BYTES = 64 * 1024  # of /proc/stat; all CPUs of the largest machines stand before that
_PARAVIRTUAL_CLOCKS = frozenset({"kvm-clock", "xen"})
_NET_DEV_FIELDS_MIN = 9  # of an interface: received bytes are the first, sent ones the ninth


def read_counters(root: Path) -> NodeCounters:
    """One reading of the machine below `root` ("/" on a real one)."""
    proc = root / "proc"
    memory = parse_meminfo(_text(proc / "meminfo"))
    stat = _text(proc / "stat")
    used_ns, steal_ns = parse_stat_cpu(stat, os.sysconf("SC_CLK_TCK"))
    memory_pressure = _text(proc / "pressure/memory")
    return NodeCounters(
        memory_total_bytes=memory.get("MemTotal"),
        memory_available_bytes=memory.get("MemAvailable"),
        swap_used_bytes=_difference(memory.get("SwapTotal"), memory.get("SwapFree")),
        cpu_count=count_cpus(stat),
        cpu_used_ns=used_ns,
        cpu_steal_ns=steal_ns,
        io_bytes=parse_diskstats(_text(proc / "diskstats"), with_a_device(root / "sys/block")),
        cpu_pressure_us=parse_pressure(_text(proc / "pressure/cpu")),
        memory_pressure_us=parse_pressure(memory_pressure),
        io_pressure_us=parse_pressure(_text(proc / "pressure/io")),
        memory_pressure_full_us=parse_pressure(memory_pressure, "full"),
        net_bytes=parse_net_dev(_text(proc / "net/dev"), with_a_device(root / "sys/class/net")),
        load_milli=parse_loadavg(_text(proc / "loadavg")),
        uptime_ns=parse_uptime(_text(proc / "uptime")),
    )


class LookReader:
    """The little that is read twice a second. Its files stay open: to open them costs five times
    as much as to read them. `cpu_pressure`: whether to read that, too."""

    def __init__(self, root: Path, *, cpu_pressure: bool = True) -> None:
        self._proc = root / "proc"
        self._reads_cpu_pressure = cpu_pressure
        self._ticks_per_s = os.sysconf("SC_CLK_TCK")
        self._descriptors: dict[str, int] = {}

    def look(self, tick_ns: int) -> Look:
        memory = parse_meminfo(self._text("meminfo")[:_MEMINFO_HEAD])
        stat = self._text("stat")
        used_ns, steal_ns = parse_stat_cpu(stat, self._ticks_per_s)
        runnable = parse_runnable(stat)
        waits = parse_pressure(self._text("pressure/cpu")) if self._reads_cpu_pressure else None
        return Look(
            tick_ns,
            memory_total_bytes=memory.get("MemTotal"),
            memory_available_bytes=memory.get("MemAvailable"),
            memory_pressure_us=parse_pressure(self._text("pressure/memory")),
            cpu_count=count_cpus(stat),
            cpu_used_ns=used_ns,
            cpu_steal_ns=steal_ns,
            cpu_pressure_us=waits,
            runnable=None if runnable is None else max(0, runnable - 1),
        )

    def close(self) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()

    def _text(self, name: str) -> str:
        try:
            descriptor = self._descriptors.get(name)
            if descriptor is None:
                descriptor = os.open(self._proc / name, os.O_RDONLY | os.O_CLOEXEC)
                self._descriptors[name] = descriptor
            return os.pread(descriptor, _LOOK_BYTES, 0).decode(errors="replace")
        except OSError:
            return ""


def has_steal_clock(root: Path) -> bool:
    """Whether the hypervisor tells this VM what it gave to others: those that give a clock do.
    Bare emulation does neither, and steal stays 0 whatever is taken."""
    clocks = _text(root / "sys/devices/system/clocksource/clocksource0/available_clocksource")
    return any(name in _PARAVIRTUAL_CLOCKS for name in clocks.split())


def parse_meminfo(text: str) -> dict[str, int]:
    """/proc/meminfo: name -> bytes; lines of another form are left out."""
    amounts: dict[str, int] = {}
    for line in text.splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        if words and words[0].isdecimal():
            amounts[name] = int(words[0]) * (_KIB if words[1:] == ["kB"] else 1)
    return amounts


def parse_stat_cpu(text: str, ticks_per_s: int) -> tuple[int | None, int | None]:
    """/proc/stat: (used, stolen) nanoseconds of all CPUs since boot.

    Used is user, nice, system, irq and softirq; guests' time is inside user and nice already.
    """
    for line in text.splitlines():
        if not line.startswith("cpu "):
            continue
        ticks = [int(word) for word in line.split()[1:] if word.isdecimal()]
        if len(ticks) < 7:  # noqa: PLR2004 - the columns up to softirq
            break
        used = ticks[0] + ticks[1] + ticks[2] + ticks[5] + ticks[6]
        tick_ns = 1_000_000_000 // ticks_per_s
        return used * tick_ns, ticks[7] * tick_ns if len(ticks) > 7 else None  # noqa: PLR2004
    return None, None


def count_cpus(text: str) -> int | None:
    """/proc/stat: CPUs that are online."""
    count = sum(1 for line in text.splitlines() if line[:3] == "cpu" and line[3:4].isdecimal())
    return count or None


def parse_pressure(text: str, kind: str = "some") -> int | None:
    """A PSI file: microseconds in which some task waited, or with "full" none could go on, since
    boot; None when the file does not say."""
    for line in text.splitlines():
        words = line.split()
        if words[:1] != [kind]:
            continue
        for pair in words[1:]:
            name, _, amount = pair.partition("=")
            if name == "total" and amount.isdecimal():
                return int(amount)
    return None


def parse_diskstats(text: str, disks: Iterable[str]) -> int | None:
    """/proc/diskstats: bytes read and written by the named disks since boot; None without any."""
    wanted = frozenset(disks)
    sectors: int | None = None
    for line in text.splitlines():
        words = line.split()
        if len(words) < _DISKSTATS_FIELDS_MIN or words[2] not in wanted:
            continue
        if words[5].isdecimal() and words[9].isdecimal():
            sectors = (sectors or 0) + int(words[5]) + int(words[9])
    return None if sectors is None else sectors * _SECTOR_BYTES


def parse_net_dev(text: str, interfaces: Iterable[str]) -> int | None:
    """/proc/net/dev: bytes received and sent by the named interfaces; None without any."""
    wanted = frozenset(interfaces)
    total: int | None = None
    for line in text.splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        if name.strip() not in wanted or len(words) < _NET_DEV_FIELDS_MIN:
            continue
        if words[0].isdecimal() and words[8].isdecimal():
            total = (total or 0) + int(words[0]) + int(words[8])
    return total


def parse_loadavg(text: str) -> int | None:
    """/proc/loadavg: mean number of runnable tasks over the last minute, in thousandths."""
    load = _decimal(text.split()[:1])
    return None if load is None else round(load * 1000)


def parse_runnable(text: str) -> int | None:
    """/proc/stat: tasks that run or wait for a CPU at the moment."""
    _, found, rest = text.rpartition("\nprocs_running ")  # after a long line: from the end
    words = rest.split(maxsplit=1) if found else []
    return int(words[0]) if words and words[0].isdecimal() else None


def parse_uptime(text: str) -> int | None:
    """/proc/uptime: nanoseconds since boot, to a hundredth of a second."""
    uptime_s = _decimal(text.split()[:1])
    return None if uptime_s is None else round(uptime_s * 100) * 10_000_000


def with_a_device(sys_class: Path) -> tuple[str, ...]:
    """Disks of /sys/block or interfaces of /sys/class/net that are devices: others (loop, dm, md,
    zram; bridges, bonds, taps) count the same bytes twice or none that leave the machine."""
    try:
        names = sorted(entry.name for entry in sys_class.iterdir())
    except OSError:
        return ()
    return tuple(name for name in names if (sys_class / name / "device").exists())


def _text(path: Path) -> str:
    """The file, or nothing: PSI files also exist where the kernel then refuses to read them."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _difference(total: int | None, part: int | None) -> int | None:
    return None if total is None or part is None else max(0, total - part)


def _decimal(words: list[str]) -> float | None:
    """The one word as a number that is not negative, as in `12.34`; None where it is none."""
    return float(words[0]) if len(words) == 1 and _DECIMAL.fullmatch(words[0]) else None
