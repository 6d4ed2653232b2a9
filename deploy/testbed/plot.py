"""Pictures of a burst: what a load wants and holds, what both levels grant, and the pressure.

matplotlib is imported only when a picture is drawn.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from testbed.figures import cpu_used, pressure
from testbed.records import Records, Sight

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#08519c", "#d95f0e", "#238b45", "#6a51a3")
MARK_COLOUR = "#555555"
Resource = Literal["memory", "cpu"]


@dataclass(frozen=True, slots=True)
class Burst:
    """What a picture is of; all names as the testbed's layout has them."""

    l2: str  # where it bursts
    load: str  # name of the load
    l1s: tuple[str, ...]
    givers: tuple[str, ...]  # L2s that give, or might
    since: float  # Unix seconds
    until: float
    resource: Resource = "memory"

    @property
    def unit(self) -> str:
        return {"memory": "MiB", "cpu": "millicores"}[self.resource]


def plot_burst(
    records: Records, burst: Burst, marks: Mapping[str, float | None], path: Path, title: str
) -> None:
    """Draws the burst into `path` (PNG). marks: what happened -> Unix seconds, None: it did not.

    Times are counted from the first mark. ModuleNotFoundError where matplotlib is not installed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 - an extra
    from matplotlib.figure import Figure  # noqa: PLC0415 - likewise

    times = [at for at in marks.values() if at is not None]
    start = times[0] if times else burst.since
    figure = Figure(figsize=(10, 11), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(4, 1, sharex=True)
    drawing = _Drawing(records, burst, start)
    drawing.bursting(axes[0])
    drawing.giving(axes[1])
    drawing.hosts(axes[2])
    drawing.pressure(axes[3])
    for each in axes:
        _mark(each, marks, start, with_names=each is axes[0])
        each.grid(visible=True, linewidth=0.3)
        handles, _ = each.get_legend_handles_labels()
        if handles:
            each.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    axes[3].set_xlabel("seconds since the burst")
    axes[3].set_xlim(burst.since - start, burst.until - start)
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=110)


class _Drawing:
    def __init__(self, records: Records, burst: Burst, start: float) -> None:
        self._records = records
        self._burst = burst
        self._start = start

    def bursting(self, axes: "Axes") -> None:
        burst = self._burst
        load = [
            one
            for one in self._records.loads(burst.l2, burst.load, burst.since)
            if one.at <= burst.until
        ]
        times = [one.at - self._start for one in load]
        wanted = [one.wanted for one in load]
        axes.step(times, wanted, "k--", where="post", linewidth=1, label="demand of the load")
        axes.plot(times, [one.got for one in load], color=COLOURS[2], label="held by the load")
        if burst.resource == "memory":
            left = [one.available_mib for one in load]
            axes.plot(times, left, color=COLOURS[3], linewidth=0.8, label="available in the guest")
        self._grant(axes, burst.l2, COLOURS[0])
        axes.set_title(f"{burst.l2}, which bursts", fontsize=9)
        axes.set_ylim(bottom=0)
        axes.set_ylabel(burst.unit)

    def giving(self, axes: "Axes") -> None:
        for name, colour in zip(self._burst.givers, COLOURS, strict=False):
            self._grant(axes, name, colour)
        axes.set_title("other L2s: who gives", fontsize=9)
        axes.set_ylabel(self._burst.unit)

    def hosts(self, axes: "Axes") -> None:
        for name, colour in zip(self._burst.l1s, COLOURS, strict=False):
            self._grant(axes, name, colour)
        axes.set_title("L1s, as L0 sees them", fontsize=9)
        axes.set_ylabel(self._burst.unit)

    def pressure(self, axes: "Axes") -> None:
        for name, colour in zip(self._burst.l1s, COLOURS, strict=False):
            readings = self._records.node_series(name, self._burst.since)
            readings = [one for one in readings if one["at"] <= self._burst.until]
            for resource, line in (("memory", "-"), ("cpu", ":")):
                self._line(
                    axes,
                    pressure(readings, resource),
                    f"{name}: {resource}",
                    color=colour,
                    linestyle=line,
                )
        axes.set_title("pressure inside the L1s (PSI some)", fontsize=9)
        axes.set_ylabel("% of the time")
        axes.set_ylim(0, 105)

    def _grant(self, axes: "Axes", name: str, colour: str) -> None:
        """What its host grants it, and what it really takes."""
        sights = self._sights(name)
        if self._burst.resource == "memory":
            grants = [(one.at, one.actual_mib) for one in sights if one.actual_mib is not None]
            taken = [(one.at, one.rss_mib) for one in sights if one.rss_mib is not None]
            words = (f"{name}: balloon", f"{name}: resident")
        else:
            grants = [(one.at, one.cpu_millicores) for one in sights if one.cpu_millicores]
            taken = cpu_used(sights)
            words = (f"{name}: quota of a virtual CPU", f"{name}: used")
        self._line(axes, grants, words[0], color=colour, linewidth=1.8)
        self._line(axes, taken, words[1], color=colour, linewidth=0.9, linestyle=":")

    def _sights(self, name: str) -> list[Sight]:
        seen = self._records.series(name, self._burst.since)
        return [sight for sight in seen if sight.at <= self._burst.until]

    def _line(
        self, axes: "Axes", points: Sequence[tuple[float, float]], label: str, **look: object
    ) -> None:
        times = [at - self._start for at, _ in points]
        axes.plot(times, [value for _, value in points], label=label, **look)  # type: ignore[arg-type]


def _mark(
    axes: "Axes", marks: Mapping[str, float | None], start: float, *, with_names: bool
) -> None:
    for number, (name, at) in enumerate(marks.items()):
        if at is None:
            continue
        axes.axvline(at - start, color=MARK_COLOUR, linewidth=0.9, linestyle="-.")
        if with_names:
            # Each a line lower, for marks that come one right after another.
            height = 0.97 - 0.09 * number
            axes.text(
                at - start,
                height,
                f" {name} ({at - start:.1f} s)",
                transform=axes.get_xaxis_transform(),
                fontsize=8,
                va="top",
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 1},
            )
