"""What happens to a VM, or to authority, while a step is under way."""

import asyncio
from dataclasses import replace

import pytest

from agent.act import Executor
from agent.admission import Admitted, Readings
from agent.guard import Refused
from agent.sample import RawNode, Resize, to_sample
from agent.simulated import SimulatedHypervisor, SimulatedVm, Wave
from agent.steps import Outcome, Step
from shared.clock import SECOND_NS, FakeClock
from shared.resources import MIB, Resource
from shared.telemetry import NodeReadings


class Overtaken(SimulatedHypervisor):
    """A newer controller speaks while a VM is being read."""

    heard = False

    async def read(self, vm_id):
        self.heard = True
        return await super().read(vm_id)


class Deaf(SimulatedHypervisor):
    """Says yes to limits and does nothing, as when a VM's start overtakes the call."""

    async def set_limit(self, vm_id, resource, amount):
        pass


def to_vm(clock, reading):
    settled = {reading.vm_id: Resize(reading.memory_actual_bytes, 0)}
    raw = RawNode(clock.unix_ns(), clock.tick_ns(), vms=(reading,), resized=settled)
    return to_sample(None, raw).vms[0]


async def readings_of(hypervisor, clock, vm_id):
    vms = {vm_id: to_vm(clock, await hypervisor.read(vm_id))}
    return Readings(NodeReadings(cpu_allocatable_millicores=4000), vms, 30 * SECOND_NS)


def test_a_vm_that_is_started_anew_says_nothing_of_its_lever():
    """It is back at full size, which looks like a step without effect."""

    async def scenario():
        clock = FakeClock()
        hypervisor = Deaf(1, clock, (SimulatedVm("a"),))
        vm_id = hypervisor.vm_ids()["a"]
        clock.advance(60 * SECOND_NS)

        async def pause(seconds):
            hypervisor.restart(vm_id)
            clock.advance(round(seconds * SECOND_NS))

        executor = Executor(hypervisor, clock, lambda reading: to_vm(clock, reading), pause)
        readings = await readings_of(hypervisor, clock, vm_id)
        step = Step(0, vm_id, Resource.CPU, 1000, 800)
        (result,) = await executor.carry_out([Admitted(step)], readings, lambda _: None)
        assert result.outcome is Outcome.FAILED
        assert "anew" in result.detail
        assert executor.quarantined() == {}

    asyncio.run(scenario())


class Locked(SimulatedHypervisor):
    """A VM whose memory stays where it is, as with huge pages or a device that is passed through:
    its balloon moves, and its host gets nothing."""

    resident_bytes = 0

    async def read(self, vm_id):
        reading = await super().read(vm_id)
        self.resident_bytes = max(self.resident_bytes, reading.memory_resident_bytes)
        return replace(reading, memory_resident_bytes=self.resident_bytes)


TOUCHES_ALL_FIRST = SimulatedVm(
    "a",
    memory_maximum_bytes=4096 * MIB,
    memory=Wave(500 * MIB, 3000 * MIB, period_s=6000, duty=0.02, noise=0),
)


@pytest.mark.parametrize(
    ("kind", "outcome"), [(Locked, Outcome.NO_EFFECT), (SimulatedHypervisor, Outcome.APPLIED)]
)
def test_a_balloon_that_frees_nothing_is_found_out_and_let_go(kind, outcome):
    """The guest would have less and the host not more, and everybody would count on it."""

    async def scenario():
        clock = FakeClock()
        hypervisor = kind(1, clock, (TOUCHES_ALL_FIRST,))
        vm_id = hypervisor.vm_ids()["a"]
        clock.advance(110 * SECOND_NS)
        await hypervisor.read(vm_id)
        clock.advance(20 * SECOND_NS)

        async def pause(seconds):
            clock.advance(round(seconds * SECOND_NS))

        executor = Executor(hypervisor, clock, lambda reading: to_vm(clock, reading), pause)
        readings = await readings_of(hypervisor, clock, vm_id)
        limit = readings.vms[vm_id].memory_limit_bytes
        step = Step(0, vm_id, Resource.MEMORY, limit, limit - 1024 * MIB, deadline_ms=60_000)
        (result,) = await executor.carry_out([Admitted(step)], readings, lambda _: None)
        assert result.outcome is outcome, result
        clock.advance(60 * SECOND_NS)
        after = (await hypervisor.read(vm_id)).memory_actual_bytes
        assert after == (limit if outcome is Outcome.NO_EFFECT else step.to_amount)
        assert ((vm_id, Resource.MEMORY) in executor.quarantined()) == (kind is Locked)

    asyncio.run(scenario())


def test_a_controller_that_speaks_up_while_a_vm_is_read_stops_the_step():
    async def scenario():
        clock = FakeClock()
        hypervisor = Overtaken(1, clock, (SimulatedVm("a"),))
        vm_id = hypervisor.vm_ids()["a"]
        executor = Executor(hypervisor, clock, lambda reading: to_vm(clock, reading))
        readings = await readings_of(hypervisor, clock, vm_id)
        hypervisor.heard = False
        step = Step(0, vm_id, Resource.CPU, 1000, 800)
        (result,) = await executor.carry_out(
            [Admitted(step)],
            readings,
            lambda _: Refused("I7", "epoch 2 took over") if hypervisor.heard else None,
        )
        assert (result.outcome, result.invariant) == (Outcome.REFUSED, "I7")
        assert (await hypervisor.read(vm_id)).cpu_quota_millicores is None

    asyncio.run(scenario())
