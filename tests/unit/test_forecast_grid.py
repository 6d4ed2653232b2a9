"""Edges, masses and quantiles of distributions that are written down at edges."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from controller.forecast.grid import (
    EDGE_COUNT,
    bin_mass,
    cdf_at,
    make_grid,
    quantile_at,
    snap,
)
from controller.forecast.moment import BINS, EDGES, LEVELS, bin_of

_SHARES = st.one_of(
    st.floats(0, 1.5),
    st.integers(0, 30).map(lambda twentieth: twentieth / 20),
    st.just(float("nan")),
)


@given(arrays(np.float64, (3, 24), elements=_SHARES))
def test_edges_ascend_and_hold_those_of_the_bins(window):
    grid = make_grid(window[:, -1], window)
    assert grid.edges.shape == (3, EDGE_COUNT)
    assert (np.diff(grid.edges, axis=1) >= 0).all()
    assert (np.take_along_axis(grid.edges, grid.places, axis=1) == EDGES).all()


@given(arrays(np.float64, 8, elements=st.floats(0, 1.5)))
def test_a_snapped_share_is_below_the_edges_that_its_bin_says(share):
    below = snap(share)[:, None] < EDGES
    assert (BINS - below.sum(axis=1) == bin_of(share)).all()


def test_edges_resolve_an_idle_series():
    window = np.random.default_rng(1).normal(0.003, 0.0002, (1, 24))
    edges = make_grid(window[:, -1], window).edges[0]
    near = edges[(edges > 0.002) & (edges < 0.005)]
    assert len(near) > 10
    assert np.diff(near).max() < 0.0006


def test_mass_is_the_difference_of_the_cdf_at_the_bins():
    window = np.random.default_rng(2).uniform(0, 1.2, (4, 24))
    grid = make_grid(window[:, -1], window)
    cdf = np.clip(grid.edges / 1.25, 0, 1)
    mass = bin_mass(cdf, grid)
    assert np.allclose(mass[:, :BINS], 0.05 / 1.25)
    assert np.allclose(mass.sum(axis=1), 1)


def test_quantiles_and_probabilities_are_inverse():
    window = np.random.default_rng(3).uniform(0, 1.2, (4, 24))
    grid = make_grid(window[:, -1], window)
    cdf = np.clip(grid.edges, 0, 1)
    quantile = quantile_at(cdf, grid.edges, LEVELS)
    assert np.abs(quantile - LEVELS).max() < 1e-3
    assert np.abs(cdf_at(cdf, grid.edges, quantile) - LEVELS).max() < 1e-3


def test_a_quantile_covers_the_spot_on_which_all_values_stand():
    window = snap(np.ones((1, 24)))
    grid = make_grid(window[:, -1], window)
    cdf = (window[0, 0] < grid.edges).astype(np.float64)
    quantile = quantile_at(cdf, grid.edges, LEVELS)
    assert (quantile >= window[0, 0]).all()
    assert (quantile <= 1.001).all()
