"""Whether a verified plan is carried out, shown to an operator first, or left. Pure; by mode.

    gate(tree, snapshot) -> Apply | Ask | Nothing | Held

Approvals are remembered here too: plans that wait for an operator's word, each with an end.
"""

from dataclasses import dataclass, replace

from controller.core.state import (
    Fallback,
    Mode,
    Plan,
    Policy,
    Rejection,
    Snapshot,
    Step,
    TreeDecision,
    Verdict,
    VerifiedPlan,
)
from controller.core.verify import verify

WAITING_MAX = 64  # plans waiting at a time; the oldest makes room
ADVICE_SUFFIX = "-r"  # a tree's advice stands beside its enforced plan under a name of its own


@dataclass(frozen=True, slots=True)
class Apply:
    """Carry it out. `advice`: what an operator may approve besides."""

    plan: VerifiedPlan
    advice: Plan | None = None


@dataclass(frozen=True, slots=True)
class Ask:
    """Show it. It is no VerifiedPlan any more: by the time of an answer the world has moved."""

    plan: Plan


@dataclass(frozen=True, slots=True)
class Nothing:
    """Every VM has what it should have."""


@dataclass(frozen=True, slots=True)
class Held:
    why: str


Gated = Apply | Ask | Nothing | Held


def gate(tree: TreeDecision, snapshot: Snapshot) -> Gated:
    """What becomes of a tree's plan. A step on an observed VM is never carried out nor asked for,
    whoever verified the plan."""
    advice = _advice(tree.advice, snapshot)
    verdict = tree.verdict
    if isinstance(verdict, Rejection):
        if advice is not None:
            return Ask(advice)
        return Held("; ".join(f"{one.invariant}: {one.detail}" for one in verdict.broken))
    if not verdict.plan.steps:
        return Nothing() if advice is None else Ask(advice)
    strays = _below(Mode.ENFORCE, verdict.plan, snapshot)
    if strays:
        return Held(_stray_text(strays, snapshot))
    return Apply(verdict, advice)


def reverify(waiting: Plan, snapshot: Snapshot, policy: Policy) -> VerifiedPlan | Rejection | Held:
    """An approved plan against the newest state: its steps must still start from what is in
    force, and everything is checked again as if it had just been made."""
    moved = _moved_to(waiting, snapshot)
    if moved is None:
        return Held("its VMs or hosts are no longer where they were; wait for the next plan")
    verdict = verify(moved, snapshot, policy, Mode.RECOMMEND)
    if isinstance(verdict, VerifiedPlan) and _below(Mode.RECOMMEND, moved, snapshot):
        return Held(_stray_text(_below(Mode.RECOMMEND, moved, snapshot), snapshot))
    return verdict


def _advice(verdict: Verdict | None, snapshot: Snapshot) -> Plan | None:
    if not isinstance(verdict, VerifiedPlan) or not verdict.plan.steps:
        return None
    if _below(Mode.RECOMMEND, verdict.plan, snapshot):
        return None
    return replace(verdict.plan, plan_id=verdict.plan.plan_id + ADVICE_SUFFIX)


def _below(lowest: Mode, plan: Plan, snapshot: Snapshot) -> tuple[Step, ...]:
    return tuple(step for step in plan.steps if snapshot.mode[step.machine] < lowest)


def _stray_text(steps: tuple[Step, ...], snapshot: Snapshot) -> str:
    names = ", ".join(snapshot.names[step.machine] for step in steps)
    return f"I8: the plan would move what its mode forbids to move: {names}"


def _moved_to(plan: Plan, snapshot: Snapshot) -> Plan | None:
    """The plan with the indices, epoch and generations of `snapshot`; None where machines left.

    Without its leashes, which are of the day that it was made: those in force stay.
    """
    place = {vm_id: index for index, vm_id in enumerate(snapshot.ids)}
    if not plan.steps or any(step.vm_id not in place for step in plan.steps):
        return None

    def node(vm_id: str) -> int:
        return int(snapshot.parent[place[vm_id]])

    steps = tuple(
        replace(step, machine=place[step.vm_id], node=node(step.vm_id)) for step in plan.steps
    )
    fallback = tuple(
        Fallback(place[entry.vm_id], entry.vm_id, node(entry.vm_id), entry.resource, entry.amount)
        for entry in plan.fallback
        if entry.vm_id in place
    )
    nodes = sorted({step.node for step in steps} | {entry.node for entry in fallback})
    if nodes[0] < 0:
        return None
    return replace(
        plan,
        root=_root_of(nodes[0], snapshot),
        epoch=snapshot.epoch,
        cycle=snapshot.cycle,
        steps=steps,
        fallback=fallback,
        lend=(),
        generations=tuple((node, int(snapshot.generation[node])) for node in nodes),
    )


def _root_of(machine: int, snapshot: Snapshot) -> int:
    while snapshot.parent[machine] >= 0:
        machine = int(snapshot.parent[machine])
    return machine


@dataclass(frozen=True, slots=True)
class Waiting:
    """A plan that an operator was asked about. Declined ones stay until their end, so that the
    same steps are not asked for again in the next cycle."""

    plan: Plan
    until_tick_ns: int
    declined: bool = False


@dataclass(frozen=True, slots=True)
class Approvals:
    """Plans that wait for a word, oldest first. Ticks are the controller's clock."""

    waiting: tuple[Waiting, ...] = ()

    def ask(self, plan: Plan, now_tick_ns: int, patience_ns: int) -> "Approvals":
        """Adds the plan; one that asks for the same steps keeps its name and gets more time."""
        kept = self.at(now_tick_ns).waiting
        until = now_tick_ns + patience_ns
        for place, one in enumerate(kept):
            if _wish(one.plan) == _wish(plan):
                longer = one if one.declined else replace(one, until_tick_ns=until)
                return Approvals((*kept[:place], longer, *kept[place + 1 :]))
        return Approvals((*kept, Waiting(plan, until))[-WAITING_MAX:])

    def at(self, now_tick_ns: int) -> "Approvals":
        return Approvals(tuple(one for one in self.waiting if one.until_tick_ns > now_tick_ns))

    def open(self) -> tuple[Plan, ...]:
        return tuple(one.plan for one in self.waiting if not one.declined)

    def find(self, plan_id: str) -> Plan | None:
        return next((plan for plan in self.open() if plan.plan_id == plan_id), None)

    def without(self, plan_id: str) -> "Approvals":
        return Approvals(tuple(one for one in self.waiting if one.plan.plan_id != plan_id))

    def declining(self, plan_id: str) -> "Approvals":
        return Approvals(
            tuple(
                replace(one, declined=True) if one.plan.plan_id == plan_id else one
                for one in self.waiting
            )
        )


def _wish(plan: Plan) -> frozenset[tuple[str, int, int]]:
    """What a plan wants, whatever it is called and whichever cycle made it."""
    return frozenset((step.vm_id, int(step.resource), step.to_amount) for step in plan.steps)
