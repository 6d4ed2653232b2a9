"""The book of what the reflex has moved, and how much it may still lend. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from agent.admission import Readings, headroom, room_for_the_way_back
from agent.belief import Stride
from agent.leash import Bounds, Grant, Leash, Lever
from agent.look import FAILED_AGAIN_NS, LENDABLE, MOVE_AGAIN_NS, REFUSED_AGAIN_NS, Look, measured
from agent.steps import Step, StepResult, allocatable_of, is_unchanged
from shared.resources import Resource
from shared.telemetry import Loan
from shared.units import SECOND_NS

PATIENCE_NS_MAX = 600 * SECOND_NS


@dataclass(frozen=True, slots=True)
class Lent:
    """One limit that the reflex has moved, up as a loan or down in a squeeze."""

    amount: int  # as it set it last
    moved_tick_ns: int
    needed_tick_ns: int  # when its VM was last believed to need it
    patience_ns: int  # how long after that it is paid back
    stride: Stride
    in_flight: bool = True
    moves: int = 0  # that had an effect
    was_used: bool = False
    is_boost: bool = False  # for a start: over with it


@dataclass(frozen=True, slots=True)
class Habit:
    """What became of a lever's last loan; keeps lending and paying back from taking turns."""

    patience_ns: int
    returned_tick_ns: int
    was_used: bool


@dataclass(frozen=True, slots=True)
class ReflexState:
    """All that the reflex knows from look to look; lost at a restart but for `Grant.lent`."""

    lent: Mapping[Lever, Lent] = field(default_factory=dict)
    habits: Mapping[Lever, Habit] = field(default_factory=dict)
    wants: Mapping[Lever, int] = field(default_factory=dict)  # limits believed to be needed now
    unmet: Mapping[Lever, int] = field(default_factory=dict)  # limit in force, where not all came
    climbs: Mapping[Resource, int] = field(default_factory=dict)  # missing on this machine itself
    rests: Mapping[tuple[Lever, bool], int] = field(default_factory=dict)  # by way: until tick
    pressed_tick_ns: int | None = None
    looked_tick_ns: int = 0
    bounds_number: int = -1
    allocatable: Mapping[Resource, int] = field(default_factory=dict)  # when those bounds came
    word: str = "normal"  # of `reflex.LADDER`


@dataclass(slots=True)
class Room:
    """What is left to lend of one resource; shrinks as it is lent."""

    free: int  # I1: measured
    way_back: int  # I9
    reserve: int  # the plan's

    @classmethod
    def of(cls, state: ReflexState, look: Look, resource: Resource) -> "Room | None":
        """None where it cannot be computed: then nothing is lent."""
        grant, readings = look.grant, look.readings
        free = headroom(readings, resource)
        way_back = room_for_the_way_back(readings, grant.fallback, resource)
        if free is None or way_back is None:
            return None
        reserve = grant.bounds.reserve.get(resource, 0) + _grown(state, readings, resource)
        drawn = sum(
            drawn_of(state, grant.bounds, readings, lever)
            for lever in state.lent
            if lever[1] is resource
        )
        spoken_for = look.signals.spoken_for.get(resource, 0)
        return cls(free - spoken_for, way_back - spoken_for, reserve - drawn)

    def most(self, limit: int, leash: Leash, fallback: int) -> int:
        """The highest limit that one lever at `limit` can have."""
        return min(
            limit + max(self.free, 0),
            max(limit, fallback) + max(self.way_back, 0),
            max(limit, leash.plan_amount) + max(self.reserve, 0),
            leash.high_amount,
        )

    def most_of_plan(self, limit: int, leash: Leash, fallback: int) -> int:
        """Likewise of one that only comes back to what the plan gives it."""
        return min(
            limit + max(self.free, 0),
            max(limit, fallback) + max(self.way_back, 0),
            max(limit, leash.plan_amount),
        )

    def take(self, limit: int, target: int, leash: Leash, fallback: int) -> None:
        self.free -= target - limit
        self.way_back -= max(target, fallback) - max(limit, fallback)
        self.reserve -= max(target, leash.plan_amount) - max(limit, leash.plan_amount)


