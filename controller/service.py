"""The controller's cycle: `Controller.run_once` is DESIGN section 5, line by line.

What is pure or heavy runs on a thread, so that agents and operators are heard meanwhile. One
cycle at a time; a plan that an operator approved takes its turn between two. When and for how long
cycles run is `controller.daemon`'s business.
"""

import asyncio
import logging
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from typing import Any

from controller.audit import AuditedPlan
from controller.bookkeeping import Books, record_of
from controller.core.cycle import decide
from controller.core.state import (
    MISSING,
    Decision,
    Forecast,
    Plan,
    Rejection,
    Snapshot,
    VerifiedPlan,
)
from controller.desk import OperatorDesk
from controller.dispatch import Dispatcher
from controller.early import is_behind, urgent_trees
from controller.events import Broadcast, Happening
from controller.forecast.live import make_forecaster
from controller.forecast.protocol import History, Standing
from controller.forecast.skill import SkillBook, update
from controller.gate import Apply, Ask, Gated, Held, gate, reverify
from controller.ingest import Ingest
from controller.leases import net_limits, renewals
from controller.metrics import ControllerMetrics
from controller.outcome import PlanOutcome
from controller.panel import judged
from controller.picture import Streams
from controller.recorder import Recorder
from controller.settings import ControllerSettings
from controller.stopwatch import Stopwatch
from controller.store import claim_epoch
from controller.view import APPROVED, Judged, View
from shared.bus import Bus, NatsBus
from shared.clock import MILLISECOND_NS, SECOND_NS, Clock
from shared.errors import AuditError, ConfigError, DispatchError
from shared.log import RateLimited
from shared.resources import Resource, amount_text

log = logging.getLogger(__name__)

ABREAST_NS = 3 * SECOND_NS  # agents report what a command did within a second, if their bus is up
ABREAST_LOOK_S = 0.2


@dataclass(frozen=True, slots=True, eq=False)
class Look:
    """What a cycle goes by. `tick_ns`: when it was taken, by our clock."""

    snapshot: Snapshot
    history: History
    tick_ns: int


@dataclass(frozen=True, slots=True)
class Done:
    """What a decision came to."""

    plans: tuple[VerifiedPlan, ...]
    outcomes: tuple[PlanOutcome, ...]


