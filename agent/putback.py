"""Puts VMs back as they were found (agent.found), while no agent runs.

Shrinking comes before growing, so that memory given back to one VM is there for the next. A shrink
obeys what every shrink obeys: it stops at the working set (I3) and takes no more at once than is
free (I4). A growth goes as far as it was found, also beyond what this agent may give: that was the
operator's choice. Whatever is done is measured, and doing it again after an interruption goes on
where it stopped: nothing is remembered but what is in force.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from agent.act import Executor, Pause
from agent.admission import Admitted, Readings, working_floor_bytes
from agent.found import STATISTICS, Found, differences
from agent.hypervisor import Hypervisor, VmReading
from agent.sampler import Sampler
from agent.steps import QUANTUM, Step
from agent.steward import has_moved
from shared.clock import SECOND_NS, Clock
from shared.errors import HypervisorError, VmGone
from shared.resources import Resource, amount_text

ROUNDS_MAX = 400  # a shrink takes what is free, and a twentieth in cache, each round
PATIENCE_NS = 20 * SECOND_NS  # without progress; guests' figures come every few seconds
MEMORY = "memory_bytes"
UNBOUNDED = 2**62

Say = Callable[[str], None]


@dataclass(slots=True)
class _Way:
    """One VM's way back."""

    found: Found
    reading: VmReading
    other: dict[str, tuple[int, int]]  # setting -> in force, as found
    whys: list[str] = field(default_factory=list)  # what is not as found, and why


class PutBack:
    """`run` says true when every VM is as it was found."""

    def __init__(
        self,
        hypervisor: Hypervisor,
        sampler: Sampler,
        clock: Clock,
        pause: Pause,
        say: Say,
    ) -> None:
        self._hypervisor = hypervisor
        self._sampler = sampler
        self._executor = Executor(hypervisor, clock, sampler.sample_of, pause)
        self._clock = clock
        self._pause = pause
        self._say = say
        self._is_whole = True

    async def run(self, records: Mapping[str, Found], *, dry_run: bool) -> bool:
        """HypervisorError where the hypervisor does not answer at all."""
        readings = {vm.vm_id: vm for vm in await self._hypervisor.read_all()}
        ways = [
            way
            for found in sorted(records.values(), key=lambda found: found.name)
            if (way := await self._way(found, readings.get(found.vm_id))) is not None
        ]
        if dry_run:
            for way in ways:
                self._say(f"{way.found.name}: {_changes_text(way) or 'as found'}")
            return self._is_whole
        await self._lift_guards(ways)
        await self._move_memory(ways, shrinking=True)
        for way in ways:
            await self._put_back(way, set(way.other) - {MEMORY, STATISTICS})
        await self._say_where_it_is_too_much(ways)
        await self._move_memory(ways, shrinking=False)
        for way in ways:  # last: memory moves by these figures
            await self._put_back(way, set(way.other) & {STATISTICS})
        for way in ways:
            await self._judge(way)
        return self._is_whole

    async def _way(self, found: Found, reading: VmReading | None) -> _Way | None:
        if reading is None:
            self._say(f"{found.name}: does not run here, so nothing of ours is in force")
            return None
        try:
            sight = await self._hypervisor.sight(found.vm_id)
        except (HypervisorError, VmGone) as error:
            self._fail(found.name, f"cannot be looked at: {error}")
            return None
        if sight.run != found.run:
            self._say(f"{found.name}: was started anew since, so nothing of ours is in force")
            return None
        if found.doubtful:
            self._fail(
                found.name, "its record was begun after an older one was lost: look at it yourself"
            )
        return _Way(found, reading, _beyond_quanta(differences(sight.settings, found)))

    async def _lift_guards(self, ways: list[_Way]) -> None:
        """First: a VM that grows towards its guard would be slowed."""
        for way in ways:
            vm_id = way.found.vm_id
            try:
                if way.reading.memory_guarded_bytes is not None:
                    await self._hypervisor.set_guard(vm_id, None)
                if way.reading.net_found_bytes_per_s is not None:
                    await self._hypervisor.set_net_limit(vm_id, None)
            except (HypervisorError, VmGone) as error:
                way.whys.append(f"guard or network limit: {error}")

    async def _put_back(self, way: _Way, names: set[str]) -> None:
        if not names:
            return
        try:
            settings = {name: way.other[name][1] for name in names}
            await self._hypervisor.put_back(way.found.vm_id, settings)
        except (HypervisorError, VmGone) as error:
            way.whys.append(str(error))

    async def _move_memory(self, ways: list[_Way], *, shrinking: bool) -> None:
        """In rounds until all are there, or nothing moves any more."""
        moving = {
            way.found.vm_id: way
            for way in ways
            if MEMORY in way.other and (way.other[MEMORY][1] < way.other[MEMORY][0]) == shrinking
        }
        whys: dict[str, str] = {}
        patience_ends = self._clock.tick_ns() + PATIENCE_NS
        for _ in range(ROUNDS_MAX):
            readings = await self._readings()
            steps, held = _steps(moving, readings)
            results = await self._executor.carry_out(steps, readings, lambda _step: None)
            of_vm = {each.step.index: each.step.vm_id for each in steps}
            whys = held | {of_vm[result.index]: result.detail for result in results}
            if any(has_moved(result) for result in results):
                patience_ends = self._clock.tick_ns() + PATIENCE_NS
            elif not steps or self._clock.tick_ns() >= patience_ends:
                break
            else:
                await self._pause(1.0)
        for vm_id, way in moving.items():
            if whys.get(vm_id):
                way.whys.append(f"memory: {whys[vm_id]}")

    async def _readings(self) -> Readings:
        """As found is not ours to judge: what all VMs may have together is not asked."""
        readings = await self._sampler.readings()
        node = replace(readings.node, memory_allocatable_bytes=UNBOUNDED)
        quarantined = self._executor.quarantined()
        return replace(readings, node=node, quarantined=quarantined)

    async def _say_where_it_is_too_much(self, ways: list[_Way]) -> None:
        """Once what shrinks has shrunk."""
        readings = await self._sampler.readings()
        allocatable = readings.node.memory_allocatable_bytes
        limits = {vm.vm_id: vm.memory_limit_bytes or 0 for vm in readings.vms.values()}
        limits |= {
            way.found.vm_id: max(limits.get(way.found.vm_id, 0), way.other[MEMORY][1])
            for way in ways
            if MEMORY in way.other
        }
        together = sum(limits.values())
        if allocatable is not None and together > allocatable:
            total, given = (amount_text(Resource.MEMORY, n) for n in (together, allocatable))
            self._say(f"VMs were found with {total} of memory together; this agent gives {given}")

    async def _judge(self, way: _Way) -> None:
        name = way.found.name
        try:
            sight = await self._hypervisor.sight(way.found.vm_id)
            left = _beyond_quanta(differences(sight.settings, way.found))
            if not left and not way.whys:
                await self._hypervisor.unmark(way.found.vm_id)
        except VmGone:
            self._say(f"{name}: ended meanwhile")
            return
        except HypervisorError as error:
            self._fail(name, f"cannot be looked at: {error}")
            return
        done = _changes_text(way)
        if not left and not way.whys:
            self._say(f"{name}: {done}: put back" if done else f"{name}: as found")
            return
        stays = ", ".join(
            f"{_name_text(each)} is {_text(each, now)}, was found as {_text(each, then)}"
            for each, (now, then) in left.items()
        )
        self._fail(name, "; ".join(filter(None, [stays, *dict.fromkeys(way.whys)])))

    def _fail(self, name: str, why: str) -> None:
        self._is_whole = False
        self._say(f"{name}: NOT as found: {why}")


