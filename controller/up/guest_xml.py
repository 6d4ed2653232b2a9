"""A demo guest as libvirt reads it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from xml.sax.saxutils import escape

from controller.up.owner import Owner
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
    <serial type='file'><source path='{_text(console)}' append='on'/></serial>
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
