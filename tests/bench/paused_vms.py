"""Many VMs that cost next to nothing: real QEMU processes under the real libvirt, never resumed.

To libvirt they are active domains: each bulk reading asks every QEMU's monitor for its balloon,
vCPUs and disk, as it does for a VM that works. What they lack is a guest whose balloon driver
reports memory statistics.
"""

import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from measuring import MIB, say

from controller.up.libvirtd import Libvirt, connect, guarded, require_libvirt
from controller.up.probe import require_qemu
from shared.errors import GuestsUnavailable, HypervisorError

NAME_PREFIX = "hrapaq-bench-"
MEMORY_MIB = 32
CREATE_DEADLINE_S = 120.0  # the first one after a change of QEMU waits for its abilities
DESTROY_DEADLINE_S = 30.0
DESTROYED_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class Vms:
    """What the agent is pointed at. `daemon`: libvirtd's process id; None: there is none."""

    uri: str
    count: int
    what: str  # for the table, in plain words
    connection: Any  # our own, to compare calls; None without libvirt-python
    daemon: int | None


@contextmanager
def some_vms(count: int, directory: Path) -> Iterator[Vms]:
    """Paused QEMU guests, else domains of libvirt's test driver, else the simulated ones."""
    with ExitStack() as stack:
        try:
            vms = stack.enter_context(paused_guests(count, directory))
        except (GuestsUnavailable, HypervisorError) as error:
            stack.close()
            say(f"no real VMs: {error}")
            vms = stand_ins(count, directory)
        yield vms


@contextmanager
def paused_guests(count: int, directory: Path) -> Iterator[Vms]:
    """GuestsUnavailable or HypervisorError where they cannot be had; nothing is left behind."""
    require_qemu()
    libvirt = require_libvirt()
    # QEMU's own user must get at the disk, which it does not below a private directory.
    disks = Path(tempfile.mkdtemp(prefix="hrapaq-bench-", dir="/var/tmp"))
    disks.chmod(0o755)
    try:
        with Libvirt(directory / "libvirt", say) as daemons:
            connection = connect(daemons.uri)
            try:
                _create_all(connection, libvirt, count, disks)
                words = "QEMU guests under libvirt, TCG, paused, 32 MiB and one disk each"
                yield Vms(daemons.uri, count, words, connection, _daemon(daemons))
            finally:
                _destroy_all(daemons.uri, connection)
                connection.close()
    finally:
        shutil.rmtree(disks, ignore_errors=True)


def domain_xml(name: str, disk: Path) -> str:
    return f"""<domain type='qemu'>
  <name>{name}</name>
  <memory unit='MiB'>{MEMORY_MIB}</memory>
  <vcpu>1</vcpu>
  <os><type arch='x86_64' machine='pc'>hvm</type></os>
  <devices>
    <controller type='usb' model='none'/>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw'/>
      <source file='{escape(str(disk), {"'": "&apos;"})}'/>
      <target dev='vda' bus='virtio'/>
    </disk>
    <memballoon model='virtio'/>
  </devices>
</domain>"""


def _create_all(connection: Any, libvirt: Any, count: int, disks: Path) -> None:
    flags = libvirt.VIR_DOMAIN_START_AUTODESTROY | libvirt.VIR_DOMAIN_START_PAUSED
    for index in range(count):
        name = f"{NAME_PREFIX}{index:02}"
        disk = disks / f"{name}.raw"
        with disk.open("wb") as file:
            file.truncate(MIB)
        text = domain_xml(name, disk)
        guarded(
            lambda text=text: connection.createXML(text, flags),  # type: ignore[misc]
            CREATE_DEADLINE_S,
            f"creating {name}",
        )


def _destroy_all(uri: str, connection: Any) -> None:
    """Those of ours that are left, side by side: each takes QEMU two seconds.

    libvirt itself ends them when the connection that made them is gone.
    """
    domains = guarded(connection.listAllDomains, DESTROY_DEADLINE_S, "listing domains")
    ours = [domain.UUIDString() for domain in domains if domain.name().startswith(NAME_PREFIX)]
    with ThreadPoolExecutor(DESTROYED_AT_ONCE) as pool:
        list(pool.map(partial(_destroy, uri), ours))


def _destroy(uri: str, uuid: str) -> None:
    """On a connection of its own: libvirtd takes five requests of one client at once."""
    try:
        connection = connect(uri)
        domain = connection.lookupByUUIDString(uuid)
        guarded(domain.destroy, DESTROY_DEADLINE_S, "ending a VM")
        connection.close()
    except (HypervisorError, require_libvirt().libvirtError) as error:
        say(f"VM {uuid} could not be ended: {error}")


def _daemon(daemons: Libvirt) -> int | None:
    """Also where the machine's own libvirt is used, which then is the oldest of that name."""
    ours = [pid for name, pid in daemons.processes().items() if name != "virtlogd"]
    if ours:
        return ours[0]
    pids = (
        int(path.parent.name) for path in Path("/proc").glob("[0-9]*/comm") if _is_libvirt(path)
    )
    return min(pids, default=None)


def _is_libvirt(comm: Path) -> bool:
    try:
        return comm.read_text().strip() in {"libvirtd", "virtqemud"}
    except OSError:
        return False


def stand_ins(count: int, directory: Path) -> Vms:
    try:
        require_libvirt()
    except GuestsUnavailable as error:
        say(f"nor libvirt's test driver: {error}")
        return Vms(
            "simulated:7", 4, "SIMULATED VMs inside the agent: says nothing of libvirt", None, None
        )
    path = directory / "node.xml"
    domains = "".join(_test_domain(index) for index in range(count))
    path.write_text(f"<node>{domains}</node>")
    uri = f"test://{path}"
    words = "domains of libvirt's TEST driver inside the worker: no daemon, no QEMU"
    return Vms(uri, count, words, connect(uri), None)


def _test_domain(index: int) -> str:
    return f"""<domain type='test'>
  <name>{NAME_PREFIX}{index:02}</name>
  <memory unit='MiB'>{MEMORY_MIB}</memory>
  <os><type>hvm</type></os>
</domain>"""
