"""Counts what cycles did, for operators and for Prometheus, and keeps the last plans."""

from collections import Counter
from dataclasses import dataclass, field, replace

import numpy as np

from controller.core.state import Plan, Rejection, Snapshot, TreeDecision
from controller.forecast.skill import SkillBook
from controller.gate import Apply, Ask, Gated, Held
from controller.metrics import ControllerMetrics
from controller.outcome import PlanOutcome, Result
from controller.view import PLANS_MAX, REJECTED, VERIFIED, WAITING, Judged, PlanRecord, Totals
from shared.clock import SECOND_NS
from shared.resources import Resource

MEASURED = {Result.APPLIED, Result.PARTIAL}


@dataclass(slots=True)
class Books:
    metrics: ControllerMetrics
    totals: Totals = field(default_factory=Totals)
    plans: tuple[PlanRecord, ...] = ()
    _rejections: Counter[str] = field(default_factory=Counter)

    def telemetry(self, messages: int, dropped: dict[str, int]) -> None:
        self.metrics.telemetry(messages, dropped)
        self.totals = replace(self.totals, telemetry_messages=messages, dropped=dropped)

    def gated(self, tree: TreeDecision, gated: Gated, snapshot: Snapshot) -> None:
        """What verifier and gate said of one tree."""
        if isinstance(tree.verdict, Rejection):
            self._rejected(tree.verdict, snapshot)
        elif tree.verdict.plan.steps:
            self.metrics.plan_verified()
            self.totals = replace(self.totals, plans_verified=self.totals.plans_verified + 1)
            word = f"held: {gated.why}" if isinstance(gated, Held) else VERIFIED
            self.keep(record_of(tree.verdict.plan, word, snapshot))
        advice = gated.plan if isinstance(gated, Ask) else None
        if isinstance(gated, Apply):
            advice = gated.advice
        if advice is not None:
            self.keep(record_of(advice, WAITING, snapshot))

    def rejected_again(self, rejection: Rejection, snapshot: Snapshot) -> None:
        """An approved plan did not stand the second look."""
        self._rejected(rejection, snapshot)

    def outcome(self, outcome: PlanOutcome, latency_ns: int | None) -> None:
        self.metrics.outcome(outcome)
        if latency_ns is not None:
            self.metrics.latency(latency_ns / SECOND_NS)
        totals = self.totals
        measured = sum(one.result in MEASURED for one in outcome.steps)
        self.totals = replace(
            totals,
            commands_sent=totals.commands_sent + outcome.commands_sent,
            commands_acknowledged=totals.commands_acknowledged + outcome.commands_acknowledged,
            steps_applied=totals.steps_applied + measured,
            memory_changed_bytes=totals.memory_changed_bytes + outcome.memory_changed_bytes,
            latency_sample_to_command_ns=latency_ns or totals.latency_sample_to_command_ns,
        )
        self.plans = tuple(
            replace(one, outcome=outcome) if one.plan.plan_id == outcome.plan_id else one
            for one in self.plans
        )

    def skill(self, book: SkillBook, judged: Judged | None) -> None:
        """Means over the machines whose skill is known; how many series each method forecasts, and
        how many are unlike what the network was taught."""
        skill, coverage = book.skill(book.ids), book.coverage(book.ids)
        for resource in Resource:
            known = ~np.isnan(skill[:, resource])
            if known.any():
                mean = float(skill[known, resource].mean())
                self.metrics.forecast(resource.word, mean, float(book.loss[known, resource].mean()))
            known = ~np.isnan(coverage[:, resource])
            if known.any():
                self.metrics.coverage(resource.word, float(coverage[known, resource].mean()))
        if judged is not None:
            self.metrics.series(judged.series)
            self.metrics.novel(judged.novel)

    def rename(self, plan_id: str, verdict: str) -> None:
        self.plans = tuple(
            replace(one, verdict=verdict) if one.plan.plan_id == plan_id else one
            for one in self.plans
        )

    def keep(self, record: PlanRecord) -> None:
        """In place of an older record of the same plan, at the newest end."""
        others = [one for one in self.plans if one.plan.plan_id != record.plan.plan_id]
        self.plans = (*others, record)[-PLANS_MAX:]

    def _rejected(self, rejection: Rejection, snapshot: Snapshot) -> None:
        for one in rejection.broken:
            self.metrics.rejected(one.invariant)
            self._rejections[one.invariant] += 1
        self.totals = replace(self.totals, rejections=dict(self._rejections))
        record = record_of(rejection.plan, REJECTED, snapshot)
        self.keep(replace(record, broken=rejection.broken))


def record_of(plan: Plan, verdict: str, snapshot: Snapshot) -> PlanRecord:
    named = {step.machine for step in plan.steps} | {plan.root}
    return PlanRecord(
        plan=plan,
        verdict=verdict,
        made_at_unix_ns=snapshot.taken_at_unix_ns,
        ids={machine: snapshot.ids[machine] for machine in named},
        names={machine: snapshot.names[machine] for machine in named},
    )
