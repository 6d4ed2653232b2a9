"""A host agent on simulated VMs and virtual time: commands, silence, crashes; what must hold."""

import asyncio
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random

import pytest

from agent import guard
from agent.act import Executor
from agent.guard import GuardState
from agent.metrics import AgentMetrics
from agent.quarantine import QUARANTINE_NS
from agent.sampler import Sampler, Share
from agent.simulated import SimulatedHypervisor, SimulatedVm, Wave
from agent.state import decode, encode
from agent.steps import Command, Header, Outcome, Step
from agent.steward import Steward
from shared.clock import SECOND_NS
from shared.errors import HypervisorError, VmGone
from shared.resources import MIB, Resource
from shared.testing import VirtualTimeLoop

SMALL = Wave(low=96 * MIB, high=96 * MIB)
VMS = (
    SimulatedVm("a", memory=SMALL),
    SimulatedVm("b", memory=SMALL),
    SimulatedVm("deaf", memory=SMALL, balloon_driver=False),
)
LEASE_S = 60


class LoopClock:
    """The clock of a virtual-time loop; ticks begin well above zero."""

    def __init__(self):
        self._loop = asyncio.get_running_loop()

    def unix_ns(self):
        return 1_700_000_000 * SECOND_NS + self.tick_ns()

    def tick_ns(self):
        return 1000 * SECOND_NS + round(self._loop.time() * SECOND_NS)


class Recorded(SimulatedHypervisor):
    """Notes every limit that is asked for beside the one in force."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.first_asked = asyncio.Event()
        self.asked = []  # tick, vm_id, resource, in force, asked

    async def set_limit(self, vm_id, resource, amount):
        now = self._clock.tick_ns()
        try:
            limit = _limit(await self.read(vm_id), resource)
        except (VmGone, HypervisorError):
            limit = None
        self.asked.append((now, vm_id, resource, limit, amount))
        self.first_asked.set()
        await super().set_limit(vm_id, resource, amount)


def _limit(reading, resource):
    if resource is Resource.MEMORY:
        return reading.memory_actual_bytes
    return reading.cpu_quota_millicores or reading.cpu_count * 1000


@dataclass
class Disk:
    """Where the state goes, as bytes; may refuse."""

    data: bytes = encode(GuardState(), "boot")
    full: bool = False
    writes: list = field(default_factory=list)

    async def save(self, state):
        await asyncio.sleep(0.001)
        if self.full:
            raise OSError(28, "no space left on device")
        self.data = encode(state, "boot")
        self.writes.append(state)


class Rig:
    """One host agent without the network."""

    def __init__(self, vms=VMS, allocatable_bytes=3 * 512 * MIB, seed=7):
        self.clock = LoopClock()
        self.hypervisor = Recorded(seed, self.clock, vms)
        self.ids = self.hypervisor.vm_ids()
        self.disk = Disk()
        self.share = Share(memory_bytes=allocatable_bytes, cpu_millicores=4000)
        self.sequence = 0
        self.epoch = 1
        self.boot()

    def boot(self):
        """A new process of the agent on what is on the disk."""
        state = decode(self.disk.data, "boot").state
        self.sampler = sampler = Sampler(Path(), self.hypervisor, self.clock, self.share)
        self.executor = executor = Executor(self.hypervisor, self.clock, sampler.sample_of)

        async def read():
            return executor.judging(await sampler.readings())

        self.steward = Steward(state, self.disk, executor, read, self.clock, AgentMetrics())

    @classmethod
    async def warm(cls, *arguments, **fields):
        """One whose sampler has seen the guests' figures."""
        rig = cls(*arguments, **fields)
        await rig.look()
        return rig

    async def look(self):
        await self.sampler.sample()
        await asyncio.sleep(4)

    async def limit(self, name, resource=Resource.MEMORY):
        return _limit(await self.hypervisor.read(self.ids[name]), resource)

    def header(self, **fields):
        self.sequence += 1
        known = Header(
            command_id=f"c{self.sequence}",
            plan_id="plan",
            epoch=self.epoch,
            sequence=self.sequence,
            based_on_generation=self.steward.facts().generation,
            agent_tick_ns=self.clock.tick_ns(),
            ttl_ms=15_000,
            lease_ms=LEASE_S * 1000,
        )
        return replace(known, **fields)

    async def step(self, index, name, to_amount, resource=Resource.MEMORY, **fields):
        start = await self.limit(name, resource)
        return Step(index, self.ids[name], resource, start, to_amount, deadline_ms=8000, **fields)


