"""Which series are unlike all that the network was taught from. Pure.

A fingerprint costs about as much as a forecast and a day changes slowly, so of a cohort's series
one in TURNS is looked at per block, and what was found is kept until its turn comes again.
s series, n slots of a day.
"""

import numpy as np

from controller.core.state import Ints
from controller.forecast.buckets import MIDDLES, UNSEEN, Codes
from controller.forecast.fingerprint import Archetypes, fingerprint
from controller.forecast.protocol import Singles
from controller.forecast.seasonal import SLOTS

TURNS = 24  # blocks: two hours, where they are of five minutes
SEEN_MIN = SLOTS // 2  # of less than half a day nothing is said
NONE = -1  # archetype of what is not known


def whose_turn(series: int, turn: int) -> Ints:
    """Which of the series are looked at in this turn; all of them in TURNS turns."""
    return np.arange(turn % TURNS, series, TURNS)


def compared(known: Archetypes, day: Codes) -> tuple[Ints, Singles]:
    """(s,) number of the archetype that days (s, n) come nearest to, and their novelty; NONE and
    NaN where less than half a day was seen."""
    place = np.full(len(day), NONE)
    novelty = np.full(len(day), np.nan, dtype=np.float32)
    seen = np.flatnonzero((day != UNSEEN).sum(axis=1) >= SEEN_MIN)
    if len(seen):
        place[seen], novelty[seen] = known.nearest(fingerprint(np.take(MIDDLES, day[seen])))
    return place, novelty
