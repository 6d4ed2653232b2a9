"""The guard behind a memory grant: set when it is in force, raised before it grows, lifted."""

import asyncio
from dataclasses import replace

import pytest

from agent.hypervisor import MemoryGuard, VmReading
from agent.memory_guard import GuardedHypervisor, guard_for, hand_back
from agent.simulated import OVERHEAD_BYTES, SimulatedHypervisor, SimulatedVm
from shared.clock import SECOND_NS, FakeClock
from shared.errors import HypervisorError
from shared.resources import GIB, MIB, Resource
from shared.telemetry import VmState

VM = SimulatedVm("guarded", memory_maximum_bytes=1024 * MIB)


class Kernel(SimulatedHypervisor):
    """Records what is done to limits and guards, in order; may say what telemetry would not."""

    def __init__(self, clock: FakeClock, why_not: str = "") -> None:
        super().__init__(1, clock, (VM,))
        self.done: list[tuple[str, int]] = []
        self.why_not = why_not
        self.broken = False
        self.seen: dict[str, object] = {}  # fields of readings that are others than the physics'

    async def read(self, vm_id):
        return replace(await super().read(vm_id), **self.seen)

    async def read_all(self):
        return tuple(replace(vm, **self.seen) for vm in await super().read_all())

    async def set_limit(self, vm_id, resource, amount):
        self.done.append(("limit", amount // MIB))
        await super().set_limit(vm_id, resource, amount)

    async def set_guard(self, vm_id, guard):
        if self.broken:
            raise HypervisorError("libvirt said no")
        self.done.append(("guard", 0 if guard is None else guard.high_bytes // MIB))
        await super().set_guard(vm_id, guard)

    def why_no_guard(self):
        return self.why_not


class World:
    def __init__(self, **settings) -> None:
        self.clock = FakeClock()
        self.kernel = Kernel(self.clock)
        self.guarded = GuardedHypervisor(self.kernel, self.clock, **settings)
        (self.vm_id,) = self.kernel.vm_ids().values()

    async def moves_to(self, mib: int) -> VmReading:
        await self.guarded.set_limit(self.vm_id, Resource.MEMORY, mib * MIB)
        return await self.waits()

    async def waits(self, seconds: int = 30) -> VmReading:
        self.clock.advance(seconds * SECOND_NS)
        await self.guarded.read(self.vm_id)
        return await self.kernel.read(self.vm_id)


def test_a_shrink_is_guarded_once_it_is_in_force():
    async def scenario():
        world = World()
        await world.guarded.read_all()
        await world.guarded.set_limit(world.vm_id, Resource.MEMORY, 400 * MIB)
        await world.guarded.read(world.vm_id)  # the balloon has not moved yet
        assert world.kernel.done == [("limit", 400)]
        vm = await world.waits()
        assert vm.memory_guarded_bytes == 400 * MIB
        assert vm.memory_guard_bytes == (400 + 256) * MIB
        await world.waits()
        assert len(world.kernel.done) == 2  # what stands is not set again

    asyncio.run(scenario())


def test_it_is_raised_before_the_vm_grows_and_lifted_before_it_has_all():
    async def scenario():
        world = World()
        await world.moves_to(400)
        await world.moves_to(600)
        assert world.kernel.done[2:] == [("guard", 856), ("limit", 600)]
        vm = await world.moves_to(1024)
        assert world.kernel.done[4:] == [("guard", 0), ("limit", 1024)]
        assert vm.memory_guard_bytes is None

    asyncio.run(scenario())


def test_growth_that_would_end_in_being_slowed_is_refused():
    async def scenario():
        world = World()
        await world.moves_to(400)
        world.kernel.broken = True
        with pytest.raises(HypervisorError, match="said no"):
            await world.guarded.set_limit(world.vm_id, Resource.MEMORY, 600 * MIB)
        assert ("limit", 600) not in world.kernel.done

    asyncio.run(scenario())


def test_a_shrink_that_the_guest_refuses_leaves_no_guard():
    async def scenario():
        world = World()
        world.kernel.seen = {"memory_actual_bytes": 1024 * MIB}
        await world.moves_to(400)
        await world.guarded.set_limit(world.vm_id, Resource.MEMORY, 1024 * MIB)  # set back
        await world.waits()
        assert [done for done in world.kernel.done if done[0] == "guard"] == []

    asyncio.run(scenario())


def test_a_guest_that_takes_pages_back_does_not_raise_its_guard():
    async def scenario():
        world = World()
        await world.moves_to(400)
        world.kernel.seen = {
            "memory_actual_bytes": 1000 * MIB,
            "memory_resident_bytes": 1000 * MIB,
        }
        await world.guarded.read_all()
        vm = await world.waits()
        assert (vm.memory_guarded_bytes, vm.memory_guard_bytes) == (400 * MIB, 656 * MIB)

    asyncio.run(scenario())


def test_pages_that_are_still_counted_raise_it_until_they_are_gone():
    async def scenario():
        world = World()
        world.kernel.seen = {"memory_resident_bytes": 1000 * MIB}
        await world.moves_to(400)
        world.kernel.seen = {"memory_resident_bytes": 410 * MIB}
        await world.guarded.read(world.vm_id)
        assert world.kernel.done[1:] == [("guard", 1600)]
        await world.guarded.read_all()
        assert world.kernel.done[2:] == [("guard", 656)]

    asyncio.run(scenario())


@pytest.mark.parametrize("state", [VmState.PAUSED, VmState.MIGRATING])
def test_a_vm_that_does_not_run_is_left_as_it_is(state):
    async def scenario():
        world = World()
        world.kernel.seen = {"state": state}
        await world.moves_to(400)
        assert world.kernel.done == [("limit", 400)]

    asyncio.run(scenario())


def test_a_vm_that_starts_is_slowed_by_no_guard():
    async def scenario():
        world = World()
        await world.moves_to(400)
        world.kernel.seen = {"state": VmState.STARTING}
        await world.guarded.read_all()
        assert world.kernel.done[-1] == ("guard", 0)

    asyncio.run(scenario())


def test_an_operators_own_limit_is_left_alone():
    async def scenario():
        world = World()
        world.kernel.seen = {"memory_guard_bytes": 450 * MIB}
        await world.moves_to(400)
        assert world.kernel.done == [("limit", 400)]

    asyncio.run(scenario())


def test_switched_off_it_only_lifts_what_was_set():
    async def scenario():
        world = World(enabled=False)
        await world.kernel.set_guard(world.vm_id, MemoryGuard(400 * MIB, 656 * MIB))
        await world.guarded.read_all()
        vm = await world.moves_to(400)
        assert world.kernel.done == [("guard", 656), ("guard", 0), ("limit", 400)]
        assert vm.memory_guard_bytes is None

    asyncio.run(scenario())


def test_a_guard_that_could_not_be_lifted_whole_is_lifted_again_not_set():
    async def scenario():
        world = World()
        await world.moves_to(400)
        world.kernel.broken = True
        with pytest.raises(HypervisorError):
            await world.moves_to(1024)
        world.kernel.broken = False
        await world.guarded.read_all()
        assert world.kernel.done[-1] == ("guard", 0)
        await world.guarded.read_all()
        assert world.kernel.done[-1] == ("guard", 0) and len(world.kernel.done) == 3

    asyncio.run(scenario())


def test_a_guard_that_did_not_come_along_is_set_again():
    """The mark travels with a VM that migrates, its group does not."""

    async def scenario():
        world = World()
        await world.moves_to(400)
        again = GuardedHypervisor(world.kernel, world.clock)
        world.kernel.seen = {"memory_guard_bytes": None}
        await again.read_all()
        assert world.kernel.done[-1] == ("guard", 656) and len(world.kernel.done) == 3

    asyncio.run(scenario())


def test_a_host_without_guards_moves_memory_all_the_same():
    async def scenario():
        world = World()
        world.kernel.why_not = "cgroup v1"
        await world.moves_to(400)
        await world.moves_to(600)
        assert world.kernel.done == [("limit", 400), ("limit", 600)]

    asyncio.run(scenario())


def test_a_restarted_agent_finds_its_guards_again_and_hands_them_back():
    async def scenario():
        world = World()
        await world.moves_to(400)
        again = GuardedHypervisor(world.kernel, world.clock)
        await again.set_limit(world.vm_id, Resource.MEMORY, 500 * MIB)
        assert world.kernel.done[2:] == [("guard", 756), ("limit", 500)]
        await world.kernel.set_net_limit(world.vm_id, MIB)
        await hand_back(again)
        (vm,) = await world.kernel.read_all()
        assert vm.memory_guard_bytes is None and vm.net_limit_bytes_per_s is None

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("granted", "resident", "own"),
    [
        (400 * MIB, 400 * MIB + OVERHEAD_BYTES, 256 * MIB),
        (8 * GIB, 8 * GIB, (8 * GIB) // 10),
        (400 * MIB, 700 * MIB, 600 * MIB),
        (400 * MIB, None, 256 * MIB),
    ],
)
def test_what_qemu_itself_may_need(granted, resident, own):
    vm = VmReading("a", "a", VmState.RUNNING, memory_maximum_bytes=16 * GIB)
    guard = guard_for(replace(vm, memory_resident_bytes=resident), granted)
    assert guard is not None and guard.granted_bytes == granted
    assert 0 <= guard.high_bytes - granted - own < MIB
    assert guard_for(vm, 16 * GIB) is None
    assert guard_for(replace(vm, memory_maximum_bytes=None), granted) is None
