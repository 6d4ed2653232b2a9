"""The values of one decision, all frozen. Shapes: n machines, 3 resources (shared.resources).

A machine is a physical host (a root, parent -1) or a VM; a VM that reports guests of its own is a
parent too. Parents stand before their children. Amounts are int64 in the resource's unit:
millicores, bytes, bytes per second. `MISSING` stands where a reading could not be had.

    Snapshot, Forecast, Policy ─decide─> Decision: per tree a VerifiedPlan or a Rejection
"""

from dataclasses import dataclass, field, fields
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from shared.resources import MIB, Resource

MISSING = -1
RESOURCES = len(Resource)

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


class Mode(IntEnum):
    """What may happen to a VM. The default is to look and do nothing."""

    OBSERVE = 0
    RECOMMEND = 1
    ENFORCE = 2


class Hold(IntEnum):
    """Why a VM does not move at all (I8)."""

    NONE = 0
    FROZEN = 1  # by an operator
    MIGRATING = 2
    NOT_RUNNING = 3
    UNMANAGED = 4  # nobody can carry out a step: its host's agent is not connected
    STARTING = 5  # it has not said yet that it is ready
    CLONE = 6  # there are two machines of this identity, or of that of its host


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """Everything known at one moment. Arrays are read-only."""

    taken_at_unix_ns: int
    epoch: int
    cycle: int
    ids: tuple[str, ...]
    names: tuple[str, ...]
    parent: Ints  # (n,) index of the machine that this one runs on; -1 for a root; parent[i] < i
    is_host: Bools  # (n,) an agent inside reports guests or could: it has capacity to give
    capacity: Ints  # what a root may give its VMs; MISSING: unknown, or no root
    overhead: Ints  # what a host takes of its capacity (root) or limit (VM) before its children
    reserve: Ints  # kept back at a host for bursts
    limit: Ints  # measured limit in force
    maximum: Ints  # the most that the VM can physically have
    used: Ints  # last measured use; memory: what the guest cannot give up
    wanted: Ints  # limit that its host says it needs now, more than was planned; MISSING: none
    memory_free: Ints  # (n,) bytes that the guest reports free
    memory_cache: Ints  # (n,) bytes of the guest's droppable cache
    memory_stats_age_ns: Ints  # (n,) age of the guest's own memory figures
    sample_age_ns: Ints  # (n,) age of the message that brought the readings
    floor: Ints  # operator's bounds
    ceiling: Ints
    pin: Ints  # amount that an operator pinned; MISSING: none
    priority: Ints  # (n,) 1 = normal; weighs shortage
    violation_ppm: Ints  # (n,) P(demand > grant) that is accepted, in millionths
    mode: Ints  # (n,) Mode
    hold: Ints  # (n,) Hold
    lever: Bools  # a limit of this resource can be moved here
    generation: Ints  # (n,) of the agent inside a host; MISSING for others
    tick_ns: Ints  # (n,) the agent's own clock at its last report; MISSING for others
    simulated: Bools  # (n,)
    below: tuple[tuple[int, ...], ...] = field(init=False, repr=False)  # children of each machine

    def __post_init__(self) -> None:
        n = len(self.ids)
        assert len(set(self.ids)) == n, "a machine stands twice in the snapshot"
        assert self.parent.shape == (n,)
        assert bool((self.parent < np.arange(n)).all()), "a child stands before its parent"
        below: list[list[int]] = [[] for _ in range(n)]
        for index, parent in enumerate(self.parent.tolist()):
            if parent >= 0:
                below[parent].append(index)
        object.__setattr__(self, "below", tuple(tuple(children) for children in below))
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, np.ndarray):
                assert value.shape in {(n,), (n, RESOURCES)}, each.name
                value.flags.writeable = False

    def roots(self) -> tuple[int, ...]:
        return tuple(int(i) for i in np.flatnonzero(self.parent < 0))

    def children(self, index: int) -> tuple[int, ...]:
        return self.below[index]

    def tree(self, root: int) -> list[int]:
        """`root` and everything below it, in the order of the snapshot."""
        found = [root]
        for machine in found:
            found += self.below[machine]
        return sorted(found)


@dataclass(frozen=True, slots=True, eq=False)
class Forecast:
    """Demand over the horizon: the peak of the 1-minute means, as quantiles per machine."""

    made_at_unix_ns: int
    horizon_ns: int
    method: str
    probability: Floats  # (q,) ascending, first 0, last 1
    quantile: Floats  # (n, 3, q) non-decreasing along q; NaN where there is no forecast
    age_ns: Ints  # (n,) of the newest history that went in; MISSING where none
    samples: Ints  # (n, 3) history steps that went in
    skill: Floats  # (n, 3) against persistence, 1 perfect, 0 no better; NaN: not known yet


