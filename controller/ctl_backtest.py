# ruff: noqa: PLC0415 - a command imports what it needs, so that --help and completion stay quick
"""`hrapaq backtest`: forecasts replayed over recorded traces, beside the peers."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from controller.forecast.backtest.report import Result
    from controller.forecast.backtest.run import Said, Setup
    from controller.forecast.backtest.traces import Trace
    from controller.forecast.moment import Predictor

OURS = "ours"
_FILE = click.Path(dir_okay=False, path_type=Path)
_DAY_S = 86_400


@click.command()
@click.option(
    "--traces",
    "paths",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    multiple=True,
    required=True,
    metavar="FILE",
    help="Parquet, see the README; again for more.",
)
@click.option(
    "--resource",
    type=click.Choice(["cpu", "memory", "io", "net"]),
    default="cpu",
    show_default=True,
)
@click.option(
    "--horizon",
    type=click.IntRange(30, _DAY_S),
    default=600,
    show_default=True,
    metavar="SECONDS",
    help="How far ahead; whole steps of the trace.",
)
@click.option(
    "--target",
    type=click.Choice(["value", "peak"]),
    default="value",
    show_default=True,
    help="The mean of the step at the horizon, or the highest up to it.",
)
@click.option("--json", "target_json", type=_FILE, metavar="OUT", help="All figures.")
@click.option(
    "--predictions",
    type=_FILE,
    metavar="OUT",
    help="Parquet of every scored window: vm_id, ts, target, p_0 to p_20; of `ours`, else of the "
    "first predictor.",
)
@click.option("--plot", type=_FILE, metavar="OUT", help="Reliability and fan charts, as PNG.")
@click.option("--vms", type=click.IntRange(1), metavar="N", help="Only N VMs, drawn from the seed.")
@click.option(
    "--days",
    type=click.FloatRange(min=0, min_open=True),
    metavar="D",
    help="Only the last D days.",
)
@click.option(
    "--part",
    type=click.Choice(["all", "train", "valid", "test"]),
    default="all",
    show_default=True,
    help="Of the split into VM groups and time that training uses.",
)
@click.option("--seed", type=int, default=1, show_default=True, help="Of the split and of --vms.")
@click.option(
    "--predictor",
    "names",
    multiple=True,
    metavar="NAME",
    help="Only this one: ours or a peer; again for more.",
)
def backtest(
    *,
    paths: tuple[Path, ...],
    resource: str,
    horizon: int,
    target: str,
    target_json: Path | None,
    predictions: Path | None,
    plot: Path | None,
    vms: int | None,
    days: float | None,
    part: str,
    seed: int,
    names: tuple[str, ...],
) -> None:
    """Scores forecasts on recorded traces beside simple peers; asks no controller."""
    from controller.ctl_show import console
    from controller.forecast.backtest import report
    from controller.forecast.backtest.plot import Fans, draw
    from controller.forecast.backtest.run import Setup

    setup = Setup(horizon, target)
    wanted, note = _wanted(names)
    out = console()
    if note:
        out.print(f"[yellow]{note}[/]")
    file = None if predictions is None else report.PredictionsFile(predictions, wanted[0])
    results, fans = [], []
    for path in paths:
        trace = _read(path, resource, part=part, vms=vms, days=days, seed=seed, wanted=wanted)
        heard = [] if file is None else [file.add]
        if file is not None:
            file.of(trace)
        if plot is not None:
            fans.append(Fans(trace, wanted[0], setup))
            heard.append(fans[-1].add)
        results.append(_run(trace, wanted, setup, heard))
    report.show(results, setup, out)
    if file is not None:
        file.finish()
    if target_json is not None:
        report.write_json(report.as_json(results, setup, note), target_json)
    if plot is not None:
        draw(results, fans, plot)


def _wanted(names: "Sequence[str]") -> tuple[list[str], str | None]:
    """Predictors, `ours` first, and a word where it is missing. A usage error for unknown ones."""
    from difflib import get_close_matches

    from controller.forecast.backtest.peers import PEERS

    known = [OURS, *PEERS]
    for name in names:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
            raise click.BadParameter(
                f"no predictor is called {name!r}; {hint}", param_hint="--predictor"
            )
    wanted = [name for name in known if name in (names or known)]
    if OURS in wanted and _maker() is None:
        wanted.remove(OURS)
        note = "our own predictor is not in this version: peers only"
        if not wanted:
            raise click.BadParameter(note, param_hint="--predictor")
        return wanted, note
    return wanted, None


def _maker() -> "Callable[[int, str], Predictor] | None":
    """Makes our predictor; None where this version has none."""
    from importlib import import_module
    from importlib.util import find_spec

    name = "controller.forecast.predictor"
    if find_spec(name) is None:
        return None
    maker: Callable[[int, str], Predictor] = import_module(name).make_predictor
    return maker


def _predictor(name: str, horizon_steps: int, target: str) -> "Predictor":
    from controller.forecast.backtest.peers import PEERS

    maker = _maker()
    if name == OURS and maker is not None:
        return maker(horizon_steps, target)
    return PEERS[name](horizon_steps)


def _read(
    path: Path,
    resource: str,
    *,
    part: str,
    vms: int | None,
    days: float | None,
    seed: int,
    wanted: "Sequence[str]",
) -> "Trace":
    """The part of a file that is asked for."""
    import numpy as np

    from controller.forecast.backtest.split import split
    from controller.forecast.backtest.traces import TraceError, read_trace

    trace = read_trace(path, resource, with_others=OURS in wanted)
    if part != "all":
        trace = split(trace, seed).part(trace, part)
    first = 0 if days is None else max(0, trace.steps - round(days * _DAY_S / trace.step_s))
    rows = np.flatnonzero(np.isfinite(trace.share[:, first:]).any(axis=1))
    if not len(rows):
        raise TraceError(f"{path}: nothing was seen in the part of it that is asked for")
    if vms is not None and vms < len(rows):
        rows = np.sort(np.random.default_rng(seed).choice(rows, vms, replace=False))
    return trace.part(rows, first)


def _run(
    trace: "Trace",
    wanted: "Sequence[str]",
    setup: "Setup",
    heard: "Sequence[Callable[[Said], None]]",
) -> "Result":
    """Replays the trace with a bar of progress; `heard` are told every forecast."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    from controller.forecast.backtest.report import Result
    from controller.forecast.backtest.run import backtest as replay

    steps = setup.steps(trace.step_s)
    predictors = {name: _predictor(name, steps, setup.target) for name in wanted}

    def tell(said: "Said") -> None:
        for each in heard:
            each(said)

    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(trace.name, total=trace.steps)
        outcome = replay(
            trace,
            predictors,
            setup,
            on_steps=lambda count: progress.update(task, advance=count),
            on_said=tell,
        )
    return Result(trace, outcome)