@pytest.fixture(autouse=True)
def _machine_without_readings(tmp_path, monkeypatch):
    (tmp_path / "proc").mkdir()
    monkeypatch.chdir(tmp_path)


def play(scenario):
    async def bounded():
        async with asyncio.timeout(24 * 3600):  # of virtual time
            await scenario()

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(bounded())


def outcomes(ack):
    return [result.outcome for result in ack.results]


def test_memory_moves_from_one_vm_to_another_and_the_effect_is_measured():
    async def scenario():
        rig = await Rig.warm(allocatable_bytes=1200 * MIB, vms=VMS[:2])
        shrink = await rig.step(0, "a", 384 * MIB)
        grow = replace(await rig.step(1, "b", 512 * MIB), from_amount=512 * MIB)
        await asyncio.sleep(3)
        ack = await rig.steward.apply(Command(rig.header(), (shrink, grow)))
        assert outcomes(ack) == [Outcome.APPLIED, Outcome.UNCHANGED]
        assert ack.accepted
        assert ack.generation == 1
        shrunk = ack.results[0]
        assert (shrunk.before_amount, shrunk.after_amount) == (512 * MIB, 384 * MIB)
        assert 1000 <= shrunk.took_ms <= 4000
        assert await rig.limit("a") == 384 * MIB

    play(scenario)


def test_a_repeated_command_is_answered_and_not_carried_out_again():
    async def scenario():
        rig = await Rig.warm()
        told = Command(rig.header(), (await rig.step(0, "a", 448 * MIB),))
        first = await rig.steward.apply(told)
        asked = len(rig.hypervisor.asked)
        again = replace(told, header=replace(told.header, agent_tick_ns=rig.clock.tick_ns()))
        assert await rig.steward.apply(again) == first
        rig.boot()
        assert await rig.steward.apply(again) == first
        assert len(rig.hypervisor.asked) == asked

    play(scenario)


def test_a_dry_run_moves_nothing_and_promises_nothing():
    async def scenario():
        rig = await Rig.warm()
        told = Command(rig.header(dry_run=True), (await rig.step(0, "a", 448 * MIB),))
        assert outcomes(await rig.steward.apply(told)) == [Outcome.DRY_RUN]
        assert rig.hypervisor.asked == []
        assert rig.steward.facts().lease == "none"

    play(scenario)


def test_a_vm_that_vanished_is_said_and_the_rest_goes_on():
    async def scenario():
        rig = await Rig.warm()
        gone, shrink = await rig.step(0, "b", 448 * MIB), await rig.step(1, "a", 448 * MIB)
        rig.hypervisor.vanish(rig.ids["b"])
        ack = await rig.steward.apply(Command(rig.header(), (gone, shrink)))
        assert outcomes(ack) == [Outcome.GONE, Outcome.APPLIED]

    play(scenario)


def test_a_frozen_vm_fails_alone():
    async def scenario():
        rig = await Rig.warm()
        await rig.steward.apply(Command(rig.header(), (await rig.step(0, "a", 504 * MIB),)))
        frozen, cpu = await rig.step(0, "b", 448 * MIB), await rig.step(1, "a", 500, Resource.CPU)
        rig.hypervisor.freeze(rig.ids["b"])
        ack = await rig.steward.apply(Command(rig.header(), (frozen, cpu)))
        assert outcomes(ack) == [Outcome.REFUSED, Outcome.APPLIED]
        assert ack.results[0].invariant == "I6"

    play(scenario)


