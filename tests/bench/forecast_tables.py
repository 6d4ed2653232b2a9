# ruff: noqa: T201 - a script that tells what it does
"""The tables of the model card: ours beside all plain peers, on machines and times not learnt from.

`.venv/bin/python tests/bench/forecast_tables.py --traces DIR` prints them as Markdown, most of an
hour on one core; `--only bitbrains` rows whose name holds a word, `--json OUT` keeps all figures.
Every row is one `hrapaq backtest --part test` with the options that it names.
"""

import argparse
import json
import os
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from controller.ctl_backtest import predictor_of, read_part
from controller.forecast.backtest import report
from controller.forecast.backtest.peers import PEERS
from controller.forecast.backtest.run import OURS, Setup, backtest
from controller.forecast.checkpoint import shipped
from controller.forecast.sight import Target

HISTOGRAM = "window-histogram"
TARGETS: tuple[Target, ...] = ("value", "peak")
Figures = Mapping[str, Mapping[str, Mapping[str, float]]]


@dataclass(frozen=True, slots=True)
class Row:
    """One backtest."""

    source: str
    file: str
    resource: str = "cpu"
    target: Target = "value"
    vms: int | None = None
    days: float | None = None

    @property
    def name(self) -> str:
        options = [] if self.vms is None else [f"--vms {self.vms}"]
        options += [] if self.days is None else [f"--days {self.days:g}"]
        limits = f" (`{' '.join(options)}`)" if options else ""
        return f"{self.source} {self.resource} {self.target}{limits}"


BITBRAINS, PLANETLAB, SURF = "bitbrains_rnd_julaug", "planetlab_early", "surf_lisa_week"
ROWS = (
    Row("Bitbrains", BITBRAINS, days=7),
    Row("PlanetLab", PLANETLAB, vms=250),
    Row("SURF Lisa", SURF, vms=120, days=1),
    Row("Bitbrains", BITBRAINS, target="peak", days=4),
    Row("PlanetLab", PLANETLAB, target="peak", vms=150),
    Row("SURF Lisa", SURF, target="peak", vms=60, days=1),
    *(
        Row("Bitbrains", BITBRAINS, resource, target, days=4)
        for target in TARGETS
        for resource in ("memory", "io", "net")
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--traces", type=Path, required=True, metavar="DIR")
    parser.add_argument("--only", default="", metavar="WORD")
    parser.add_argument("--json", type=Path, metavar="OUT")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    # One thread each: as many processes as there are cores, and figures that do not depend on them.
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    rows = [row for row in ROWS if options.only.lower() in row.name.lower()]
    found: dict[str, Figures] = {}
    with ProcessPoolExecutor(options.processes, mp_context=get_context("spawn")) as pool:
        for row, figures in zip(
            rows, pool.map(partial(measure, options.traces), rows), strict=True
        ):
            found[row.name] = figures
            print(line(row, figures), flush=True)
    print("\n".join(["", *SAVINGS, *(savings(name, figures) for name, figures in found.items())]))
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


def measure(traces: Path, row: Row) -> Figures:
    began = time.perf_counter()
    setup = Setup(600, row.target)
    names = [OURS, *PEERS]
    path = traces / f"{row.file}.parquet"
    trace = read_part(
        path, row.resource, part="test", vms=row.vms, days=row.days, seed=1, wanted=names
    )
    steps = setup.steps(trace.step_s)
    network = shipped(setup.horizon_s, setup.target)
    predictors = {name: predictor_of(name, setup, steps, network=network) for name in names}
    figures = report.Result(trace, backtest(trace, predictors, setup)).figures()
    print(f"<!-- {row.name}: {time.perf_counter() - began:.0f} s -->", flush=True)
    return figures


def line(row: Row, figures: Figures) -> str:
    """A row of the table: RPS of ours and of the best peer, gains, accuracy, calibration."""
    ours, best = figures[OURS], report.best_peer(figures, "all")
    assert best is not None, "peers were asked"
    cold = ours["cold"]["rps"] / figures[HISTOGRAM]["cold"]["rps"] - 1
    return " | ".join(
        [
            f"| {row.name}",
            f"{ours['all']['windows']:,.0f}",
            f"{ours['all']['rps']:.4f}",
            f"{best} {figures[best]['all']['rps']:.4f}",
            *(_against(figures, group) for group in ("all", "active", "cold")),
            f"{100 * cold:+.1f} %",
            f"{100 * ours['all']['near']:.1f} / {100 * ours['active']['near']:.1f} %",
            f"{100 * ours['all']['ece']:.1f} %",
            f"{100 * ours['all']['coverage_error_0.95']:.1f} |",
        ]
    )


def _against(figures: Figures, group: str) -> str:
    gain = report.gain(figures, group)
    return "-" if gain is None else f"{-100 * gain:+.1f} %"


SAVINGS = ("| savings at <= 1 % violations | ours | best peer | oracle |", "|---|---|---|---|")


def savings(name: str, figures: Figures) -> str:
    plain = {peer: figures[peer]["all"]["savings"] for peer in figures if peer != OURS}
    known = {peer: value for peer, value in plain.items() if value == value}  # noqa: PLR0124 - NaN
    best = max(known, key=lambda peer: known[peer])
    ours = figures[OURS]["all"]
    return (
        f"| {name} | {100 * ours['savings']:.1f} % | {best} {100 * known[best]:.1f} % "
        f"| {100 * ours['savings_oracle']:.1f} % |"
    )


if __name__ == "__main__":
    main()
