"""A host agent with its reflex on simulated VMs and virtual time, guests that talk, and a plan."""

import asyncio
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

from agent.act import Executor
from agent.guard import GuardState
from agent.leash import Bounds, Leash
from agent.lending import Lender, Pressure
from agent.look import Rules
from agent.metrics import AgentMetrics
from agent.sampler import Sampler, Share
from agent.simulated import KERNEL_BYTES, SimulatedHypervisor, SimulatedVm, Wave
from agent.steps import Command, Header, Step
from agent.steward import Steward
from agent.words import GuestWords
from shared.clock import SECOND_NS
from shared.guest_word import GuestWord, encode
from shared.resources import MIB, Resource
from shared.subjects import guest_subject
from shared.testing import FakeBus, VirtualTimeLoop

LEASE_S = 60
MARGIN_BYTES = 32 * MIB  # what a guest wants to have left, as agent.need has it


class LoopClock:
    """The clock of a virtual-time loop; ticks begin well above zero."""

    def __init__(self):
        self._loop = asyncio.get_running_loop()

    def unix_ns(self):
        return 1_700_000_000 * SECOND_NS + self.tick_ns()

    def tick_ns(self):
        return 1000 * SECOND_NS + round(self._loop.time() * SECOND_NS)


class Recorded(SimulatedHypervisor):
    """Notes every limit that is asked for, and the fullest that the host could ever get by it."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.asked = []  # seconds, name, resource, amount
        self.fullest_bytes = 0

    def machines(self):
        """The truth, as of now."""
        self._catch_up()
        return self._machines

    async def set_limit(self, vm_id, resource, amount):
        name = self._machines[vm_id].spec.name
        self.asked.append((asyncio.get_running_loop().time(), name, resource, amount))
        await super().set_limit(vm_id, resource, amount)
        total = sum(max(one.limit_bytes, one.target_bytes) for one in self._machines.values())
        self.fullest_bytes = max(self.fullest_bytes, total)


class Disk:
    def __init__(self):
        self.state = GuardState()

    async def save(self, state):
        await asyncio.sleep(0.005)
        self.state = state


class Rig:
    """`limits` are in MiB by name; all VMs hold 96 MiB until told otherwise."""

    def __init__(self, limits, allocatable_mib, root=Path(), pay_back_after_s=30, **vm):
        self.clock = LoopClock()
        vms = tuple(
            SimulatedVm(name, 1024 * MIB, 4, memory=steady(96), cpu=Wave(20, 20), **vm)
            for name in limits
        )
        self.hypervisor = Recorded(7, self.clock, vms)
        self.ids = self.hypervisor.vm_ids()
        for name, mib in limits.items():
            machine = self.machine(name)
            machine.limit_bytes = machine.target_bytes = mib * MIB
            machine.cpu_quota_millicores = 1000
        share = Share(memory_bytes=allocatable_mib * MIB, cpu_millicores=8000)
        self.sampler = Sampler(root, self.hypervisor, self.clock, share, 5.0)
        self.executor = Executor(self.hypervisor, self.clock, self.sampler.sample_of)
        self.disk, self.metrics, self.bus = Disk(), AgentMetrics(), FakeBus()
        self.steward = Steward(
            GuardState(), self.disk, self.executor, self.read, self.clock, self.metrics
        )
        self.words = GuestWords(self.bus, self.clock, self.metrics, self._on_word)
        self.lender = Lender(
            self.steward,
            self.executor,
            lambda: self.sampler.known,
            self.read,
            lambda: self.words.newest,
            self.hypervisor,
            Pressure(root, 256 * MIB),
            Rules(pay_back_after_s * SECOND_NS),
            self.clock,
            self.metrics,
        )
        self.said = []
        self.lender.said = lambda: self.said.append(asyncio.get_running_loop().time())
        self.climbs = []
        self.lender.climb = lambda *amounts: self.climbs.append(amounts)
        self.sequence = 0

    async def read(self):
        return self.executor.judging(await self.sampler.readings())

    def _on_word(self, vm_id, word, asks_for_more):
        if asks_for_more:
            self.lender.call()

    @asynccontextmanager
    async def alive(self, *talking):
        """The agent and its guests run; `talking` are the names of those that have an agent."""
        await self.bus.connect()
        await self.words.follow(self.ids.values())
        duties = [self.lender.run(), self._sample(), *map(self._talk, talking)]
        tasks = [asyncio.create_task(duty) for duty in duties]
        try:
            await asyncio.sleep(6)
            yield self
        finally:
            for task in tasks:
                task.cancel()
            for task in tasks:
                with suppress(asyncio.CancelledError):
                    await task

    async def _sample(self):
        while True:
            await self.sampler.sample()
            await asyncio.sleep(5)

    async def _talk(self, name):
        """As agent.guest does: at once when there is a need, then every second."""
        while True:
            machine = self.machine(name)
            wanted = machine.spec.memory.high + KERNEL_BYTES + MARGIN_BYTES - machine.limit_bytes
            await self.claim(name, max(0, wanted))
            await asyncio.sleep(0.5)

    async def claim(self, name, memory_bytes, cpu_millicores=0):
        self.sequence += 1
        word = GuestWord("boot", self.sequence, 1, memory_bytes, cpu_millicores)
        await self.bus.try_publish(guest_subject(self.ids[name]), encode(word))

    def machine(self, name):
        return self.hypervisor.machines()[self.ids[name]]

    def hold(self, name, mib):
        """From now on the VM's programs want that much memory."""
        self._change(name, memory=steady(mib))

    def use(self, name, millicores):
        self._change(name, cpu=Wave(millicores, millicores, noise=0))

    def _change(self, name, **spec):
        machine = self.machine(name)
        machine.spec = replace(machine.spec, **spec)

    def mib(self, name):
        return self.machine(name).limit_bytes // MIB

    def header(self, **fields):
        self.sequence += 1
        known = Header(
            command_id=f"c{self.sequence}",
            plan_id="plan",
            epoch=1,
            sequence=self.sequence,
            based_on_generation=self.steward.facts().generation,
            agent_tick_ns=self.clock.tick_ns(),
            ttl_ms=15_000,
            lease_ms=LEASE_S * 1000,
        )
        return replace(known, **fields)

    def bounds(self, reserve_mib=0, reserve_millicores=0, low_mib=64, high_mib=1024):
        leash = {}
        for name, vm_id in self.ids.items():
            plan = self.machine(name).limit_bytes
            leash[vm_id, Resource.MEMORY] = Leash(low_mib * MIB, high_mib * MIB, plan)
            leash[vm_id, Resource.CPU] = Leash(500, 3000, 1000)
        reserve = {Resource.MEMORY: reserve_mib * MIB, Resource.CPU: reserve_millicores}
        return Bounds(leash, reserve)

    async def plan(self, *steps, bounds=None, **fields):
        """What a controller would send."""
        command = Command(self.header(**fields), steps, bounds=bounds or self.bounds())
        return await self.steward.apply(command)

    def step(self, name, to_mib, index=0):
        limit = self.machine(name).limit_bytes
        to_amount = to_mib * MIB
        return Step(index, self.ids[name], Resource.MEMORY, limit, to_amount, deadline_ms=8000)


def steady(mib):
    return Wave(mib * MIB, mib * MIB, noise=0)


def play(scenario, loop_factory=VirtualTimeLoop):
    async def bounded():
        async with asyncio.timeout(24 * 3600):  # of virtual time
            await scenario()

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(bounded())


async def until(condition, within_s=60.0):
    """Seconds of virtual time until it holds."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    while not condition():
        assert loop.time() - began < within_s, f"not within {within_s} s"
        await asyncio.sleep(0.05)
    return loop.time() - began
