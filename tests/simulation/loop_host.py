"""One host of the simulated world: VMs that live on, and an agent that is killed and started."""

import asyncio
from dataclasses import replace
from functools import partial
from itertools import count
from random import Random

from loop_parts import (
    BOOT_ID,
    OBEYING,
    Disk,
    LinkedUplink,
    WitnessedHypervisor,
    WorldClock,
    limit_of,
)

from agent.host import Host
from agent.leash import NO_BOUNDS, Bounds, Leash
from agent.loop import Agent
from agent.settings import AgentSettings
from agent.simulated import SimulatedVm, Wave
from shared.clock import SECOND_NS
from shared.resources import MIB, Resource
from shared.subjects import telemetry_subject
from shared.wire import encode

SAMPLE_S = 5.0
CALM_AT_S = 260  # when all faults have ended
DEMAND_BYTES = 440 * MIB  # from then on, of the VM that needs more than it has
STILL = ("observed", "frozen")  # these never move; of "pinned" the memory does not


def still(mib):
    return Wave(low=mib * MIB, high=mib * MIB)


def vms_of(random):
    """VMs, and the sizes at which they are found."""
    wave = Wave(
        low=80 * MIB,
        high=random.choice([120, 200]) * MIB,
        period_s=90,
        phase_s=random.randrange(90),
    )
    busy = Wave(low=100, high=1500, period_s=80, phase_s=random.randrange(80))
    hungry = Wave(240 * MIB, DEMAND_BYTES, period_s=10_000, phase_s=10_000 - CALM_AT_S)
    return (
        (SimulatedVm("hungry", 768 * MIB, 2, hungry, busy), 256),
        (SimulatedVm("idle", 512 * MIB, memory=still(96)), 512),
        (SimulatedVm("wavy", 512 * MIB, memory=wave), 448),
        (SimulatedVm("guest", 256 * MIB, memory=still(64)), 224),
        (SimulatedVm("observed", 256 * MIB, memory=still(64)), 192),
        (SimulatedVm("pinned", 256 * MIB, memory=still(64)), 160),
        (SimulatedVm("frozen", 256 * MIB, memory=still(64)), 192),
        (SimulatedVm("deaf", 128 * MIB, memory=still(64), balloon_driver=False), 128),
    )