def test_a_lever_without_effect_is_quarantined_reset_and_tried_again_later():
    async def scenario():
        rig = await Rig.warm(allocatable_bytes=4 * 512 * MIB)
        state = GuardState(
            lease_until_tick_ns=0, fallback={(rig.ids["deaf"], Resource.MEMORY): 512 * MIB}
        )
        machine = rig.hypervisor._machines[rig.ids["deaf"]]
        machine.limit_bytes = machine.target_bytes = 256 * MIB
        rig.disk.data = encode(state, "boot")
        rig.boot()
        assert await rig.steward.walk() == 0
        (lever,) = rig.executor.quarantined()
        assert lever == (rig.ids["deaf"], Resource.MEMORY)
        assert machine.target_bytes == 256 * MIB
        asked = len(rig.hypervisor.asked)
        await rig.steward.walk()
        assert len(rig.hypervisor.asked) == asked
        await asyncio.sleep(QUARANTINE_NS / SECOND_NS)
        assert not rig.executor.quarantined()
        await rig.steward.walk()
        assert len(rig.hypervisor.asked) > asked

    play(scenario)


def test_a_shrink_that_stalls_is_partial_and_later_grows_take_only_what_came_free():
    async def scenario():
        rig = await Rig.warm(VMS[:2], allocatable_bytes=896 * MIB)
        a, b = (rig.hypervisor._machines[rig.ids[name]] for name in "ab")
        b.limit_bytes = b.target_bytes = 384 * MIB
        await rig.look()
        steps = (await rig.step(0, "a", 256 * MIB), await rig.step(1, "b", 512 * MIB))
        task = asyncio.create_task(rig.steward.apply(Command(rig.header(), steps)))
        await rig.hypervisor.first_asked.wait()
        a.spec = replace(a.spec, memory=Wave(low=400 * MIB, high=400 * MIB, noise=0))
        stalled, grown = (await task).results
        assert (stalled.outcome, grown.outcome) == (Outcome.PARTIAL, Outcome.PARTIAL)
        assert a.target_bytes == stalled.after_amount == 416 * MIB
        assert grown.after_amount == (384 + 96) * MIB
        assert grown.detail.startswith("I1")

    play(scenario)


def test_grows_side_by_side_do_not_get_the_same_free_memory_twice():
    async def scenario():
        vms = (*VMS[:2], SimulatedVm("c", memory=SMALL))
        rig = await Rig.warm(vms, allocatable_bytes=1280 * MIB)
        a, b, c = (rig.hypervisor._machines[rig.ids[name]] for name in "abc")
        for machine in (b, c):
            machine.limit_bytes = machine.target_bytes = 384 * MIB
        await rig.look()
        shrink = await rig.step(0, "a", 256 * MIB)
        grows = (await rig.step(1, "b", 512 * MIB), await rig.step(2, "c", 512 * MIB))
        task = asyncio.create_task(rig.steward.apply(Command(rig.header(), (shrink, *grows))))
        await rig.hypervisor.first_asked.wait()
        a.spec = replace(a.spec, memory=Wave(low=400 * MIB, high=400 * MIB, noise=0))
        ack = await task
        assert outcomes(ack)[0] == Outcome.PARTIAL
        assert sum(machine.limit_bytes for machine in (a, b, c)) <= 1280 * MIB
        assert sum(result.after_amount for result in ack.results[1:]) == (768 + 96) * MIB

    play(scenario)


def test_no_shrink_begins_after_the_lease_of_its_own_command_has_ended():
    async def scenario():
        rig = await Rig.warm()
        steps = (await rig.step(0, "a", 384 * MIB), await rig.step(1, "a", 500, Resource.CPU))
        ack = await rig.steward.apply(Command(rig.header(lease_ms=1000), steps))
        assert outcomes(ack) == [Outcome.APPLIED, Outcome.REFUSED]
        assert ack.results[1].invariant == "I9"

    play(scenario)


def test_what_moved_nothing_leaves_the_generation():
    async def scenario():
        rig = await Rig.warm()
        told = Command(rig.header(), (await rig.step(0, "a", 100 * MIB, floor_amount=128 * MIB),))
        ack = await rig.steward.apply(told)
        assert outcomes(ack) == [Outcome.REFUSED]
        assert (ack.generation, rig.steward.facts().generation) == (0, 0)

    play(scenario)


