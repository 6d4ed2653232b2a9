"""What is unlike all that the network was taught: in turns, and missing where little is seen."""

from contextlib import nullcontext

import numpy as np
import pytest

from controller.core.state import MISSING
from controller.forecast.buckets import MIDDLES, UNSEEN, encode
from controller.forecast.fingerprint import archetypes, fingerprint
from controller.forecast.grid import snap
from controller.forecast.live import LiveForecaster, Scale, Voice, find_network
from controller.forecast.novelty import NONE, TURNS, compared, whose_turn
from controller.forecast.protocol import History
from controller.forecast.seasonal import SLOTS
from controller.rings import Rings, RingWindows
from shared.clock import SECOND_NS

STEP_S = 300  # of the grid: one block, one slot of a day


def taught():
    """Archetypes of machines that hardly move, seen for a whole day."""
    random = np.random.default_rng(1)
    level, noise = random.uniform(0.1, 0.9, (200, 1)), random.uniform(0.005, 0.05, (200, 1))
    day = level * (1 + noise * random.standard_normal((200, SLOTS)))
    day[:100, 1:] = np.maximum(day[:100, 1:], day[:100, :-1])  # peaks, as the loop has them
    return archetypes(fingerprint(day.astype(np.float32)), np.random.default_rng(2), 3)


def days():
    """Codes of one that hardly moves, and of one that leaps all day."""
    calm = 0.5 + 0.01 * np.random.default_rng(3).standard_normal(SLOTS)
    leaping = np.where(np.arange(SLOTS) % 2, 0.9, 0.01)
    return encode(snap(np.stack([calm, leaping]).astype(np.float32)))


@pytest.mark.parametrize("series", [0, 1, 5, 24, 100])
def test_every_series_has_its_turn_once(series):
    seen = np.concatenate([whose_turn(series, turn) for turn in range(7, 7 + TURNS)])
    assert sorted(seen.tolist()) == list(range(series))


def test_leaps_are_unlike_what_was_taught_by_the_calm():
    known = taught()
    place, novelty = compared(known, days())
    assert novelty[0] < 1 < novelty[1]
    assert place[0] == known.nearest(fingerprint(np.take(MIDDLES, days())))[0][0]


def test_who_came_half_a_day_ago_is_not_novel_for_that():
    day = np.repeat(days()[:1], 2, axis=0)
    day[1, : SLOTS // 2] = UNSEEN
    _, novelty = compared(taught(), day)
    assert (novelty < 1).all()


def test_of_less_than_half_a_day_nothing_is_said():
    day = np.concatenate([days()] * 2)
    day[:2, : SLOTS // 2] = UNSEEN
    day[2:, : SLOTS // 2 + 1] = UNSEEN
    place, novelty = compared(taught(), day)
    assert np.isfinite(novelty).tolist() == [True, True, False, False]
    assert place[2:].tolist() == [NONE, NONE]


class Loop:
    """Two machines that are seen once per block, one calm and one that leaps."""

    def __init__(self, known):
        voice = Voice(None, "none in this test", known=known)
        self.forecaster = LiveForecaster(voice, Scale(small_fleet=0))
        self.rings = Rings(STEP_S * SECOND_NS, 30, 2)
        self.rings.grow(2)
        self.random = np.random.default_rng(4)
        self.step, self.maximum = 1000, np.full((2, 3), 1000)

    def live(self, steps):
        for _ in range(steps):
            self.step += 1
            calm = 500 + 10 * self.random.standard_normal()
            leaping = 900 if self.step % 6 < 2 else 10  # peaks over two blocks leap, too
            amounts = np.array([[calm] * 3, [leaping] * 3]).astype(np.int64)
            at_ns = self.step * STEP_S * SECOND_NS
            self.rings.add(np.arange(2), amounts, at_ns)
            said = self.forecaster.predict(self.history(), 2 * STEP_S * SECOND_NS)
        return said

    def history(self):
        slots = np.arange(2)
        return History(
            made_at_unix_ns=self.step * STEP_S * SECOND_NS,
            newest_step=self.step,
            step_ns=STEP_S * SECOND_NS,
            steps=30,
            ids=("calm", "leaping"),
            limit=np.full((2, 3), MISSING),
            maximum=self.maximum,
            age_ns=np.zeros(2, dtype=np.int64),
            windows=RingWindows(self.rings, slots, self.step, nullcontext()),
        )


def test_the_loop_says_which_machines_are_novel_once_it_saw_half_a_day():
    loop = Loop(taught())
    early = loop.live(SLOTS // 2 - 1)
    assert np.isnan(early.novelty).all()
    assert (early.archetype == NONE).all()
    assert not early.novel.any() and not early.compared.any()
    said = loop.live(2 + TURNS)
    assert said.compared.all()
    assert said.novel.tolist() == [[False] * 3, [True] * 3]
    assert (said.archetype >= 0).all()
    loop.maximum = np.array([[1000] * 3, [2000, 1000, 1000]])
    said = loop.live(1)
    assert said.compared.tolist() == [[True] * 3, [False, True, True]], "it begins anew"


def test_the_network_that_is_shipped_brings_what_it_was_taught_from():
    voice = find_network(None, 600)
    assert len(voice.known.centre) > 1
    assert find_network(None, 30).known is None
    said = Loop(None).live(2)
    assert said.novelty is None
    assert not said.novel.any() and not said.compared.any()