class SimulatedHost:
    """`start` and `kill` the agent as often as you like; the machine is there all the time."""

    def __init__(self, world, index, root):
        self.world = world
        self.name = f"h{index}"
        self.random = Random(f"host {world.seed} {index}")
        self.clock = WorldClock(self.random.randrange(100, 100_000))
        vms = vms_of(self.random)
        self.hypervisor = WitnessedHypervisor(
            world.seed * 10 + index, self.clock, tuple(vm for vm, _ in vms), world.witness
        )
        self.hypervisor.blind = world.mutant == "blind"
        self.ids = self.hypervisor.vm_ids()
        for vm, mib in vms:
            machine = self.hypervisor.machines()[self.ids[vm.name]]
            machine.limit_bytes = machine.target_bytes = mib * MIB
        slack = self.random.choice([0, 16, 64])
        # One host is found with more given out than it has: that may only become less.
        over = self.random.choice([0, 0, 0, 48])
        self.allocatable = {
            Resource.MEMORY: (sum(mib for _, mib in vms) + slack - over) * MIB,
            Resource.CPU: self.random.choice([9000, 9600]),
        }
        self.allowed = {r: max(a, self.total(r)) for r, a in self.allocatable.items()}
        self.immovable = self._immovable()
        self.node_id = f"00000000-0000-4000-8000-00000000000{index + 1}"
        self.root = root / self.name
        self.disk = Disk()
        self.link = None
        self.tasks = []
        self.parts = None  # agent.host.Host of the agent that runs
        self.run = self.running = None
        self.surprised_at_s = -60.0  # when somebody else last started a VM here
        self.moved_at_s = self.troubled_at_s = self.idle_since_s = 0.0
        self.renewed_at_s = self.commanded_at_s = None  # when a controller was last obeyed
        self.epoch_obeyed = 0
        self.answered = set()
        _make_root(self.root, self.node_id)
        world.witness.hosts[self.hypervisor] = self

    @property
    def alive(self):
        return bool(self.tasks)

    def total(self, resource):
        return sum(limit_of(one, resource) for one in self.hypervisor.machines().values())

    def promised(self, resource):
        """As `total`, with what balloons on their way up will have taken."""
        machines = self.hypervisor.machines().values()
        if resource is not Resource.MEMORY:
            return self.total(resource)
        return sum(
            max(one.limit_bytes, one.target_bytes if one.spec.balloon_driver else 0)
            for one in machines
        )

    def lent(self):
        """Limits that the agent's reflex moves, or has moved."""
        return set() if self.parts is None else set(self.parts.lender.state.lent)

    def silent_s(self):
        """Since a controller was last obeyed; None: never."""
        words = [at for at in (self.renewed_at_s, self.commanded_at_s) if at is not None]
        return asyncio.get_running_loop().time() - max(words) if words else None

    def start(self):
        self.world.witness.say(f"agent of {self.name} starts")
        self.trouble()
        settings = AgentSettings(
            controller_address="",  # the uplink here is on a simulated stream
            sample_interval_s=SAMPLE_S,
            libvirt_uri="simulated:0",
            memory_allocatable_bytes=self._claimed(Resource.MEMORY),
            cpu_allocatable_millicores=self._claimed(Resource.CPU),
            node_name=self.name,
            state_directory=self.root / "state",
        )
        settings.state_directory.mkdir(exist_ok=True)
        agent = Agent(settings, self.root, self.clock, self.hypervisor)
        kind = LazyHost if self.world.mutant == "lazy" else Host
        parts = kind(
            settings, agent.identity, self.hypervisor, agent._sampler, self.clock, agent.metrics
        )
        parts._store = self.disk
        parts.open()
        agent.host = self.parts = parts
        if self.world.mutant == "unleashed":
            parts.steward.grant = partial(_unleashed, parts.steward.grant, self.ids.values())
        uplink = LinkedUplink(
            self.world, self, parts._hello, Orders(self, parts.steward), self.clock, self.random
        )
        duties = [parts.run(), uplink.run(), self._report(agent)]
        if self.world.mutant == "greedy":
            duties.append(self._shrink_after_the_lease())
        self.tasks = [self.world.task(duty) for duty in duties]

    async def kill(self):
        self.world.witness.say(f"agent of {self.name} is killed")
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        self.tasks, self.run, self.running = [], None, None
        self.trouble()

    def trouble(self):
        """For a while the way back need not be in time: something else was broken."""
        self.troubled_at_s = asyncio.get_running_loop().time()

    async def _report(self, agent):
        while True:
            sample = await agent.sample()
            self.world.publish(self, telemetry_subject(self.node_id), encode(sample))
            await asyncio.sleep(SAMPLE_S)

    async def _shrink_after_the_lease(self):
        """A mutant: takes when nobody speaks."""
        while True:
            await asyncio.sleep(2)
            vm_id, silent_s = self.ids["idle"], self.silent_s()
            if silent_s is not None and silent_s > 40 and vm_id in self.hypervisor.machines():
                limit = self.hypervisor.machines()[vm_id].limit_bytes
                if limit > 300 * MIB and self.hypervisor.told.get(vm_id):
                    await self.hypervisor.read(vm_id)
                    await self.hypervisor.set_limit(vm_id, Resource.MEMORY, limit - 8 * MIB)

    def _claimed(self, resource):
        return self.allocatable[resource] * (2 if self.world.mutant == "boastful" else 1)

    def _immovable(self):
        machines = self.hypervisor.machines()
        levers = [
            (name, resource) for name in STILL for resource in (Resource.CPU, Resource.MEMORY)
        ]
        levers.append(("pinned", Resource.MEMORY))
        return {
            (self.ids[name], resource): limit_of(machines[self.ids[name]], resource)
            for name, resource in levers
        }