@dataclass(frozen=True, slots=True)
class Policy:
    """How much things matter. Tuples follow the order cpu, memory, io."""

    quantum: tuple[int, int, int] = (50, 100 * MIB, MIB)
    bins_max: int = 32
    waste: tuple[float, float, float] = (0.05, 0.15, 0.05)  # per unit granted and not used
    short: tuple[float, float, float] = (2.0, 4.0, 1.0)  # per unit needed and not granted
    move_quanta: float = 0.5  # a change at all costs as much as this many quanta of use
    drift: float = 0.02  # per unit that a limit changes
    floor_tolerance: float = 0.02  # a limit this share below what is asked for is left as enough
    memory_margin_bytes: int = 64 * MIB  # above the working set (I3)
    memory_margin_share: float = 0.05  # or this share of the limit, whichever is more
    memory_cache_share: float = 0.05  # of the limit, what a step may take of the cache (I4)
    cpu_shrink_share: float = 0.20  # of the limit, what a step may take (I4)
    io_shrink_share: float = 0.50
    stats_age_ns_max: int = 30_000_000_000  # three periods of the guest's memory figures (I6)
    sample_age_ns_max: int = 30_000_000_000  # three sampling intervals (I6)
    forecast_age_ns_max: int = 180_000_000_000
    lease_ns: int = 60_000_000_000
    command_ttl_ns: int = 15_000_000_000
    step_deadline_ns: int = 8_000_000_000

    def margin_bytes(self, limit: Ints) -> Ints:
        """What must stay above a VM's working set, by its limit; bytes, shape of `limit`."""
        share = (np.maximum(limit, 0) * self.memory_margin_share).astype(np.int64)
        return np.maximum(share, self.memory_margin_bytes)

    def with_margin(self, demand: Floats) -> Floats:
        """The least limits that hold this demand and their own margin; bytes, shape of `demand`."""
        by_share = demand / (1.0 - self.memory_margin_share)
        return np.maximum(demand + self.memory_margin_bytes, by_share)


@dataclass(frozen=True, slots=True)
class Step:
    """One change of one limit. Steps of a phase may run together; phases run in order."""

    index: int
    phase: int
    machine: int  # index in the snapshot
    vm_id: str
    node: int  # index of the host whose agent carries it out
    resource: Resource
    from_amount: int
    to_amount: int
    floor_amount: int
    ceiling_amount: int
    why: str

    @property
    def shrinks(self) -> bool:
        return self.to_amount < self.from_amount


@dataclass(frozen=True, slots=True)
class Fallback:
    """What an agent may do with a limit by itself: grow to `amount` when nobody speaks any more
    (I9), and until then lend and take back between `low_amount` and `high_amount`, if it may."""

    machine: int
    vm_id: str
    node: int
    resource: Resource
    amount: int
    plan_amount: int = MISSING  # in force once the plan is carried out
    low_amount: int = MISSING  # MISSING: the agent does not move it
    high_amount: int = MISSING

    @property
    def has_leash(self) -> bool:
        return self.low_amount != MISSING


@dataclass(frozen=True, slots=True)
class Lend:
    """What of a host's capacity its agent may lend to the guests together."""

    node: int  # index of the host
    resource: Resource
    amount: int


@dataclass(frozen=True, slots=True)
class Plan:
    plan_id: str
    root: int
    epoch: int
    cycle: int
    steps: tuple[Step, ...]
    fallback: tuple[Fallback, ...]
    generations: tuple[tuple[int, int], ...]  # (host index, generation it was made on)
    lend: tuple[Lend, ...] = ()


@dataclass(frozen=True, slots=True)
class Broken:
    """One invariant that a plan would break, at one machine."""

    invariant: str  # "I1" ... "I10"
    machine: int
    detail: str


@dataclass(frozen=True, slots=True)
class VerifiedPlan:
    """Only controller.core.verify makes one, and only one of these can be dispatched."""

    plan: Plan
    lowest_mode: Mode


@dataclass(frozen=True, slots=True)
class Rejection:
    plan: Plan
    broken: tuple[Broken, ...]


Verdict = VerifiedPlan | Rejection


@dataclass(frozen=True, slots=True, eq=False)
class Bins:
    """Candidate grants and the demand's mass between them. b = most bins of any VM here.

    probability[..., k] = P(level[k-1] < demand <= level[k]); the last column is demand above
    every level. Unused places: level MISSING, probability 0.
    """

    level: Ints  # (n, 3, b) ascending amounts
    count: Ints  # (n, 3) how many are in use; 0: this resource of this machine is left alone
    probability: Floats  # (n, 3, b + 1)
    needed: Ints  # (n, 3) lowest level with P(demand > level) <= violation budget; MISSING: none
    lowest: Ints  # (n, 3) lowest amount that I2, I3 and I4 allow now; MISSING where count is 0
    own: Ints  # (n, 3) what a nested host that shrinks must have beside its guests' grants


@dataclass(frozen=True, slots=True, eq=False)
class Allocation:
    """What the dynamic programme chose, in integer value units (1000 = one quantum of use)."""

    level: Ints  # (n, 3) chosen grant; MISSING where the machine is left alone
    value: Ints  # (n, 3, b) of each option; 0 in unused places
    total: Ints  # (roots, 3)
    price: Floats  # (n, 3) at hosts: shadow price per quantum; NaN elsewhere and where misses rule
    status: tuple[tuple[str, ...], ...]  # (roots)(3): words of allocate.grants


@dataclass(frozen=True, slots=True)
class TreeDecision:
    """One root: what is enforced now, and what would be done if recommended VMs took part."""

    root: int
    verdict: Verdict
    advice: Verdict | None


@dataclass(frozen=True, slots=True, eq=False)
class Decision:
    trees: tuple[TreeDecision, ...]
    bins: Bins
    allocation: Allocation
