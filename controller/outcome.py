"""What became of a plan, step by step. Values only."""

from dataclasses import dataclass
from enum import StrEnum

from controller.core.state import Step
from shared.resources import Resource


class Result(StrEnum):
    """What became of a step. The first group is what an agent says, by measurement."""

    APPLIED = "applied"
    PARTIAL = "partial"
    NO_EFFECT = "no effect"
    UNCHANGED = "unchanged"
    GONE = "gone"
    REFUSED = "refused"
    FAILED = "failed"
    DRY_RUN = "dry run"

    UNKNOWN = "unknown"  # sent, never acknowledged
    HELD = "held"  # not sent: what it needs was not confirmed
    NOT_SENT = "not sent"  # the plan had stopped, or the agent could not be reached


@dataclass(frozen=True, slots=True)
class StepOutcome:
    """`step` as it was sent, so perhaps cut; amounts as the agent measured them, None: not."""

    step: Step
    result: Result
    detail: str = ""
    command_id: str = ""
    before_amount: int | None = None
    after_amount: int | None = None
    host_freed_bytes: int | None = None
    took_ms: int | None = None

    @property
    def moved(self) -> int:
        """By how much the limit changed, as measured; the resource's unit."""
        if self.before_amount is None or self.after_amount is None:
            return 0
        return abs(self.after_amount - self.before_amount)


@dataclass(frozen=True, slots=True)
class PlanOutcome:
    """`steps` in the plan's order. `stopped` says why the rest was left; empty: all was tried."""

    plan_id: str
    root: int
    steps: tuple[StepOutcome, ...]
    commands_sent: int
    commands_acknowledged: int
    stopped: str
    first_sent_tick_ns: int | None  # the controller's clock; None: nothing was sent

    @property
    def memory_changed_bytes(self) -> int:
        """By how much memory limits changed, shrinks and grows alike, as agents measured them."""
        return sum(one.moved for one in self.steps if one.step.resource is Resource.MEMORY)

    def count(self, result: Result) -> int:
        return sum(one.result is result for one in self.steps)