class Orders:
    """Stands between uplink and steward: notes who is obeyed, and plays the disobedient."""

    def __init__(self, host, steward):
        self._host = host
        self._steward = steward
        self._runs = count()

    async def apply(self, command):
        host, header = self._host, command.header
        before, host.commanded_at_s = host.commanded_at_s, asyncio.get_running_loop().time()
        host.run = (id(self), next(self._runs))
        host.running = command
        reign = host.world.witness.reign_of_command.get(header.command_id)
        token = OBEYING.set((header, reign))
        try:
            ack = await self._steward.apply(self._mutated(command))
        finally:
            OBEYING.reset(token)
            host.running = None
        # One that a full disk stops was a word of the controller all the same.
        obeyed = ack.accepted or ack.refusal.startswith("I10")
        if not obeyed or header.command_id in host.answered:
            host.commanded_at_s = before
        host.answered.add(header.command_id)
        words = [result.outcome.name.lower() for result in ack.results]
        for result in ack.results:
            host.world.witness.counts[f"step {result.invariant}"] += bool(result.invariant)
        host.world.witness.counts["refused" if ack.refusal else "accepted"] += 1
        host.world.witness.counts[f"refused {ack.refusal[:2]}"] += bool(ack.refusal)
        host.world.witness.say(
            f"{host.name} answers {header.plan_id}: {ack.refusal or ' '.join(words)}"
        )
        return replace(ack, command_id=header.command_id)

    async def renew(self, header, fallback, bounds):
        if self._host.world.mutant == "unleashed":
            bounds = NO_BOUNDS
        ack = await self._steward.renew(header, fallback, bounds)
        if ack is None:
            self._host.renewed_at_s = asyncio.get_running_loop().time()
            self._host.epoch_obeyed = max(self._host.epoch_obeyed, header.epoch)
        return ack

    def limit_net(self, header, limits):
        return self._steward.limit_net(header, limits)

    def refuse(self, header, detail):
        return self._steward.refuse(header, detail)

    def _mutated(self, command):
        """Taken as if made for this moment, by an agent that is "loyal" to every controller,
        whatever came since, or "forgetful" of what it has done."""
        mutant, state, header = self._host.world.mutant, self._steward.state, command.header
        if mutant == "unleashed":
            return replace(command, bounds=NO_BOUNDS)
        if mutant not in {"loyal", "forgetful"}:
            return command
        newest = replace(
            header,
            sequence=max(header.sequence, state.sequence_highest + 1),
            based_on_generation=state.generation,
        )
        if mutant == "loyal":
            newest = replace(newest, epoch=max(header.epoch, state.epoch_highest))
        else:
            newest = replace(newest, command_id=f"{header.command_id} {next(self._runs)}")
        return replace(command, header=newest, steps=tuple(map(self._from_now, command.steps)))

    def _from_now(self, step):
        told = self._host.hypervisor.told.get(step.vm_id)
        if told is None:
            return step
        return replace(step, from_amount=told[0 if step.resource is Resource.MEMORY else 2])


def _unleashed(grant, vm_ids):
    """A mutant: lends as if each VM had a leash and a plan that gives it more."""
    held = grant()
    if held is None:
        return None
    leash = {
        (vm_id, resource): Leash(0, 2**40, 2**40)
        for vm_id in vm_ids
        for resource in (Resource.CPU, Resource.MEMORY)
    }
    return replace(held, bounds=Bounds(leash, {}))


class LazyHost(Host):
    """A mutant: never looks at its lease."""

    async def _watch_the_lease(self):
        await asyncio.Event().wait()


def _make_root(root, node_id):
    """What an agent finds of its machine: who it is, and no readings."""
    for path, text in (
        ("proc/sys/kernel/random/boot_id", BOOT_ID),
        ("sys/class/dmi/id/product_uuid", node_id),
    ):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)


def seconds(amount):
    return amount * SECOND_NS