def test_nothing_moves_when_the_intent_cannot_be_written():
    async def scenario():
        rig = await Rig.warm()
        rig.disk.full = True
        ack = await rig.steward.apply(Command(rig.header(), (await rig.step(0, "a", 448 * MIB),)))
        assert not ack.accepted
        assert "no space" in ack.refusal
        assert rig.hypervisor.asked == []

    play(scenario)


def test_the_intent_is_on_disk_before_anything_moves():
    async def scenario():
        rig = await Rig.warm()
        told = Command(rig.header(), (await rig.step(0, "a", 448 * MIB),))
        task = asyncio.create_task(rig.steward.apply(told))
        await rig.hypervisor.first_asked.wait()
        on_disk = decode(rig.disk.data, "boot").state
        assert on_disk.done_command_ids == (told.header.command_id,)
        assert on_disk.epoch_highest == 1
        task.cancel()  # the agent is killed in the middle
        await asyncio.gather(task, return_exceptions=True)
        rig.boot()
        assert rig.steward.facts().generation == 1
        asked = len(rig.hypervisor.asked)
        ack = await rig.steward.apply(told)
        assert outcomes(ack) == [Outcome.FAILED]
        assert len(rig.hypervisor.asked) == asked

    play(scenario)


@pytest.mark.parametrize("killed", [False, True])
def test_when_nobody_speaks_limits_grow_back_within_the_lease_and_five_seconds(killed):
    async def scenario():
        rig = await Rig.warm()
        steps = (await rig.step(0, "a", 320 * MIB), await rig.step(1, "b", 500, Resource.CPU))
        ack = await rig.steward.apply(Command(rig.header(), steps))
        assert outcomes(ack) == [Outcome.APPLIED] * 2
        until = rig.steward.state.lease_until_tick_ns
        if killed:
            rig.boot()
        while rig.clock.tick_ns() < until + 60 * SECOND_NS:
            await rig.steward.walk()
            await asyncio.sleep(1)
        walked = [asked for asked in rig.hypervisor.asked if asked[0] >= until]
        assert walked[0][0] <= until + 5 * SECOND_NS
        assert not [a for a in rig.hypervisor.asked if until - 40 * SECOND_NS < a[0] < until]
        assert all(amount > limit for _, _, _, limit, amount in walked)
        assert await rig.limit("a") == 512 * MIB
        assert await rig.limit("b", Resource.CPU) == 1000
        assert rig.steward.facts().generation > ack.generation

    play(scenario)


def test_renewals_hold_the_lease_and_bring_a_new_way_back():
    async def scenario():
        rig = await Rig.warm()
        await rig.steward.apply(Command(rig.header(), (await rig.step(0, "a", 320 * MIB),)))
        way_back = ((rig.ids["a"], Resource.MEMORY, 400 * MIB),)
        for _ in range(80):
            await asyncio.sleep(LEASE_S / 4)
            assert await rig.steward.renew(rig.header(), way_back) is None
            assert await rig.steward.walk() == 0
        assert decode(rig.disk.data, "boot").state.lease_until_tick_ns > rig.clock.tick_ns()
        assert len(rig.disk.writes) < 50  # the disk is not worn out by renewals
        await asyncio.sleep(LEASE_S + 1)
        while await rig.steward.walk():
            pass
        assert await rig.limit("a") == 400 * MIB
        stale = rig.header(agent_tick_ns=rig.clock.tick_ns() - 16 * SECOND_NS)
        refusal = await rig.steward.renew(stale)
        assert refusal is not None
        assert refusal.refusal.startswith("I6")

    play(scenario)


