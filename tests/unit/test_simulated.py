"""The simulated hypervisor keeps its stated physics."""

import asyncio

import pytest

from agent.hypervisor import Hypervisor, VmEvent, VmReading
from agent.simulated import DEMO_VMS, KERNEL_BYTES, SimulatedHypervisor, SimulatedVm, Wave
from shared.clock import SECOND_NS, FakeClock
from shared.errors import HypervisorError, HypervisorTimeout, VmGone
from shared.resources import MIB, Resource

STEADY = SimulatedVm("steady", memory=Wave(low=100 * MIB, high=100 * MIB, noise=0))


class Scene:
    """A clock, one hypervisor and shorthands for a single VM."""

    def __init__(self, *vms: SimulatedVm, seed: int = 1) -> None:
        self.clock = FakeClock()
        self.hypervisor = SimulatedHypervisor(seed, self.clock, vms or DEMO_VMS)
        self.vm_id = next(iter(self.hypervisor.vm_ids().values()))

    def after(self, seconds: float) -> VmReading:
        self.clock.advance(int(seconds * SECOND_NS))
        return asyncio.run(self.hypervisor.read(self.vm_id))

    def set(self, resource: Resource, amount: int) -> None:
        asyncio.run(self.hypervisor.set_limit(self.vm_id, resource, amount))


def test_it_is_a_hypervisor_and_says_that_it_is_simulated() -> None:
    hypervisor: Hypervisor = Scene().hypervisor
    assert hypervisor.simulated
    levers = asyncio.run(hypervisor.levers())
    assert levers == dict.fromkeys(("cpu", "memory", "io", "net", "guard"), "")
    assert len(asyncio.run(hypervisor.read_all())) == len(DEMO_VMS)


