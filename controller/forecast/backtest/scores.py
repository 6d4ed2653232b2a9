"""How good predictions were, added up window by window: nothing but sums is kept. Pure.

A window is one VM at one moment: what was said of it and what came. n windows, g groups of them.

- RPS: sum over the 20 inner edges of (P(below the edge) - 1[it came below])^2 (Epstein 1969).
- NLL: -log of the probability of the bin that came, floored at `PROBABILITY_FLOOR`, so that one
  certainty that was wrong costs 9.2 and not everything.
- Accuracy: the likeliest bin was right, or at most one bin away.
- Pinball loss of each quantile (Koenker and Bassett 1978), in shares of the allotment.
- Coverage: share of windows at or below a quantile; its error is the distance to the level. A
  constant VM lies at its own quantile always, so coverage is above the level where many idle; how
  many lie strictly below is kept beside it.
- ECE of the likeliest bin: its probability against how often it came, 15 equal buckets (Guo et al.
  2017). ECE of all bins: likewise over all 21, times 21, so that sure zeros do not hide the rest.
- Violations: share of windows whose peak up to the horizon exceeds the quantile. Slack: by how much
  the quantile exceeds that peak, on average. Savings: 1 - the mean grant; the best over levels and
  margins (`MARGINS`, added) whose violations are at most 1 %.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from controller.core.state import Bools, Floats, Ints
from controller.forecast.moment import BINS, LEVELS, bin_of

PROBABILITY_FLOOR = 1e-4
MARGINS: Floats = np.array(
    [0, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0]
)
VIOLATIONS_MAX = 0.01
BUCKETS = 15
ROUNDING = 1e-6  # shares are read as 32 bits
_GRANTS = (0.95, 0.99)  # levels that are granted in the table
_GRANT_PLACES = tuple(int(np.searchsorted(LEVELS, level)) for level in _GRANTS)
_SUMS = ("rps", "nll", "top1", "near")  # and, per level, those of `_PER_LEVEL`
_PER_LEVEL = ("pinball", "covered", "below", "violated", "slack", "grant")
Masses = NDArray[np.float32] | Floats


@dataclass(slots=True)
class Tally:
    """Sums over windows, for each of `groups`."""

    groups: tuple[str, ...]
    count: Ints = field(init=False)  # (g,)
    sums: Floats = field(init=False)  # (g, 4 + 6 levels + 1)
    top: Floats = field(init=False)  # (g, BUCKETS, 3) windows, probability, came: likeliest bin
    every: Floats = field(init=False)  # likewise, of all 21 bins
    excess: Ints = field(init=False)  # (g, levels, margins + 1) by how many margins it was short

    def __post_init__(self) -> None:
        groups, levels = len(self.groups), len(LEVELS)
        self.count = np.zeros(groups, dtype=np.int64)
        self.sums = np.zeros((groups, len(_SUMS) + len(_PER_LEVEL) * levels + 1))
        self.top = np.zeros((groups, BUCKETS, 3))
        self.every = np.zeros((groups, BUCKETS, 3))
        self.excess = np.zeros((groups, levels, len(MARGINS) + 1), dtype=np.int64)

    def add(
        self, mass: Masses, quantile: Floats, target: Floats, peak: Floats, member: Bools
    ) -> None:
        """(n, 21), (n, 4), (n,) what came, (n,) highest up to the horizon, (n, g) whose window."""
        came = bin_of(target)
        weight = member.astype(np.float64)
        self.count += member.sum(axis=0)
        self.sums += weight.T @ window_scores(mass, quantile, target, peak)
        likeliest = mass.argmax(axis=1)
        sure = mass[np.arange(len(mass)), likeliest]
        self.top += _buckets(sure, likeliest == came, weight)
        hit = came[:, None] == np.arange(BINS + 1)
        self.every += _buckets(mass.ravel(), hit.ravel(), np.repeat(weight, BINS + 1, axis=0))
        short = np.searchsorted(MARGINS + ROUNDING, peak[:, None] - quantile, side="left")
        for level in range(len(LEVELS)):
            for group in range(len(self.groups)):
                self.excess[group, level] += np.bincount(
                    short[member[:, group], level], minlength=len(MARGINS) + 1
                )

    def result(self) -> dict[str, dict[str, float]]:
        """Figures by group; groups without windows are left out."""
        return {
            name: self._figures(place)
            for place, name in enumerate(self.groups)
            if self.count[place]
        }

    def reliability(self, group: str) -> tuple[Floats, Floats, Floats]:
        """Of the likeliest bin, per bucket: mean probability, how often it came, windows."""
        windows, said, came = self.top[self.groups.index(group)].T
        some = windows > 0
        return said[some] / windows[some], came[some] / windows[some], windows[some]

    def _figures(self, place: int) -> dict[str, float]:
        count = int(self.count[place])
        mean = self.sums[place] / count
        levels = len(LEVELS)
        figures = {"windows": float(count)}
        figures |= dict(zip(_SUMS, mean.tolist(), strict=False))
        of_level = mean[len(_SUMS) : -1].reshape(len(_PER_LEVEL), levels)
        per_level = dict(zip(_PER_LEVEL, of_level, strict=True))
        for at, level in enumerate(LEVELS.tolist()):
            figures[f"pinball_{level}"] = float(per_level["pinball"][at])
            figures[f"coverage_{level}"] = float(per_level["covered"][at])
            figures[f"coverage_error_{level}"] = abs(float(per_level["covered"][at]) - level)
            figures[f"strictly_below_{level}"] = float(per_level["below"][at])
        for at, level in zip(_GRANT_PLACES, _GRANTS, strict=True):
            for name in ("violated", "slack", "grant"):
                figures[f"{name}_{level}"] = float(per_level[name][at])
        figures["pinball"] = float(per_level["pinball"].mean())
        figures["ece"] = _ece(self.top[place])
        figures["ece_all_bins"] = _ece(self.every[place]) * (BINS + 1)
        figures["savings"] = self._savings(place, per_level["grant"])
        figures["savings_oracle"] = 1.0 - float(mean[-1])
        return figures

    def _savings(self, place: int, grant: Floats) -> float:
        """The most at `VIOLATIONS_MAX`; NaN where no margin is enough."""
        within = np.cumsum(self.excess[place], axis=1)[:, :-1] / self.count[place]
        enough = within >= 1 - VIOLATIONS_MAX  # (levels, margins)
        savings = 1 - (grant[:, None] + MARGINS)
        return float(savings[enough].max()) if enough.any() else float("nan")


def window_scores(mass: Masses, quantile: Floats, target: Floats, peak: Floats) -> Floats:
    """(n, 29): `_SUMS`, then `_PER_LEVEL` of each level, then the peak."""
    came = bin_of(target)
    below = np.cumsum(mass[:, :BINS], axis=1, dtype=np.float64)
    rps = ((below - (came[:, None] <= np.arange(BINS))) ** 2).sum(axis=1)
    said = mass[np.arange(len(mass)), came]
    away = np.abs(mass.argmax(axis=1) - came)
    over = target[:, None] - quantile
    high = peak[:, None] - quantile
    columns = [
        rps[:, None],
        -np.log(np.maximum(said, PROBABILITY_FLOOR))[:, None],
        (away == 0)[:, None],
        (away <= 1)[:, None],
        np.maximum(LEVELS * over, (LEVELS - 1) * over),
        over <= ROUNDING,
        over < -ROUNDING,
        high > ROUNDING,
        np.maximum(-high, 0),
        quantile,
        peak[:, None],
    ]
    return np.concatenate(columns, axis=1, dtype=np.float64)


def _buckets(said: Masses, came: Bools, weight: Floats) -> Floats:
    """(g, BUCKETS, 3) windows, sum of probabilities, how many came, by probability."""
    bucket = np.minimum((said * BUCKETS).astype(np.int64), BUCKETS - 1)
    found = np.zeros((weight.shape[1], BUCKETS, 3))
    for group, part in enumerate(weight.T):
        for place, value in enumerate((part, part * said, part * came)):
            found[group, :, place] = np.bincount(bucket, weights=value, minlength=BUCKETS)
    return found


def _ece(buckets: Floats) -> float:
    """Mean distance of probability and frequency, weighted by how many are in a bucket."""
    return float(np.abs(buckets[:, 1] - buckets[:, 2]).sum() / buckets[:, 0].sum())