def test_a_newer_controller_stops_the_older_ones_command():
    async def scenario():
        rig = await Rig.warm()
        first = await rig.step(0, "a", 320 * MIB)
        second = replace(first, index=1, from_amount=320 * MIB, to_amount=304 * MIB)
        task = asyncio.create_task(rig.steward.apply(Command(rig.header(), (first, second))))
        await rig.hypervisor.first_asked.wait()
        assert await rig.steward.renew(rig.header(epoch=2)) is None
        ack = await task
        assert outcomes(ack) == [Outcome.APPLIED, Outcome.REFUSED]
        assert ack.results[1].invariant == "I7"

    play(scenario)


# --- a seeded story ----------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_whatever_happens_the_host_stays_within_its_means(seed):
    """Random plans, lost and doubled commands, silence, frozen and vanishing VMs, kills."""
    play(lambda: _story(seed))


async def _story(seed):
    random = Random(seed)
    vms = tuple(
        SimulatedVm(
            f"vm{n}",
            memory=Wave(64 * MIB, random.randrange(80, 300) * MIB, random.randrange(20, 90)),
            balloon_driver=random.random() < 0.8,
        )
        for n in range(5)
    )
    rig = await Rig.warm(
        vms, allocatable_bytes=5 * 512 * MIB - random.randrange(0, 512) * MIB, seed=seed
    )
    bound = max(5 * 512 * MIB, rig.share.memory_bytes)
    sent = []
    for _ in range(60):
        happening = random.random()
        if happening < 0.55:
            await _command(rig, random, sent)
        elif happening < 0.65 and sent:
            generation = rig.steward.facts().generation
            await rig.steward.apply(random.choice(sent))
            assert rig.steward.facts().generation == generation, f"seed {seed}: acted twice"
        elif happening < 0.75:
            await rig.steward.renew(rig.header())
        elif happening < 0.8:
            rig.boot()
        elif happening < 0.9:
            _disturb(rig, random)
        await _silence(rig, random.choice((1, 2, 10, 45, 100)), bound, seed)
    assert rig.hypervisor.asked, f"seed {seed}: nothing ever moved"


async def _command(rig, random, sent):
    steps = []
    for index, name in enumerate(random.sample(sorted(rig.ids), min(3, len(rig.ids)))):
        try:
            start = await rig.limit(name)
        except (VmGone, HypervisorError):
            start = 512 * MIB
        target = random.randrange(100, 513) * MIB
        steps.append(Step(index, rig.ids[name], Resource.MEMORY, start or 0, target))
    told = Command(rig.header(), tuple(steps))
    sent.append(told)
    lease_is_fresh = random.random() < 0.8
    if not lease_is_fresh:
        await asyncio.sleep(16)  # it comes late
    asked = len(rig.hypervisor.asked)
    task = asyncio.create_task(rig.steward.apply(told))
    if random.random() < 0.2:
        await asyncio.sleep(random.random() * 5)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        rig.boot()
    else:
        ack = await task
        assert len(ack.results) == len(steps) or not ack.accepted
    if not lease_is_fresh:
        assert len(rig.hypervisor.asked) == asked


def _disturb(rig, random):
    name = random.choice(sorted(rig.ids))
    vm_id = rig.ids[name]
    try:
        random.choice((rig.hypervisor.freeze, rig.hypervisor.thaw, rig.hypervisor.thaw))(vm_id)
        if random.random() < 0.05:
            rig.hypervisor.vanish(vm_id)
    except VmGone:
        return


async def _silence(rig, seconds, bound, seed):
    """Time passes; the agent looks at its lease each second, and so do we at the host."""
    until = rig.clock.tick_ns() + seconds * SECOND_NS
    while rig.clock.tick_ns() < until:
        await rig.sampler.sample()
        seen = len(rig.hypervisor.asked)
        ended = guard.has_lease_ended(rig.steward.state, rig.clock.tick_ns())
        await rig.steward.walk()
        for _, _, _, limit, amount in rig.hypervisor.asked[seen:]:
            assert ended, f"seed {seed}: moved without a command and within the lease"
            assert limit is None or amount >= limit, f"seed {seed}: shrank after the lease"
        total = sum(machine.limit_bytes for machine in rig.hypervisor._machines.values())
        assert total <= bound, f"seed {seed}: {total // MIB} MiB are more than there is"
        await asyncio.sleep(1)