def drawn_of(state: ReflexState, bounds: Bounds, readings: Readings, lever: Lever) -> int:
    """How much of the reserve one lever holds."""
    entry, leash = state.lent.get(lever), bounds.leash.get(lever)
    if entry is None or leash is None:
        return 0
    limit = measured(readings, lever)
    if limit is None:
        limit = entry.amount
    if entry.in_flight:
        limit = max(limit, entry.amount)
    return max(0, limit - leash.plan_amount)


def reconciled(
    state: ReflexState, grant: Grant, readings: Readings, patience_ns: int, now_tick_ns: int
) -> ReflexState:
    """The book as the plan and the machine have it now: what has no leash is no loan, what is
    where its plan has it has been returned, and what was lent before a restart still is."""
    lent: dict[Lever, Lent] = {}
    habits = {k: v for k, v in state.habits.items() if k in grant.bounds.leash}
    for lever, leash in grant.bounds.leash.items():
        entry, limit = state.lent.get(lever), measured(readings, lever)
        if entry is not None and entry.moves and not entry.in_flight and lever not in grant.lent:
            entry = None
        if entry is None and lever in grant.lent and limit is not None:
            stride = Stride(0, None, is_over=True)
            entry = Lent(
                limit, now_tick_ns, now_tick_ns, patience_ns, stride, in_flight=False, moves=1
            )
        if entry is None or lever[0] not in readings.vms:
            continue
        if (
            not entry.in_flight
            and limit is not None
            and is_unchanged(lever[1], limit, leash.plan_amount)
        ):
            if lever in state.lent:
                habits[lever] = Habit(entry.patience_ns, now_tick_ns, entry.was_used)
            continue
        lent[lever] = entry
    rests = {way: until for way, until in state.rests.items() if now_tick_ns < until}
    state = replace(state, lent=lent, habits=habits, rests=rests)
    if state.bounds_number != grant.number:
        state = replace(state, bounds_number=grant.number, allocatable=_allocatable(readings))
    return state


def settled(
    state: ReflexState, steps: Iterable[Step], results: Iterable[StepResult], now_tick_ns: int
) -> ReflexState:
    """After moves have ended, however they did."""
    lent, rests = dict(state.lent), dict(state.rests)
    for step, result in zip(steps, results, strict=True):
        entry = lent.get(step.lever)
        reached = result.after_amount
        has_moved = reached is not None and reached != result.before_amount
        rests[step.lever, step.shrinks] = now_tick_ns + _rest_ns(step, has_moved=has_moved)
        if entry is None:
            continue
        moves = entry.moves + has_moved
        if moves == 0:
            del lent[step.lever]
            continue
        lent[step.lever] = replace(
            entry,
            amount=step.from_amount if reached is None else reached,
            in_flight=False,
            moves=moves,
            moved_tick_ns=now_tick_ns,
        )
    return replace(state, lent=lent, rests=rests)


def _rest_ns(step: Step, *, has_moved: bool) -> int:
    """Until the lever is moved that way again; a loan that came is followed by the next at once."""
    if not step.shrinks:
        return 0 if has_moved else FAILED_AGAIN_NS
    return MOVE_AGAIN_NS if has_moved else REFUSED_AGAIN_NS


def loans_of(state: ReflexState, bounds: Bounds) -> tuple[Loan, ...]:
    """As telemetry tells them: what was moved, and what is wanted and was not to be had."""
    found = []
    for lever, entry in sorted(state.lent.items()):
        leash = bounds.leash.get(lever)
        if leash is not None:
            wanted = max(entry.amount, state.wants.get(lever, 0))
            found.append(Loan(*lever, leash.plan_amount, entry.amount, wanted))
    for lever, limit in sorted(state.unmet.items()):
        if lever not in state.lent:
            found.append(Loan(*lever, limit, limit, state.wants.get(lever, limit)))
    return tuple(found)


def _grown(state: ReflexState, readings: Readings, resource: Resource) -> int:
    """What this machine itself has got since the plan spoke, from its own host's reflex: it came
    for its VMs' needs, and the plan knew nothing of it."""
    then, now = state.allocatable.get(resource), allocatable_of(readings.node, resource)
    return 0 if then is None or now is None else max(0, now - then)


def _allocatable(readings: Readings) -> dict[Resource, int]:
    amounts = {resource: allocatable_of(readings.node, resource) for resource in LENDABLE}
    return {resource: amount for resource, amount in amounts.items() if amount is not None}
