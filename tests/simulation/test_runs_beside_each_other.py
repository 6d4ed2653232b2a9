"""Several runs move limits of one host at the same time: whatever happens between their steps, the
host is never promised more than it has (I1), and no lever is moved by two of them at once."""

import asyncio
from collections import Counter
from pathlib import Path
from random import Random

import pytest
from reflex_rig import LoopClock, play, steady

from agent.act import Executor
from agent.admission import Admitted
from agent.sampler import Sampler, Share
from agent.simulated import SimulatedHypervisor, SimulatedVm
from agent.steps import Outcome, Step
from shared.errors import HypervisorTimeout
from shared.resources import MIB, Resource

NAMES = "abcdef"
SEEN: Counter[object] = Counter()  # over all stories told in this run


class Witnessed(SimulatedHypervisor):
    """Slow and unreliable; calls that fail may be carried out all the same, and late, but not
    after a later call for the same VM: libvirt does one after the other."""

    def __init__(self, seed, clock, vms, allocatable_bytes):
        super().__init__(seed, clock, vms)
        self.random = Random(f"calls {seed}")
        self.allocatable_bytes = allocatable_bytes
        self.moving = Counter()
        self.counts = Counter()
        self.fullest_bytes = 0
        self.late = {}  # by VM: what was asked for

    async def read(self, vm_id):
        await asyncio.sleep(self.random.random() * 0.3)
        return await super().read(vm_id)

    async def read_all(self):
        await asyncio.sleep(self.random.random() * 0.5)
        readings = await super().read_all()
        await asyncio.sleep(self.random.random() * 0.5)  # so old are they when they come
        return readings

    async def set_limit(self, vm_id, resource, amount):
        self.moving[vm_id] += 1
        assert self.moving[vm_id] == 1, "two runs at one lever"
        await asyncio.sleep(self.random.random() * 0.3)
        self.moving[vm_id] -= 1
        self._do_late(vm_id)
        fate = self.random.random()
        if fate < 0.1:
            self.counts["lost"] += 1
            raise HypervisorTimeout("nobody answers")
        if fate < 0.2:
            self.counts["late"] += 1
            self.late[vm_id] = (resource, amount)
            asyncio.get_running_loop().call_later(self.random.random() * 10, self._do_late, vm_id)
            raise HypervisorTimeout("nobody answers")
        self._do(vm_id, resource, amount)

    def _do_late(self, vm_id):
        late = self.late.pop(vm_id, None)
        if late is not None:
            self._do(vm_id, *late)

    def _do(self, vm_id, resource, amount):
        self._catch_up()
        self._machines[vm_id].set_limit(resource, amount)
        self.counts["moves"] += 1
        full = sum(max(one.limit_bytes, one.target_bytes) for one in self._machines.values())
        self.fullest_bytes = max(self.fullest_bytes, full)


def host_of(seed, random):
    clock = LoopClock()
    limits = {name: random.randrange(160, 512) for name in NAMES}
    vms = tuple(SimulatedVm(name, 1024 * MIB, memory=steady(64)) for name in NAMES)
    allocatable_bytes = (sum(limits.values()) + random.choice([0, 50, 200])) * MIB
    hypervisor = Witnessed(seed, clock, vms, allocatable_bytes)
    for name, vm_id in hypervisor.vm_ids().items():
        machine = hypervisor._machines[vm_id]
        machine.limit_bytes = machine.target_bytes = limits[name] * MIB
    sampler = Sampler(Path(), hypervisor, clock, Share(memory_bytes=allocatable_bytes), 5.0)
    return hypervisor, sampler, Executor(hypervisor, clock, sampler.sample_of)


def steps_of(random, readings, only_growing):
    found = []
    for vm_id in random.sample(sorted(readings.vms), random.randint(1, len(NAMES))):
        limit = readings.vms[vm_id].memory_limit_bytes
        change = random.randrange(16, 160) * MIB
        if limit is None:
            continue
        to_amount = limit + change if only_growing or random.random() < 0.5 else limit - change
        step = Step(len(found), vm_id, Resource.MEMORY, limit, to_amount, deadline_ms=4000)
        found.append(Admitted(step))
    return sorted(found, key=lambda one: not one.step.shrinks)


async def one_run(random, sampler, executor, outcomes, *, lends):
    """What a command does, or the reflex: reads, thinks for a while, moves, and begins again."""
    for _ in range(12):
        await asyncio.sleep(random.random() * 3)
        readings = await sampler.readings()
        await asyncio.sleep(random.random())
        told = steps_of(random, readings, only_growing=lends)
        results = await executor.carry_out(
            told, readings, lambda step: None, fell_short=True, patient=not lends
        )
        outcomes.update(result.outcome for result in results)


@pytest.mark.parametrize("seed", range(40))
def test_no_interleaving_promises_more_than_there_is(seed, tmp_path, monkeypatch):
    (tmp_path / "proc").mkdir()
    monkeypatch.chdir(tmp_path)
    seen = {}

    async def scenario():
        random = Random(f"runs {seed}")
        hypervisor, sampler, executor = host_of(seed, random)
        await sampler.sample()
        await asyncio.sleep(4)
        outcomes = Counter()
        async with asyncio.TaskGroup() as tasks:
            for lends in (False, True, True):
                tasks.create_task(one_run(random, sampler, executor, outcomes, lends=lends))
        assert hypervisor.fullest_bytes <= hypervisor.allocatable_bytes
        seen.update(moves=hypervisor.counts["moves"], outcomes=outcomes)

    play(scenario)
    SEEN.update(moves=seen["moves"])
    SEEN.update(seen["outcomes"])


def test_the_runs_are_worth_the_while():
    """Most stories end with moves, some cut, some refused, some failed."""
    if SEEN["moves"] == 0:
        pytest.skip("needs the stories of the test before")
    assert SEEN["moves"] > 100
    for outcome in (Outcome.APPLIED, Outcome.PARTIAL, Outcome.REFUSED, Outcome.FAILED):
        assert SEEN[outcome] > 10, f"{outcome.name} in {SEEN}"
