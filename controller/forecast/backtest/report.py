"""What a backtest found: as tables, as JSON, as a file of predictions, as a picture."""

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import polars as pl
from rich.console import Console
from rich.table import Table

from controller.forecast.backtest.run import GROUPS, OURS, Outcome, Said, Setup
from controller.forecast.backtest.traces import Trace
from controller.forecast.moment import BINS
from shared.errors import HrapaqError

VERSION = 1
# Header, figure, factor, decimals. `vs best` stands after the first.
_COLUMNS = (
    ("RPS", "rps", 1, 4),
    ("NLL", "nll", 1, 3),
    ("top-1 %", "top1", 100, 1),
    ("±1 %", "near", 100, 1),
    ("pinball", "pinball", 1000, 2),
    ("ECE %", "ece", 100, 1),
    ("cover err .95", "coverage_error_0.95", 100, 1),
    ("> q.95 %", "violated_0.95", 100, 2),
    ("> q.99 %", "violated_0.99", 100, 2),
    ("slack .95", "slack_0.95", 100, 1),
    ("savings %", "savings", 100, 1),
)
_WINDOWS_MIN = 1000  # of fewer it is said
_BY_CLASS = ("cold", "idle", "steady", "periodic", "bursty")
LEGEND = (
    "RPS, NLL, pinball (thousandths): lower is better. cover err: points. > q: share of windows "
    "whose peak up to the horizon is above the quantile. slack: granted above that peak, points. "
    "savings: at most 1 % of peaks above the grant, best level and margin. cold: a VM's first 30 "
    "minutes."
)


class OutputError(HrapaqError):
    """A file could not be written."""


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """One trace and what came of it."""

    trace: Trace
    outcome: Outcome

    def figures(self) -> dict[str, dict[str, dict[str, float]]]:
        return {name: tally.result() for name, tally in self.outcome.tally.items()}


def best_peer(figures: Mapping[str, Mapping[str, Mapping[str, float]]], group: str) -> str | None:
    """The peer with the lowest RPS in a group."""
    known = {name: of[group]["rps"] for name, of in figures.items() if name != OURS and group in of}
    return min(known, key=lambda name: known[name]) if known else None


def gain(figures: Mapping[str, Mapping[str, Mapping[str, float]]], group: str) -> float | None:
    """By what share our RPS is below that of the best peer; None where one of them is missing."""
    best = best_peer(figures, group)
    if best is None or group not in figures.get(OURS, {}):
        return None
    theirs = figures[best][group]["rps"]
    return 1 - figures[OURS][group]["rps"] / theirs if theirs > 0 else None


def as_json(results: Sequence[Result], setup: Setup, note: str | None) -> dict[str, object]:
    """All figures; missing ones are null."""
    told = [_trace_json(each) for each in results]
    gains = {
        group: [found for each in results if (found := gain(each.figures(), group)) is not None]
        for group in GROUPS
    }
    return {
        "version": VERSION,
        "horizon_s": setup.horizon_s,
        "target": setup.target,
        "resource": results[0].trace.resource if results else None,
        "note": note,
        "ours_below_best_peer": {
            group: {"mean": sum(each) / len(each), "least": min(each)}
            for group, each in gains.items()
            if each
        },
        "traces": told,
    }


def _trace_json(result: Result) -> dict[str, object]:
    figures, trace = result.figures(), result.trace
    predictors = {}
    for name, groups in figures.items():
        said, came, windows = result.outcome.tally[name].reliability(GROUPS[0])
        predictors[name] = {
            "seconds": round(result.outcome.seconds[name], 3),
            "groups": {
                group: {key: _plain(value) for key, value in of.items()}
                for group, of in groups.items()
            },
            "reliability": {
                "probability": said.tolist(),
                "came": came.tolist(),
                "windows": windows.tolist(),
            },
        }
    return {
        "trace": trace.name,
        "vms": len(trace.vm_ids),
        "step_s": trace.step_s,
        "steps": result.outcome.steps,
        "classes": result.outcome.classes,
        "notes": list(trace.notes),
        "best_peer": {group: best_peer(figures, group) for group in GROUPS},
        "ours_below_best_peer": {group: gain(figures, group) for group in GROUPS},
        "predictors": predictors,
    }


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None


def write_json(told: Mapping[str, object], path: Path) -> None:
    try:
        path.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror}") from error


