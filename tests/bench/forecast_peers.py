# ruff: noqa: T201 - a script that tells what it does
"""Heavier peers of the forecaster: run by the peers' own Python, one peer per process.

`PYTHONPATH=. .venv/peers/bin/python tests/bench/forecast_peers.py lightgbm --traces FILE --out P`
writes predictions as `hrapaq backtest --predictions` does; then
`hrapaq backtest --traces FILE --part test --beside lightgbm=P` scores them beside all others.
All parameters of the part (`--part --vms --days --seed --resource`) must be the same in both.

- lightgbm: one model of all VMs, multiclass over the 21 bins, on 14 lags, means, deviations and
  extremes of four spans, the value yesterday and the time of day. Learnt from training VMs and
  times; leaves and rounds are chosen, and probabilities are tempered, on validation VMs and times.
- ets, arima: AutoETS and AutoARIMA of statsforecast, fitted per VM to the day before and applied
  to each step as it comes (`forward`), once a day anew; normal intervals, placed into bins.
"""

import argparse
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from controller.forecast.backtest.peers_math import normal_mass
from controller.forecast.backtest.run import Setup, scored_windows, value_ahead
from controller.forecast.backtest.split import split
from controller.forecast.backtest.traces import Trace, read_trace
from controller.forecast.moment import BINS, bin_of

