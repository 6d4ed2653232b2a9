"""The guest role: tells the host below what this VM needs, and when it is ready.

Loads neither gRPC nor libvirt and needs no root. A word goes out at once when a need begins or
grows, every second while it lasts, when it ends, when the machine is ready, and with every sample
interval, so that a host's agent that began later learns it. The host believes its own measurements;
a word only makes it look.
"""

import asyncio
import contextlib
import logging
from pathlib import Path

from agent.metrics import AgentMetrics
from agent.need import Need, NeedJudge
from agent.procfs import LookReader, has_steal_clock
from agent.psi import PsiTriggers
from agent.readiness import Readiness
from shared.bus import Bus
from shared.clock import SECOND_NS, Clock, to_next_s
from shared.errors import BusError
from shared.guest_word import GuestWord, encode
from shared.log import RateLimited
from shared.resources import Resource, amount_text
from shared.subjects import guest_subject

logger = logging.getLogger(__name__)

CALM_NS = SECOND_NS  # between looks while there is plenty
LOOK_NS = SECOND_NS // 2  # and otherwise
LOOK_AGAIN_S = 0.1  # soonest, whatever triggers say
STALL_US, STALL_WINDOW_US = 70_000, 1_000_000  # of memory; what the kernel wakes us for
REPEAT_NS = SECOND_NS  # of a need that lasts
GROWTH_SHARE = 0.10  # a need of memory that grew by more than that is told at once
CPU_GROWTH_SHARE = 0.50  # CPU likewise; it comes and goes with every task
ENDS_TOLD = 3  # times that the end of a need is told, as words may be lost


class Guest:
    """`run` until cancelled, beside the bus. `lack` adds what this machine owes its own VMs."""

    def __init__(
        self,
        root: Path,
        node_id: str,
        boot_id: str,
        bus: Bus,
        readiness: Readiness,
        clock: Clock,
        metrics: AgentMetrics,
        interval_s: float = 10.0,
    ) -> None:
        self._pressure = root / "proc/pressure/memory"
        self._subject = guest_subject(node_id)
        self._boot_id = boot_id
        self._bus = bus
        self._readiness = readiness
        self._clock = clock
        self._metrics = metrics
        self._rhythm = Rhythm(int(interval_s * SECOND_NS))
        sees_steal = has_steal_clock(root)
        self._reader = LookReader(root, cpu_pressure=not sees_steal)
        self._judge = NeedJudge(sees_steal=sees_steal)
        self._lack = Need()
        self._sequence = 0
        self._was_needing = False
        self._said = RateLimited(logger, clock)
        self._stalled = asyncio.Event()

    @property
    def need(self) -> Need:
        """What it needs above what it has, its VMs' part included."""
        return self._judge.need + self._lack

    def lack(self, memory_bytes: int = 0, cpu_millicores: int = 0) -> None:
        """What this machine's own VMs need of it and it cannot lend them, from now on; 0: nothing.
        Told within half a second."""
        self._lack = Need(memory_bytes, cpu_millicores)
        self._stalled.set()

    async def run(self) -> None:
        triggers = PsiTriggers(
            [self._pressure], STALL_US, STALL_WINDOW_US, lambda _: self._stalled.set()
        )
        if triggers.refused:  # no loss: the totals are read all the same
            logger.info("no PSI trigger", extra={"cause": triggers.refused[self._pressure]})
        try:
            while True:
                self._stalled.clear()  # before the look: what comes during it counts for the next
                await self.look()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._rest_s()):
                        await self._stalled.wait()
                        await asyncio.sleep(LOOK_AGAIN_S)
        finally:
            triggers.close()
            self._reader.close()

    def _rest_s(self) -> float:
        return to_next_s(self._clock.tick_ns(), CALM_NS if self._judge.is_calm else LOOK_NS)

    async def look(self) -> None:
        """Looks once, and says what is to be said."""
        tick_ns = self._clock.tick_ns()
        self._judge.judge(self._reader.look(tick_ns))
        self._note()
        word = GuestWord(
            self._boot_id,
            self._next_sequence(tick_ns),
            self._readiness.ready_ns,
            self.need.memory_bytes,
            self.need.cpu_millicores,
        )
        if self._rhythm.is_due(word, tick_ns) and await self._tell(word):
            self._rhythm.told(word, tick_ns)

    def _next_sequence(self, tick_ns: int) -> int:
        """Milliseconds since the boot, so that it rises over restarts of the agent, too."""
        self._sequence = max(self._sequence + 1, tick_ns // 1_000_000)
        return self._sequence

    async def _tell(self, word: GuestWord) -> bool:
        try:
            told = await self._bus.try_publish(self._subject, encode(word))
        except BusError as error:
            self._said.warning("bus", "the host cannot be told", cause=str(error))
            return False
        if told:
            self._metrics.word()
        return told

    def _note(self) -> None:
        need = self.need
        self._metrics.wanted(need.memory_bytes, need.cpu_millicores)
        if bool(need) == self._was_needing:
            return
        self._was_needing = bool(need)
        fields = {
            "memory": amount_text(Resource.MEMORY, need.memory_bytes),
            "cpu": amount_text(Resource.CPU, need.cpu_millicores),
        }
        event = "this machine needs more" if need else "this machine has enough"
        self._said.log(logging.INFO, event, event, **fields)


class Rhythm:
    """When a word is worth sending, by the last one that went out."""

    def __init__(self, interval_ns: int) -> None:
        self._interval_ns = interval_ns
        self._last: GuestWord | None = None
        self._told_tick_ns = 0
        self._ends_left = 0

    def is_due(self, word: GuestWord, tick_ns: int) -> bool:
        last = self._last
        if last is None or last.ready_ns != word.ready_ns:
            return True
        passed_ns = tick_ns - self._told_tick_ns
        needs, needed = _needs(word), _needs(last)
        if needs != needed or _grew(last, word):
            return True
        waits_ns = REPEAT_NS if needs or self._ends_left else self._interval_ns
        return passed_ns >= min(waits_ns, self._interval_ns)

    def told(self, word: GuestWord, tick_ns: int) -> None:
        ended = self._last is not None and _needs(self._last) and not _needs(word)
        self._ends_left = ENDS_TOLD - 1 if ended else max(0, self._ends_left - 1)
        self._last, self._told_tick_ns = word, tick_ns


def _needs(word: GuestWord) -> bool:
    return word.memory_wanted_bytes > 0 or word.cpu_wanted_millicores > 0


def _grew(last: GuestWord, word: GuestWord) -> bool:
    return word.memory_wanted_bytes > last.memory_wanted_bytes * (
        1 + GROWTH_SHARE
    ) or word.cpu_wanted_millicores > last.cpu_wanted_millicores * (1 + CPU_GROWTH_SHARE)
