# ruff: noqa: E402 - threads are limited before NumPy is imported
"""What forecasting costs: time and state per series, and what that makes of a fleet of 500,000 VMs.

`python tests/bench/bench_forecast.py [--series 6000] [--steps 24] [--traces DIR] [--json FILE]`.
Series learn and predict in blocks of five minutes, the peak of ten minutes ahead, as in the loop:
per block each series costs a step once, so a cycle of a minute costs a fifth of that. Demand comes
from traces of the documented schema (`make bench TRACES=DIR`), windows of real VMs at real times;
without, it is made up, and that is said. CPU time, one thread per process.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from time import process_time

for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
    os.environ.setdefault(name, "1")  # before NumPy is there

import numpy as np
from measuring import machine, mib, say, say_table

from controller.core.state import Floats
from controller.forecast.backtest.traces import TraceError, read_trace
from controller.forecast.checkpoint import CheckpointError, shipped
from controller.forecast.mixture import Mixture
from controller.forecast.moment import Moment
from controller.forecast.predictor import make_predictor

VMS, RESOURCES, PROCESSES = 500_000, 3, 2
CYCLE_S, BLOCK_S = 60, 300
BUDGET_S, BUDGET_BYTES = 25.0, 4 << 30  # of a cycle of the whole loop
HORIZON_STEPS, WINDOW = 2, 24
WARM_STEPS = 4
SEED = 1


@dataclass(frozen=True, slots=True)
class Cost:
    """Of learning and predicting."""

    what: str
    series: int
    still: float  # share of the series, at the end
    us: float  # CPU time per series and step
    bytes: float  # of state per series
    again_us: float  # per series that is predicted once more


def main() -> None:
    options = _options()
    say(machine())
    demand, source = _demand(options)
    say(f"{source}; {len(demand):,} series, {options.steps} steps of {BLOCK_S} s\n")
    costs = [cost for network in (False, True) for cost in _measured(demand, network)]
    say_table(
        ["", "series", "still %", "us/series/step", "bytes/series", "us/series again"],
        [_cells(cost) for cost in costs],
    )
    fleet = [_fleet(demand, network) for network in (False, True)]
    for one in fleet:
        say(one["text"])
    say(f"load {os.getloadavg()[0]:.1f} at the end")
    if options.json:
        found = {"machine": machine(), "demand": source, "cost": list(map(asdict, costs)),
                 "fleet": fleet}  # fmt: skip
        options.json.write_text(json.dumps(found, indent=1))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--series", type=int, default=6000)
    parser.add_argument("--steps", type=int, default=24, help="that are measured")
    parser.add_argument("--traces", type=Path, help="folder of *.parquet with real demand")
    parser.add_argument("--quick", action="store_true", help="so little that it only runs")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    options = parser.parse_args()
    if options.quick:
        say("--quick: too few series for the figures to mean anything")
        options.series, options.steps = 600, 6
    return options


def _demand(options: argparse.Namespace) -> tuple[Floats, str]:
    """(s, steps) shares, and where they are from."""
    steps = WINDOW + WARM_STEPS + options.steps
    random = np.random.default_rng(SEED)
    if options.traces is None:
        return _made_up(random, options.series, steps), "made-up demand (--traces: real)"
    pools = [pool for path in sorted(options.traces.glob("*.parquet")) for pool in _pools(path)]
    if not pools:
        sys.exit(f"{options.traces}: no parquet file there is a trace of CPU use per VM")
    parts = [_drawn(pool, random, -(-options.series // len(pools)), steps) for _, pool in pools]
    names = ", ".join(name for name, _ in pools)
    demand = random.permutation(np.concatenate(parts))[: options.series]
    return demand, f"real windows of {names}, {len(pools)} equal parts"


def _pools(path: Path) -> Iterator[tuple[str, Floats]]:
    """(v, t) means of blocks; nothing of a file that is no such trace."""
    try:
        trace = read_trace(path, "cpu", with_others=False)
    except TraceError as error:
        say(f"left out {error}")
        return
    each = BLOCK_S // trace.step_s
    share = trace.share[:, : trace.steps // each * each].astype(np.float64)
    yield path.stem, share.reshape(len(share), -1, each).mean(axis=2)


def _drawn(pool: Floats, random: np.random.Generator, series: int, steps: int) -> Floats:
    """Stretches of VMs that were seen all the time."""
    seen = np.isfinite(pool)
    run = np.cumsum(np.pad(seen, ((0, 0), (1, 0))), axis=1)
    row, first = np.nonzero(run[:, steps:] - run[:, :-steps] == steps)
    chosen = random.integers(0, len(row), series)
    return pool[row[chosen, None], first[chosen, None] + np.arange(steps)]


def _made_up(random: np.random.Generator, series: int, steps: int) -> Floats:
    """A sixth each of idle, constant, noisy, wandering, bursting and periodic series."""
    kind = np.arange(series)[:, None] % 6
    noise = random.normal(0, 1, (series, steps))
    level = random.uniform(0.05, 0.8, (series, 1))
    bursts = random.uniform(size=(series, steps)) < 0.05
    wave = np.sin(2 * np.pi * (np.arange(steps) / 12 + random.uniform(size=(series, 1))))
    kinds = [0.004 + 3e-4 * noise, level + 0 * noise, level * (1 + 0.2 * noise),
             level + 0.02 * np.cumsum(noise, axis=1), 0.1 * level + level * bursts,
             level * (1 + 0.5 * wave + 0.1 * noise)]  # fmt: skip
    return np.maximum(np.choose(kind, kinds), 0)


def _measured(demand: Floats, network: bool) -> Iterator[Cost]:
    made = _mixture(network)
    if made is None:
        return
    mixture, what = made
    seconds = _steps(mixture, demand)
    steps = demand.shape[1] - WINDOW - WARM_STEPS
    last = _moment(demand, demand.shape[1] - 1)
    began = process_time()
    mixture.again(last, np.arange(len(demand)))
    again = process_time() - began
    yield Cost(
        what,
        len(demand),
        float((np.ptp(last.window, axis=1) < 1e-4).mean()),
        seconds / steps / len(demand) * 1e6,
        mixture.state_bytes / len(demand),
        again / len(demand) * 1e6,
    )


def _mixture(network: bool) -> tuple[Mixture, str] | None:
    if not network:
        return make_predictor(HORIZON_STEPS, "peak"), "mixture"
    try:
        voice = shipped(HORIZON_STEPS * BLOCK_S, "peak")
    except CheckpointError as error:
        say(f"without the network: {error}")
        return None
    return make_predictor(HORIZON_STEPS, "peak", voice), "mixture with the network"


def _steps(mixture: Mixture, demand: Floats) -> float:
    """CPU seconds of all steps but the first few."""
    for step in range(WINDOW, WINDOW + WARM_STEPS):
        mixture.step(_moment(demand, step))
    began = process_time()
    for step in range(WINDOW + WARM_STEPS, demand.shape[1]):
        mixture.step(_moment(demand, step))
    return process_time() - began


def _moment(demand: Floats, step: int) -> Moment:
    window = demand[:, step + 1 - WINDOW : step + 1]
    others = np.full((len(demand), 3, WINDOW), np.nan)
    return Moment((step + 1) * BLOCK_S, BLOCK_S, window, window, others)


def _fleet(demand: Floats, network: bool) -> dict[str, float | str]:
    """Two processes at once, each with the same series; scaled up to the whole fleet."""
    with ProcessPoolExecutor(PROCESSES, get_context("spawn")) as pool:
        found = list(pool.map(_one_process, [demand] * PROCESSES, [network] * PROCESSES))
    per_series = max(seconds for seconds, _ in found)  # per step
    series = VMS * RESOURCES
    cycle_s = per_series * series / PROCESSES * CYCLE_S / BLOCK_S
    state = found[0][1] * series
    name = "with" if network else "without"
    text = (
        f"{VMS:,} VMs x {RESOURCES}, {name} the network, on {PROCESSES} processes: "
        f"{cycle_s:.1f} s of each per cycle of {CYCLE_S} s (budget of the loop {BUDGET_S:.0f} s), "
        f"state {mib(state)} MiB (budget {mib(BUDGET_BYTES)} MiB).\n"
        f"  Scaled up from {len(demand):,} series in each of two processes at once."
    )
    return {"network": name, "cycle_s": cycle_s, "state_bytes": state,
            "measured_series": len(demand) * PROCESSES, "text": text}  # fmt: skip


def _one_process(demand: Floats, network: bool) -> tuple[float, float]:
    """CPU seconds per series and step, and bytes of state per series."""
    made = _mixture(network)
    if made is None:
        return float("nan"), float("nan")
    steps = demand.shape[1] - WINDOW - WARM_STEPS
    seconds = _steps(made[0], demand)
    return seconds / steps / len(demand), made[0].state_bytes / len(demand)


def _cells(cost: Cost) -> list[str]:
    return [
        cost.what,
        f"{cost.series:,}",
        f"{cost.still:.0%}",
        f"{cost.us:.1f}",
        f"{cost.bytes:.0f}",
        f"{cost.again_us:.1f}",
    ]


if __name__ == "__main__":
    main()
