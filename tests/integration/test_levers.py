"""Every lever moved on a real guest, and its effect measured from outside, not read back.

What this machine lacks is skipped with the reason: memory guards need cgroup v2, network limits a
kernel with traffic control; a nested Debian has both.
"""

import asyncio
import contextlib
import dataclasses
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from agent.act import Executor
from agent.admission import Admitted
from agent.hypervisor import VmReading
from agent.libvirt_host import LibvirtHypervisor
from agent.sampler import Sampler, Share
from agent.steps import Outcome, Step, StepResult
from controller.up.image import GuestImage, Places, default_cache, prepare_image
from controller.up.libvirtd import Libvirt, connect
from controller.up.probe import require_qemu
from shared.clock import SystemClock
from shared.errors import GuestsUnavailable
from shared.resources import MIB, Resource

DEADLINE_S = 90.0
DRIVERS = ("virtio_pci", "virtio_balloon", "virtio_blk", "virtio_mem", "virtio_net")
INIT = Path(__file__).with_name("lever_init.sh")
ROOT = Path("/")

Scenario = Callable[[LibvirtHypervisor], Coroutine[Any, Any, None]]


@pytest.fixture(scope="module")
def image() -> GuestImage:
    try:
        require_qemu()
        return prepare_image(Places(default_cache()), print, DRIVERS, INIT)
    except GuestsUnavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="module")
def libvirt(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Libvirt]:
    if os.geteuid() != 0:
        pytest.skip("a session hypervisor has no cgroups")
    service = Libvirt(tmp_path_factory.mktemp("libvirt"), print)
    try:
        service.start()
    except GuestsUnavailable as reason:
        service.stop()
        pytest.skip(str(reason))
    yield service
    service.stop()


@dataclasses.dataclass(frozen=True)
class Spec:
    words: str = ""  # of the guest's kernel command line
    plugged_mib: int | None = None  # of 512 MiB of virtio-mem; None: without, but a balloon
    devices: str = ""
    tuning: str = ""


@pytest.fixture
def folder() -> Iterator[Path]:
    """QEMU's own user must reach what lies in it."""
    with tempfile.TemporaryDirectory(prefix="hrapaq-lever-") as name:
        path = Path(name)
        path.chmod(0o755)
        yield path


@contextlib.contextmanager
def guest(libvirt: Libvirt, image: GuestImage, folder: Path, spec: Spec) -> Iterator[str]:
    """Its id, once it is up; destroyed at the end."""
    for source, name in ((image.kernel, "kernel"), (image.initrd, "initrd")):
        shutil.copy(source, folder / name)
        (folder / name).chmod(0o644)
    vm_id, console = str(uuid4()), folder / "console"
    connection: Any = connect(libvirt.uri)
    domain = connection.createXML(domain_xml(spec, vm_id, folder), 0)
    try:
        wait_for(lambda: console.exists() and "ready" in console.read_text(), "the guest boots")
        yield vm_id
    finally:
        domain.destroy()
        connection.close()


def domain_xml(spec: Spec, vm_id: str, folder: Path) -> str:
    total, virtio_mem, numa = 512, "", ""
    if spec.plugged_mib is not None:
        total = 256 + 512
        numa = "<numa><cell id='0' cpus='0' memory='256' unit='MiB'/></numa>"
        virtio_mem = (
            "<memory model='virtio-mem'><target><size unit='MiB'>512</size><node>0</node>"
            "<block unit='MiB'>4</block>"
            f"<requested unit='MiB'>{spec.plugged_mib}</requested></target></memory>"
        )
    return f"""<domain type='qemu'><name>hrapaq-lever-{vm_id[:8]}</name><uuid>{vm_id}</uuid>
    <maxMemory slots='2' unit='MiB'>1024</maxMemory><memory unit='MiB'>{total}</memory>
    <vcpu>1</vcpu>{spec.tuning}
    <os><type arch='x86_64' machine='pc'>hvm</type><kernel>{folder}/kernel</kernel>
     <initrd>{folder}/initrd</initrd><cmdline>console=ttyS0 mitigations=off quiet panic=1
      memhp_default_state=online_movable {spec.words}</cmdline></os>
    <features><acpi/></features><cpu mode='maximum'>{numa}</cpu>
    <devices><controller type='usb' model='none'/>
     <serial type='file'><source path='{folder}/console'/></serial>{virtio_mem}{spec.devices}
     <memballoon model='virtio' freePageReporting='on'><stats period='1'/></memballoon>
    </devices></domain>"""


def wait_for(condition: Callable[[], object], what: str) -> None:
    until = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < until, f"not within {DEADLINE_S} s: {what}"
        time.sleep(0.1)


