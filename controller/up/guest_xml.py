"""A demo guest as libvirt reads it. Pure but for `Owner`, which looks into /proc."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Self
from xml.sax.saxutils import escape

from controller.up.probe import Accelerator

MIB = 1 << 20
STATISTICS_PERIOD_S = 5


@dataclass(frozen=True)
class Guest:
    name: str
    uuid: str
    load: Literal["memory", "cpu", "disk", "idle"]
    parameters: Mapping[str, int] = field(default_factory=dict)  # of the init script, see there
    disk_mib: int = 0  # 0: no disk
    maximum_mib: int = 512
    current_mib: int = 256  # what the balloon leaves it at the start


@dataclass(frozen=True)
class Owner:
    """The process a guest belongs to; the start time tells it from a later one of the same id."""

    pid: int
    started_ticks: int

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


def owner_of(description: str) -> Owner | None:
    found = re.search(r"process (\d+) started at tick (\d+)", description)
    return Owner(int(found.group(1)), int(found.group(2))) if found else None


def domain_xml(
    guest: Guest,
    *,
    accelerator: Accelerator,
    directory: Path,
    console: Path,
    disk: Path | None = None,
    direct: bool = True,
) -> str:
    """directory: holds `kernel` and `initrd`. direct: the disk's file bypasses the page cache."""
    kind, cpu = ("kvm", "host-passthrough") if accelerator == "kvm" else ("qemu", "maximum")
    return f"""<domain type='{kind}'>
  <name>{guest.name}</name>
  <uuid>{guest.uuid}</uuid>
  <description>demo guest of hrapaq up, {Owner.this_process()}</description>
  <memory unit='MiB'>{guest.maximum_mib}</memory>
  <currentMemory unit='MiB'>{guest.current_mib}</currentMemory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='pc'>hvm</type>
    <kernel>{_text(directory / "kernel")}</kernel>
    <initrd>{_text(directory / "initrd")}</initrd>
    <cmdline>{escape(command_line(guest))}</cmdline>
  </os>
  <features><acpi/></features>
  <cpu mode='{cpu}'/>
  <on_poweroff>destroy</on_poweroff>
  <on_reboot>restart</on_reboot>
  <on_crash>destroy</on_crash>
  <devices>
    <controller type='usb' model='none'/>{_disk(disk, direct=direct)}
    <serial type='file'><source path='{_text(console)}'/></serial>
    <memballoon model='virtio' autodeflate='on' freePageReporting='on'>
      <stats period='{STATISTICS_PERIOD_S}'/>
    </memballoon>
  </devices>
</domain>
"""


def command_line(guest: Guest) -> str:
    """The kernel's: a panic restarts the guest, as an operator would."""
    parameters = {"load": guest.load, **guest.parameters}
    words = (f"hrapaq.{name}={value}" for name, value in parameters.items())
    return " ".join(("console=ttyS0 mitigations=off quiet panic=1", *words))


def _disk(path: Path | None, *, direct: bool) -> str:
    if path is None:
        return ""
    cache = "none" if direct else "writethrough"
    return f"""
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw' cache='{cache}'/>
      <source file='{_text(path)}'/>
      <target dev='vda' bus='virtio'/>
    </disk>"""


def _text(path: Path) -> str:
    return escape(str(path), {"'": "&apos;"})


def _started_ticks(pid: int) -> int | None:
    """Field 22 of /proc/PID/stat (clock ticks since boot); None where there is no such process."""
    try:
        line = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return int(line.rpartition(")")[2].split()[19])
