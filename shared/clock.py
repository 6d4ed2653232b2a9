"""Clocks as parameters: whoever needs the time is handed one of these."""

import time
from typing import Protocol

from shared.units import MILLISECOND_NS, SECOND_NS

__all__ = ["MILLISECOND_NS", "SECOND_NS", "Clock", "FakeClock", "SystemClock", "to_next_s"]


class Clock(Protocol):
    def unix_ns(self) -> int:
        """Wall clock, for people and for grids; may jump."""
        ...

    def tick_ns(self) -> int:
        """CLOCK_BOOTTIME: never jumps, runs on through suspend; for leases and ages."""
        ...


class SystemClock:
    def unix_ns(self) -> int:
        return time.time_ns()

    def tick_ns(self) -> int:
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def to_next_s(tick_ns: int, period_ns: int) -> float:
    """Seconds to the next whole multiple of the period, or to the one after where that is all but
    now. What wakes at the same moments wakes an idle machine once: to wake costs it more than
    most of what is then done."""
    rest_ns = period_ns - tick_ns % period_ns
    return (rest_ns if rest_ns > period_ns // 10 else rest_ns + period_ns) / SECOND_NS


class FakeClock:
    """A clock that moves only when told; both hands together unless `jump` is used."""

    def __init__(self, unix_ns: int = 1_700_000_000 * SECOND_NS, tick_ns: int = SECOND_NS) -> None:
        self._unix_ns = unix_ns
        self._tick_ns = tick_ns

    def unix_ns(self) -> int:
        return self._unix_ns

    def tick_ns(self) -> int:
        return self._tick_ns

    def advance(self, duration_ns: int) -> None:
        self._unix_ns += duration_ns
        self._tick_ns += duration_ns

    def jump(self, duration_ns: int) -> None:
        """The wall clock is set; the tick does not notice."""
        self._unix_ns += duration_ns