def _steps(moving: Mapping[str, _Way], readings: Readings) -> tuple[list[Admitted], dict[str, str]]:
    """What is still to be moved, and why a VM is not taken as far down as it was found."""
    steps: list[Admitted] = []
    held: dict[str, str] = {}
    for index, (vm_id, way) in enumerate(moving.items()):
        vm = readings.vms.get(vm_id)
        limit = None if vm is None else vm.memory_limit_bytes
        if vm is None or limit is None:
            continue
        target = way.other[MEMORY][1]
        floor = working_floor_bytes(vm) or 0
        if target < min(floor, limit):
            needs = amount_text(Resource.MEMORY, floor)
            held[vm_id] = f"I3: working set and margin need {needs}"
            target = min(floor, limit)
        if abs(target - limit) >= QUANTUM[Resource.MEMORY]:
            steps.append(Admitted(Step(index, vm_id, Resource.MEMORY, limit, target)))
    return steps, held


def _beyond_quanta(other: dict[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
    """A balloon stops a few pages early."""
    return {
        name: (now, then)
        for name, (now, then) in other.items()
        if name != MEMORY or abs(now - then) >= QUANTUM[Resource.MEMORY]
    }


def _changes_text(way: _Way) -> str:
    changes = [
        f"{_name_text(name)} {_text(name, now)} -> {_text(name, then)}"
        for name, (now, then) in way.other.items()
    ]
    if way.reading.memory_guarded_bytes is not None:
        changes.append("memory guard -> none")
    if way.reading.net_found_bytes_per_s is not None:
        changes.append("network limit -> as before")
    return ", ".join(changes)


def _name_text(name: str) -> str:
    return name.removesuffix("_bytes").replace("_", " ")


def _text(name: str, value: int) -> str:
    if name == MEMORY:
        return amount_text(Resource.MEMORY, value)
    return str(value) if value else "none"
