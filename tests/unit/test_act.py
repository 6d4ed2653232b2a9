"""What happens to a VM, or to authority, while a step is under way."""

import asyncio

from agent.act import Executor
from agent.admission import Admitted, Readings
from agent.guard import Refused
from agent.sample import RawNode, to_sample
from agent.simulated import SimulatedHypervisor, SimulatedVm
from agent.steps import Outcome, Step
from shared.clock import SECOND_NS, FakeClock
from shared.resources import Resource
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
    raw = RawNode(clock.unix_ns(), clock.tick_ns(), vms=(reading,))
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
