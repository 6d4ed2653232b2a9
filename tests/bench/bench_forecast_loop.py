"""What the loop pays for its forecasts in a cycle: rings, turns, skill; and for half a million VMs.

`python tests/bench/bench_forecast_loop.py [--vms 20000] [--cycles 20] [--still 0.0]`. Use of three
resources wanders around a level of its own, one sample a minute; `--still`: the share of VMs that
never move, as idle ones do. Every VM has a turn each fifth cycle. The first half of the cycles
fills what is kept, the second half is told. Two threads where cohorts are due together.
"""

import argparse
import ctypes
import gc
import os
import time
from contextlib import nullcontext

import numpy as np
from measuring import MIB, machine, memory_of, say, say_table

from controller.core.state import MISSING, Floats
from controller.forecast.live import make_forecaster
from controller.forecast.protocol import History
from controller.forecast.skill import SkillBook, update
from controller.rings import Rings, RingWindows
from shared.clock import SECOND_NS
from shared.resources import GIB

FLEET = 500_000
STEP_NS, WINDOW, HORIZON = 60 * SECOND_NS, 120, 10
MAXIMUM = (4000, 8 * GIB, MISSING)
SCALE = np.array([4000.0, 8.0 * GIB, 50.0 * MIB])
PARTS = ("rings", "forecast", "skill")


class Fleet:
    """VMs whose use wanders, from a seed."""

    def __init__(self, vms: int, still: float, seed: int = 1) -> None:
        self._random = np.random.default_rng(seed)
        self._level = self._random.uniform(0.02, 0.7, (vms, 3))
        self._now = self._level.copy()
        self._moves = (np.arange(vms) >= still * vms)[:, None]
        self.ids = tuple(f"{place:032x}" for place in range(vms))

    def minute(self) -> Floats:
        noise = self._random.normal(0, 0.02, self._now.shape) * self._moves
        self._now = np.clip(self._now + noise + 0.1 * (self._level - self._now), 0, 1)
        return np.asarray(self._now * SCALE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vms", type=int, default=20_000)
    parser.add_argument("--cycles", type=int, default=20)
    parser.add_argument("--still", type=float, default=0.0)
    options = parser.parse_args()
    say(machine())
    say(f"{options.vms:,} VMs x 3 resources, {options.still:.0%} of them still\n")
    costs, size_bytes, method = measure(Fleet(options.vms, options.still), options.cycles)
    per_vm = {part: 1e6 * np.array(costs[part]) / options.vms for part in PARTS}
    rows = [
        [
            part,
            f"{per_vm[part].mean():.2f}",
            f"{per_vm[part].max():.2f}",
            f"{per_vm[part].mean() * FLEET / 1e6:.1f}",
        ]
        for part in PARTS
    ]
    say_table(["part", "us per VM and cycle", "worst cycle", f"s per cycle of {FLEET:,} VMs"], rows)
    per_vm_bytes = size_bytes / options.vms
    whole = f"{per_vm_bytes * FLEET / GIB:.2f} GiB for {FLEET:,}"
    say(f"{method}; all of it keeps {per_vm_bytes:,.0f} bytes per VM, {whole}")


def measure(fleet: Fleet, cycles: int) -> tuple[dict[str, list[float]], int, str]:
    """Seconds of each part in each of the later cycles, bytes that are kept, and the method."""
    before = kept()
    vms = len(fleet.ids)
    rings = Rings(STEP_NS, WINDOW, HORIZON, slots=vms)
    forecaster, book = make_forecaster("auto", None, HORIZON * 60), SkillBook()
    costs: dict[str, list[float]] = {part: [] for part in PARTS}
    for minute in range(cycles):
        history, rings_s = sampled(fleet, rings, 10_000 + minute)
        began = time.perf_counter()
        said = forecaster.predict(history, HORIZON * STEP_NS)
        predicted = time.perf_counter()
        book = update(book, fleet.ids, history, said.forecast)
        done = time.perf_counter()
        if minute >= cycles // 2:
            costs["rings"].append(rings_s)
            costs["forecast"].append(predicted - began)
            costs["skill"].append(done - predicted)
    return costs, kept() - before, forecaster.standing.method


def kept() -> int:
    """Private bytes of this process, without what is free but not given back."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return memory_of(os.getpid()).private


def sampled(fleet: Fleet, rings: Rings, step: int) -> tuple[History, float]:
    """A minute later; the seconds are those of the rings."""
    vms, use = len(fleet.ids), fleet.minute().astype(np.int64)
    slots = np.arange(vms)
    began = time.perf_counter()
    rings.add(slots, use, step * STEP_NS)
    seconds = time.perf_counter() - began
    history = History(
        made_at_unix_ns=1_700_000_000 * SECOND_NS + step * STEP_NS,
        newest_step=step,
        step_ns=STEP_NS,
        steps=WINDOW,
        ids=fleet.ids,
        limit=np.full((vms, 3), MISSING),
        maximum=np.tile(np.array(MAXIMUM), (vms, 1)),
        age_ns=rings.age_ns(slots, step * STEP_NS),
        windows=RingWindows(rings, slots, step, nullcontext()),
    )
    return history, seconds


if __name__ == "__main__":
    main()