def show(results: Sequence[Result], setup: Setup, out: Console) -> None:
    """Tables for people: all VMs, active VMs, RPS by load class."""
    for result in results:
        trace, figures = result.trace, result.figures()
        classes = ", ".join(f"{count} {name}" for name, count in result.outcome.classes.items())
        out.print(
            f"\n[bold]{trace.name}[/] {trace.resource}, {setup.target} {setup.horizon_s} s ahead; "
            f"{len(trace.vm_ids)} VMs ({classes}), {result.outcome.steps} steps of {trace.step_s} s"
        )
        for note in trace.notes:
            out.print(f"  [yellow]{note}[/]")
        if _windows(figures, "all") < _WINDOWS_MIN:
            out.print("  [yellow]few windows: chance decides much of what follows[/]")
        for group in ("all", "active"):
            out.print(_figures_table(result, figures, group))
        out.print(_class_table(figures))
    out.print(f"[dim]{LEGEND}[/]")
    for group in ("all", "active", "cold"):
        gains = [found for each in results if (found := gain(each.figures(), group)) is not None]
        if gains:
            out.print(
                f"RPS of ours against the best peer, {group} VMs: {-100 * np.mean(gains):+.1f} % "
                f"on average, {-100 * min(gains):+.1f} % where it is least"
            )


def _figures_table(
    result: Result, figures: Mapping[str, Mapping[str, Mapping[str, float]]], group: str
) -> Table:
    shown = Table(box=None, pad_edge=False, header_style="bold")
    shown.add_column(f"{group} VMs, {_windows(figures, group)} windows", no_wrap=True)
    for header in ("RPS", "vs best", *(each[0] for each in _COLUMNS[1:]), "ms/step"):
        shown.add_column(header, justify="right", no_wrap=True)
    best = best_peer(figures, group)
    for name, of in figures.items():
        if group not in of or best is None:
            continue
        cells = [_cell(of[group][key], factor, places) for _, key, factor, places in _COLUMNS]
        theirs = figures[best][group]["rps"]
        ratio = f"{100 * (of[group]['rps'] / theirs - 1):+.1f} %" if theirs > 0 else ""
        spent = 1000 * result.outcome.seconds[name] / max(result.outcome.steps, 1)
        style = "bold" if name == OURS else ("cyan" if name == best else "")
        shown.add_row(name, cells[0], ratio, *cells[1:], f"{spent:.2f}", style=style)
    return shown


def _windows(figures: Mapping[str, Mapping[str, Mapping[str, float]]], group: str) -> int:
    return max((int(of[group]["windows"]) for of in figures.values() if group in of), default=0)


def _class_table(figures: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Table:
    shown = Table(box=None, pad_edge=False, header_style="bold")
    shown.add_column("RPS by group", no_wrap=True)
    for group in _BY_CLASS:
        shown.add_column(group, justify="right")
    for name, of in figures.items():
        cells = [_cell(of[group]["rps"], 1, 4) if group in of else "" for group in _BY_CLASS]
        shown.add_row(name, *cells, style="bold" if name == OURS else "")
    return shown


def _cell(value: float, factor: float, places: int) -> str:
    return f"{value * factor:.{places}f}" if math.isfinite(value) else "none"


class PredictionsFile:
    """Writes what one predictor said, in parts that are joined at the end: never half a file.

    To be entered; what was not finished is gone on leaving.

    Columns: vm_id, ts (start of the last input step as the source gave it), target, p_0 to p_20.
    """

    def __init__(self, path: Path, name: str) -> None:
        self._path, self._name = path, name
        self._parts = path.with_name(path.name + ".parts")
        self._count = 0
        self._trace: Trace | None = None
        try:
            shutil.rmtree(self._parts, ignore_errors=True)
            self._parts.mkdir(parents=True)
        except OSError as error:
            raise OutputError(f"{path}: cannot be written: {error.strerror}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._parts, ignore_errors=True)

    def of(self, trace: Trace) -> None:
        """What is said from now on is about this trace."""
        self._trace = trace

    def add(self, said: Said) -> None:
        trace = self._trace
        assert trace is not None
        if said.name != self._name or not len(said.row):
            return
        ids = np.array(trace.vm_ids)
        time = trace.start_s + said.step * trace.step_s + trace.late_s[said.row, said.step]
        columns = {"vm_id": ids[said.row], "ts": time, "target": said.target}
        columns |= {f"p_{place}": said.mass[:, place] for place in range(BINS + 1)}
        pl.DataFrame(columns).write_parquet(self._parts / f"{self._count:08}.parquet")
        self._count += 1

    def finish(self) -> None:
        """Joins the parts. Errors: `OutputError` where nothing was said or the disk is full."""
        if not self._count:
            raise OutputError(f"{self._path}: no window could be scored, nothing was written")
        new = self._path.with_name(self._path.name + ".new")
        try:
            pl.scan_parquet(self._parts / "*.parquet").sink_parquet(new)
            new.replace(self._path)
        except OSError as error:
            raise OutputError(f"{self._path}: cannot be written: {error}") from error
