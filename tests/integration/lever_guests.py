"""Small real guests whose levers are moved, and what a test needs to see the effect."""

import asyncio
import contextlib
import dataclasses
import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

from agent.act import Executor
from agent.admission import Admitted
from agent.libvirt_host import LibvirtHypervisor
from agent.sampler import Sampler, Share
from agent.steps import Step, StepResult
from controller.up.image import GuestImage, Places, default_cache, prepare_image
from controller.up.libvirtd import Libvirt, connect
from controller.up.probe import probe_hypervisor, require_qemu
from shared.clock import SystemClock
from shared.errors import GuestsUnavailable
from shared.resources import MIB, Resource

DEADLINE_S = 180.0
DRIVERS = ("virtio_pci", "virtio_balloon", "virtio_blk", "virtio_mem", "virtio_net")
INIT = Path(__file__).with_name("lever_init.sh")
ROOT = Path("/")
HERE, THERE = "192.0.2.1", "192.0.2.2"  # addresses for documentation: nobody else has them

NETWORK = f"""<interface type='ethernet'>
 <source><ip address='{HERE}' family='ipv4' prefix='30'/></source>
 <target dev='hrapaq-lever'/><model type='virtio'/></interface>"""


@dataclasses.dataclass(frozen=True)
class Host:
    libvirt: Libvirt
    image: GuestImage
    kind: str  # of a domain, as libvirt names it


@dataclasses.dataclass(frozen=True)
class Spec:
    words: str = ""  # of the guest's kernel command line
    plugged_mib: int | None = None  # of 512 MiB of virtio-mem; None: without, but a balloon
    devices: str = ""
    cpus: str = ""  # of this machine that it may use, such as "0"


@contextlib.contextmanager
def host(folder: Path) -> Iterator[Host]:
    """GuestsUnavailable, with the reason, where no guest with these levers can be had."""
    if os.geteuid() != 0:
        raise GuestsUnavailable("an unprivileged hypervisor has no cgroups and no taps")
    require_qemu()
    image = prepare_image(Places(default_cache()), print, DRIVERS, INIT)
    demo = prepare_image(Places(default_cache()), print)
    with Libvirt(folder, print) as libvirt:
        found = probe_hypervisor(demo, default_cache(), print)
        yield Host(libvirt, image, "kvm" if found.accelerator == "kvm" else "qemu")


class Guest:
    """One guest, up as long as it is entered."""

    def __init__(self, on: Host, spec: Spec = Spec()) -> None:
        self.vm_id = str(uuid4())
        self._on = on
        self._spec = spec
        # Not pytest's own folder: QEMU's user cannot reach into that.
        self._folder = tempfile.TemporaryDirectory(prefix="hrapaq-lever-")
        self.folder = Path(self._folder.name)

    def __enter__(self) -> Self:
        self.folder.chmod(0o755)
        image = self._on.image
        for source, name in ((image.kernel, "kernel"), (image.initrd, "initrd")):
            shutil.copy(source, self.folder / name)
            (self.folder / name).chmod(0o644)
        with (self.folder / "disk").open("wb") as disk:
            disk.write(bytes(16 * MIB))
        self._connection: Any = connect(self._on.libvirt.uri)
        xml = domain_xml(self._on.kind, self._spec, self.vm_id, self.folder)
        self.domain = self._connection.createXML(xml, 0)
        try:
            wait_for(lambda: self.says("ready"), "the guest boots")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.domain.destroy()
        self._connection.close()
        self._folder.cleanup()

    def says(self, word: str) -> bool:
        console = self.folder / "console"
        return console.exists() and word in console.read_text(errors="replace")

    def requested_mib(self) -> int:
        """Of its virtio-mem device, as libvirt has it."""
        xml = str(self.domain.XMLDesc(0))
        return int(xml.split("<requested unit='KiB'>")[1].split("<", maxsplit=1)[0]) // 1024

    def cpu_s(self) -> float:
        """CPU time that its vCPU had so far."""
        (stats,) = self._connection.domainListGetStats([self.domain])
        return float(stats[1]["vcpu.0.time"]) / 1e9

    def written_bytes(self) -> int:
        return int(self.domain.blockStats("vda")[3])


def domain_xml(kind: str, spec: Spec, vm_id: str, folder: Path) -> str:
    total, memory, numa, most = 512, "", "", ""
    if spec.plugged_mib is not None:
        total, most = 256 + 512, "<maxMemory slots='2' unit='MiB'>1024</maxMemory>"
        numa = "<numa><cell id='0' cpus='0' memory='256' unit='MiB'/></numa>"
        memory = f"""<memory model='virtio-mem'><target><size unit='MiB'>512</size><node>0</node>
         <block unit='MiB'>4</block><requested unit='MiB'>{spec.plugged_mib}</requested>
        </target></memory>"""
    cpuset = f" cpuset='{spec.cpus}'" if spec.cpus else ""
    mode = "host-passthrough" if kind == "kvm" else "maximum"
    devices = spec.devices.format(folder=folder)
    words = "console=ttyS0 mitigations=off quiet panic=1 memhp_default_state=online_movable"
    return f"""<domain type='{kind}'><name>hrapaq-lever-{vm_id[:8]}</name><uuid>{vm_id}</uuid>
    {most}<memory unit='MiB'>{total}</memory>
    <vcpu{cpuset}>1</vcpu>
    <os><type arch='x86_64' machine='pc'>hvm</type><kernel>{folder}/kernel</kernel>
     <initrd>{folder}/initrd</initrd><cmdline>{words} {spec.words}</cmdline></os>
    <features><acpi/></features><cpu mode='{mode}'>{numa}</cpu>
    <devices><controller type='usb' model='none'/>
     <serial type='file'><source path='{folder}/console'/></serial>{memory}{devices}
     <memballoon model='virtio' freePageReporting='on'><stats period='1'/></memballoon>
    </devices></domain>"""


