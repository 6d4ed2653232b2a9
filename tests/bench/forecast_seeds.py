# ruff: noqa: T201 - a script that tells what it does
"""How much the seed matters: networks learnt from ten seeds, each scored in the mixture.

`.venv/bin/python tests/bench/forecast_seeds.py --traces DIR` learns each from `--windows` windows
(fewer than the network that is shipped: what chance does shows all the more), replays the test part
and prints the ranked probability score of ours per seed, its mean and its standard deviation.
"""

import argparse
import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from controller.ctl_backtest import read_part
from controller.ctl_train import histories
from controller.forecast.backtest.run import OURS, Setup, backtest
from controller.forecast.network import NetworkMember
from controller.forecast.predictor import make_predictor

# What is scored: VMs and days of each source.
PARTS = (
    ("bitbrains_rnd_julaug", None, 3.0),
    ("planetlab_early", 100, None),
    ("surf_lisa_week", 60, 0.5),
)
EPOCHS = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--traces", type=Path, required=True, metavar="DIR")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--windows", type=int, default=150_000)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    measure = partial(scores, options.traces, options.windows)
    with ProcessPoolExecutor(options.processes, mp_context=get_context("spawn")) as pool:
        found = []
        for seed, each in enumerate(pool.map(measure, range(1, options.seeds + 1)), start=1):
            print(seed, *(f"{score:.4f}" for score in each), flush=True)
            found.append(each)
    table = np.array(found)
    mean, deviation = table.mean(axis=0), table.std(axis=0, ddof=1)
    for (name, _, _), middle, spread in zip(PARTS, mean, deviation, strict=True):
        share = spread / middle
        print(f"{name}: mean {middle:.4f}, standard deviation {spread:.4f}, {share:.2%} of it")


def scores(traces: Path, windows: int, seed: int) -> list[float]:
    """RPS of ours on each of `PARTS`, with a network learnt from `seed`."""
    import torch  # noqa: PLC0415 - only in the processes that learn

    from controller.forecast.training import Plan, Trainer  # noqa: PLC0415 - likewise

    torch.set_num_threads(1)
    paths = tuple(traces / f"{name}.parquet" for name, _, _ in PARTS)
    trainer = Trainer(*histories(paths, 1), Plan(epochs=EPOCHS, windows=windows, seed=seed))
    for _ in trainer.epochs():
        pass
    member = NetworkMember(trainer.network(), peak_target=False)
    setup = Setup()
    found = []
    for path, (_, vms, days) in zip(paths, PARTS, strict=True):
        trace = read_part(path, "cpu", part="test", vms=vms, days=days, seed=1, wanted=[OURS])
        ours = make_predictor(setup.steps(trace.step_s), setup.target, member)
        tally = backtest(trace, {OURS: ours}, setup).tally[OURS]
        found.append(tally.result()["all"]["rps"])
    return found


if __name__ == "__main__":
    main()
