"""A picture of a backtest: are probabilities what they say, and what do forecasts look like?

matplotlib is imported only when a picture is drawn.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from controller.core.state import Ints
from controller.forecast.backtest.report import Result
from controller.forecast.backtest.run import CLASSES, GROUPS, Said, Setup, load_classes
from controller.forecast.backtest.traces import Trace
from controller.forecast.moment import LEVELS
from shared.errors import HrapaqError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_DAY_S = 86_400
_PALETTE = ("#9ecae1", "#6baed6", "#3182bd")


class PlotError(HrapaqError):
    """The picture could not be written."""


class Fans:
    """What one predictor said of a few VMs on the last day of a trace."""

    def __init__(self, trace: Trace, name: str, setup: Setup) -> None:
        self.trace, self.name = trace, name
        self.horizon = setup.steps(trace.step_s)
        self.first = max(0, trace.steps - _DAY_S // trace.step_s)
        self.rows = chosen(trace, self.first)
        self._parts: list[Said] = []

    def add(self, said: Said) -> None:
        kept = np.isin(said.row, self.rows) & (said.step >= self.first)
        if said.name == self.name and kept.any():
            self._parts.append(
                Said(
                    said.name,
                    said.row[kept],
                    said.step[kept],
                    said.target[kept],
                    said.mass[kept],
                    said.quantile[kept],
                )
            )

    def draw(self, axes: "Axes", row: int) -> None:
        """Quantiles at the time that they are of, and what came."""
        of = [each.row == row for each in self._parts]
        step = np.concatenate([each.step[at] for each, at in zip(self._parts, of, strict=True)])
        came = np.concatenate([each.target[at] for each, at in zip(self._parts, of, strict=True)])
        quantile = np.concatenate(
            [each.quantile[at] for each, at in zip(self._parts, of, strict=True)]
        )
        order = np.argsort(step)
        hours = (step[order] + self.horizon - self.first) * self.trace.step_s / 3600
        below = quantile[order, 0]
        axes.plot(hours, 100 * below, color="#08519c", linewidth=1, label="median")
        for level in range(1, len(LEVELS)):
            above = quantile[order, level]
            axes.fill_between(
                hours,
                100 * below,
                100 * above,
                color=_PALETTE[-level],
                alpha=0.8,
                label=f"to {LEVELS[level]:g}",
            )
            below = above
        axes.plot(hours, 100 * came[order], "k.", markersize=2, label="came")
        axes.set_title(f"{self.trace.name}: {self.trace.vm_ids[row][:24]}", fontsize=8)
        axes.set_xlabel("hours of the last day")
        axes.set_ylabel("% of the allotment")


def chosen(trace: Trace, first: int) -> Ints:
    """Of each load class the VM that varied most from step `first` on, where there is one."""
    share = trace.share[:, first:]
    seen = np.isfinite(share)
    count = seen.sum(axis=1)
    mean = np.where(seen, share, 0).sum(axis=1) / np.maximum(count, 1)
    spread = np.where(seen, share - mean[:, None], 0)
    # A handful of samples would make no picture.
    varied = np.where(2 * count > share.shape[1], (spread**2).sum(axis=1), -1)
    load = load_classes(trace)
    rows = []
    for place in range(len(CLASSES)):
        of = np.flatnonzero((load == place) & (varied >= 0))
        if len(of):
            rows.append(int(of[varied[of].argmax()]))
    return np.array(rows, dtype=np.int64)


def draw(results: Sequence[Result], fans: Sequence[Fans], path: Path) -> None:
    """A row per trace: reliability of all predictors, then a fan for each chosen VM.

    Errors: `PlotError`; `ModuleNotFoundError` where matplotlib is not installed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 - an extra
    from matplotlib.figure import Figure  # noqa: PLC0415 - likewise

    columns = 1 + max(len(each.rows) for each in fans)
    figure = Figure(figsize=(4.5 * columns, 4 * len(results)), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(results), columns, squeeze=False)
    for result, fan, line in zip(results, fans, grid, strict=True):
        _reliability(line[0], result)
        for place, axes in enumerate(line[1:]):
            if place < len(fan.rows):
                fan.draw(axes, int(fan.rows[place]))
            else:
                axes.set_axis_off()
        line[min(1, columns - 1)].legend(fontsize=7)
    figure.suptitle(f"forecasts of {fans[0].name}; reliability of the likeliest bin")
    try:
        figure.savefig(path, dpi=110)
    except (OSError, ValueError) as error:
        raise PlotError(f"{path}: the picture cannot be written: {error}") from error


def _reliability(axes: "Axes", result: Result) -> None:
    axes.plot([0, 1], [0, 1], color="grey", linewidth=0.8, linestyle="--")
    for name, tally in result.outcome.tally.items():
        if tally.count[0]:
            said, came, _ = tally.reliability(GROUPS[0])
            width = 2.5 if name == next(iter(result.outcome.tally)) else 1.0
            axes.plot(said, came, marker=".", linewidth=width, label=name)
    axes.set_title(result.trace.name, fontsize=8)
    axes.set_xlabel("probability of the likeliest bin")
    axes.set_ylabel("how often it came")
    axes.legend(fontsize=7)