LAGS = (0, 1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 18, 21, 23)  # in 24ths of two hours
SPANS = (3, 6, 12, 24)
TRAIN_WINDOWS, VALID_WINDOWS = 150_000, 40_000
LEAVES = (15, 31)
ROUNDS = 80
HISTORY_MIN, PAST_MIN = 48, 12  # steps that a model is fitted to, and applied to
CONSTANT = 1e-6  # deviation of a series without anything to fit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("peer", choices=["lightgbm", "ets", "arima"])
    parser.add_argument("--traces", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--resource", default="cpu")
    parser.add_argument("--horizon", type=int, default=600)
    parser.add_argument("--part", default="test", choices=["all", "test"])
    parser.add_argument("--vms", type=int)
    parser.add_argument("--days", type=float)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    began = time.perf_counter()
    whole = read_trace(options.traces, options.resource, with_others=False)
    setup = Setup(options.horizon)
    cut = split(whole, options.seed)
    trace = drawn(cut.part(whole, "test") if options.part == "test" else whole, options)
    row, step = np.nonzero(scored_windows(trace, setup))
    horizon = setup.steps(trace.step_s)
    if options.peer == "lightgbm":
        if options.part != "test":
            parser.error("lightgbm learns: only --part test is fair")
        train, valid = cut.part(whole, "train"), cut.part(whole, "valid")
        mass = boosted(train, valid, trace, row, step, horizon, options.seed)
    else:
        mass = fitted(options.peer, whole, trace, row, step, horizon)
    write(options.out, trace, row, step, value_ahead(trace.share, horizon)[row, step], mass)
    print(f"{options.peer}: {len(row)} windows, {time.perf_counter() - began:.0f} s")


def drawn(trace: Trace, options: argparse.Namespace) -> Trace:
    """As the backtest draws `--vms` and `--days`."""
    first = 0
    if options.days is not None:
        first = max(0, trace.steps - round(options.days * 86_400 / trace.step_s))
    rows = np.flatnonzero(np.isfinite(trace.share[:, first:]).any(axis=1))
    if options.vms is not None and options.vms < len(rows):
        rows = np.sort(np.random.default_rng(options.seed).choice(rows, options.vms, replace=False))
    return trace.part(rows, first)


def write(
    path: Path, trace: Trace, row: np.ndarray, step: np.ndarray, target: np.ndarray, mass: Any
) -> None:
    ts = trace.start_s + step * trace.step_s + trace.late_s[row, step]
    columns: dict[str, Any] = {"vm_id": np.array(trace.vm_ids)[row], "ts": ts, "target": target}
    columns |= {f"p_{place}": mass[:, place].astype(np.float32) for place in range(BINS + 1)}
    pl.DataFrame(columns).write_parquet(path)


def boosted(
    train: Trace, valid: Trace, test: Trace, row: np.ndarray, step: np.ndarray, horizon: int,
    seed: int,
) -> np.ndarray:  # fmt: skip
    import lightgbm as lgb  # noqa: PLC0415 - one peer per process

    random = np.random.default_rng(seed)
    seen, came = examples(train, horizon, TRAIN_WINDOWS, random)
    held, held_came = examples(valid, horizon, VALID_WINDOWS, random)
    # Every class once, so that none is unknown to the model; it weighs nothing.
    seen = np.concatenate([seen, np.full((BINS + 1, seen.shape[1]), np.nan)])
    came = np.concatenate([came, np.arange(BINS + 1)])
    best: tuple[float, Any] | None = None
    for leaves in LEAVES:
        settings = {
            "objective": "multiclass", "num_class": BINS + 1, "num_leaves": leaves,
            "learning_rate": 0.1, "min_data_in_leaf": 50,
            "min_sum_hessian_in_leaf": 5.0, "lambda_l2": 5.0, "feature_fraction": 0.8,
            "bagging_fraction": 0.8, "bagging_freq": 1, "num_threads": 1, "seed": seed,
            "verbose": -1, "deterministic": True,
        }  # fmt: skip
        data = lgb.Dataset(seen, came)
        model = lgb.train(
            settings, data, ROUNDS, valid_sets=[lgb.Dataset(held, held_came, reference=data)],
            callbacks=[lgb.early_stopping(8, verbose=False)],
        )  # fmt: skip
        loss = model.best_score["valid_0"]["multi_logloss"]
        print(f"  {leaves} leaves: {model.best_iteration} rounds, validation log loss {loss:.4f}")
        if best is None or loss < best[0]:
            best = (loss, model)
    assert best is not None
    model = best[1]
    power = temper(model.predict(held), held_came)
    print(f"  probabilities to the power of {power}")
    said = [model.predict(part) for part in features(test, row, step)]
    return tempered(np.concatenate(said), power)


def examples(
    trace: Trace, horizon: int, count: int, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Features and bins of windows drawn at random."""
    ahead = value_ahead(trace.share, horizon)
    row, step = np.nonzero(np.isfinite(trace.share) & np.isfinite(ahead))
    if len(row) > count:
        chosen = np.sort(random.choice(len(row), count, replace=False))
        row, step = row[chosen], step[chosen]
    return np.concatenate(list(features(trace, row, step))), bin_of(ahead[row, step].astype(float))


def features(trace: Trace, row: np.ndarray, step: np.ndarray) -> Iterator[np.ndarray]:
    """(n, f) in parts. Steps are of the trace; spans are the same times for any step."""
    each = max(1, 300 // trace.step_s)  # steps that make one 24th of two hours
    width, day = 24 * each, 86_400 // trace.step_s
    padded = np.pad(trace.share, ((0, 0), (width, 0)), constant_values=np.nan)
    for first in range(0, len(row), 100_000):
        r, s = row[first : first + 100_000], step[first : first + 100_000]
        window = padded[r[:, None], s[:, None] + 1 + np.arange(width)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # nothing seen: NaN is the answer
            spans = [window[:, -span * each :] for span in SPANS]
            kinds = (np.nanmean, np.nanstd, np.nanmax, np.nanmin)
            shapes = [kind(span, axis=1) for span in spans for kind in kinds]
        before = np.where(s >= day, trace.share[r, np.maximum(s - day, 0)], np.nan)
        angle = 2 * np.pi * ((trace.start_s + s * trace.step_s) % 86_400) / 86_400
        lags = [window[:, -1 - lag * each] for lag in LAGS]
        yield np.stack([*lags, *shapes, before, np.sin(angle), np.cos(angle)], axis=1)


def temper(mass: np.ndarray, came: np.ndarray) -> float:
    """The power of the probabilities with the least log loss."""
    powers = np.arange(0.6, 1.5, 0.05)
    rows = np.arange(len(mass))
    loss = [-np.log(tempered(mass, p)[rows, came] + 1e-9).mean() for p in powers]
    return float(powers[int(np.argmin(loss))])


def tempered(mass: np.ndarray, power: float) -> np.ndarray:
    raised = np.maximum(mass, 1e-12) ** power
    return raised / raised.sum(axis=1, keepdims=True)


def fitted(
    kind: str, whole: Trace, trace: Trace, row: np.ndarray, step: np.ndarray, horizon: int
) -> np.ndarray:
    """One model per VM and day, applied to the steps of that day one by one."""
    day, window = 86_400 // trace.step_s, 7200 // trace.step_s
    earlier = (trace.start_s - whole.start_s) // trace.step_s  # steps before the part begins
    mass = np.empty((len(row), BINS + 1))
    for vm in np.unique(row):
        share = whole.share[whole.vm_ids.index(trace.vm_ids[vm])]
        at = np.flatnonzero(row == vm)
        for start in range(0, trace.steps, day):
            today = at[(step[at] >= start) & (step[at] < start + day)]
            history = share[: earlier + start]
            model = made(kind, history[np.isfinite(history)][-day:]) if len(today) else None
            for place in today:
                now = earlier + step[place] + 1
                past = share[max(0, now - window) : now].astype(np.float64)
                mass[place] = applied(model, filled(past), horizon)
    return mass


def made(kind: str, history: np.ndarray) -> Any:
    """A fitted model, or None where the history is short or constant."""
    from statsforecast.models import AutoARIMA, AutoETS  # noqa: PLC0415 - one peer per process

    if len(history) < HISTORY_MIN or float(np.std(history)) < CONSTANT:
        return None
    model = AutoETS(model="ZZN") if kind == "ets" else AutoARIMA(max_p=3, max_q=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.fit(history.astype(np.float64))


def applied(model: Any, past: np.ndarray, horizon: int) -> np.ndarray:
    """(21,) of the value a horizon after the last of `past`; without a model a plain normal one."""
    mean, spread = float(past[-1]), float(np.std(past))
    if model is not None and len(past) >= PAST_MIN:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            said = model.forward(past, horizon, level=[68.27])
        mean = float(np.asarray(said["mean"])[-1])
        spread = float(np.asarray(said["hi-68.27"])[-1]) - mean
    if not np.isfinite(mean) or not np.isfinite(spread):
        mean, spread = float(past[-1]), float(np.std(past))
    return normal_mass(np.array([mean]), np.array([max(spread, 0.0025)]))[0]


def filled(past: np.ndarray) -> np.ndarray:
    """Gaps hold the value before them, from the first value on: these models know no gaps."""
    past = past[np.argmax(np.isfinite(past)) :]
    last = np.maximum.accumulate(np.where(np.isfinite(past), np.arange(len(past)), 0))
    return past[last]


if __name__ == "__main__":
    main()
