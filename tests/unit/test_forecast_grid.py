"""Codes, edges, masses and quantiles of distributions that are written down at edges."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from controller.forecast.buckets import BOUNDS, CODES, UNSEEN, encode
from controller.forecast.grid import EDGE_COUNT, bin_mass, make_grid, quantile_at, snap
from controller.forecast.moment import BINS, EDGES, LEVELS, bin_of

_SHARES = st.one_of(
    st.floats(0, 1.5, width=32),
    st.integers(0, 30).map(lambda twentieth: np.float32(twentieth / 20)),
    st.just(float("nan")),
)


def _grid(window):
    window = snap(np.asarray(window, dtype=np.float32))
    return make_grid(window[:, -1], window, encode(window))


@given(arrays(np.float32, (3, 24), elements=_SHARES))
def test_edges_ascend_and_hold_those_of_the_bins(window):
    grid = _grid(window)
    assert grid.edges.shape == (3, EDGE_COUNT)
    assert (np.diff(grid.edges, axis=1) >= 0).all()
    assert np.allclose(np.take_along_axis(grid.edges, grid.places, axis=1), EDGES)


@given(arrays(np.float32, 8, elements=st.integers(0, 30_000).map(lambda part: part / 20_000)))
def test_a_code_is_below_the_edges_that_the_bin_says(share):
    codes = encode(snap(share))
    below = codes[:, None] < np.searchsorted(BOUNDS, EDGES - 1e-9)
    assert (BINS - below.sum(axis=1) == bin_of(share.astype(np.float64))).all()


def test_codes_are_the_cells_between_the_bounds():
    middle = (BOUNDS[1:] + BOUNDS[:-1]) / 2
    assert (encode(np.append(middle, 1e4).astype(np.float32)) == np.arange(CODES)).all()
    assert encode(np.array([np.nan], dtype=np.float32))[0] == UNSEEN
    assert np.isin(np.round(EDGES, 9), np.round(BOUNDS, 9)).all()
    assert np.diff(BOUNDS[BOUNDS > 0.05]).min() > 0.004


def test_edges_resolve_an_idle_series():
    edges = _grid(np.random.default_rng(1).normal(0.003, 0.0002, (1, 24))).edges[0]
    near = np.unique(edges[(edges > 0.002) & (edges < 0.005)])
    assert len(near) > 4
    assert np.diff(near).max() < 0.0011


def test_mass_is_the_difference_of_the_cdf_at_the_bins():
    grid = _grid(np.random.default_rng(2).uniform(0, 1.2, (4, 24)))
    cdf = np.clip(grid.edges / 1.25, 0, 1)
    mass = bin_mass(cdf, grid)
    assert np.allclose(mass[:, :BINS], 0.05 / 1.25, atol=1e-6)
    assert np.allclose(mass.sum(axis=1), 1)


def test_quantiles_are_where_the_cdf_says():
    grid = _grid(np.random.default_rng(3).uniform(0, 1.2, (4, 24)))
    quantile = quantile_at(np.clip(grid.edges, 0, 1), grid, LEVELS)
    assert np.abs(quantile - LEVELS).max() < 0.008  # a cell: within it nothing but what was seen


def test_a_quantile_covers_the_spot_on_which_all_values_stand_and_no_more():
    for spot in (1.0, 0.4321, 0.0013, 0.0):
        window = snap(np.full((1, 24), spot, dtype=np.float32))
        grid = _grid(np.full((1, 24), spot))
        cdf = (window[0, 0] < grid.edges).astype(np.float32)
        quantile = quantile_at(cdf, grid, LEVELS)
        assert (quantile >= window[0, 0]).all()
        assert (quantile <= window[0, 0] + 1e-4).all()


def test_a_quantile_among_values_that_hardly_move_stays_among_them():
    window = np.random.default_rng(4).uniform(0.4310, 0.4312, (1, 24))
    grid = _grid(window)
    below = (window[:, :, None] < grid.edges[:, None, :]).mean(axis=1).astype(np.float32)
    quantile = quantile_at(below, grid, LEVELS)
    assert (quantile > 0.4309).all() and (quantile < 0.4314).all()
