"""Authority that ends while a step is being prepared."""

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


def test_a_controller_that_speaks_up_while_a_vm_is_read_stops_the_step():
    async def scenario():
        clock = FakeClock()
        hypervisor = Overtaken(1, clock, (SimulatedVm("a"),))
        vm_id = hypervisor.vm_ids()["a"]

        def to_vm(reading):
            return to_sample(None, RawNode(clock.unix_ns(), clock.tick_ns(), vms=(reading,))).vms[0]

        executor = Executor(hypervisor, clock, to_vm)
        vms = {vm_id: to_vm(await hypervisor.read(vm_id))}
        hypervisor.heard = False
        readings = Readings(NodeReadings(cpu_allocatable_millicores=4000), vms, 30 * SECOND_NS)
        step = Step(0, vm_id, Resource.CPU, 1000, 800)
        (result,) = await executor.carry_out(
            [Admitted(step)],
            readings,
            lambda _: Refused("I7", "epoch 2 took over") if hypervisor.heard else None,
        )
        assert (result.outcome, result.invariant) == (Outcome.REFUSED, "I7")
        assert (await hypervisor.read(vm_id)).cpu_quota_millicores is None

    asyncio.run(scenario())
