"""The targets of a day, one byte for each slot of five minutes. Pure. s series, n slots."""

import numpy as np

from controller.core.state import Ints
from controller.forecast.buckets import MIDDLES, UNSEEN, Codes, Small, encode
from controller.forecast.sight import Rows, Sight, arranged

SLOT_S = 300
SLOTS = 86_400 // SLOT_S


class Day:
    """One ring per series. What a slot was a day before stays until it is put again."""

    def __init__(self) -> None:
        self._newest: int | None = None  # number of the slot since 1970 that was put last
        self.begin(0)

    def begin(self, series: int) -> None:
        self._ring: Codes = np.full((series, SLOTS), UNSEEN, dtype=np.uint8)

    def arrange(self, places: Ints) -> None:
        self._ring = arranged(self._ring, places, UNSEEN)

    def turn(self, end_s: int) -> None:
        """To the slot of a moment; slots that were passed over were not seen."""
        slot = (end_s - 1) // SLOT_S
        if self._newest is not None and slot > self._newest + 1:
            passed = np.arange(self._newest + 1, min(slot, self._newest + 1 + SLOTS)) % SLOTS
            self._ring[:, passed] = UNSEEN
        self._newest = slot

    def put(self, sight: Sight, rows: Rows) -> None:
        assert self._newest is not None
        self._ring[rows, self._newest % SLOTS] = encode(sight.outcome)

    def ordered(self, rows: Rows) -> Codes:
        """(s, n) codes of the last day's targets, the newest last."""
        cut = 0 if self._newest is None else self._newest % SLOTS + 1
        ring = self._ring[rows]
        return np.concatenate([ring[:, cut:], ring[:, :cut]], axis=1)


def slots_ahead(sight: Sight) -> int:
    """Slots from the newest to the target's."""
    return max(1, sight.ahead_s // SLOT_S)


def yesterday(sight: Sight) -> Small:
    """(s,) what the target was a day before the one that is asked for; NaN: not seen."""
    return np.asarray(np.take(MIDDLES, sight.day[:, slots_ahead(sight) - 1]))
