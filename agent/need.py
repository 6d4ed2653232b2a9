"""What this VM needs above what it has, judged from looks at itself every second or half. Pure.

Memory: it is short when less is available than a margin, or will be within a second, or when tasks
stall on memory while little is available. It wants what brings the margin back, and what its use
grows by until the host has answered. What it wants is held as a size for a while, so that a host
that gives sees the wish fall by as much at once. CPU: others run while it could (steal; so a quota
looks from inside), or, where no clock tells of steal, all of its CPUs are busy and tasks wait.

0 means that it has enough as it is, what it was lent included: not that it can do without that.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from agent.sample import rate
from shared.resources import MIB
from shared.units import SECOND_NS

MARGIN_BYTES_MIN = 32 * MIB
MARGIN_SHARE = 0.08  # of the memory that it has
ENOUGH = 1.25  # margins that must be available before a need ends: it does not begin again at once
AHEAD_S = 1  # a fall that reaches the margin sooner than this is a need already
CALM_AHEAD_S = 2
ANSWER_S = 5  # until a host has given: growth until then is asked for, too
STALL_US_PER_S = 100_000  # PSI "some" of memory that is a need...
STALL_MARGINS = 4  # ...while less than so many margins are available: a group's limit stalls too
CALM_US_PER_S = 20_000  # below it the stalling is over
WANTED_TIMES_MAX = 4  # never more than so many times what it has

STEAL_MILLICORES_MIN = 100
STEAL_SHARE = 0.10  # of what it tried to run
STEAL_CALM_MILLICORES = 30
WAIT_US_PER_S = 400_000  # PSI "some" of CPU with every CPU busy
BUSY_SHARE = 0.90

WINDOW_NS = 2 * SECOND_NS  # growth is the fastest within it
HOLD_NS = 3 * SECOND_NS  # a size that was wanted stays wanted for
_RATE_NS = SECOND_NS  # counters of CPU are compared over at least that: they tick every 10 ms
_LOOKS_MAX = 64  # triggers may bring more than two a second
_STEP_BYTES, _STEP_MILLICORES = MIB, 10


@dataclass(frozen=True, slots=True)
class Look:
    """The machine at one moment; None where it does not say."""

    tick_ns: int
    memory_total_bytes: int | None = None
    memory_available_bytes: int | None = None
    memory_pressure_us: int | None = None  # counter, PSI "some"
    cpu_count: int | None = None
    cpu_used_ns: int | None = None  # counter, all CPUs
    cpu_steal_ns: int | None = None  # counter, all CPUs
    cpu_pressure_us: int | None = None  # counter, PSI "some"
    runnable: int | None = None  # tasks that run or wait for a CPU, the one that looks left out


@dataclass(frozen=True, slots=True)
class Need:
    """More than it has, now; 0: enough."""

    memory_bytes: int = 0
    cpu_millicores: int = 0

    def __bool__(self) -> bool:
        return bool(self.memory_bytes or self.cpu_millicores)

    def __add__(self, other: "Need") -> "Need":
        return Need(
            self.memory_bytes + other.memory_bytes, self.cpu_millicores + other.cpu_millicores
        )


class NeedJudge:
    """Takes looks in the order of their time and says after each what is needed.

    `sees_steal`: whether a clock tells what its host gave to others; then CPUs that are busy
    without steal have all that a host can give them.
    """

    def __init__(self, *, sees_steal: bool) -> None:
        self._sees_steal = sees_steal
        self._looks: deque[Look] = deque(maxlen=_LOOKS_MAX)
        self._sizes: deque[tuple[int, int]] = deque()  # tick, size that was wanted
        self.need = Need()
        self.is_calm = False  # nothing is needed, nor will be soon: a look a second is enough

    def judge(self, look: Look) -> Need:
        while self._looks and look.tick_ns - self._looks[0].tick_ns > WINDOW_NS:
            self._looks.popleft()
        self._looks.append(look)
        self.need = Need(self._memory(look), self._cpu(look))
        self.is_calm = self.is_calm and not self.need
        return self.need

    # ---- memory ----

    def _memory(self, now: Look) -> int:
        total, available = now.memory_total_bytes, now.memory_available_bytes
        self.is_calm = False
        if total is None or available is None:
            self._sizes.clear()
            return 0
        size = self._size_wanted(now, total, available)
        while self._sizes and now.tick_ns - self._sizes[0][0] > HOLD_NS:
            self._sizes.popleft()
        if size is not None:
            self._sizes.append((now.tick_ns, size))
        held = max((size for _, size in self._sizes), default=0)
        wanted = min(max(0, held - total), WANTED_TIMES_MAX * total)
        return -(-wanted // _STEP_BYTES) * _STEP_BYTES

    def _size_wanted(self, now: Look, total: int, available: int) -> int | None:
        """The memory with which it would be well; None: it is."""
        margin = max(MARGIN_BYTES_MIN, int(total * MARGIN_SHARE))
        growth = self._growth_bytes_per_s(now)
        self.is_calm = available - growth * CALM_AHEAD_S >= STALL_MARGINS * margin
        needing = self.need.memory_bytes > 0
        stalls = self._stalls(now, CALM_US_PER_S if needing else STALL_US_PER_S)
        stalls = stalls and available < STALL_MARGINS * margin
        least = margin * ENOUGH if needing else margin
        if not stalls and available - growth * AHEAD_S >= least:
            return None
        size = total - available + int(margin * ENOUGH) + growth * ANSWER_S
        return max(size, total + margin) if stalls else size

    def _growth_bytes_per_s(self, now: Look) -> int:
        """The fastest growth of its use within the window. Use, not what is available: that falls
        too where the host takes memory back."""
        growth = 0
        for then in self._looks:
            passed_ns = now.tick_ns - then.tick_ns
            before, after = _used_bytes(then), _used_bytes(now)
            if passed_ns >= SECOND_NS // 4 and before is not None and after is not None:
                growth = max(growth, (after - before) * SECOND_NS // passed_ns)
        return growth

    def _stalls(self, now: Look, us_per_s: int) -> bool:
        return (self._rate(now, lambda look: look.memory_pressure_us) or 0) >= us_per_s

    # ---- CPU ----

    def _cpu(self, now: Look) -> int:
        used = self._rate(now, lambda look: look.cpu_used_ns)
        if used is None or now.cpu_count is None:
            return 0
        used_millicores = used // 1_000_000
        all_millicores = now.cpu_count * 1000
        steal = (self._rate(now, lambda look: look.cpu_steal_ns) or 0) // 1_000_000
        wanted = 0
        if steal >= self._steal_that_counts(used_millicores + steal):
            waiting = min(self._runnable(now.cpu_count), now.cpu_count) * 1000
            tried = min(max(used_millicores + steal, waiting), all_millicores)
            wanted = tried - used_millicores
        elif not self._sees_steal and used_millicores >= BUSY_SHARE * all_millicores:
            waits = self._rate(now, lambda look: look.cpu_pressure_us) or 0
            if waits >= WAIT_US_PER_S:
                wanted = (self._runnable(now.cpu_count) - now.cpu_count) * 1000
        wanted = min(max(0, wanted), WANTED_TIMES_MAX * all_millicores)
        return -(-wanted // _STEP_MILLICORES) * _STEP_MILLICORES

    def _steal_that_counts(self, tried_millicores: int) -> int:
        if self.need.cpu_millicores:
            return STEAL_CALM_MILLICORES
        return max(STEAL_MILLICORES_MIN, int(tried_millicores * STEAL_SHARE))

    def _runnable(self, otherwise: int) -> int:
        """Mean of the looks, rounded."""
        seen = [look.runnable for look in self._looks if look.runnable is not None]
        return round(sum(seen) / len(seen)) if seen else otherwise

    def _rate(self, now: Look, counter: Callable[[Look], int | None]) -> int | None:
        """Growth of a counter per second over the last second; None where it is not known."""
        for then in reversed(self._looks):
            passed_ns = now.tick_ns - then.tick_ns
            if passed_ns >= _RATE_NS:
                return rate(counter(then), counter(now), passed_ns)
        return None


def _used_bytes(look: Look) -> int | None:
    if look.memory_total_bytes is None or look.memory_available_bytes is None:
        return None
    return look.memory_total_bytes - look.memory_available_bytes
