"""Holds the guard's state and is the only one that moves anything on this host.

    command -> judge -> intent on disk -> carry out -> answer on disk -> answer

One command moves at a time, or a round of the walk back after the lease. Renewals come in between,
since they move nothing, and so does the reflex, which waits for nobody (agent.ledger keeps them off
each other's room). No step begins after its authority has ended.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Protocol

from agent import guard
from agent.act import Executor, Pause
from agent.admission import Admitted, Readings, may_newer_figures_help
from agent.guard import Accepted, Duplicate, GuardState, Refused
from agent.leash import NO_BOUNDS, Bounds, Grant, Lever
from agent.steps import MOVED, Ack, Command, Facts, Fallback, Header, Outcome, Step, StepResult
from shared.clock import MILLISECOND_NS, SECOND_NS, Clock
from shared.errors import HypervisorError
from shared.log import RateLimited

logger = logging.getLogger(__name__)

FIGURES_WAIT_NS = 6 * SECOND_NS  # guests give their figures every 5 s (agent.libvirt_host)
FIGURES_LOOK_S = 0.5


class Keeper(Protocol):
    """Where the state survives (agent.state.StateStore); OSError when it does not."""

    async def save(self, state: GuardState) -> None: ...


class Watcher(Protocol):
    """Who counts (agent.metrics)."""

    def step(self, result: StepResult) -> None: ...

    def refusal(self, invariant: str) -> None: ...


class Steward:
    """`read` gives fresh readings, or raises HypervisorError."""

    def __init__(
        self,
        state: GuardState,
        keeper: Keeper,
        executor: Executor,
        read: Callable[[], Awaitable[Readings]],
        clock: Clock,
        watcher: Watcher,
        pause: Pause = asyncio.sleep,
    ) -> None:
        self._state = state
        self._keeper = keeper
        self._executor = executor
        self._read = read
        self._clock = clock
        self._watcher = watcher
        self._pause = pause
        self._moving = asyncio.Lock()
        self._saving = asyncio.Lock()
        self._lease_on_disk_ns = state.lease_until_tick_ns or 0
        self._said = RateLimited(logger, clock)
        self._net_limits: dict[str, int] | None = None
        self.moved: Callable[[], None] = lambda: None  # called when a command has moved something

    @property
    def state(self) -> GuardState:
        return self._state

    def facts(self) -> Facts:
        lease = "none" if self._state.lease_until_tick_ns is None else "held"
        lease = "ended" if self._has_ended() else lease
        return Facts(self._state.generation, self._state.epoch_highest, lease)

    async def apply(self, command: Command) -> Ack:
        """Carries the command out as far as the guard allows; every command gets an answer."""
        async with self._moving:
            readings = await self._figured_readings(command)
            now = self._clock.tick_ns()
            self._state, verdict = guard.judge(command, self._state, now, readings)
            if isinstance(verdict, Duplicate):
                return verdict.ack
            if isinstance(verdict, Refused):
                await self._save_quietly()
                return self._refuse(command.header, verdict)
            assert readings is not None, "accepted without readings"
            if command.header.dry_run:
                return await self._pretend(verdict)
            return await self._carry_out(verdict, readings)

    async def renew(
        self, header: Header, fallback: Fallback = (), bounds: Bounds = NO_BOUNDS
    ) -> Ack | None:
        """None: the lease goes on. Otherwise the refusal to send."""
        before, now = self._state, self._clock.tick_ns()
        self._state, refusal = guard.renew(header, before, now, fallback, bounds)
        if refusal is not None:
            return self._refuse(header, refusal)
        if self._differs(before) or self._is_disk_behind(header):
            await self._save_quietly()
        return None

    def limit_net(self, header: Header, limits: dict[str, int]) -> Ack | None:
        """What operators want the network of VMs limited to; None: taken. `agent.net_limits` sees
        to it."""
        refusal = guard.objection(header, self._state, self._clock.tick_ns())
        if refusal is not None:
            return self._refuse(header, refusal)
        self._net_limits = limits
        return None

    @property
    def net_limits(self) -> dict[str, int] | None:
        """Bytes/s by VM that hold now; None: not known, since nobody has said so yet."""
        return {} if self._has_ended() else self._net_limits

    def refuse(self, header: Header, detail: str) -> Ack:
        """The answer to a command that cannot even be looked at."""
        return self._refuse(header, Refused("I4", detail))

    def fall_back_to(self, fallback: dict[Lever, int]) -> None:
        """In place of what the plans brought along."""
        self._state = replace(self._state, fallback=fallback)

    def grant(self) -> Grant | None:
        """What the reflex may go by; None: nothing."""
        return guard.grant_of(self._state, self._clock.tick_ns())

    async def lend(self, steps: Sequence[Step], readings: Readings) -> tuple[StepResult, ...]:
        """Carries out what the reflex has decided, beside whatever else goes on."""
        epoch = self._state.epoch_highest
        results = await self._executor.carry_out(
            [Admitted(step) for step in steps],
            readings,
            lambda step: self._unleashed(step, epoch),
            fell_short=True,  # a loan takes what is there
            patient=False,  # and is decided anew where something else moves
        )
        moved = {
            step.lever for step, result in zip(steps, results, strict=True) if has_moved(result)
        }
        if moved:
            # Of a lever that lost its leash meanwhile the plan knows the limit as it stands.
            lent = (self._state.lent | moved) & self._state.bounds.leash.keys()
            # The generation stays: a plan under way elsewhere on this host must not be void
            # because of a loan, and its own steps are judged by the limits that they start from.
            self._state = replace(self._state, lent=frozenset(lent))
            await self._save_quietly()
        self._count(results)
        return results

    async def returned(self, levers: frozenset[Lever]) -> None:
        """These are where their plan has them: what moves them next is no payment back."""
        if levers & self._state.lent:
            self._state = replace(self._state, lent=self._state.lent - levers)
            await self._save_quietly()

    async def walk(self) -> int:
        """One round of the way back, when the lease has ended; how many levers moved."""
        if not self._has_ended() or self._moving.locked():
            return 0
        async with self._moving:
            readings = await self._readings()
            steps = guard.on_lease_end(self._state, readings) if readings is not None else ()
            if not steps or readings is None:
                return 0
            self._said.warning("walk", "lease ended, growing back", steps=len(steps))
            planned = [Admitted(step) for step in steps]
            results = await self._executor.carry_out(
                planned, readings, self._lease_is_back, way_back=True
            )
            moved = sum(has_moved(result) for result in results)
            if moved:
                self._state = replace(self._state, generation=self._state.generation + 1)
                await self._save_quietly()
            self._count(results)
            return moved

    async def _carry_out(self, verdict: Accepted, readings: Readings) -> Ack:
        command = verdict.command
        intent = guard.intent_of(verdict, self._state, self._clock.tick_ns())
        self._state = replace(self._state, intent=intent)
        try:
            await self._save()
        except OSError as error:
            self._state = replace(self._state, intent=None)
            why = Refused("I10", f"the agent's state cannot be written: {error}")
            return self._refuse(command.header, why)
        results = await self._executor.carry_out(
            verdict.steps,
            readings,
            lambda step: self._objection(step, command.header),
            fell_short=_falls_short(verdict),
        )
        generation = self._state.generation + any(has_moved(result) for result in results)
        ack = guard.accepted_ack(
            command, results + verdict.refusals, generation, self._clock.tick_ns()
        )
        has_changed = generation != self._state.generation
        self._state = guard.finished(self._state, ack)
        await self._save_quietly()
        self._count(ack.results)
        if has_changed:
            self.moved()
        return ack

    async def _pretend(self, verdict: Accepted) -> Ack:
        results = tuple(
            StepResult(each.step.index, Outcome.DRY_RUN, each.cut) for each in verdict.steps
        )
        now = self._clock.tick_ns()
        ack = guard.accepted_ack(
            verdict.command, results + verdict.refusals, self._state.generation, now
        )
        self._state = guard.finished(self._state, ack)
        await self._save_quietly()
        return ack

    async def _figured_readings(self, command: Command) -> Readings | None:
        """Readings to judge by. A shrink that would be refused or cut on guests' figures from
        before the command came is worth a wait for the next ones: a VM can only give what its own
        guests have just given back, and says so every few seconds."""
        came = self._clock.tick_ns()
        while True:
            readings = await self._readings()
            _, verdict = guard.judge(command, self._state, self._clock.tick_ns(), readings)
            is_over = self._clock.tick_ns() - came >= FIGURES_WAIT_NS or command.header.dry_run
            if readings is None or not isinstance(verdict, Accepted) or is_over:
                return readings
            if not any(may_newer_figures_help(step, readings, came) for step in command.steps):
                return readings
            await self._pause(FIGURES_LOOK_S)

    async def _readings(self) -> Readings | None:
        try:
            return await self._read()
        except HypervisorError as error:
            self._said.warning("readings", "no readings to judge by", cause=str(error))
            return None

    def _objection(self, step: Step, header: Header) -> Refused | None:
        """A command loses its authority while it runs when a newer controller speaks up, or when
        nobody does for so long that its lease ends."""
        if self._state.epoch_highest > header.epoch:
            return Refused("I7", f"epoch {self._state.epoch_highest} took over")
        if step.shrinks and self._has_ended():
            return Refused("I9", "the lease ended: nothing shrinks")
        return None

    def _unleashed(self, step: Step, epoch: int) -> Refused | None:
        """The reflex moves what it has a leash for, now, from whom it had it when it decided."""
        grant = self.grant()
        if grant is None or grant.epoch != epoch:
            return Refused("I7", "no lease, or that of another controller")
        leash = grant.bounds.leash.get(step.lever)
        if leash is None or not leash.low_amount <= step.to_amount <= leash.high_amount:
            return Refused("I2", "the leash does not reach there any more")
        return None

    def _lease_is_back(self, step: Step) -> Refused | None:
        return None if self._has_ended() else Refused("I7", "the controller is back")

    def _has_ended(self) -> bool:
        return guard.has_lease_ended(self._state, self._clock.tick_ns())

    def _differs(self, before: GuardState) -> bool:
        now = self._state
        return (now.epoch_highest, now.fallback, now.bounds) != (
            before.epoch_highest,
            before.fallback,
            before.bounds,
        )

    def _is_disk_behind(self, header: Header) -> bool:
        """Every renewal on disk would wear it out, none would end leases at a restart: half of
        the lease is always there."""
        until = self._state.lease_until_tick_ns or 0
        return until - self._lease_on_disk_ns > header.lease_ms * MILLISECOND_NS // 2

    def _refuse(self, header: Header, refusal: Refused) -> Ack:
        self._watcher.refusal(refusal.invariant)
        fields = {"command": header.command_id, "invariant": refusal.invariant}
        self._said.warning(
            ("refused", refusal.invariant), "command refused", detail=refusal.detail, **fields
        )
        return guard.refused_ack(header, refusal, self._state.generation, self._clock.tick_ns())

    def _count(self, results: tuple[StepResult, ...]) -> None:
        for result in results:
            self._watcher.step(result)
            if result.invariant:
                self._watcher.refusal(result.invariant)

    async def _save(self) -> None:
        """One at a time, and always the newest state."""
        async with self._saving:
            state = self._state
            await self._keeper.save(state)
            self._lease_on_disk_ns = state.lease_until_tick_ns or 0

    async def _save_quietly(self) -> None:
        """For what happened already, or moves nothing: it is said, and the agent goes on."""
        try:
            await self._save()
        except OSError as error:
            self._said.error("state", "the agent's state cannot be written", cause=str(error))


def has_moved(result: StepResult) -> bool:
    """Whether the machine is, or may be, another than before: then plans on it no longer hold."""
    if result.outcome is Outcome.FAILED:
        return result.before_amount != result.after_amount
    return result.outcome in MOVED


def _falls_short(verdict: Accepted) -> bool:
    refused = {r.index for r in verdict.refusals if r.outcome is not Outcome.UNCHANGED}
    return any(step.shrinks and step.index in refused for step in verdict.command.steps)
