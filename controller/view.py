"""What the controller shows of itself: one frozen value, published after each cycle and change.

Whoever answers operators reads this and nothing else, so an answer never catches a cycle half-way.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from controller.core.state import Broken, Decision, Floats, Forecast, Ints, Plan, Policy, Snapshot
from controller.forecast.protocol import Said, Standing
from controller.gate import Approvals
from controller.outcome import PlanOutcome, StepOutcome
from controller.sessions import Agent
from shared.telemetry import NodeReadings, RoleUse

PLANS_MAX = 64  # kept for `hrapaq plan ID`; the audit has all

VERIFIED = "verified"
REJECTED = "rejected"
WAITING = "waiting for approval"
APPROVED = "approved"
DECLINED = "declined"
NOTHING = "nothing to do"


@dataclass(frozen=True, slots=True)
class Part:
    name: str
    healthy: bool
    detail: str


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """A node that reports: a host, or a VM with an agent inside."""

    node_id: str
    name: str
    role: str
    received_tick_ns: int  # of its newest message, by the controller's clock
    levers: Mapping[str, str]  # resource -> why not; empty text: available
    readings: NodeReadings = field(default_factory=NodeReadings)
    roles: tuple[RoleUse, ...] = ()
    vm_ids: tuple[str, ...] = ()
    vm_delay_us_per_s: Sequence[int] = ()  # of each: runnable but not running; MISSING: not known
    vm_net_used_bytes_per_s: Sequence[int] = ()
    vm_net_limit_bytes_per_s: Sequence[int] = ()
    vm_idle_levers: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class PlanRecord:
    """A plan with what was said of it and what became of it."""

    plan: Plan
    verdict: str  # one of the words above, or "held: why"
    made_at_unix_ns: int
    ids: Mapping[int, str]  # of the machines that it names, by index
    names: Mapping[int, str]
    broken: tuple[Broken, ...] = ()
    outcome: PlanOutcome | None = None

    def step_outcome(self, index: int) -> StepOutcome | None:
        return None if self.outcome is None else self.outcome.steps[index]


@dataclass(frozen=True, slots=True)
class Totals:
    """Since the start of this controller; only ever rise, but for the latency."""

    telemetry_messages: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)
    plans_verified: int = 0
    rejections: Mapping[str, int] = field(default_factory=dict)
    commands_sent: int = 0
    commands_acknowledged: int = 0
    steps_applied: int = 0
    memory_changed_bytes: int = 0
    latency_sample_to_command_ns: int | None = None  # of the last command


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """What is known of the newest forecast beside its quantiles; rows are the snapshot's."""

    said: Said
    standing: Standing
    coverage: Floats  # (n, 3) share of outcomes at or below the .95 quantile; NaN: too few
    outcomes: Ints  # (n, 3) that were compared with forecasts
    series: Mapping[str, int]  # how many each method forecasts, by its name
    compared: int = 0  # series that were held against what the network was taught
    novel: Mapping[str, int] = field(default_factory=dict)  # resource -> how many are unlike that


@dataclass(frozen=True, slots=True, eq=False)
class View:
    policy: Policy
    cycle_interval_ns: int
    epoch: int = 0
    cycles: int = 0
    last_cycle_ns: int = 0
    totals: Totals = Totals()
    parts: tuple[Part, ...] = ()
    agents: Mapping[str, Agent] = field(default_factory=dict)
    nodes: tuple[NodeInfo, ...] = ()
    taken_tick_ns: int = 0  # of the snapshot, by the controller's clock
    snapshot: Snapshot | None = None
    forecast: Forecast | None = None
    judged: Judged | None = None
    decision: Decision | None = None
    plans: tuple[PlanRecord, ...] = ()  # oldest first; those with steps or rejections
    approvals: Approvals = field(default_factory=Approvals)

    def plan(self, plan_id: str) -> PlanRecord | None:
        """The plan of that name; with an empty one, the newest."""
        if not plan_id:
            return self.plans[-1] if self.plans else None
        return next((one for one in reversed(self.plans) if one.plan.plan_id == plan_id), None)

    def present_plans(self) -> tuple[PlanRecord, ...]:
        """Those of the newest cycle, approvals carried out since included."""
        if self.snapshot is None:
            return ()
        return tuple(one for one in self.plans if one.plan.cycle == self.snapshot.cycle)
