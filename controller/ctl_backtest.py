# ruff: noqa: PLC0415 - a command imports what it needs, so that --help and completion stay quick
"""`hrapaq backtest`: forecasts replayed over recorded traces, beside the peers."""

from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from controller.forecast.backtest.report import Result
    from controller.forecast.backtest.run import Said, Setup
    from controller.forecast.backtest.traces import Trace
    from controller.forecast.moment import Predictor
    from controller.forecast.network import NetworkMember
    from controller.forecast.sight import Target

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
@click.option(
    "--beside",
    multiple=True,
    metavar="NAME=FILE",
    help="Scores what another model predicted, from a file as --predictions writes it.",
)
def backtest(
    *,
    paths: tuple[Path, ...],
    resource: str,
    horizon: int,
    target: "Target",
    target_json: Path | None,
    predictions: Path | None,
    plot: Path | None,
    vms: int | None,
    days: float | None,
    part: str,
    seed: int,
    names: tuple[str, ...],
    beside: tuple[str, ...],
) -> None:
    """Scores forecasts on recorded traces beside simple peers; asks no controller."""
    from controller.ctl_tables import console
    from controller.forecast.backtest import report
    from controller.forecast.backtest.plot import Fans, draw
    from controller.forecast.backtest.run import Setup

    setup = Setup(horizon, target)
    wanted = _wanted(names)
    others = _others(beside, paths)
    _can_draw(plot)
    network, note = _network(setup) if OURS in wanted else (None, None)
    out = console()
    if note:
        out.print(f"[yellow]{note}[/]")
    results, fans = [], []
    with ExitStack() as stack:
        file = None
        if predictions is not None:
            file = stack.enter_context(report.PredictionsFile(predictions, wanted[0]))
        for path in paths:
            trace = read_part(
                path, resource, part=part, vms=vms, days=days, seed=seed, wanted=wanted
            )
            heard = [] if file is None else [file.add]
            if file is not None:
                file.of(trace)
            if plot is not None:
                fans.append(Fans(trace, wanted[0], setup))
                heard.append(fans[-1].add)
            makers = {name: partial(predictor_of, name, setup, network=network) for name in wanted}
            results.append(_run(trace, makers, others, setup, heard))
        if file is not None:
            file.finish()
    report.show(results, setup, out)
    if target_json is not None:
        report.write_json(report.as_json(results, setup, note), target_json)
    if plot is not None:
        draw(results, fans, plot)


def _wanted(names: "Sequence[str]") -> list[str]:
    """Predictors, `ours` first. A usage error for unknown ones."""
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
    return [name for name in known if name in (names or known)]


def _can_draw(plot: Path | None) -> None:
    """A library that is missing is said now and not after an hour."""
    from importlib import import_module

    if plot is not None:
        import_module("matplotlib")


def _others(beside: tuple[str, ...], paths: tuple[Path, ...]) -> dict[str, Path]:
    if beside and len(paths) > 1:
        raise click.UsageError("--beside is for a single file of traces")
    return dict(map(_other, beside))


def _other(text: str) -> tuple[str, Path]:
    """Name and file of `NAME=FILE`."""
    name, _, path = text.partition("=")
    if not name or not path:
        raise click.BadParameter(f"{text!r} is not NAME=FILE", param_hint="--beside")
    return name, Path(path)


def _network(setup: "Setup") -> "tuple[NetworkMember | None, str | None]":
    """The network that takes part in `ours`, or why it does not."""
    from controller.forecast.checkpoint import SHIPPED_HORIZON_S, CheckpointError, shipped

    try:
        network = shipped(setup.horizon_s, setup.target)
    except CheckpointError as error:
        return None, f"`ours` goes without the network: {error}"
    if network is None:
        return (
            None,
            f"`ours` goes without the network, which knows {SHIPPED_HORIZON_S} s ahead only",
        )
    return network, None


def predictor_of(
    name: str, setup: "Setup", horizon_steps: int, *, network: "NetworkMember | None"
) -> "Predictor":
    from controller.forecast.backtest.peers import PEERS
    from controller.forecast.predictor import make_predictor

    if name == OURS:
        return make_predictor(horizon_steps, setup.target, network)
    return PEERS[name](horizon_steps)


def read_part(
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
    makers: "Mapping[str, Callable[[int], Predictor]]",
    others: "Mapping[str, Path]",
    setup: "Setup",
    heard: "Sequence[Callable[[Said], None]]",
) -> "Result":
    """Replays the trace with a bar of progress; `heard` are told every forecast."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    from controller.forecast.backtest.recorded import Recorded
    from controller.forecast.backtest.report import Result
    from controller.forecast.backtest.run import backtest as replay
    from controller.forecast.backtest.run import scored_windows
    from controller.forecast.backtest.traces import TraceError

    steps = setup.steps(trace.step_s)
    scored = scored_windows(trace, setup)
    if not scored.any():
        raise TraceError(
            f"{trace.name}: too short, nothing can be scored: {trace.steps} steps of "
            f"{trace.step_s} s, forecast {setup.horizon_s} s ahead"
        )
    predictors = {name: make(steps) for name, make in makers.items()}
    for name, path in others.items():
        predictors[name] = Recorded(name, path, trace, scored)

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