DISK = """<disk type='file' device='disk'><driver name='qemu' type='raw' cache='none'/>
 <source file='{folder}/disk'/><target dev='vda' bus='virtio'/></disk>"""


def wait_for(condition: Callable[[], object], what: str) -> None:
    until = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < until, f"not within {DEADLINE_S} s: {what}"
        time.sleep(0.1)


def play(
    on: Host,
    scenario: Callable[[LibvirtHypervisor], Coroutine[Any, Any, None]],
    kind: type[LibvirtHypervisor] = LibvirtHypervisor,
) -> None:
    async def with_hypervisor() -> None:
        # A worker of libvirt that starts on a busy or nested machine takes its time.
        hypervisor = kind(on.libvirt.uri, SystemClock(), call_budget_s=30)
        try:
            await scenario(hypervisor)
        finally:
            await hypervisor.close()

    asyncio.run(with_hypervisor())


async def until(condition: Callable[[], Coroutine[Any, Any, object]], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not await condition():
        assert time.monotonic() < deadline, f"not within {DEADLINE_S} s: {what}"
        await asyncio.sleep(0.2)


async def moves(
    hypervisor: Any, vm_id: str, from_mib: int, to_mib: int, deadline_ms: int = 30_000
) -> tuple[StepResult, Executor]:
    """One step of memory, as a command would bring it."""
    clock = SystemClock()
    sampler = Sampler(ROOT, hypervisor, clock, Share(memory_bytes=8192 * MIB))
    executor = Executor(hypervisor, clock, sampler.sample_of)

    async def is_heard() -> bool:
        return (await sampler.readings()).vms[vm_id].memory_used_bytes is not None

    await until(is_heard, "fresh guest statistics")
    step = Step(0, vm_id, Resource.MEMORY, from_mib * MIB, to_mib * MIB, deadline_ms=deadline_ms)
    readings = await sampler.readings()
    (result,) = await executor.carry_out([Admitted(step)], readings, lambda _step: None)
    return result, executor


async def actual_mib(hypervisor: LibvirtHypervisor, vm_id: str) -> int:
    return ((await hypervisor.read(vm_id)).memory_actual_bytes or 0) // MIB


def why_no_traffic_control() -> str:
    """Why this kernel cannot limit traffic; "" when it can. Tried in a network of its own."""
    commands = """set -e; ip tuntap add dev t0 mode tap; ip link set t0 up
    tc qdisc add dev t0 root handle 1: htb default 1
    tc class add dev t0 parent 1: classid 1:1 htb rate 1mbit
    tc qdisc add dev t0 parent 1:1 handle 2: sfq
    tc filter add dev t0 parent 1: protocol all prio 1 handle 1 fw flowid 1
    tc qdisc add dev t0 ingress
    tc filter add dev t0 parent ffff: protocol all u32 match u32 0 0 \\
     police rate 1mbit burst 64kb mtu 64kb drop flowid :1"""
    if shutil.which("tc") is None:
        return "there is no `tc` (package iproute2)"
    done = subprocess.run(
        ["unshare", "--net", "bash", "-c", commands], capture_output=True, text=True, check=False
    )
    return "" if done.returncode == 0 else f"no traffic control: {done.stderr.strip()[:200]}"


class Traffic:
    """Both ways between this machine and a guest with NETWORK, as fast as they let it."""

    def __init__(self) -> None:
        self.sent_bytes = self.received_bytes = 0
        self._server = socket.create_server((HERE, 9001))
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=each) for each in (self._send, self._receive)]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._server.close()

    def rates(self, seconds: float) -> tuple[float, float]:
        """(sent, received) bytes/s over so many seconds."""
        before, began = (self.sent_bytes, self.received_bytes), time.monotonic()
        time.sleep(seconds)
        took = time.monotonic() - began
        return (self.sent_bytes - before[0]) / took, (self.received_bytes - before[1]) / took

    def _send(self) -> None:
        while not self._stop.is_set():
            try:
                with socket.create_connection((THERE, 9000), timeout=1) as stream:
                    while not self._stop.is_set():
                        self.sent_bytes += stream.send(bytes(16384))
            except OSError:  # it listens again in a moment
                time.sleep(0.1)

    def _receive(self) -> None:
        self._server.settimeout(1)
        while not self._stop.is_set():
            try:
                stream, _ = self._server.accept()
                with stream:
                    stream.settimeout(1)
                    while not self._stop.is_set() and (data := stream.recv(65536)):
                        self.received_bytes += len(data)
            except OSError:
                continue