class Controller:
    """The parts of a controller, and what it does with them once per cycle.

    `bus` carries the audit trail; None: NATS, as the settings say.
    """

    def __init__(self, settings: ControllerSettings, clock: Clock, bus: Bus | None = None) -> None:
        self._settings = settings
        self._policy = settings.to_policy()
        self._clock = clock
        self._said = RateLimited(log, clock)
        self._forecaster = make_forecaster(
            settings.forecaster, settings.network, settings.horizon_s
        )
        _tell(self._forecaster.standing)
        self._skill = SkillBook()
        self._turn = asyncio.Lock()
        self._cycle = 0
        self._view = View(
            policy=self._policy,
            cycle_interval_ns=round(settings.cycle_interval_s * SECOND_NS),
        )
        self.epoch = 0  # 0: none claimed yet, nothing is sent
        self.broadcast = Broadcast(clock)
        self.ingest = Ingest(settings, clock)
        self.bus: Bus = bus or NatsBus(settings.bus_servers, "controller-audit", self._on_bus_error)
        self.recorder = Recorder(self.bus, clock, settings.audit_stream_mib_max)
        self.dispatcher = Dispatcher(clock, self.broadcast.tell)
        self.books = Books(ControllerMetrics())
        self.desk = OperatorDesk(
            settings.state_directory,
            clock,
            self.recorder,
            self.broadcast,
            self.view,
            self._carry_out_approved,
        )

    @property
    def standing(self) -> Standing:
        """How the forecaster does."""
        return self._forecaster.standing

    def view(self) -> View:
        """What operators are shown: the last one published, whole."""
        return self._view

    def publish(self, **changes: Any) -> None:  # noqa: ANN401 - the fields of View
        self._view = replace(
            self._view,
            totals=self.books.totals,
            plans=self.books.plans,
            approvals=self.desk.approvals,
            **changes,
        )

    def adopt_epoch(self) -> None:
        """Above our own and above any that agents or the record have from others, on the disk
        before it is used (I7). ConfigError when it cannot be written there."""
        seen = max(self.dispatcher.epoch_of_others(), self.recorder.epoch_of_others)
        if self.epoch and seen < self.epoch:
            return
        try:
            self.epoch = claim_epoch(self._settings.state_directory, seen)
        except OSError as error:
            raise ConfigError(
                f"state_directory = {self._settings.state_directory}: the epoch cannot be written "
                f"there: {error.strerror}"
            ) from error
        log.info("epoch", extra={"epoch": self.epoch, "highest_reported": seen})

    # ---- one cycle ----

    async def run_once(self) -> None:
        """One cycle, from what is known to what came of it."""
        async with self._turn:
            watch = Stopwatch(self._clock)
            self._cycle += 1
            self.adopt_epoch()
            self.ingest.take_urgent()  # this cycle sees it all
            await self.desk.tidy()
            with watch("snapshot"):
                look = await self._look()
            with watch("forecast"):
                found = await asyncio.to_thread(self._forecast, look)
                forecast = found.said.forecast
            with watch("decide"):
                decision = await asyncio.to_thread(decide, look.snapshot, forecast, self._policy)
            done = await self._act(watch, look, forecast, decision, found)
            with watch("learn"):
                self._skill = await asyncio.to_thread(
                    update, self._skill, look.snapshot.ids, look.history, forecast
                )
            self._finish(watch, look, done)

    async def run_early(self) -> None:
        """A cycle out of turn for the trees of agents that lent, or had too little to lend. It
        goes by the last forecast; what was lent is demand (controller.early)."""
        async with self._turn:
            view, nodes = self._view, self.ingest.take_urgent()
            if not nodes or view.forecast is None or view.snapshot is None:
                return  # before the first cycle: that one will see it
            self._cycle += 1
            self.adopt_epoch()
            whole = await self._look_abreast(nodes)
            trees = await asyncio.to_thread(
                urgent_trees, whole.snapshot, view.forecast, view.snapshot.ids, nodes
            )
            self.books.metrics.early(len(trees))
            await asyncio.gather(*(self._run_tree(whole, *tree) for tree in trees))
            self.publish()

    async def _look_abreast(self, nodes: Collection[str]) -> Look:
        """The newest state, once telemetry shows what the agents of these trees have done: they
        would refuse a plan made before. After a while as it is."""
        until = self._clock.tick_ns() + ABREAST_NS
        while True:
            look = await self._look()
            agents = self.dispatcher.agents().values()
            done = {agent.node_id: agent.generation for agent in agents if agent.connected}
            if not is_behind(look.snapshot, done, nodes) or self._clock.tick_ns() >= until:
                return look
            await asyncio.sleep(ABREAST_LOOK_S)

    async def _run_tree(self, whole: Look, snapshot: Snapshot, forecast: Forecast) -> None:
        watch = Stopwatch(self._clock)
        look = replace(whole, snapshot=snapshot)
        with watch("decide"):
            decision = await asyncio.to_thread(decide, snapshot, forecast, self._policy)
        done = await self._act(watch, look, forecast, decision)
        took_ms = sum(watch.took_ns.values()) // MILLISECOND_NS
        steps = sum(len(plan.plan.steps) for plan in done.plans)
        name = snapshot.names[snapshot.roots()[0]]
        text = f"cycle {snapshot.cycle}, early for {name}: {steps} steps, {took_ms} ms"
        self.broadcast.tell(Happening("cycle", text))

    async def _act(
        self,
        watch: Stopwatch,
        look: Look,
        forecast: Forecast,
        decision: Decision,
        found: Judged | None = None,
    ) -> Done:
        """Records the decision and carries it out; shows it where it is of the whole fleet."""
        with watch("audit decision"):
            recorded = await self._record(look, forecast, decision)
        with watch("gate"):
            plans = self._gate(look, decision)
        if found is not None:
            self._show(look, found, decision)
        with watch("audit intent"):
            audited = await self._audit(plans)
        busy = {one.verified.plan.root for one in audited}
        quiet = set(look.snapshot.roots()) - busy
        with watch("renew"):  # first: nobody's lease waits for what happens on another host
            if recorded:
                await self._renew(look, decision, quiet)
        with watch("dispatch"):
            outcomes = await self._dispatch(audited, look)
            if recorded and self.recorder.healthy:
                await self._renew(look, decision, busy, outcomes)
        with watch("audit acks"):
            await self._account(outcomes, look)
        return Done(tuple(plans), tuple(outcomes))

    async def _look(self) -> Look:
        agents = self.dispatcher.agents().values()
        boots = {one.node_id: one.boot_id for one in agents if one.connected}
        streams = Streams(boots, self.dispatcher.clones())
        return await asyncio.to_thread(self._observe, streams)

    def _observe(self, streams: Streams) -> Look:
        tick_ns = self._clock.tick_ns()
        snapshot, history = self.ingest.observe(
            self.epoch, self._cycle, self.desk.overrides, streams
        )
        return Look(snapshot, history, tick_ns)

    def _forecast(self, look: Look) -> Judged:
        said = self._forecaster.predict(look.history, self._settings.horizon_s * SECOND_NS)
        skill = self._skill.skill(look.snapshot.ids)
        said = replace(said, forecast=replace(said.forecast, skill=skill))
        return judged(said, self.standing, self._skill, look.snapshot.ids)

    async def _record(self, look: Look, forecast: Forecast, decision: Decision) -> bool:
        if not await self.recorder.prepare(self.epoch):
            return False
        return await self.recorder.decision(look.snapshot, forecast, self._policy, decision)

    def _gate(self, look: Look, decision: Decision) -> list[VerifiedPlan]:
        """What is to be carried out now; what waits for a word or was rejected is noted."""
        plans = []
        for tree in decision.trees:
            gated = gate(tree, look.snapshot)
            self.books.gated(tree, gated, look.snapshot)
            self._tell_gated(gated, look.snapshot, tree.verdict.plan)
            if isinstance(gated, Apply):
                plans.append(gated.plan)
            advice = gated.plan if isinstance(gated, Ask) else getattr(gated, "advice", None)
            if advice is not None:
                self.desk.ask(advice)
        return plans

    async def _audit(self, plans: list[VerifiedPlan]) -> list[AuditedPlan]:
        """Intents on the record; without a record the plan stays here (I10)."""
        audited = []
        for plan in plans:
            try:
                audited.append(await self.recorder.intent(plan))
            except AuditError as error:
                self.books.rename(plan.plan.plan_id, f"held: I10: {error}")
        return audited

    async def _dispatch(self, audited: list[AuditedPlan], look: Look) -> list[PlanOutcome]:
        """Trees are independent, so their plans run side by side."""
        return await asyncio.gather(
            *(self.dispatcher.apply(one, look.snapshot, self._policy) for one in audited)
        )

    async def _renew(
        self,
        look: Look,
        decision: Decision,
        roots: Collection[int],
        outcomes: Iterable[PlanOutcome] = (),
    ) -> None:
        due = renewals(look.snapshot, decision, roots, outcomes, self._policy)
        await self.dispatcher.renew(due, self.epoch, self._policy)
        nets = net_limits(look.snapshot, self.desk.overrides, roots, self._policy)
        await self.dispatcher.limit_net(nets, self.epoch, self._policy)

    async def _account(self, outcomes: list[PlanOutcome], look: Look) -> None:
        for outcome in outcomes:
            self.books.outcome(outcome, latency_ns(outcome, look))
            await self.recorder.outcome(outcome, look.snapshot.cycle)

    async def _carry_out_approved(self, plan: Plan, by: str, begun: "asyncio.Future[str]") -> None:
        """An operator's yes: verified again against the newest state, then as any other plan."""
        async with self._turn:
            look = await self._look()
            verdict = reverify(plan, look.snapshot, self._policy)
            await self.recorder.change(
                {"what": "approve", "plan_id": plan.plan_id, "by": by}, look.snapshot.cycle
            )
            try:
                audited = await self.recorder.intent(self._approved(verdict, look))
            except (AuditError, DispatchError) as error:
                begun.set_exception(DispatchError(f"not carried out: {error}"))
                return
            self.books.keep(record_of(audited.verified.plan, APPROVED, look.snapshot))
            steps = len(plan.steps)
            begun.set_result(f"approved: {steps} step{'s' if steps != 1 else ''} on the way")
            await self._account(await self._dispatch([audited], look), look)
            self.publish()

    def _approved(self, verdict: VerifiedPlan | Rejection | Held, look: Look) -> VerifiedPlan:
        """DispatchError says what the second look found."""
        if isinstance(verdict, Held):
            raise DispatchError(verdict.why)
        if isinstance(verdict, Rejection):
            self.books.rejected_again(verdict, look.snapshot)
            why = "; ".join(f"{one.invariant}: {one.detail}" for one in verdict.broken)
            raise DispatchError(f"it does not fit any more: {why}")
        return verdict

    # ---- what is shown ----

    def _tell_gated(self, gated: Gated, snapshot: Snapshot, plan: Plan) -> None:
        name = snapshot.names[plan.root]
        if isinstance(gated, Apply):
            text = f"{len(plan.steps)} steps on {name}, verified"
            self.broadcast.tell(Happening("plan", text, snapshot.ids[plan.root], plan.plan_id))
        elif isinstance(gated, Ask):
            text = f"{len(gated.plan.steps)} steps on {name} wait for approval"
            happening = Happening("plan", text, snapshot.ids[plan.root], gated.plan.plan_id)
            self.broadcast.tell(happening)
        elif isinstance(gated, Held):
            text = f"plan for {name} held: {gated.why}"
            self.broadcast.tell(Happening("rejection", text, snapshot.ids[plan.root], plan.plan_id))

    def _show(self, look: Look, found: Judged, decision: Decision) -> None:
        self.publish(
            snapshot=look.snapshot,
            forecast=found.said.forecast,
            judged=found,
            decision=decision,
            taken_tick_ns=look.tick_ns,
            epoch=self.epoch,
        )

    def _finish(self, watch: Stopwatch, look: Look, done: Done) -> None:
        took_ns = sum(watch.took_ns.values())
        self.books.skill(self._skill, self._view.judged)
        self.books.metrics.cycle({name: ns / SECOND_NS for name, ns in watch.took_ns.items()})
        self.publish(cycles=self._view.cycles + 1, last_cycle_ns=took_ns)
        vms = int((look.snapshot.parent >= 0).sum())
        steps = sum(len(plan.plan.steps) for plan in done.plans)
        changed = sum(outcome.memory_changed_bytes for outcome in done.outcomes)
        text = (
            f"cycle {self._cycle}: {len(look.snapshot.roots())} hosts, {vms} VMs, {steps} steps, "
            f"memory changed by {amount_text(Resource.MEMORY, changed)}, "
            f"{took_ns // MILLISECOND_NS} ms"
        )
        self.broadcast.tell(Happening("cycle", text))

    def _on_bus_error(self, error: Exception) -> None:
        self._said.warning("bus", "bus error", detail=f"{type(error).__name__}: {error}")


def _tell(standing: Standing) -> None:
    """Once, at the start; the status says it for as long as it is so."""
    if standing.trouble:
        trouble = {"method": standing.method, "cause": standing.trouble}
        log.warning("forecasts without the network", extra=trouble)
    else:
        log.info("forecasts", extra={"method": standing.method})


def latency_ns(outcome: PlanOutcome, look: Look) -> int | None:
    """From the receipt of the newest telemetry that the plan was made of to its first command."""
    if outcome.first_sent_tick_ns is None:
        return None
    ages = [int(look.snapshot.sample_age_ns[one.step.node]) for one in outcome.steps]
    known = [age for age in ages if age != MISSING]
    return outcome.first_sent_tick_ns - look.tick_ns + min(known) if known else None
