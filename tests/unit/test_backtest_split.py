"""Machines that are alike stay together, times stay apart, and a seed says it all."""

import numpy as np
import pytest

from controller.forecast.backtest.split import split, twin_groups
from controller.forecast.backtest.traces import Trace

HOURS = 200


def trace_of(hourly, step_s=300):
    share = np.repeat(np.asarray(hourly, dtype=np.float32), 3600 // step_s, axis=1)
    nothing = np.broadcast_to(np.float32(np.nan), (len(share), 3, share.shape[1]))
    ids = tuple(f"vm{row}" for row in range(len(share)))
    late = np.zeros(share.shape, dtype=np.int16)
    return Trace("made", "cpu", ids, 0, step_s, share, nothing, late)


def noise(rows, seed=1):
    return np.random.default_rng(seed).uniform(0, 1, (rows, HOURS))


def test_twins_of_twins_are_one_group():
    made = noise(6)
    made[3] = 0.5 * made[0] + 0.1  # of another size
    made[5] = made[3] + np.random.default_rng(2).normal(0, 0.02, HOURS)
    assert twin_groups(trace_of(made)).tolist() == [0, 1, 2, 0, 3, 0]


def test_gaps_do_not_hide_a_twin_and_few_hours_prove_nothing():
    made = noise(3)
    made[1] = made[0]
    made[2] = made[0]
    made[1, ::2] = np.nan
    made[2, 10:] = np.nan
    assert twin_groups(trace_of(made)).tolist() == [0, 0, 1]


def test_constant_vms_are_not_twins():
    assert twin_groups(trace_of(np.full((3, HOURS), 0.25))).tolist() == [0, 1, 2]


@pytest.mark.parametrize("seed", range(5))
def test_no_twin_on_the_other_side_and_all_vms_somewhere(seed):
    made = noise(60)
    made[30:45] = made[:15]
    made[45:] = made[:15]
    trace = trace_of(made)
    cut = split(trace, seed)
    rows = np.concatenate([cut.train, cut.valid, cut.test])
    assert sorted(rows.tolist()) == list(range(60))
    group = twin_groups(trace)
    sides = [set(group[each].tolist()) for each in (cut.train, cut.valid, cut.test)]
    assert not sides[0] & sides[1]
    assert not sides[0] & sides[2]
    assert not sides[1] & sides[2]
    assert len(cut.train) == pytest.approx(36, abs=3)
    assert len(cut.test) == pytest.approx(15, abs=3)


def test_parts_are_apart_in_time_and_a_seed_repeats():
    trace = trace_of(noise(40))
    one, two, other = split(trace, 1), split(trace, 1), split(trace, 2)
    np.testing.assert_array_equal(one.train, two.train)
    assert one.train.tolist() != other.train.tolist()
    train, valid, test = (one.part(trace, name) for name in ("train", "valid", "test"))
    end = train.start_s + train.steps * train.step_s
    assert end == valid.start_s
    assert valid.start_s + valid.steps * valid.step_s == test.start_s
    assert train.steps == pytest.approx(0.6 * trace.steps, abs=2)
    assert not set(train.vm_ids) & set(test.vm_ids)


def test_time_is_cut_where_something_was_seen():
    made = noise(4)
    made[:, 20:160] = np.nan  # 60 of 200 hours remain
    cut = split(trace_of(made), 1)
    assert cut.train_stop == pytest.approx((160 + 16) * 12, abs=2)
