"""What goes on the record, and whether there is one: the audit trail through bus losses and epochs.

Nothing may be dispatched while `healthy` is False (I10). What operators change must not wait for
the stream (a freeze is a brake): such records are kept and written as soon as it is back.
"""

import logging
from collections import deque
from collections.abc import Mapping
from typing import Any

from controller.audit import AuditedPlan, AuditTrail
from controller.core.state import Decision, Forecast, Policy, Rejection, Snapshot, VerifiedPlan
from controller.outcome import PlanOutcome, StepOutcome
from shared.bus import Bus
from shared.clock import Clock
from shared.errors import AuditError
from shared.resources import MIB

log = logging.getLogger(__name__)

BACKLOG_MAX = 1000  # records of changes by operators that wait for the stream


class Recorder:
    def __init__(self, bus: Bus, clock: Clock, stream_mib_max: int) -> None:
        self._bus = bus
        self._clock = clock
        self._stream_bytes_max = stream_mib_max * MIB
        self._trail: AuditTrail | None = None
        self._epoch = 0
        self._backlog: deque[tuple[str, int, dict[str, Any]]] = deque(maxlen=BACKLOG_MAX)
        self.epoch_of_others = 0  # the highest that the record shows and that is not from here
        self.healthy = False
        self.detail = "no cycle has been run yet"

    async def prepare(self, epoch: int) -> bool:
        """Opens the trail of this epoch where it is not open, and writes what waited for it."""
        if self._trail is None or epoch != self._epoch:
            self._trail, self._epoch = AuditTrail(self._bus, self._clock, epoch), epoch
            self.healthy = False
        try:
            if not self.healthy:
                await self._open(self._trail)
            while self._backlog:
                await self._trail.record(*self._backlog[0])
                self._backlog.popleft()
        except AuditError as error:
            return self._failed(error)
        self.healthy, self.detail = True, "every record is acknowledged"
        return True

    async def _open(self, trail: AuditTrail) -> None:
        """No command leaves without a record (I10), so the record knows every epoch in which
        there may be one under way, also those of a controller on another disk (I7)."""
        await trail.open(self._stream_bytes_max)
        if trail.epoch_found >= self._epoch:
            self.epoch_of_others, self._trail = trail.epoch_found, None
            raise AuditError(
                f"epoch {self._epoch} is not ours: another controller has recorded epoch "
                f"{trail.epoch_found}. The next cycle takes a higher one"
            )

    async def decision(
        self, snapshot: Snapshot, forecast: Forecast, policy: Policy, decision: Decision
    ) -> bool:
        """All of a cycle's decisions and rejections; False when one could not be written."""
        if not self.healthy or self._trail is None:
            return False
        try:
            for tree in decision.trees:
                await self._trail.decision(snapshot, forecast, policy, decision, tree.root)
                if isinstance(tree.verdict, Rejection):
                    body = _rejection_body(tree.verdict, snapshot)
                    await self._trail.record("rejection", snapshot.cycle, body)
        except AuditError as error:
            return self._failed(error)
        return True

    async def intent(self, plan: VerifiedPlan) -> AuditedPlan:
        """AuditError when the stream does not have it: then it must not be dispatched."""
        if not self.healthy or self._trail is None:
            raise AuditError(self.detail)
        try:
            return await self._trail.intent(plan)
        except AuditError as error:
            self._failed(error)
            raise

    async def outcome(self, outcome: PlanOutcome, cycle: int) -> None:
        """What came of a plan; kept for later when the stream is away."""
        await self._eventually("ack", cycle, _outcome_body(outcome))

    async def change(self, body: Mapping[str, Any], cycle: int) -> bool:
        """Something that an operator changed; False when it waits for the stream."""
        return await self._eventually("override", cycle, dict(body))

    async def _eventually(self, kind: str, cycle: int, body: dict[str, Any]) -> bool:
        if self.healthy and self._trail is not None and not self._backlog:
            try:
                await self._trail.record(kind, cycle, body)
            except AuditError as error:
                # Perhaps stored, perhaps not: the trail itself repeats it before any other.
                return self._failed(error)
            return True
        if len(self._backlog) == BACKLOG_MAX:
            log.error("a record is lost: too many wait for the audit stream")
        self._backlog.append((kind, cycle, body))
        return False

    def _failed(self, error: AuditError) -> bool:
        if self.healthy or self.detail != str(error):
            log.warning("audit failed, nothing is dispatched", extra={"cause": str(error)})
        self.healthy, self.detail = False, str(error)
        return False


def _rejection_body(rejection: Rejection, snapshot: Snapshot) -> dict[str, Any]:
    return {
        "plan_id": rejection.plan.plan_id,
        "root": snapshot.ids[rejection.plan.root],
        "broken": [
            {
                "invariant": one.invariant,
                "machine": snapshot.ids[one.machine],
                "detail": one.detail,
            }
            for one in rejection.broken
        ],
    }


def _outcome_body(outcome: PlanOutcome) -> dict[str, Any]:
    return {
        "plan_id": outcome.plan_id,
        "stopped": outcome.stopped,
        "commands_sent": outcome.commands_sent,
        "commands_acknowledged": outcome.commands_acknowledged,
        "steps": [_step_body(one) for one in outcome.steps],
    }


def _step_body(one: StepOutcome) -> dict[str, Any]:
    return {
        "index": one.step.index,
        "vm_id": one.step.vm_id,
        "resource": one.step.resource.word,
        "from_amount": one.step.from_amount,
        "to_amount": one.step.to_amount,
        "command_id": one.command_id,
        "result": one.result.value,
        "detail": one.detail,
        "before_amount": one.before_amount,
        "after_amount": one.after_amount,
        "host_freed_bytes": one.host_freed_bytes,
        "took_ms": one.took_ms,
    }
