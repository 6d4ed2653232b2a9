"""One plan on its way: what may go next, what came back, and the messages for both.

Knows no stream and no clock; `dispatch` feeds it. Phases in, outcomes out.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from controller.core.state import Fallback, Lend, Plan, Policy, Snapshot, Step
from controller.ledger import Ledger
from controller.outcome import PlanOutcome, Result, StepOutcome
from shared.clock import MILLISECOND_NS, SECOND_NS
from shared.pb import commands_pb2 as pb
from shared.resources import Resource

RESULTS = {
    pb.OUTCOME_APPLIED: Result.APPLIED,
    pb.OUTCOME_PARTIAL: Result.PARTIAL,
    pb.OUTCOME_NO_EFFECT: Result.NO_EFFECT,
    pb.OUTCOME_UNCHANGED: Result.UNCHANGED,
    pb.OUTCOME_GONE: Result.GONE,
    pb.OUTCOME_REFUSED: Result.REFUSED,
    pb.OUTCOME_FAILED: Result.FAILED,
    pb.OUTCOME_DRY_RUN: Result.DRY_RUN,
}
RESOURCES: dict[Resource, pb.Resource] = {
    Resource.CPU: pb.RESOURCE_CPU,
    Resource.MEMORY: pb.RESOURCE_MEMORY,
    Resource.IO: pb.RESOURCE_IO,
}


@dataclass(slots=True)
class Progress:
    """One plan while it is carried out."""

    plan: Plan
    snapshot: Snapshot
    policy: Policy
    stopped: str = ""
    commands_sent: int = 0
    commands_acknowledged: int = 0
    first_sent_tick_ns: int | None = None
    ledger: Ledger = field(init=False)
    outcomes: dict[int, StepOutcome] = field(default_factory=dict)
    generations: dict[int, int] = field(init=False)

    def __post_init__(self) -> None:
        self.ledger = Ledger(self.plan, self.snapshot, self.policy)
        self.generations = dict(self.plan.generations)

    def generation(self, node: int) -> int:
        """What the agent must be at: what the plan was made on, or what our own command made."""
        return self.generations[node]

    def answer_within_s(self, steps: int) -> float:
        """Steps of one command run one after the other; past the lease nothing holds anyway."""
        policy = self.policy
        working_ns = min(steps * policy.step_deadline_ns, policy.lease_ns)
        return (working_ns + policy.command_ttl_ns) / SECOND_NS

    def begin(self, phase: int) -> list[tuple[int, list[Step]]]:
        """The phase's steps by host, cut to what is confirmed; held ones are settled at once."""
        batches: dict[int, list[Step]] = {}
        for step in self.plan.steps:
            if step.phase != phase:
                continue
            admitted, why = self.ledger.admit(step)
            if admitted is None:
                self.outcomes[step.index] = StepOutcome(step, Result.HELD, why)
            else:
                batches.setdefault(step.node, []).append(admitted)
        return list(batches.items())

    def sent(self, tick_ns: int) -> None:
        self.commands_sent += 1
        if self.first_sent_tick_ns is None:
            self.first_sent_tick_ns = tick_ns

    def lost(self, command_id: str, steps: list[Step], result: Result, why: str) -> None:
        for step in steps:
            self._settle(StepOutcome(step, result, why, command_id))
        self.stopped = self.stopped or why

    def answered(self, node: int, steps: list[Step], ack: pb.Ack) -> None:
        self.commands_acknowledged += 1
        self.generations[node] = ack.generation
        if not ack.accepted:
            for step in steps:
                self._settle(StepOutcome(step, Result.REFUSED, ack.refusal, ack.command_id))
            self.stopped = self.stopped or f"{self.snapshot.names[node]} refused: {ack.refusal}"
            return
        results = {result.index: result for result in ack.results}
        for step in steps:
            self._settle(_step_outcome(step, results.get(step.index), ack.command_id))

    def outcome(self) -> PlanOutcome:
        left = f"the plan had stopped: {self.stopped}"
        return PlanOutcome(
            plan_id=self.plan.plan_id,
            root=self.plan.root,
            steps=tuple(
                self.outcomes.get(step.index, StepOutcome(step, Result.NOT_SENT, left))
                for step in self.plan.steps
            ),
            commands_sent=self.commands_sent,
            commands_acknowledged=self.commands_acknowledged,
            stopped=self.stopped,
            first_sent_tick_ns=self.first_sent_tick_ns,
        )

    def _settle(self, outcome: StepOutcome) -> None:
        self.outcomes[outcome.step.index] = outcome
        self.ledger.settle(outcome.step, outcome.result, outcome.after_amount)


def apply_message(
    header: pb.Header, progress: Progress, node: int, steps: list[Step]
) -> pb.ControllerMessage:
    deadline_ms = progress.policy.step_deadline_ns // MILLISECOND_NS
    return pb.ControllerMessage(
        apply=pb.Apply(
            header=header,
            steps=[
                pb.Step(
                    index=step.index,
                    vm_id=step.vm_id,
                    resource=RESOURCES[step.resource],
                    from_amount=step.from_amount,
                    to_amount=step.to_amount,
                    floor_amount=step.floor_amount,
                    ceiling_amount=step.ceiling_amount,
                    deadline_ms=deadline_ms,
                )
                for step in steps
            ],
            fallback=[fallback_message(e) for e in progress.plan.fallback if e.node == node],
            leash=leash_messages(e for e in progress.plan.fallback if e.node == node),
            reserve=reserve_messages(e for e in progress.plan.lend if e.node == node),
        )
    )


def fallback_message(entry: Fallback) -> pb.Fallback:
    return pb.Fallback(vm_id=entry.vm_id, resource=RESOURCES[entry.resource], amount=entry.amount)


def leash_messages(entries: Iterable[Fallback]) -> list[pb.Leash]:
    return [
        pb.Leash(
            vm_id=entry.vm_id,
            resource=RESOURCES[entry.resource],
            low_amount=entry.low_amount,
            high_amount=entry.high_amount,
            plan_amount=entry.plan_amount,
        )
        for entry in entries
        if entry.has_leash
    ]


def reserve_messages(entries: Iterable[Lend]) -> list[pb.Reserve]:
    return [pb.Reserve(resource=RESOURCES[one.resource], amount=one.amount) for one in entries]


def _step_outcome(step: Step, said: pb.StepResult | None, command_id: str) -> StepOutcome:
    """A step that the answer passes over, or a word from a newer agent, counts as unknown."""
    if said is None:
        return StepOutcome(step, Result.UNKNOWN, "the answer does not name this step", command_id)
    result = RESULTS.get(said.outcome, Result.UNKNOWN)
    # No limit in force is ever 0, so a 0 means that nothing was measured.
    return StepOutcome(
        step,
        result,
        said.detail,
        command_id,
        before_amount=said.before_amount or None,
        after_amount=said.after_amount or None,
        host_freed_bytes=said.host_freed_bytes if step.resource is Resource.MEMORY else None,
        took_ms=said.took_ms,
    )


def ack_text(ack: pb.Ack) -> str:
    if not ack.accepted:
        return f"refused: {ack.refusal}"
    words = [str(RESULTS.get(result.outcome, Result.UNKNOWN)) for result in ack.results]
    return ", ".join(f"{words.count(word)} {word}" for word in dict.fromkeys(words)) or "empty"
