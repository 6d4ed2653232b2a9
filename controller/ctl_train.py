# ruff: noqa: PLC0415 - a command imports what it needs, so that --help and completion stay quick
"""`hrapaq train`: learns the forecasting network from traces and keeps it where it is better."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from controller.forecast.backtest.traces import Trace
    from controller.forecast.examples import Source
    from controller.forecast.training import Plan, Trainer

FILE = click.Path(dir_okay=False, path_type=Path)


@click.command()
@click.option(
    "--traces",
    multiple=True,
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Parquet, as for `backtest`; may be given several times.",
)
@click.option("--out", required=True, type=FILE, help="Where the weights go (safetensors).")
@click.option("--hidden", default=48, show_default=True, type=click.IntRange(4, 512))
@click.option("--epochs", default=16, show_default=True, type=click.IntRange(1, 1000))
@click.option("--windows", default=300_000, show_default=True, type=click.IntRange(1000))
@click.option("--seed", default=1, show_default=True, type=click.IntRange(0))
@click.option("--threads", default=1, show_default=True, type=click.IntRange(1, 64),
              help="With more than one, the same seed may end a little elsewhere.")  # fmt: skip
def train(
    traces: tuple[Path, ...],
    *,
    out: Path,
    hidden: int,
    epochs: int,
    windows: int,
    seed: int,
    threads: int,
) -> None:
    """Learns the forecasting network from traces; asks no controller.

    Machines and times are split: what is judged by is never learnt from. A training that was
    interrupted goes on where it was when the same command is given again. Weights that are in OUT
    already are replaced only by better ones; what lost stands beside them as OUT.candidate.
    """
    from controller.forecast.training import Plan

    plan = Plan(hidden=hidden, epochs=epochs, windows=windows, seed=seed)
    plan = replace(plan, validation=min(plan.validation, 2 * windows))  # a trial is to be quick
    sources, judges = histories(traces, seed)
    trainer = _trainer(sources, judges, plan, threads)
    saved = out.with_name(out.name + ".state")
    if saved.exists():
        _resume(trainer, saved)
    _learn(trainer, saved)
    _promote(trainer, out, traces)
    saved.unlink(missing_ok=True)


def histories(paths: tuple[Path, ...], seed: int) -> tuple[list["Source"], list["Source"]]:
    """What is learnt from, and what is judged by: other machines and a later time."""
    from controller.forecast.backtest.split import split
    from controller.forecast.backtest.traces import TraceError, read_trace

    sources, judges = [], []
    for path in paths:
        try:
            trace = read_trace(path, "cpu")
        except TraceError as error:
            raise click.BadParameter(str(error), param_hint="--traces") from error
        parts = split(trace, seed)
        learn, judge = (_sources(parts.part(trace, name)) for name in ("train", "valid"))
        if not learn or not judge:
            words = (
                "too few VMs, or seen for too short: some are learnt from, others judged by later"
            )
            raise click.BadParameter(f"{path}: {words}", param_hint="--traces")
        sources.extend(learn)
        judges.extend(judge)
        click.echo(
            f"{path.name}: {len(parts.train)} VMs to learn from, {len(parts.valid)} to judge by"
        )
    return sources, judges


def _sources(trace: "Trace") -> list["Source"]:
    """All resources of the trace that were seen at all, CPU first; of a grid of minutes or finer
    also in the shape that the control loop has. None where nothing was seen."""
    import numpy as np

    from controller.forecast.examples import MINUTE_S, Source, as_the_loop

    grids = [trace.share, *np.moveaxis(trace.others, 1, 0)]
    kinds = tuple(kind for kind, one in enumerate(grids) if bool(np.isfinite(one).any()))
    if not kinds:
        return []
    share = np.stack([grids[kind] for kind in kinds])
    plain = Source(trace.name, share, trace.start_s, trace.step_s, kinds)
    return [plain, as_the_loop(plain)] if trace.step_s <= MINUTE_S else [plain]


def _trainer(
    sources: list["Source"], judges: list["Source"], plan: "Plan", threads: int
) -> "Trainer":
    try:
        import torch

        from controller.forecast.training import Trainer
    except ModuleNotFoundError as error:
        words = "training needs PyTorch; `make run` and `make test` install its CPU build"
        raise click.ClickException(words) from error
    torch.set_num_threads(threads)
    try:
        return Trainer(sources, judges, plan)
    except ValueError as error:  # a history that is too short
        words = f"{error}; of a trace's time 60 % is learnt from and 15 % judged by: 15 hours do"
        raise click.BadParameter(words, param_hint="--traces") from error


def _resume(trainer: "Trainer", saved: Path) -> None:
    from controller.forecast.checkpoint import CheckpointError

    try:
        trainer.resume(saved)
    except CheckpointError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"going on after epoch {trainer.epoch}")


def _learn(trainer: "Trainer", saved: Path) -> None:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("epoch"), MofNCompleteColumn(), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("{task.description}")) as bar:
        task = bar.add_task("score -", total=trainer.plan.epochs, completed=trainer.epoch)
        for reached in trainer.epochs():
            trainer.save(saved)
            words = f"loss {reached.loss:.4f}, score {reached.score:.4f}, best {reached.best:.4f}"
            bar.update(task, completed=reached.epoch, description=words)
            bar.console.print(f"epoch {reached.epoch}: {words}", highlight=False)


def _promote(trainer: "Trainer", out: Path, traces: tuple[Path, ...]) -> None:
    """Writes the weights where they are better than what is there."""
    from controller.forecast import checkpoint
    from controller.forecast.examples import score_of

    network = trainer.network()
    score = score_of(network, trainer.judged)
    about = {
        "traces": ", ".join(sorted(path.stem for path in traces)),
        "seed": str(trainer.plan.seed),
        "score": f"{score:.5f}",
    }
    learnt = checkpoint.Checkpoint(network, trainer.archetypes(), about)
    champion = _champion(out, trainer)
    if champion is not None and champion <= score:
        candidate = out.with_name(out.name + ".candidate")
        checkpoint.write(learnt, candidate)
        click.echo(
            f"{out} stays: its score is {champion:.5f}, the new one's {score:.5f} "
            f"(lower is better); the new one is {candidate}"
        )
        return
    checkpoint.write(learnt, out)
    shipped = score_of(checkpoint.read(checkpoint.SHIPPED).network, trainer.judged)
    before = "" if champion is None else f", {champion:.5f} before"
    click.echo(
        f"{out}: score {score:.5f}{before} on machines and times not learnt from; the network that "
        f"comes with the program has {shipped:.5f} there (lower is better)"
    )


def _champion(out: Path, trainer: "Trainer") -> float | None:
    """The score of the weights that are there; None without any that can be used."""
    from controller.forecast import checkpoint
    from controller.forecast.examples import score_of

    if not out.exists():
        return None
    try:
        champion = checkpoint.read(out).network
    except checkpoint.CheckpointError as error:
        click.echo(f"what is there is not compared: {error}", err=True)
        return None
    return score_of(champion, trainer.judged)