def play(libvirt: Libvirt, scenario: Scenario, kind: type[LibvirtHypervisor] = LibvirtHypervisor):
    async def with_hypervisor() -> None:
        hypervisor = kind(libvirt.uri, SystemClock())
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
    hypervisor: Any, vm_id: str, from_mib: int, to_mib: int, deadline_ms: int = 20_000
) -> tuple[StepResult, Executor]:
    """One step, as a command would bring it."""
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


def requested_mib(libvirt: Libvirt, vm_id: str) -> int:
    connection: Any = connect(libvirt.uri)
    xml = connection.lookupByUUIDString(vm_id).XMLDesc(0)
    connection.close()
    return int(xml.split("<requested unit='KiB'>")[1].split("<")[0]) // 1024


def test_virtio_mem_is_moved_in_blocks_and_its_balloon_left_alone(libvirt, image, folder):
    async def scenario(hypervisor: LibvirtHypervisor) -> None:
        async def is_plugged() -> bool:
            return await actual_mib(hypervisor, vm_id) == 256 + 128

        await until(is_plugged, "the memory of the start is plugged")
        (vm,) = [each for each in await hypervisor.read_all() if each.vm_id == vm_id]
        assert vm.memory_maximum_bytes == 768 * MIB
        assert vm.memory_blocks is not None and vm.memory_blocks.fixed_bytes == 256 * MIB
        grown, _ = await moves(hypervisor, vm_id, 384, 642)
        assert (grown.outcome, grown.after_amount) == (Outcome.APPLIED, 640 * MIB)
        assert requested_mib(libvirt, vm_id) == 640 - 256
        shrunk, _ = await moves(hypervisor, vm_id, 640, 320)
        assert (shrunk.outcome, shrunk.after_amount) == (Outcome.APPLIED, 320 * MIB)
        assert requested_mib(libvirt, vm_id) == 64

    with guest(libvirt, image, folder, Spec(plugged_mib=128)) as vm_id:
        play(libvirt, scenario)


class Boasting(LibvirtHypervisor):
    """Hears a guest that claims to need nothing."""

    async def read_all(self) -> tuple[VmReading, ...]:
        return tuple(map(_claiming, await super().read_all()))

    async def read(self, vm_id: str) -> VmReading:
        return _claiming(await super().read(vm_id))


def _claiming(vm: VmReading) -> VmReading:
    if vm.memory_usable_bytes is None or vm.memory_actual_bytes is None:
        return vm
    claimed = vm.memory_actual_bytes - 16 * MIB
    return dataclasses.replace(vm, memory_usable_bytes=claimed, memory_unused_bytes=claimed)


def test_memory_in_use_is_not_unplugged_and_the_lever_is_left_alone(libvirt, image, folder):
    async def scenario(hypervisor: LibvirtHypervisor) -> None:
        wait_for(lambda: "holds" in (folder / "console").read_text(), "memory is in use")
        result, executor = await moves(hypervisor, vm_id, 640, 384, deadline_ms=5000)
        assert result.outcome in {Outcome.PARTIAL, Outcome.NO_EFFECT}
        assert result.after_amount is not None and result.after_amount > 480 * MIB
        # The request is taken back: it must not be fulfilled at some later moment.
        await until(lambda: _is_at_rest(hypervisor, vm_id), "nothing moves any more")
        left = await actual_mib(hypervisor, vm_id)
        assert abs(requested_mib(libvirt, vm_id) + 256 - left) <= 4
        if result.outcome is Outcome.NO_EFFECT:
            assert (vm_id, Resource.MEMORY) in executor.quarantined()

    words = "hrapaq.hold_mib=480"
    with guest(libvirt, image, folder, Spec(words, plugged_mib=384)) as vm_id:
        play(libvirt, scenario, Boasting)


async def _is_at_rest(hypervisor: LibvirtHypervisor, vm_id: str) -> bool:
    before = await actual_mib(hypervisor, vm_id)
    await asyncio.sleep(1)
    return before == await actual_mib(hypervisor, vm_id)


def test_a_guest_without_the_driver_has_no_effect_and_is_quarantined(libvirt, image, folder):
    async def scenario(hypervisor: LibvirtHypervisor) -> None:
        result, executor = await moves(hypervisor, vm_id, 256, 384, deadline_ms=2000)
        assert result.outcome is Outcome.NO_EFFECT
        assert (vm_id, Resource.MEMORY) in executor.quarantined()
        assert requested_mib(libvirt, vm_id) == 0

    words = "hrapaq.without=virtio_mem"
    with guest(libvirt, image, folder, Spec(words, plugged_mib=0)) as vm_id:
        play(libvirt, scenario)
