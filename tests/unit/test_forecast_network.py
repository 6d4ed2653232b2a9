"""The network without torch: what it is told, what it says, and its file."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from controller.forecast import checkpoint
from controller.forecast.features import CHANNELS, FACTS, STEPS, inputs
from controller.forecast.fingerprint import SIZE, Archetypes
from controller.forecast.moment import BINS as SHARE_BINS
from controller.forecast.moment import EDGES as SHARES
from controller.forecast.moment import Moment, bin_of
from controller.forecast.network import BINS, Network, NetworkMember, below
from controller.forecast.seasonal import SLOTS


def some_network(hidden=6, seed=1):
    rng = np.random.default_rng(seed)

    def weights(*shape):
        return rng.normal(0, 0.4, shape).astype(np.float32)

    return Network(
        sequence=weights(CHANNELS, 4 * hidden),
        state=weights(hidden, 4 * hidden),
        gates=weights(4 * hidden),
        first=weights(hidden + FACTS, hidden),
        first_bias=weights(hidden),
        second=weights(hidden, BINS),
        second_bias=weights(BINS),
    )


def some_checkpoint(seed=1):
    random = np.random.default_rng(seed)
    centre = random.normal(0, 1, (4, SIZE)).astype(np.float32)
    around = Archetypes(centre, np.ones(SIZE, np.float32), 0.5)
    return checkpoint.Checkpoint(some_network(), around, {"data": "none"})


def moment(window, step_s=300, others=None, end_s=1_700_000_000):
    window = np.asarray(window, dtype=np.float64)
    if others is None:
        others = np.full((len(window), 3, window.shape[1]), np.nan)
    return Moment(end_s, step_s, window, window, others)


def day(series=1, seed=1):
    """Targets of a day, half of it unseen."""
    random = np.random.default_rng(seed)
    shares = random.uniform(0, 1, (series, SLOTS)).astype(np.float32)
    shares[:, : SLOTS // 2] = np.nan
    return shares


def prints(series=1):
    return np.zeros((series, SIZE), dtype=np.float32)


def drawn(seed, step_s=300):
    rng = np.random.default_rng(seed)
    window = rng.uniform(0, 1.2, (5, STEPS * 300 // step_s)) * rng.uniform(0.001, 1, (5, 1))
    window[rng.random(window.shape) < 0.2] = np.nan
    window[0] = np.nan
    window[1] = 0.0
    return moment(window, step_s, rng.uniform(0, 1, (5, 3, window.shape[1])))


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 1 << 30), st.sampled_from([30, 60, 300]))
def test_any_window_gives_a_distribution(seed, step_s):
    member = NetworkMember(some_network(), peak_target=bool(seed % 2))
    edges = np.sort(np.random.default_rng(seed).uniform(0, 2, (5, 12)), axis=1)
    edges = np.concatenate([edges, np.full((5, 1), 1e4)], axis=1)
    found = member.cdf(drawn(seed, step_s), day(5, seed), edges)
    assert np.isfinite(found).all()
    assert (np.diff(found, axis=1) >= -1e-12).all()
    assert (found >= 0).all()
    np.testing.assert_allclose(found[:, -1], 1)


def test_nothing_lies_below_a_share_of_nothing():
    member = NetworkMember(some_network(), peak_target=False)
    found = member.cdf(moment(np.zeros((1, STEPS))), day(), np.array([[0.0, 1e-4, 2.0]]))
    assert found[0, 0] == 0
    assert found[0, 1] > 0


def test_what_was_never_seen_may_be_anything_up_to_the_allotment():
    member = NetworkMember(some_network(), peak_target=False)
    found = member.cdf(moment(np.full((1, STEPS), np.nan)), day(), np.array([[0.25, 0.5, 1.5]]))
    assert found.tolist() == [[0.25, 0.5, 1.0]]


def test_finer_grids_say_what_five_minutes_do():
    rng = np.random.default_rng(2)
    coarse = rng.uniform(0, 1, (3, STEPS))
    fine = np.repeat(coarse, 10, axis=1)
    one, other = (
        inputs(m, prints(3), peak_target=False) for m in (moment(coarse), moment(fine, 30))
    )
    np.testing.assert_allclose(one.sequence, other.sequence, atol=1e-6)
    np.testing.assert_allclose(one.facts, other.facts, atol=1e-6)


def test_gaps_take_what_was_seen_last_and_are_told():
    window = np.full((1, STEPS), np.nan)
    window[0, [3, 10]] = [0.2, 0.6]
    given = inputs(moment(window), prints(), peak_target=False)
    level, missing = given.sequence[0, :, 0], given.sequence[0, :, 4]
    assert (level[:10] == level[3]).all()
    assert (level[10:] == level[10]).all()
    assert missing.sum() == STEPS - 2
    assert given.newest[0] == pytest.approx(np.log(0.6 + 0.002))


def test_mass_is_kept_between_edges():
    mass = np.zeros((1, BINS))
    mass[0, BINS // 2] = 1.0  # no change, to a hundredth
    found = below(mass, np.array([np.log(0.5 + 0.002)]), np.array([[0.49, 0.5, 0.51]]))
    assert found[0].tolist() == [0.0, pytest.approx(0.5, abs=0.01), 1.0]


def test_a_file_of_weights_comes_back_as_it_was(tmp_path):
    path = tmp_path / "n.safetensors"
    written = some_checkpoint()
    checkpoint.write(written, path)
    found = checkpoint.read(path)
    assert found.about["data"] == "none"
    edges = np.broadcast_to(SHARES, (5, SHARE_BINS))
    one, same = (NetworkMember(each.network, peak_target=False) for each in (written, found))
    np.testing.assert_array_equal(
        one.cdf(drawn(3), day(5), edges), same.cdf(drawn(3), day(5), edges)
    )
    np.testing.assert_array_equal(found.archetypes.centre, written.archetypes.centre)
    assert found.archetypes.usual == written.archetypes.usual
    assert [one.name for one in tmp_path.iterdir()] == ["n.safetensors"]


def spoiled(path, **changes):
    """The file again with other arrays, and its words kept unless one is given."""
    arrays = load_file(path)
    form = changes.pop("format", checkpoint.FORMAT)
    arrays.update(changes)
    save_file({k: v for k, v in arrays.items() if v is not None}, path, {"format": form})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": "hrapaq-network-0"}, "format 'hrapaq-network-0'"),
        ({"gates": None}, "missing or unknown: gates"),
        ({"state": np.zeros((6, 25), np.float32)}, "state has shape"),
        ({"second_bias": np.full(BINS, np.nan, np.float32)}, "second_bias holds"),
        ({"edges": np.arange(BINS + 1.0)}, "other bins"),
        ({"archetypes.scale": np.ones(3, np.float32)}, "archetypes.scale has shape"),
        ({"archetypes.centre": np.ones((0, SIZE), np.float32)}, "empty"),
    ],
)
def test_a_file_of_another_kind_is_refused_with_the_reason(tmp_path, changes, words):
    path = tmp_path / "n.safetensors"
    checkpoint.write(some_checkpoint(), path)
    spoiled(path, **changes)
    with pytest.raises(checkpoint.CheckpointError, match=words):
        checkpoint.read(path)


@pytest.mark.parametrize("content", [None, b"", b"garbage" * 9])
def test_what_is_no_such_file_is_refused(tmp_path, content):
    path = tmp_path / "n.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(checkpoint.CheckpointError, match=r"n\.safetensors"):
        checkpoint.read(path)


def test_shares_on_an_edge_belong_to_the_bin_above_and_all_of_it_to_the_last():
    shares = np.array([0.0, 0.049, 0.05, np.float32(0.35), 0.999, 1.0, 1.001, 7.0])
    assert bin_of(shares).tolist() == [0, 0, 1, 7, 19, 19, 20, 20]


def test_other_weights_say_something_else():
    edges = np.broadcast_to(SHARES, (5, SHARE_BINS))
    one = NetworkMember(some_network(), peak_target=False)
    other = replace(one, network=some_network(seed=2))
    assert not np.allclose(one.cdf(drawn(4), day(5), edges), other.cdf(drawn(4), day(5), edges))


def test_the_day_and_the_resource_matter():
    member = NetworkMember(some_network(), peak_target=False)
    edges = np.broadcast_to(SHARES, (5, SHARE_BINS))
    usual = member.cdf(drawn(4), day(5), edges)
    assert not np.allclose(member.cdf(drawn(4), day(5, seed=2) / 3, edges)[1:], usual[1:])
    memory = replace(drawn(4), kind=1)
    assert not np.allclose(member.cdf(memory, day(5), edges)[1:], usual[1:])
    np.testing.assert_array_equal(
        member.cdf(replace(drawn(4), kind=np.ones(5, np.int64)), day(5), edges),
        member.cdf(memory, day(5), edges),
    )


def test_a_network_comes_with_the_program_for_the_horizon_that_it_knows():
    member = checkpoint.shipped(600, "peak")
    assert member is not None
    assert member.peak_target
    assert checkpoint.SHIPPED.stat().st_size < 1_000_000
    assert checkpoint.shipped(300, "value") is None
    held = np.full((1, SLOTS), 0.3, dtype=np.float32)
    steady = member.cdf(moment(np.full((1, STEPS), 0.3)), held, np.array([[0.1, 0.6]]))
    assert steady[0, 0] < 0.1
    assert steady[0, 1] > 0.9
