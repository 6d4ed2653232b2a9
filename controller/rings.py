"""Use of every machine on a regular grid, in rings that hold one window. NaN: nothing was seen.

The grid counts the receiver's tick, so that no wall clock, the sender's or ours, can bend it.
Shapes: s slots, 3 resources, w steps. A slot's step t lies at t modulo w.
"""

import numpy as np

from controller.core.state import MISSING, RESOURCES, Floats, Ints

_NEVER = np.iinfo(np.int64).min


class Rings:
    """Mean and highest reading per step; `add` writes, `window` reads."""

    def __init__(self, step_ns: int, window_steps: int, slots: int = 64) -> None:
        self.step_ns = step_ns
        self.window_steps = window_steps
        self._mean: Floats = np.full((slots, RESOURCES, window_steps), np.nan)
        self._peak: Floats = np.full((slots, RESOURCES, window_steps), np.nan)
        self._count: Ints = np.zeros((slots, RESOURCES), dtype=np.int64)  # in the newest step
        self._newest: Ints = np.full(slots, _NEVER, dtype=np.int64)  # the newest step written
        self._seen_tick_ns: Ints = np.full(slots, _NEVER, dtype=np.int64)

    def grow(self, slots: int) -> None:
        """Room for at least `slots`."""
        more = slots - len(self._newest)
        if more <= 0:
            return
        empty = np.full((more, RESOURCES, self.window_steps), np.nan)
        self._mean = np.concatenate([self._mean, empty])
        self._peak = np.concatenate([self._peak, empty])
        self._count = np.concatenate([self._count, np.zeros((more, RESOURCES), dtype=np.int64)])
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
        place = self._newest[at] % self.window_steps
        value = used[rows, resources].astype(np.float64)
        count = self._count[at, resources] + 1
        mean = self._mean[at, resources, place]
        mean = np.where(count == 1, value, mean + (value - mean) / count)
        self._count[at, resources] = count
        self._mean[at, resources, place] = mean
        self._peak[at, resources, place] = np.fmax(self._peak[at, resources, place], value)
        self._seen_tick_ns[at] = np.maximum(self._seen_tick_ns[at], tick_ns)
        return len(rows)

    def window(self, slots: Ints, tick_ns: int) -> tuple[Floats, Floats]:
        """Mean and peak, both (len(slots), 3, w), of the steps that end with that of `tick_ns`."""
        steps = tick_ns // self.step_ns + np.arange(1 - self.window_steps, 1)  # (w,)
        places = steps % self.window_steps
        mean = self._mean[slots][:, :, places]
        peak = self._peak[slots][:, :, places]
        later = steps[None, :] > self._newest[slots][:, None]  # (len(slots), w) not written yet
        hidden = np.broadcast_to(later[:, None, :], mean.shape)
        mean[hidden] = np.nan
        peak[hidden] = np.nan
        return mean, peak

    def age_ns(self, slots: Ints, tick_ns: int) -> Ints:
        """Age of each slot's newest reading; MISSING where there is none."""
        never = self._seen_tick_ns[slots] == _NEVER
        seen = np.where(never, 0, self._seen_tick_ns[slots])
        return np.where(never, MISSING, np.maximum(tick_ns - seen, 0))

    def _advance(self, slots: Ints, step: int) -> None:
        """Opens `step` in slots that are older, emptying the steps that were skipped."""
        newest = self._newest[slots]
        behind = slots[newest < step]
        if len(behind) == 0:
            return
        oldest = int(newest[newest < step].min())
        gap = min(self.window_steps, step - oldest) if oldest != _NEVER else self.window_steps
        for skipped in range(step - gap + 1, step + 1):
            opened = behind[self._newest[behind] < skipped]
            self._mean[opened, :, skipped % self.window_steps] = np.nan
            self._peak[opened, :, skipped % self.window_steps] = np.nan
        self._count[behind] = 0
        self._newest[behind] = step
