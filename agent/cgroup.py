"""Control groups, version 1, version 2 and both at once; text formats pure, paths as parameters.

What is read or written is the group of one whole VM. Below it libvirt makes groups for threads
(emulator, vcpuN, iothreadN, and `libvirt` between them under systemd), whose names are stripped.
A group that other processes share is not the VM's: reading it would blame the VM for its
neighbours, and writing it would throttle them, so such a controller counts as missing.
A file that is missing or unreadable is None; a write that fails raises HypervisorError.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from agent.procfs import parse_pressure
from agent.sample import VmPressure
from shared.errors import HypervisorError

PERIOD_US = 100_000  # the kernel's own default; short enough that no vCPU waits longer than this
QUOTA_US_MIN = 1_000  # the kernel refuses less
V1_CONTROLLERS = ("cpu", "cpuacct", "memory", "blkio")
UNIFIED = ""  # how /proc/PID/cgroup names the one hierarchy of version 2

_THREAD_GROUP = re.compile(r"emulator|libvirt|vcpu\d+|iothread\d+")
_VM_GROUP = re.compile(r"machine-qemu.*\.scope|.*\.libvirt-qemu")
# cpu.shares has 1024 where cpu.weight has 100.
_SHARES_DEFAULT = 1024
_WEIGHT_DEFAULT = 100


@dataclass(frozen=True, slots=True)
class Mounts:
    """Where the hierarchies are mounted, below the root that was asked."""

    unified: Path | None
    v1: Mapping[str, Path]  # controller -> mount point


@dataclass(frozen=True, slots=True)
class Place:
    directory: Path
    version: int  # 1 or 2


class Cgroup:
    """One VM's groups, by controller: "cpu", "cpuacct", "memory", "blkio", and "" (version 2)."""

    def __init__(self, places: Mapping[str, Place]) -> None:
        self.places = places

    def memory_used_bytes(self) -> int | None:
        place = self.places.get("memory")
        name = "memory.current" if place and place.version == 2 else "memory.usage_in_bytes"  # noqa: PLR2004
        return _number(self._read("memory", name))

    def memory_high_bytes(self) -> int | None:
        """Above it the group is slowed down; None without a limit, and on version 1."""
        directory = self._memory_directory()
        return None if directory is None else _number(read_text(directory / "memory.high"))

    def may_set_memory_high(self) -> bool:
        """Root may, and whoever was handed the file."""
        directory = self._memory_directory()
        return directory is not None and os.access(directory / "memory.high", os.W_OK)

    def set_memory_high_bytes(self, amount: int | None) -> None:
        """None lifts it. Blocks while the kernel reclaims, where it is below what is used."""
        directory = self._memory_directory()
        if directory is None:
            raise HypervisorError("the VM has no memory control group of its own on cgroup v2")
        write_text(directory / "memory.high", "max" if amount is None else str(amount))

    def cpu_used_ns(self) -> int | None:
        """Counter of the whole VM, QEMU's own threads included."""
        place = self.places.get("cpuacct")
        if place is None or place.version == 1:
            return _number(self._read("cpuacct", "cpuacct.usage"))
        used_us = parse_flat(self._read("cpuacct", "cpu.stat")).get("usage_usec")
        return None if used_us is None else used_us * 1000

    def pressure(self) -> VmPressure:
        """PSI "some"; also where version 2 is mounted beside version 1 without controllers."""
        cpu, memory, io = (
            parse_pressure(self._read(UNIFIED, f"{name}.pressure") or "")
            for name in ("cpu", "memory", "io")
        )
        return VmPressure(cpu_us=cpu, memory_us=memory, io_us=io)

    def cpu_quota_millicores(self) -> int | None:
        """None without a quota or without the controller."""
        if self._version("cpu") == 2:  # noqa: PLR2004
            return parse_cpu_max(self._read("cpu", "cpu.max") or "")
        quota_us = _number(self._read("cpu", "cpu.cfs_quota_us"))
        period_us = _number(self._read("cpu", "cpu.cfs_period_us"))
        return quota_to_millicores(quota_us, period_us)

    def set_cpu_quota_millicores(self, millicores: int | None) -> None:
        """For all threads of the VM together; None lifts it."""
        if self._version("cpu") == 2:  # noqa: PLR2004
            self._write("cpu", "cpu.max", format_cpu_max(millicores))
            return
        quota_us = -1 if millicores is None else millicores_to_quota(millicores)
        if quota_us > 0:
            self._write("cpu", "cpu.cfs_period_us", str(PERIOD_US))
        self._write("cpu", "cpu.cfs_quota_us", str(quota_us))

    def cpu_weight(self) -> int | None:
        """On version 2's scale: 1 to 10,000, 100 is the default."""
        if self._version("cpu") == 2:  # noqa: PLR2004
            return _number(self._read("cpu", "cpu.weight"))
        shares = _number(self._read("cpu", "cpu.shares"))
        return None if shares is None else max(1, shares * _WEIGHT_DEFAULT // _SHARES_DEFAULT)

    def set_cpu_weight(self, weight: int) -> None:
        if self._version("cpu") == 2:  # noqa: PLR2004
            self._write("cpu", "cpu.weight", str(weight))
        else:
            shares = max(2, weight * _SHARES_DEFAULT // _WEIGHT_DEFAULT)
            self._write("cpu", "cpu.shares", str(shares))

    def io_limit_bytes_per_s(self, device: str) -> int | None:
        """The limit on `device` ("8:0"): of reads or of writes, whichever is higher."""
        if self._version("blkio") == 2:  # noqa: PLR2004
            return parse_io_max(self._read("blkio", "io.max") or "", device)
        directions = (
            parse_throttle(self._read("blkio", f"blkio.throttle.{way}_bps_device") or "", device)
            for way in ("read", "write")
        )
        return _both(*directions)

    def set_io_limit_bytes_per_s(self, device: str, amount: int | None) -> None:
        """The kernel knows no limit on reads and writes together: each way gets the amount.

        Version 1 does not see buffered writes, which the kernel's own threads carry out later.
        """
        if self._version("blkio") == 2:  # noqa: PLR2004
            self._write("blkio", "io.max", format_io_max(device, amount))
            return
        for way in ("read", "write"):
            name = f"blkio.throttle.{way}_bps_device"
            self._write("blkio", name, f"{device} {amount or 0}")

    def _memory_directory(self) -> Path | None:
        """Under systemd the scope's own files are systemd's, and what is below it is libvirt's."""
        place = self.places.get("memory")
        if place is None or place.version != 2:  # noqa: PLR2004
            return None
        below = place.directory / "libvirt"
        return below if below.is_dir() else place.directory

    def _version(self, controller: str) -> int | None:
        place = self.places.get(controller)
        return None if place is None else place.version

    def _read(self, controller: str, name: str) -> str | None:
        place = self.places.get(controller)
        return None if place is None else read_text(place.directory / name)

    def _write(self, controller: str, name: str, text: str) -> None:
        place = self.places.get(controller)
        if place is None:
            raise HypervisorError(f"the VM has no {controller} control group of its own")
        write_text(place.directory / name, text)


def vm_cgroup(root: Path, pid: int) -> Cgroup:
    """The groups that belong to the VM whose process is `pid`, as far as it has its own."""
    mounts = parse_mounts(read_text(root / "proc/mounts") or "", root)
    membership = parse_membership(read_text(root / f"proc/{pid}/cgroup") or "")
    places: dict[str, Place] = {}
    unified = _own_directory(mounts.unified, membership.get(UNIFIED), pid)
    if unified is not None:
        places[UNIFIED] = Place(unified, 2)
        places.update(dict.fromkeys(_unified_controllers(unified), places[UNIFIED]))
    for controller in V1_CONTROLLERS:
        directory = _own_directory(mounts.v1.get(controller), membership.get(controller), pid)
        if directory is not None:
            places[controller] = Place(directory, 1)
    return Cgroup(places)


def memory_guard_reason(root: Path) -> str:
    """Why this machine has no memory.high for VMs; "" when it has: it came with version 2."""
    unified = parse_mounts(read_text(root / "proc/mounts") or "", root).unified
    if unified is not None and "memory" in _unified_controllers(unified):
        return ""
    return "memory.high needs cgroup v2 with its memory controller; v1 has nothing like it"


def vm_group(path: str) -> str:
    """The VM's group of a thread's: `.../qemu-1-a.libvirt-qemu/vcpu0` -> without the vcpu0."""
    pure = PurePosixPath(path)
    while _THREAD_GROUP.fullmatch(pure.name):
        pure = pure.parent
    return str(pure)


def parse_mounts(text: str, root: Path) -> Mounts:
    """/proc/mounts; the first mount of a hierarchy counts."""
    unified: Path | None = None
    v1: dict[str, Path] = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) < 4:  # noqa: PLR2004 - device, mount point, type, options
            continue
        where = root / words[1].lstrip("/")
        if words[2] == "cgroup2" and unified is None:
            unified = where
        elif words[2] == "cgroup":
            for controller in set(words[3].split(",")) & set(V1_CONTROLLERS):
                v1.setdefault(controller, where)
    return Mounts(unified, v1)


def parse_membership(text: str) -> dict[str, str]:
    """/proc/PID/cgroup: controller -> path; the key is "" for version 2."""
    membership: dict[str, str] = {}
    for line in text.splitlines():
        fields = line.split(":", 2)
        if len(fields) == 3:  # noqa: PLR2004 - id, controllers, path
            membership.update(dict.fromkeys(fields[1].split(","), fields[2]))
    return membership


def parse_flat(text: str | None) -> dict[str, int]:
    """Lines of `name number`, like cpu.stat."""
    pairs = (line.split() for line in (text or "").splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdecimal()}  # noqa: PLR2004


def quota_to_millicores(quota_us: int | None, period_us: int | None) -> int | None:
    if quota_us is None or period_us is None or quota_us <= 0 or period_us <= 0:
        return None
    return quota_us * 1000 // period_us


def millicores_to_quota(millicores: int) -> int:
    """Microseconds of each 100 ms; never less than the kernel takes."""
    return max(QUOTA_US_MIN, millicores * PERIOD_US // 1000)


def parse_cpu_max(text: str) -> int | None:
    quota, _, period = text.strip().partition(" ")
    return quota_to_millicores(_number(quota), _number(period))


def format_cpu_max(millicores: int | None) -> str:
    quota = "max" if millicores is None else str(millicores_to_quota(millicores))
    return f"{quota} {PERIOD_US}"


def parse_io_max(text: str, device: str) -> int | None:
    for line in text.splitlines():
        name, *pairs = line.split() or [""]
        if name == device:
            limits = dict(pair.partition("=")[::2] for pair in pairs)
            return _both(_number(limits.get("rbps")), _number(limits.get("wbps")))
    return None


def format_io_max(device: str, amount: int | None) -> str:
    limit = "max" if amount is None else str(amount)
    return f"{device} rbps={limit} wbps={limit}"


def parse_throttle(text: str, device: str) -> int | None:
    """blkio.throttle.*_bps_device: lines of `8:0 1048576`."""
    for line in text.splitlines():
        words = line.split()
        if words[:1] == [device] and len(words) == 2:  # noqa: PLR2004
            return _number(words[1]) or None
    return None


def backing_device(root: Path, path: Path) -> str | None:
    """The whole disk ("8:0") under a disk image or block device; None where none can be named,
    as on overlayfs, btrfs, tmpfs and network file systems: limits on a partition are refused."""
    try:
        status = path.stat()
    except OSError:
        return None
    number = status.st_rdev if path.is_block_device() else status.st_dev
    entry = root / "sys/dev/block" / f"{os.major(number)}:{os.minor(number)}"
    if not entry.exists():
        return None
    entry = entry.resolve()
    whole = entry.parent if (entry / "partition").exists() else entry
    return (read_text(whole / "dev") or "").strip() or None


def device_node(root: Path, device: str) -> str | None:
    """/dev/vda of "254:0", for whoever asks for a path."""
    for line in (read_text(root / f"sys/dev/block/{device}/uevent") or "").splitlines():
        if line.startswith("DEVNAME="):
            return f"/dev/{line.removeprefix('DEVNAME=')}"
    return None


def read_text(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return None


def write_text(path: Path, text: str) -> None:
    try:
        path.write_text(text)
    except OSError as error:
        raise HypervisorError(f"cannot write {text!r} to {path}: {error.strerror}") from error


def _own_directory(mount: Path | None, path: str | None, pid: int) -> Path | None:
    if mount is None or path is None:
        return None
    group = vm_group(path)
    directory = mount / group.lstrip("/")
    if group == "/" or not directory.is_dir():
        return None
    named = _VM_GROUP.fullmatch(directory.name) is not None
    return directory if named or processes_below(directory) == {pid} else None


def processes_below(directory: Path) -> set[int]:
    """Processes in a group and its children; threaded children of version 2 refuse to say."""
    found: set[int] = set()
    for file in directory.rglob("cgroup.procs"):
        found.update(int(word) for word in (read_text(file) or "").split() if word.isdecimal())
    return found


def _unified_controllers(directory: Path) -> set[str]:
    """Which of version 1's names version 2 serves here; cpu time is always counted."""
    words = set((read_text(directory / "cgroup.controllers") or "").split())
    names = {"cpu": "cpu", "memory": "memory", "io": "blkio"}
    served = {name for word, name in names.items() if word in words}
    return served | ({"cpuacct"} if (directory / "cpu.stat").exists() else set())


def _number(text: str | None) -> int | None:
    """A whole number, or None for anything else, "max" included."""
    try:
        return int(text) if text is not None else None
    except ValueError:
        return None


def _both(read: int | None, write: int | None) -> int | None:
    """One limit of two: only where both ways are limited is the traffic."""
    return None if read is None or write is None else max(read, write)
