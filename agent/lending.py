"""The reflex at work: looks every second and whenever something calls, and carries out what
agent.reflex decides, beside whatever command runs.

Reading all VMs costs; so it is done only when something that is cheap to see asks for it, and,
but for the moments after a loan, takes no more than a twentieth of the time.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from agent.act import Executor
from agent.admission import Readings
from agent.belief import THROTTLED_US_PER_S, Heard, Signals, VmSignals, has_room
from agent.hypervisor import CountsThrottling
from agent.leash import Grant
from agent.loans import ReflexState, loans_of, settled
from agent.look import Rules
from agent.procfs import parse_meminfo, parse_pressure
from agent.psi import PsiTriggers
from agent.reflex import needs_a_look, reflect
from agent.steps import Step
from agent.steward import Steward
from shared.clock import SECOND_NS, Clock
from shared.errors import HypervisorError
from shared.log import RateLimited
from shared.resources import Resource, amount_text
from shared.telemetry import Loan, VmSample

logger = logging.getLogger(__name__)

LOOK_S = 1.0
FAST_LOOK_S = 0.25  # while loans are being made: the next stride waits for the use of the last
FAST_NS = 3 * SECOND_NS
SOONEST_S = 0.2  # between two looks, whatever calls
READING_SHARE = 20  # readings take at most this part of the time
PRESSED_US_PER_S = 100_000  # of the host's memory PSI "some": a tenth of the time somebody waits
WINDOW_US = 1_000_000  # of triggers
PRESSED_NS = 2 * SECOND_NS  # for so long a trigger counts


class Watcher(Protocol):
    """Who counts (agent.metrics)."""

    def reflex(self, word: str, lent: Mapping[str, int]) -> None: ...


@dataclass(frozen=True, slots=True)
class Pressure:
    """When the host itself lacks memory; `root` is where /proc is read ("/")."""

    root: Path
    available_bytes_min: int

    @property
    def psi(self) -> Path:
        return self.root / "proc/pressure/memory"

    def total_us(self) -> int | None:
        return parse_pressure(_text(self.psi))

    def is_low(self) -> bool:
        available = parse_meminfo(_text(self.root / "proc/meminfo")).get("MemAvailable")
        return available is not None and available < self.available_bytes_min


class Lender:
    """`known` gives the VMs as last sampled, `read` fresh readings or HypervisorError; `said` is
    called when loans or unmet wants have changed, `climb` gets what this machine itself lacks
    (bytes, millicores)."""

    def __init__(
        self,
        steward: Steward,
        executor: Executor,
        known: Callable[[], Mapping[str, VmSample]],
        read: Callable[[], Awaitable[Readings]],
        words: Callable[[], Mapping[str, Heard]],
        throttle: CountsThrottling,
        pressure: Pressure,
        rules: Rules,
        clock: Clock,
        watcher: Watcher,
    ) -> None:
        self._steward = steward
        self._executor = executor
        self._known = known
        self._read = read
        self._words = words
        self._throttle = throttle
        self._pressure = pressure
        self._rules = rules
        self._clock = clock
        self._watcher = watcher
        self._state = ReflexState()
        self._called = asyncio.Event()
        self._throttled: dict[str, tuple[int, int]] = {}  # vm id -> tick, counter
        self._watched: frozenset[str] = frozenset()  # VMs, by triggers
        self._pressed: tuple[int, int] | None = None  # tick, counter
        self._triggered_tick_ns: int | None = None
        self._lent_tick_ns: int | None = None
        self._not_before_tick_ns = self._soonest_tick_ns = 0
        self._said = RateLimited(logger, clock)
        self.said: Callable[[], None] = lambda: None
        self.climb: Callable[[int, int], None] = lambda memory_bytes, cpu_millicores: None

    @property
    def state(self) -> ReflexState:
        return self._state

    def loans(self) -> tuple[Loan, ...]:
        grant = self._steward.grant()
        return () if grant is None else loans_of(self._state, grant.bounds)

    def call(self) -> None:
        """Something happened: look at once."""
        self._called.set()

    async def run(self) -> None:
        """Until cancelled."""
        watched = () if self._pressure.total_us() is None else (self._pressure.psi,)
        host = PsiTriggers(watched, PRESSED_US_PER_S, WINDOW_US, self._on_pressure)
        vms = PsiTriggers((), THROTTLED_US_PER_S, WINDOW_US, lambda _: self.call())
        try:
            async with asyncio.TaskGroup() as tasks:
                while True:
                    await self.look(tasks)
                    self._watch(vms)
                    await self._wait()
        finally:
            host.close()
            vms.close()

    def _watch(self, triggers: PsiTriggers) -> None:
        """VMs that a quota may hold back wake it; without triggers it looks once a second."""
        limited = frozenset(self._throttled)
        if limited != self._watched:
            self._watched = limited
            triggers.watch(self._throttle.cpu_pressure_files(limited))

    async def look(self, tasks: asyncio.TaskGroup) -> None:
        """One look; moves go on in `tasks`."""
        self._soonest_tick_ns = self._clock.tick_ns() + int(SOONEST_S * SECOND_NS)
        grant = self._steward.grant()
        if grant is None or not grant.bounds.leash:
            self._forget()
            return
        signals = self._signals(grant)
        now = self._clock.tick_ns()
        if not needs_a_look(self._state, grant, signals, self._known(), now):
            self._show()
            return
        readings = await self._readings()
        grant = self._steward.grant()
        if readings is None or grant is None:
            return
        before, now = self._state, self._clock.tick_ns()
        ledger = self._executor.ledger
        spoken_for = ledger.spoken_for(readings)
        signals = replace(signals, held=ledger.held, spoken_for=spoken_for)
        self._state, steps = reflect(before, grant, signals, readings, self._rules, now)
        for vm_id, resource in self._state.wants:
            # A false word must not keep a VM's memory from those that a plan gives it to.
            if resource is Resource.MEMORY and not has_room(readings.vms[vm_id]):
                self._executor.cry(vm_id)
        for step in steps:
            tasks.create_task(self._move(step, readings))
        await self._steward.returned(grant.lent - self._state.lent.keys())
        self._tell(before)

    async def _move(self, step: Step, readings: Readings) -> None:
        """One limit; each on its own, so that no loan waits for another."""
        if step.to_amount > step.from_amount:
            self._lent_tick_ns = self._clock.tick_ns()
        results = await self._steward.lend((step,), readings)
        self._state = settled(self._state, (step,), results, self._clock.tick_ns())
        (result,) = results
        fields = {
            "vm": step.vm_id,
            "from": amount_text(step.resource, step.from_amount),
            "to": amount_text(step.resource, result.after_amount or step.from_amount),
            "detail": result.detail,
        }
        word = "shrunk" if step.shrinks else "lent"
        self._said.log(
            logging.INFO, (step.vm_id, word), f"reflex: {step.resource.word} {word}", **fields
        )
        self.said()
        self.call()

    async def _readings(self) -> Readings | None:
        """Fresh ones, under what was measured since; None while they cannot be had."""
        began = self._clock.tick_ns()
        try:
            readings = await self._read()
        except HypervisorError as error:
            self._said.warning("readings", "no readings to lend by", cause=str(error))
            self._not_before_tick_ns = self._soonest_tick_ns = self._clock.tick_ns() + SECOND_NS
            return None
        took = self._clock.tick_ns() - began
        self._not_before_tick_ns = began + READING_SHARE * took
        return self._executor.ledger.seen_over(readings)

    async def _wait(self) -> None:
        """Until the next look is due: at once when called, but not more often than it may be."""
        now = self._clock.tick_ns()
        is_fast = self._lent_tick_ns is not None and now - self._lent_tick_ns < FAST_NS
        try:
            async with asyncio.timeout(FAST_LOOK_S if is_fast else LOOK_S):
                await self._called.wait()
        except TimeoutError:
            pass
        self._called.clear()
        until = self._soonest_tick_ns if is_fast else self._not_before_tick_ns
        rest_ns = max(until, self._soonest_tick_ns) - self._clock.tick_ns()
        if rest_ns > 0:
            await asyncio.sleep(min(rest_ns / SECOND_NS, 5 * LOOK_S))

    # ---- signals ----

    def _signals(self, grant: Grant) -> Signals:
        words, known = self._words(), self._known()
        limited = [vm_id for (vm_id, r) in grant.bounds.leash if r is Resource.CPU]
        throttled = self._throttle_rates(vm for vm in limited if _has_quota(known.get(vm)))
        vms = {
            vm_id: VmSignals(words.get(vm_id), *throttled.get(vm_id, (None, 0)))
            for vm_id in words.keys() | throttled.keys()
        }
        return Signals(vms, is_pressed=self._is_pressed())

    def _throttle_rates(self, vm_ids: Iterable[str]) -> dict[str, tuple[int, int]]:
        """VM -> microseconds per second, and the tick since which that is."""
        now = self._clock.tick_ns()
        counters = self._throttle.throttled_us(tuple(vm_ids))
        rates = {}
        for vm_id, counter in counters.items():
            tick, before = self._throttled.get(vm_id, (now, counter))
            if now > tick and counter >= before:
                rates[vm_id] = ((counter - before) * SECOND_NS // (now - tick), tick)
        self._throttled = {vm_id: (now, counter) for vm_id, counter in counters.items()}
        return rates

    def _is_pressed(self) -> bool:
        now, total = self._clock.tick_ns(), self._pressure.total_us()
        rate = 0
        if total is not None:
            tick, before = self._pressed or (now, total)
            if now - tick >= SECOND_NS // 2 or self._pressed is None:
                self._pressed = (now, total)
                rate = (total - before) * SECOND_NS // max(now - tick, 1)
        fired = self._triggered_tick_ns
        if rate >= PRESSED_US_PER_S or (fired is not None and now - fired < PRESSED_NS):
            return True
        return self._pressure.is_low()

    def _on_pressure(self, _path: Path) -> None:
        self._triggered_tick_ns = self._clock.tick_ns()
        self.call()

    # ---- who is told ----

    def _tell(self, before: ReflexState) -> None:
        now = self._state
        if now.climbs != before.climbs:
            self.climb(now.climbs.get(Resource.MEMORY, 0), now.climbs.get(Resource.CPU, 0))
        if (now.unmet.keys(), now.word) != (before.unmet.keys(), before.word):
            self.said()
        if now.word != before.word:
            logger.info("reflex", extra={"state": now.word, "was": before.word})
        self._show()

    def _show(self) -> None:
        lent = dict.fromkeys((Resource.CPU.word, Resource.MEMORY.word), 0)
        for loan in self.loans():
            lent[Resource(loan.resource).word] += max(0, loan.amount - loan.base_amount)
        self._watcher.reflex(self._state.word, lent)

    def _forget(self) -> None:
        """Without a leash there is nothing to be done, and nothing is asked of others."""
        if self._state != ReflexState():
            before, self._state = self._state, ReflexState()
            self._tell(before)
        self._throttled = {}


def _has_quota(vm: VmSample | None) -> bool:
    if vm is None or vm.cpu_limit_millicores is None or vm.cpu_maximum_millicores is None:
        return False
    return vm.cpu_limit_millicores < vm.cpu_maximum_millicores


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
