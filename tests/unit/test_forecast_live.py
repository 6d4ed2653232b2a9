"""The forecaster of the loop: a fleet that comes and goes, in turns, with a network or without."""

import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.core.state import MISSING
from controller.forecast.checkpoint import SHIPPED
from controller.forecast.cohorts import Cohort, Seen, When
from controller.forecast.empirical import PROBABILITY, EmpiricalForecaster
from controller.forecast.live import (
    WITH_NETWORK,
    LiveForecaster,
    Scale,
    Voice,
    find_network,
    make_forecaster,
)
from controller.forecast.moment import Prediction
from controller.forecast.predictor import make_predictor
from controller.forecast.protocol import History
from controller.forecast.shares import LEVELS, block_steps, blocks, references, with_ends
from controller.rings import Rings, RingWindows
from shared.clock import SECOND_NS
from shared.resources import GIB, MIB

ROOT = Path(__file__).parents[2]
MEDIAN, P95 = (int(PROBABILITY.searchsorted(level)) for level in (0.5, 0.95))
LARGE = Scale(small_fleet=0, cohort_machines=10)
MUTE = Voice(None, "none in this test")
CAPACITY = (4000, 8 * GIB, MISSING)


class Fleet:
    """Machines by name that are seen once per grid step, and what is forecast of them."""

    def __init__(self, forecaster=None, step_s=60, window=120, horizon_s=600, at=10_000):
        self.forecaster = forecaster or LiveForecaster(MUTE)
        self.horizon_ns = horizon_s * SECOND_NS
        self.step_ns = step_s * SECOND_NS
        self.rings = Rings(self.step_ns, window, horizon_s // step_s)
        self.slots = {}
        self.step = at
        self.unix_s = 1_700_000_000
        self.maximum, self.limit = {}, {}

    def see(self, use, unix_s=None):
        """One step later: `use` of each machine, a figure for all resources or three; None: not
        reported, but there."""
        self.step += 1
        self.unix_s = self.unix_s + self.step_ns // SECOND_NS if unix_s is None else unix_s
        for name, amounts in use.items():
            slot = self.slots.setdefault(name, len(self.slots))
            self.rings.grow(slot + 1)
            if amounts is not None:
                row = np.broadcast_to(np.asarray(amounts), 3).astype(np.int64)
                self.rings.add(np.array([slot]), row[None, :], self.step * self.step_ns)

    def history(self, names):
        slots = np.array([self.slots[name] for name in names], dtype=np.int64)
        return History(
            made_at_unix_ns=self.unix_s * SECOND_NS,
            newest_step=self.step,
            step_ns=self.step_ns,
            steps=self.rings.window_steps,
            ids=tuple(names),
            limit=self._table(self.limit, names, (MISSING,) * 3),
            maximum=self._table(self.maximum, names, CAPACITY),
            age_ns=self.rings.age_ns(slots, self.step * self.step_ns),
            windows=RingWindows(self.rings, slots, self.step, nullcontext()),
        )

    @staticmethod
    def _table(said, names, otherwise):
        rows = [said.get(name, otherwise) for name in names]
        return np.array(rows, dtype=np.int64).reshape(-1, 3)

    def predict(self, names):
        return self.forecaster.predict(self.history(names), self.horizon_ns)

    def live(self, use):
        """A step, and what is forecast after it."""
        self.see(use)
        return self.predict(tuple(use))


def sound(said):
    """Ascending and finite where there is a forecast at all; which series those are."""
    quantile = said.forecast.quantile
    known = np.isfinite(quantile).all(axis=-1)
    assert np.isnan(quantile[~known]).all()
    assert (np.diff(quantile[known], axis=-1) >= 0).all()
    assert (quantile[known] >= 0).all()
    return known


def wave(step, scale=1000.0, period=17):
    return scale * (1 + 0.5 * np.sin(step * 2 * np.pi / period))


# ---- what it says ----


def test_a_new_series_is_forecast_by_its_past_alone_until_a_block_was_seen():
    fleet, plain = Fleet(), EmpiricalForecaster()
    for minute in range(1, 9):
        said = fleet.live({"a": 500})
        assert sound(said).all()
        if minute < 5:
            expected = plain.predict(fleet.history(("a",)), fleet.horizon_ns).forecast
            np.testing.assert_array_equal(said.forecast.quantile, expected.quantile)
        # It joined in the first minute, so its cohort's second turn comes in the sixth.
        assert said.learnt.all() == (minute >= 6)
        assert said.forecast.samples.tolist() == [[min(minute, 6)] * 3]
    assert said.forecast.quantile[0, 0, MEDIAN] == pytest.approx(500, rel=0.1)


def test_nothing_is_said_of_what_was_never_seen():
    fleet = Fleet()
    for _ in range(12):
        said = fleet.live({"a": 500, "silent": None, "partly": (300, -1, -1)})
    assert sound(said).tolist() == [[True] * 3, [False] * 3, [True, False, False]]
    assert said.forecast.age_ns.tolist() == [0, MISSING, 0]
    assert said.made_ns_ago.tolist() == [0, MISSING, 0]


def test_a_fleet_of_nobody_is_no_obstacle():
    fleet = Fleet()
    assert fleet.predict(()).forecast.quantile.shape == (0, 3, 33)
    fleet.live({"a": 500})
    assert fleet.predict(()).learnt.shape == (0, 3)
    assert sound(fleet.live({"a": 500})).all()


def test_a_constant_is_forecast_as_it_is():
    fleet = Fleet(LiveForecaster(find_network(None, 600)))
    for _ in range(90):
        said = fleet.live({"a": (700, 2 * GIB, 3 * MIB)})
    for resource, value in enumerate((700, 2 * GIB, 3 * MIB)):
        quantile = said.forecast.quantile[0, resource]
        assert quantile[MEDIAN] == pytest.approx(value, rel=0.05)
        assert quantile[P95] == pytest.approx(value, rel=0.1)


@pytest.mark.parametrize("voice", [MUTE, find_network(None, 600)], ids=["alone", "with network"])
def test_it_keeps_its_promise_and_beats_persistence_on_demand_that_swings(voice):
    rng = np.random.default_rng(3)
    names = [f"vm{i}" for i in range(30)]
    fleet = Fleet(LiveForecaster(voice))
    level, said_before, below, loss, plain_loss = rng.uniform(500, 2000, 30), [], [], [], []
    for minute in range(200):
        use = np.maximum(level + rng.normal(0, 150, 30) + 300 * np.sin(minute / 9 + level), 1)
        said = fleet.live(dict(zip(names, use, strict=True)))
        said_before.append((said.forecast.quantile[:, 0], use))
        if minute >= 100:
            quantile, now = said_before[minute - 10]
            came = np.max([one for _, one in said_before[minute - 9 : minute + 1]], axis=0)
            below.append(came <= quantile[:, P95])
            loss.append(pinball(came, quantile[:, P95], 0.95))
            plain_loss.append(pinball(came, now, 0.95))
    assert 0.88 < np.mean(below) <= 1.0
    assert np.mean(loss) < 0.5 * np.mean(plain_loss)


def pinball(came, said, level):
    return np.maximum(level * (came - said), (level - 1) * (came - said))


def test_use_that_touches_its_limit_is_demand_cut_off():
    calm, cut = Fleet(), Fleet()
    cut.limit["a"] = (850, MISSING, MISSING)
    for _ in range(30):
        free, held = calm.live({"a": 800}), cut.live({"a": 800})
    assert free.learnt.all()
    high, cut_high = (one.forecast.quantile[0, :, P95] for one in (free, held))
    np.testing.assert_allclose(cut_high / high, [1.5, 1, 1])
    assert held.forecast.quantile[0, 0, MEDIAN] == free.forecast.quantile[0, 0, MEDIAN]


def test_the_same_inputs_give_the_same_forecast_to_the_last_bit():
    first, again = (Fleet(LiveForecaster(find_network(None, 600))) for _ in range(2))
    for minute in range(40):
        use = {"a": wave(minute), "b": wave(minute, 300, 7)}
        one, other = first.live(use), again.live(use)
        np.testing.assert_array_equal(one.forecast.quantile, other.forecast.quantile)


def test_a_new_machine_borrows_from_those_of_its_size_for_a_few_minutes():
    fleet = Fleet()
    small, large = [f"small{i}" for i in range(5)], [f"large{i}" for i in range(5)]
    fleet.maximum.update(dict.fromkeys([*large, "new"], (16_000, 64 * GIB, MISSING)))
    known = {**dict.fromkeys(small, 100), **dict.fromkeys(large, (12_000, 48 * GIB, 9 * MIB))}
    for _ in range(21):
        assert not fleet.live(known).borrowed.any()
    first = fleet.live({**known, "new": (300, GIB, MISSING)})
    assert first.borrowed[-1].tolist() == [True, True, False]
    assert not first.borrowed[:-1].any()
    assert np.isnan(first.forecast.quantile[-1, 2]).all()
    assert first.forecast.quantile[-1, 0, MEDIAN] > 6000
    later = fleet.live({**known, "new": (300, GIB, MISSING)})
    assert sound(later)[-1].tolist() == [True, True, False]
    assert later.forecast.quantile[-1, 0, P95] < first.forecast.quantile[-1, 0, P95]
    for _ in range(9):
        later = fleet.live({**known, "new": (300, GIB, MISSING)})
    assert later.learnt[-1, 0] and not later.borrowed.any()
    assert later.forecast.quantile[-1, 0, MEDIAN] < 600


def test_nobody_borrows_below_what_it_uses_nor_from_other_sizes():
    fleet = Fleet()
    fleet.maximum["other"] = (64_000, 512 * GIB, MISSING)
    known = dict.fromkeys([f"vm{i}" for i in range(5)], (100, GIB, MIB))
    for _ in range(21):
        fleet.live(known)
    said = fleet.live({**known, "busy": (3500, 7 * GIB, MIB), "other": (50_000, GIB, MIB)})
    alone = EmpiricalForecaster().predict(fleet.history(("busy", "other")), fleet.horizon_ns)
    assert (said.forecast.quantile[-2:] >= alone.forecast.quantile).all()
    np.testing.assert_allclose(said.forecast.quantile[-2:, 0], alone.forecast.quantile[:, 0])


def test_a_machine_is_forecast_sensibly_alone_and_among_many():
    rng = np.random.default_rng(4)
    alone, among = Fleet(), Fleet()
    for minute in range(60):
        others = {f"vm{i}": max(rng.normal(40 * i, 10), 0) for i in range(100)}
        one, many = alone.live({"me": wave(minute)}), among.live({**others, "me": wave(minute)})
    middles = [said.forecast.quantile[-1, 0, [MEDIAN, P95]] for said in (one, many)]
    assert sound(many).all() and sound(one).all()
    np.testing.assert_allclose(middles[0], middles[1], rtol=0.25)
    assert 1000 < middles[0][0] < 1700


# ---- who comes, goes and begins anew ----

presence = st.lists(
    st.tuples(st.sets(st.integers(0, 5)), st.integers(1, 30)), min_size=2, max_size=6
)


@settings(max_examples=12, deadline=None)
@given(presence, st.sampled_from([120, 600]))
def test_nothing_that_was_said_of_one_machine_is_ever_said_of_another(story, horizon_s):
    """Machines whose use is a factor of three apart; their places are taken again."""
    scale = Scale(small_fleet=0, cohort_machines=3)
    fleet = Fleet(LiveForecaster(MUTE, scale), horizon_s=horizon_s)
    for there, minutes in story:
        for _ in range(minutes):
            use = {f"vm{i}": 1000 * 3**i for i in sorted(there)}
            fleet.maximum.update(dict.fromkeys(use, (1_000_000,) * 3))
            said = fleet.live(use)
            assert sound(said).all()
            for row, value in enumerate(use.values()):
                middle = said.forecast.quantile[row, :, MEDIAN]
                assert (value / 1.5 < middle).all()
                # A new machine borrows from all others of its size, and says so.
                assert ((middle < value * 1.5) | said.borrowed[row]).all()


def test_places_of_machines_that_are_gone_for_long_are_taken_again():
    forecaster = LiveForecaster(MUTE, LARGE)
    fleet = Fleet(forecaster, horizon_s=120)
    for generation in range(4):
        for _ in range(30):
            fleet.live({f"{generation}-{i}": 100 for i in range(10)})
    assert sum(cohort.size for cohort in forecaster._members.cohorts) <= 20
    assert len(forecaster._members._places) <= 20


def test_a_machine_that_is_away_for_a_moment_goes_on_where_it_was():
    fleet = Fleet(horizon_s=120)
    for minute in range(30):
        fleet.live({"a": wave(minute), "b": 100})
    for _ in range(3):
        fleet.live({"b": 100})
    fleet.see({"a": wave(33), "b": 100})
    assert fleet.predict(("b", "a")).learnt.all()


def test_an_allotment_of_nothing_or_of_unknown_size_is_no_obstacle():
    fleet = Fleet()
    for minute in range(40):
        fleet.maximum["a"] = (0, MISSING, 0) if minute % 2 else (MISSING, 0, MISSING)
        said = fleet.live({"a": (400, 3 * GIB, 5 * MIB)})
        assert sound(said).all()
    expected = [400, 3 * GIB, 5 * MIB]
    np.testing.assert_allclose(said.forecast.quantile[0, :, MEDIAN], expected, rtol=0.1)


def test_gaps_leave_sound_forecasts():
    rng = np.random.default_rng(9)
    fleet = Fleet(LiveForecaster(find_network(None, 600)))
    for minute in range(80):
        said = fleet.live(
            {f"vm{i}": wave(minute) if rng.random() < 0.4 else None for i in range(8)}
        )
        sound(said)
    assert said.learnt.any()


def test_clocks_that_are_set_do_no_harm():
    fleet = Fleet(LiveForecaster(find_network(None, 600)))
    for minute in range(60):
        fleet.see({"a": wave(minute)}, unix_s=[1_700_000_000, 4, 2**33][minute // 20] + minute)
        assert sound(fleet.predict(("a",))).all()


@pytest.mark.parametrize(
    ("step_s", "window", "horizon_s"), [(10, 8, 30), (5, 24, 30), (60, 120, 7200), (1, 2, 1)]
)
def test_other_grids_and_horizons(step_s, window, horizon_s):
    fleet = Fleet(step_s=step_s, window=window, horizon_s=horizon_s)
    for step in range(window + 12):
        said = fleet.live({"a": wave(step), "b": 5})
        assert sound(said).all()
    assert 450 < said.forecast.quantile[0, 0, MEDIAN] < 2000


# ---- turns ----


def test_a_large_fleet_has_its_turns_one_part_per_cycle():
    fleet = Fleet(LiveForecaster(MUTE, LARGE))
    names = [f"vm{i}" for i in range(50)]
    for _ in range(20):
        said = fleet.live(dict.fromkeys(names, 100))
    assert said.learnt.all()
    minutes = np.unique(said.made_ns_ago // fleet.step_ns, return_counts=True)
    assert minutes[0].tolist() == [0, 1, 2, 3, 4]
    assert minutes[1].tolist() == [10] * 5
    assert (said.forecast.age_ns == 0).all()  # held against what was seen just now


def test_a_cohort_that_begins_is_taught_by_the_older_ones():
    forecaster = LiveForecaster(MUTE, Scale(small_fleet=0, cohort_machines=3))
    fleet = Fleet(forecaster, horizon_s=120)
    names = [f"vm{i}" for i in range(4)]
    for minute in range(60):
        fleet.live({name: wave(minute, 900, 7) for name in names[:3]})
    fleet.live(dict.fromkeys(names, 900))
    old, new = (cohort.learnt()["weights"] for cohort in forecaster._members.cohorts)
    fresh = make_predictor(2, "peak").learnt()["weights"]
    assert np.abs(old - fresh).max() > 0.05
    np.testing.assert_allclose(new, old, atol=0.02)


def test_what_leaves_its_band_is_forecast_anew_at_once():
    fleet = Fleet(LiveForecaster(MUTE, LARGE))
    for _ in range(31):
        said = fleet.live({"a": 500, "b": 500})
    assert said.made_ns_ago.tolist() == [0, 0]
    said = fleet.live({"a": (2000, 500, 500), "b": 500})
    assert said.made_ns_ago.tolist() == [fleet.step_ns] * 2  # of its other resources
    assert said.forecast.quantile[0, 0, P95] > 1900
    assert said.forecast.quantile[1, 0, P95] < 900


def test_no_more_than_so_many_have_a_turn_of_their_own_the_farthest_first():
    fleet = Fleet(LiveForecaster(MUTE, Scale(0, 10, again_series_max=1)))
    for _ in range(31):
        fleet.live({"a": 500, "b": 500})
    said = fleet.live({"a": (2000, 500, 500), "b": (3000, 500, 500)})
    assert said.forecast.quantile[0, 0, P95] < 1000
    assert said.forecast.quantile[1, 0, P95] > 2900


@pytest.mark.parametrize(("scale", "since"), [(Scale(), 16), (LARGE, 46)], ids=["small", "large"])
def test_blocks_that_were_missed_are_gone_through(scale, since):
    """After a pause, short in a large fleet, the forecaster is as if there had been none."""
    steady, paused = (Fleet(LiveForecaster(MUTE, scale)) for _ in range(2))
    for minute in range(61):
        use = {"a": wave(minute), "b": wave(minute, 200, 5)}
        steady.live(use)
        paused.see(use)
        if not since <= minute < 60:
            paused.predict(("a", "b"))
    one, other = (fleet.predict(("a", "b")).forecast.quantile for fleet in (steady, paused))
    assert np.isfinite(one).all()
    np.testing.assert_array_equal(other, one)


def test_a_cycle_that_comes_after_the_end_of_a_block_looks_at_the_block():
    on_time, late = (Fleet(LiveForecaster(MUTE, LARGE)) for _ in range(2))
    for minute in range(62):
        use = {"a": wave(minute)}
        kept = on_time.live(use)
        late.see(use)
        if minute % 5 != 0 or minute == 0:  # the turns of the first cohort
            said = late.predict(("a",))
    assert said.learnt.all()
    np.testing.assert_array_equal(said.forecast.quantile, kept.forecast.quantile)
    assert said.made_ns_ago.tolist() == kept.made_ns_ago.tolist() == [late.step_ns]


def test_a_wall_clock_that_trembles_changes_nothing():
    """Blocks are as far apart as the grid says, or slots of the day would be left out."""
    steady, trembling = Fleet(), Fleet()
    rng = np.random.default_rng(2)
    for minute in range(60):
        unix_s = 1_700_000_100 + 60 * minute  # blocks end where slots of the day do
        tremble = int(rng.integers(-20, 20)) if minute else 0
        one, other = ({"a": wave(minute)} for _ in range(2))
        steady.see(one, unix_s)
        trembling.see(other, unix_s + tremble)
        said = [fleet.predict(("a",)).forecast.quantile for fleet in (steady, trembling)]
        np.testing.assert_array_equal(*said)


class Listener:
    """In a mixture's place: remembers what it was shown."""

    horizon_steps = 2

    def __init__(self):
        self.shown, self.arranged = [], []

    def step(self, moment):
        self.shown.append(moment)
        series = len(moment.window)
        return Prediction(np.zeros((series, 21)), np.full((series, len(LEVELS)), 0.5))

    def arrange(self, places):
        self.arranged.append(places.tolist())


def test_an_allotment_that_changes_begins_a_series_anew_and_no_other():
    listener = Listener()
    cohort = Cohort(listener, 10, first_step=0)
    for name in "ab":
        cohort.take(name)
    cohort.open()
    maximum = np.full((2, 3), 1000)
    for block in range(4):
        if block == 2:
            maximum[1, 0] = 2000
        middle = np.full((2, 3, 24), 500.0)
        seen = Seen(np.arange(2), middle, middle, np.full((2, 3), 9), maximum.copy())
        cohort.turn(seen, When(block, block, 300 * block, 300), least=5, patient=False)
    assert listener.arranged == [[0, 1, 2, -1, 4, 5]]
    assert [one.window[3, -1] for one in listener.shown] == [0.5, 0.5, 0.25, 0.25]


def cohort_seen(listener, use, steps, *, patient=False):
    """Shows a cohort of one machine the end of each of these grid steps of `use`."""
    cohort = Cohort(listener, 10, first_step=4)
    cohort.take("a")
    cohort.open()
    for step in steps:
        block = cohort.due(step, 5)
        end = 4 + 5 * block
        mean = np.full((1, 3, 120), np.nan, dtype=np.float32)
        mean[..., -end - 1 :] = use[: end + 1]
        seen = Seen(np.array([0]), *blocks(mean, 5), np.full((1, 3), 9), np.full((1, 3), 1000))
        cohort.turn(seen, When(block, end, 60 * (end + 1), 300), least=5, patient=patient)
    return [(one.end_s // 300, one.window[0]) for one in listener.shown]


def test_a_mixture_is_shown_every_block_once_and_in_order():
    use = np.arange(100.0)
    shown = cohort_seen(Listener(), use, [4, 9, 15, 33])
    assert [number for number, _ in shown] == [1, 2, 3, 4, 5, 6]
    for number, window in shown:
        expected = use[: 5 * number].reshape(-1, 5).mean(axis=1) / 1000
        np.testing.assert_allclose(window[-number:], expected)


def test_after_a_long_pause_what_waits_for_an_outcome_gets_none():
    shown = cohort_seen(Listener(), np.arange(100.0), [4, 9, 99])
    assert [number for number, _ in shown] == [1, 2, 18, 19, 20]
    assert [bool(np.isnan(window).all()) for _, window in shown] == [
        False,
        False,
        True,
        True,
        False,
    ]


def test_who_has_the_patience_begins_with_all_of_the_past():
    shown = cohort_seen(Listener(), np.arange(100.0), [99], patient=True)
    assert [number for number, _ in shown] == list(range(1, 21))


def test_a_controller_that_starts_with_a_history_has_learnt_from_it():
    steady, started = Fleet(), Fleet()
    for minute in range(101):
        use = {"a": wave(minute)}
        steady.live(use)
        started.see(use)
    one, other = steady.predict(("a",)), started.predict(("a",))
    assert other.learnt.all()
    np.testing.assert_array_equal(one.forecast.quantile, other.forecast.quantile)


# ---- shares ----


def test_a_block_is_half_a_horizon_where_that_is_whole():
    assert [block_steps(steps) for steps in (1, 2, 3, 6, 10, 15)] == [1, 1, 1, 3, 5, 1]


def test_blocks_end_with_the_newest_step():
    mean = np.array([[[9.0, 1, 2, np.nan, np.nan, np.nan, 5]]], dtype=np.float32)
    middle, highest = blocks(mean, 2)
    np.testing.assert_array_equal(middle, [[[1.5, np.nan, 5]]])
    np.testing.assert_array_equal(highest, [[[2, np.nan, 5]]])


def test_what_a_share_is_of_is_known_or_a_power_of_two_that_is_kept():
    nothing = np.full((1, 3), np.nan)
    unknown = np.full((1, 3), MISSING)
    first = references(unknown, nothing, np.array([[3000.0, np.nan, 70 * MIB]]))
    assert first.tolist() == [[8192, 256 * MIB, 256 * MIB]]
    kept = references(unknown, first, np.array([[1.0, 1.0, 256 * MIB]]))
    assert kept.tolist() == first.tolist()
    grown = references(unknown, first, np.array([[9000.0, 1.0, 1.0]]))
    assert grown[0, 0] == 32768
    known = references(np.array([[2000, 8 * GIB, 20 * MIB]]), first, nothing)
    assert known.tolist() == [[2000, 8 * GIB, 20 * MIB]]
    # A disk's allotment is shared by many: a VM that does little is measured against less.
    wide = references(np.array([[2000, 8 * GIB, 4 * GIB]]), nothing, nothing)
    assert wide[0, 2] == 64 * MIB


def test_ends_of_a_distribution():
    inner = np.linspace(0.1, 0.4, 31, dtype=np.float32)[None, None].repeat(3, axis=1)
    full = with_ends(inner, np.array([[1000.0, 1.0, 10.0]]))
    assert full.shape == (1, 3, 33)
    assert full[0, 0, 0] == 0
    assert full[0, 0, -1] == pytest.approx(410)
    assert (np.diff(full, axis=-1) > 0).all()


def test_a_reader_that_is_slow_finds_what_was_there():
    rings = Rings(SECOND_NS, 10, 3)
    slot = np.array([0])
    for step in range(20):
        rings.add(slot, np.full((1, 3), step), step * SECOND_NS)
    windows = RingWindows(rings, slot, 19, nullcontext())
    before = windows.mean(slot, 10), windows.peak(slot, 3), windows.mean(slot, 2)
    for step in (20, 21):
        rings.add(slot, np.full((1, 3), step), step * SECOND_NS)
    after = windows.mean(slot, 10), windows.peak(slot, 3), windows.mean(slot, 2)
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one, other)
    assert before[0][0, 0].tolist() == list(range(10, 20))
    rings.add(slot, np.full((1, 3), 22), 22 * SECOND_NS)
    assert np.isnan(windows.mean(slot, 10)[0, 0, 0])  # written over, and not taken for anew


# ---- with the network and without ----


def test_the_shipped_network_is_used_where_it_fits():
    assert make_forecaster("auto", None, 600).standing.method == WITH_NETWORK
    assert make_forecaster("auto", SHIPPED, 600).standing.method == WITH_NETWORK
    other = make_forecaster("auto", None, 30).standing
    assert (other.method, other.trouble) == ("mixture (no network: it knows 600 s ahead only)", "")
    assert make_forecaster("empirical", None, 600).standing.method == "empirical"


def test_the_network_has_a_say():
    mute, voiced = Fleet(), Fleet(LiveForecaster(find_network(None, 600)))
    for minute in range(60):
        one, other = mute.live({"a": wave(minute)}), voiced.live({"a": wave(minute)})
    assert (one.forecast.quantile != other.forecast.quantile).any()


def test_weights_that_cannot_be_used_are_a_trouble_that_is_told(tmp_path):
    damaged, missing = tmp_path / "network.safetensors", tmp_path / "missing.safetensors"
    damaged.write_bytes(SHIPPED.read_bytes()[:5000])
    for path, cause in ((damaged, "damaged, or no file of weights"), (missing, "no such file")):
        forecaster = make_forecaster("auto", path, 600)
        assert forecaster.standing.method == "mixture (no network: its file cannot be used)"
        assert str(path) in forecaster.standing.trouble
        assert cause in forecaster.standing.trouble
        assert forecaster.standing.trouble.endswith("or leave it out")
        fleet = Fleet(forecaster)
        for _ in range(12):
            said = fleet.live({"a": 100})
        assert sound(said).all()
        assert said.forecast.method == forecaster.standing.method


def run_python(script):
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_controller_without_safetensors_forecasts():
    said = run_python(
        "import sys\n"
        "sys.modules['safetensors'] = None\n"
        "from controller.forecast.live import find_network\n"
        "print(find_network(None, 600).standing)\n"
    )
    assert "mixture (no network: safetensors is not installed)" in said


def test_the_program_keeps_the_threads_of_numpys_algebra_out_of_the_way(tmp_path):
    """They made forecasts several times as slow on two busy cores."""
    config = tmp_path / "controller.toml"
    config.write_text("")
    said = run_python(
        "import os, sys\n"
        "os.environ.pop('OPENBLAS_NUM_THREADS', None)\n"
        "from controller.__main__ import main\n"
        "assert 'numpy' not in sys.modules\n"
        f"sys.argv = ['hrapaq-controller', 'check-config', '--config', {str(config)!r}]\n"
        "try:\n"
        "    main()\n"
        "except SystemExit as end:\n"
        "    assert not end.code\n"
        "import numpy\n"
        "print(len(os.listdir('/proc/self/task')))\n"
    )
    assert said.splitlines()[-1] == "1"


def test_the_loop_never_loads_torch():
    said = run_python(
        "import sys\n"
        "import controller.service\n"
        "from controller.forecast.live import find_network\n"
        "assert find_network(None, 600).network is not None\n"
        "print('torch' in sys.modules)\n"
    )
    assert said == "False\n"