def test_one_seed_is_one_story_however_often_one_looks() -> None:
    def story(looks: int, seed: int) -> tuple[VmReading, ...]:
        scene = Scene(seed=seed)
        for _ in range(looks):
            scene.clock.advance(120 * SECOND_NS // looks)
            seen = asyncio.run(scene.hypervisor.read_all())
        return seen

    assert story(1, seed=7) == story(240, seed=7)
    assert story(1, seed=7) != story(1, seed=8)


def test_the_balloon_takes_time() -> None:
    scene = Scene(STEADY)
    scene.after(10)
    scene.set(Resource.MEMORY, 256 * MIB)
    assert scene.after(1).memory_actual_bytes == 448 * MIB
    assert scene.after(3).memory_actual_bytes == 256 * MIB
    scene.set(Resource.MEMORY, 512 * MIB)
    assert scene.after(2).memory_actual_bytes == 384 * MIB


def test_the_balloon_stalls_at_what_the_guest_holds() -> None:
    scene = Scene(STEADY)
    scene.after(60)
    scene.set(Resource.MEMORY, 64 * MIB)
    vm = scene.after(60)
    assert vm.memory_actual_bytes == 100 * MIB + KERNEL_BYTES
    assert vm.memory_usable_bytes == 0


def test_shrinking_gives_resident_memory_back() -> None:
    scene = Scene(STEADY)
    grown = scene.after(90).memory_resident_bytes
    scene.set(Resource.MEMORY, 160 * MIB)
    shrunk = scene.after(10).memory_resident_bytes
    assert grown is not None and shrunk is not None
    assert grown - shrunk > 100 * MIB


def test_without_a_driver_the_target_is_accepted_and_nothing_moves() -> None:
    scene = Scene(SimulatedVm("deaf", balloon_driver=False))
    scene.set(Resource.MEMORY, 256 * MIB)
    vm = scene.after(30)
    assert vm.memory_actual_bytes == 512 * MIB
    assert vm.memory_usable_bytes is None and vm.memory_last_update_unix_s is None


def test_memory_that_does_not_fit_swaps() -> None:
    climbing = Wave(low=200 * MIB, high=40 * MIB, period_s=1000, duty=0.03, noise=0)
    scene = Scene(SimulatedVm("climber", memory=climbing))
    scene.set(Resource.MEMORY, 100 * MIB)
    assert scene.after(25).memory_swap_in_bytes == 0
    starved = scene.after(20)
    assert starved.memory_swap_in_bytes and starved.memory_major_faults
    assert starved.memory_usable_bytes == 0


def test_the_quota_caps_cpu_and_the_rest_is_delay() -> None:
    scene = Scene(SimulatedVm("busy", cpu_count=2, cpu=Wave(low=1500, high=1500, noise=0)))
    before = scene.after(10)
    scene.set(Resource.CPU, 500)
    after = scene.after(10)
    assert after.cpu_quota_millicores == 500
    assert difference(before.cpu_time_ns, after.cpu_time_ns) == 5 * SECOND_NS
    assert difference(before.cpu_delay_ns, after.cpu_delay_ns) == 10 * SECOND_NS
    scene.set(Resource.CPU, 2000)
    assert scene.after(0).cpu_quota_millicores is None


def test_the_limit_caps_disk_traffic() -> None:
    scene = Scene(SimulatedVm("disk", io=Wave(low=10 * MIB, high=10 * MIB, noise=0)))
    before = scene.after(10)
    scene.set(Resource.IO, 2 * MIB)
    after = scene.after(10)
    assert difference(before.io_bytes, after.io_bytes) == 20 * MIB
    scene.set(Resource.IO, 0)
    assert scene.after(0).io_limit_bytes_per_s is None


def test_a_frozen_vm_answers_nothing_and_others_go_on() -> None:
    scene = Scene()
    scene.hypervisor.freeze(scene.vm_id)
    with pytest.raises(HypervisorTimeout):
        scene.after(1)
    with pytest.raises(HypervisorTimeout):
        scene.set(Resource.CPU, 500)
    frozen, *others = asyncio.run(scene.hypervisor.read_all())
    assert frozen.memory_actual_bytes is None and frozen.cpu_time_ns is None
    assert all(vm.cpu_time_ns is not None for vm in others)
    scene.hypervisor.thaw(scene.vm_id)
    assert scene.after(1).cpu_time_ns is not None


def test_a_vanished_vm_is_gone() -> None:
    scene = Scene()
    scene.hypervisor.vanish(scene.vm_id)
    with pytest.raises(VmGone):
        scene.after(1)
    with pytest.raises(VmGone):
        scene.set(Resource.MEMORY, 256 * MIB)
    assert len(asyncio.run(scene.hypervisor.read_all())) == len(DEMO_VMS) - 1


def test_a_restarted_vm_counts_from_zero_at_full_size() -> None:
    scene = Scene(STEADY)
    scene.set(Resource.MEMORY, 256 * MIB)
    scene.after(30)
    scene.hypervisor.restart(scene.vm_id)
    vm = scene.after(0)
    assert (vm.cpu_time_ns, vm.memory_actual_bytes) == (0, 512 * MIB)


def test_impossible_limits_are_refused() -> None:
    scene = Scene(STEADY)
    for resource, amount in [
        (Resource.MEMORY, 513 * MIB),
        (Resource.MEMORY, 0),
        (Resource.CPU, 0),
        (Resource.IO, -1),
    ]:
        with pytest.raises(HypervisorError):
            scene.set(resource, amount)


def difference(before: int | None, after: int | None) -> int:
    assert before is not None and after is not None
    return after - before


def test_what_becomes_of_vms_is_heard() -> None:
    hypervisor = Scene(STEADY).hypervisor
    heard: list[VmEvent] = []
    hypervisor.listen(heard.append)
    (first, *_) = hypervisor.vm_ids().values()
    hypervisor.restart(first)
    new = hypervisor.start(SimulatedVm("new"))
    hypervisor.vanish(new)
    assert [(event.vm_id, event.kind.value) for event in heard] == [
        (first, "stopped"),
        (first, "started"),
        (new, "started"),
        (new, "stopped"),
    ]
