"""Use of every machine on a regular grid, in rings that hold one window. NaN: nothing was seen.

The grid counts the receiver's tick, so that no wall clock, the sender's or ours, can bend it.
Shapes: s slots, 3 resources, w steps of means, p steps of peaks. A slot's step t lies at t modulo
the ring's length, which is a little more than what is read: whoever still reads while a new step
begins finds all of it. Single precision: half of the memory, a ten-millionth of the value.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np

from controller.core.state import MISSING, RESOURCES, Ints
from controller.forecast.protocol import Singles

_NEVER = np.iinfo(np.int64).min
_SPARE_STEPS = 2


class Rings:
    """Mean and highest reading per step; `add` writes, `mean` and `peak` read."""

    def __init__(
        self, step_ns: int, window_steps: int, peak_steps: int | None = None, slots: int = 64
    ) -> None:
        self.step_ns = step_ns
        self.window_steps = window_steps
        self.peak_steps = window_steps if peak_steps is None else peak_steps
        self._mean = _empty(slots, self.window_steps + _SPARE_STEPS)
        self._peak = _empty(slots, self.peak_steps + _SPARE_STEPS)
        # In the newest step. Samples come every few seconds: 65,535 are never reached in one.
        self._count = np.zeros((slots, RESOURCES), dtype=np.uint16)
        self._newest: Ints = np.full(slots, _NEVER, dtype=np.int64)  # the newest step written
        self._seen_tick_ns: Ints = np.full(slots, _NEVER, dtype=np.int64)

    def grow(self, slots: int) -> None:
        """Room for at least `slots`."""
        more = slots - len(self._newest)
        if more <= 0:
            return
        self._mean = np.concatenate([self._mean, _empty(more, self._mean.shape[-1])])
        self._peak = np.concatenate([self._peak, _empty(more, self._peak.shape[-1])])
        self._count = np.concatenate([self._count, np.zeros_like(self._count, shape=(more, 3))])
        never = np.full(more, _NEVER, dtype=np.int64)
        self._newest = np.concatenate([self._newest, never])
        self._seen_tick_ns = np.concatenate([self._seen_tick_ns, never])

    def clear(self, slots: Ints) -> None:
        self._mean[slots] = np.nan
        self._peak[slots] = np.nan
        self._count[slots] = 0
        self._newest[slots] = _NEVER
        self._seen_tick_ns[slots] = _NEVER

    def add(self, slots: Ints, used: Ints, tick_ns: int) -> int:
        """Readings `used` (len(slots), 3) at `tick_ns`, MISSING ones left out; how many went in.

        A reading of an older step than a slot's newest counts in the newest: steps never reopen.
        """
        if len(slots) == 0:
            return 0
        self._advance(slots, tick_ns // self.step_ns)
        known = used != MISSING
        rows, resources = np.nonzero(known)
        if len(rows) == 0:
            return 0
        at = slots[rows]
        step = self._newest[at]
        mean_at = (at, resources, step % self._mean.shape[-1])
        peak_at = (at, resources, step % self._peak.shape[-1])
        value = used[rows, resources].astype(np.float64)
        count = np.minimum(self._count[at, resources], np.iinfo(np.uint16).max - 1) + 1
        mean = self._mean[mean_at]
        self._count[at, resources] = count
        self._mean[mean_at] = np.where(count == 1, value, mean + (value - mean) / count)
        self._peak[peak_at] = np.fmax(self._peak[peak_at], value)
        self._seen_tick_ns[at] = np.maximum(self._seen_tick_ns[at], tick_ns)
        return len(rows)

    def mean(self, slots: Ints, newest_step: int, steps: int) -> Singles:
        """(len(slots), 3, steps) of the steps that end with `newest_step`."""
        return self._read(self._mean, slots, newest_step, min(steps, self.window_steps))

    def peak(self, slots: Ints, newest_step: int, steps: int) -> Singles:
        """Likewise; at most `peak_steps` of them."""
        return self._read(self._peak, slots, newest_step, min(steps, self.peak_steps))

    def age_ns(self, slots: Ints, tick_ns: int) -> Ints:
        """Age of each slot's newest reading; MISSING where there is none."""
        never = self._seen_tick_ns[slots] == _NEVER
        seen = np.where(never, 0, self._seen_tick_ns[slots])
        return np.where(never, MISSING, np.maximum(tick_ns - seen, 0))

    def _read(self, ring: Singles, slots: Ints, newest_step: int, steps: int) -> Singles:
        length = ring.shape[-1]
        wanted = newest_step + np.arange(1 - steps, 1)
        places = wanted % length
        if 4 * steps < length:  # a few columns; else whole rows, which lie together
            found = np.stack([ring[slots, :, place] for place in places], axis=-1)
        else:
            rows = ring[slots]
            whole = np.concatenate([rows[..., places[0] :], rows[..., : places[0]]], axis=-1)
            found = whole[..., :steps]
        # Not written yet, or written over since: later steps lie where these lay.
        newest = self._newest[slots][:, None]
        unknown = (wanted > newest) | (wanted <= newest - length)
        np.copyto(found, np.nan, where=unknown[:, None, :])
        return found

    def _advance(self, slots: Ints, step: int) -> None:
        """Opens `step` in slots that are older, emptying the steps that were skipped."""
        newest = self._newest[slots]
        behind = slots[newest < step]
        if len(behind) == 0:
            return
        oldest = int(newest[newest < step].min())
        for ring in (self._mean, self._peak):
            for skipped in _skipped(oldest, step, ring.shape[-1]):
                opened = behind[self._newest[behind] < skipped]
                ring[opened, :, skipped % ring.shape[-1]] = np.nan
        self._count[behind] = 0
        self._newest[behind] = step


@dataclass(frozen=True, slots=True, eq=False)
class RingWindows:
    """`Windows` of slots as they are read: under the lock of whoever writes, a part at a time."""

    rings: Rings
    slots: Ints
    newest_step: int
    lock: AbstractContextManager[object]

    def mean(self, rows: Ints, steps: int) -> Singles:
        with self.lock:
            return self.rings.mean(self.slots[rows], self.newest_step, steps)

    def peak(self, rows: Ints, steps: int) -> Singles:
        with self.lock:
            return self.rings.peak(self.slots[rows], self.newest_step, steps)


def _empty(slots: int, steps: int) -> Singles:
    return np.full((slots, RESOURCES, steps), np.nan, dtype=np.float32)


def _skipped(oldest: int, step: int, length: int) -> Iterator[int]:
    gap = length if oldest == _NEVER else min(length, step - oldest)
    yield from range(step - gap + 1, step + 1)
