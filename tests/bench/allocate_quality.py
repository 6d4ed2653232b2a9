"""What simpler rules lose against the proven optimum, on the demand of real VMs.

Hosts of 50 VMs drawn from a trace. What a VM will need is taken to be distributed as its peaks of
ten minutes over the last six hours; what it has now covered 95 % of the six hours before. Worth is
the project's objective (controller/core/allocate/value.py) with its default weights, on those
samples. A host's capacity is a share of the sum of what its VMs need at their 95th percentile.

The rules get as much as they can use: what one VM cannot take goes to the others, and what rounding
leaves goes to those whose remainder is largest.
"""

import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from allocate_compare import HERE, PeerMissingError, claim_optimum, peers_python
from measuring import BenchError, say, say_table
from numpy.typing import NDArray

from controller.core.allocate.problem import Problem
from controller.core.allocate.solve import solve
from controller.core.state import Policy
from shared.resources import MIB, Resource

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

SLOTS, BINS = 50, 128
SHARES = (1.2, 0.8)  # capacity per what is needed: something to spare, and scarcity
STEPS = 5  # quanta of the solver per quantum of the policy: rules may round finely
UNIT = {"CPU": (Resource.CPU, 1), "memory": (Resource.MEMORY, MIB)}  # of the traces' amounts
SCALE = 1000
BUDGET = 1 << 40  # as good as none: here every optimum is to be proven


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """Hosts of one trace and resource; amounts in the solver's quanta."""

    name: str
    problem: Problem
    wanted: Floats  # (n, h) 95th percentile of demand
    short: Floats  # (b, n, h) expected demand beyond each level
    demand: Floats  # (n, h) expected


def quality_table(traces: Path | None, quick: bool) -> list[dict[str, Any]]:
    """Prints it, or why there is none; the rows as values."""
    try:
        found = demand_of(traces)
    except PeerMissingError as error:
        say(f"Decision quality is left out: {error}\n")
        return []
    hosts = 4 if quick else 48
    rows = [compare(case) for name, (demand, size) in found.items()
            for case in cases(name, demand, size, hosts)]  # fmt: skip
    say(f"Quality on real demand, {hosts} hosts of {SLOTS} VMs each: worth lost against the proven")
    say("optimum (worst host; 100 %: worth nothing), and expected demand that stays unmet")
    cells = [[row["case"], *(_cell(row[name]) for name in ("optimum", *RULES))] for row in rows]
    say_table(["trace, capacity / need", "optimum", *RULES], cells)
    return rows


def _cell(found: dict[str, float]) -> str:
    unmet = f"unmet {found['unmet_percent']:.1f} %"
    if not found["loss_percent"]:
        return unmet
    return f"{found['loss_percent']:.1f} % ({found['loss_percent_most']:.1f} %), {unmet}"


def demand_of(traces: Path | None) -> dict[str, tuple[Floats, Floats]]:
    """Peaks (v, periods) and sizes (v,) by trace and resource; PeerMissingError without them."""
    if traces is None:
        raise PeerMissingError("name a folder of traces with --traces")
    with tempfile.TemporaryDirectory(prefix="hrapaq-bench-") as name:
        results = Path(name) / "demand.npz"
        command = [str(peers_python()), str(HERE / "allocate_traces.py"), str(traces), str(results)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if "ModuleNotFoundError" in done.stderr:
            raise PeerMissingError(done.stderr.strip().splitlines()[-1])
        if done.returncode:
            raise BenchError(f"the traces in {traces} cannot be read:\n{done.stderr[-2000:]}")
        with np.load(results) as arrays:
            names = sorted({key.rpartition("/")[0] for key in arrays})
            if not names:
                raise PeerMissingError(f"{traces} holds no traces of VMs")
            return {name: (arrays[f"{name}/demand"], arrays[f"{name}/size"]) for name in names}


def cases(name: str, demand: Floats, size: Floats, hosts: int) -> list[Case]:
    """The same hosts at each capacity; VMs at random from a seed."""
    resource, unit = UNIT[name.split()[1]]
    policy = Policy()
    step = policy.quantum[resource] / unit / STEPS
    random = np.random.default_rng([7, len(size)])
    vms = np.stack([random.choice(len(size), SLOTS, len(size) < SLOTS) for _ in range(hosts)], 1)
    peaks, sizes = demand[vms] / step, np.ceil(size[vms] / step)  # (n, h, periods), (n, h)
    before, after = np.split(peaks, 2, axis=2)
    level = np.ceil(np.arange(1, BINS + 1)[:, None, None] * sizes / BINS).astype(np.int64)
    covered = np.quantile(before, 0.95, axis=2)
    now = np.take_along_axis(level, np.minimum((level < covered).sum(0), BINS - 1)[None], axis=0)
    use = np.stack([np.minimum(after, one[:, :, None]).mean(axis=2) for one in level])
    short = after.mean(axis=2) - use
    gain = use - policy.waste[resource] * (level - use) - policy.short[resource] * short
    cost = policy.move_quanta * STEPS * (level != now) + policy.drift * np.abs(level - now)
    value = np.rint((gain - cost) / STEPS * SCALE).astype(np.int64)
    wanted = np.quantile(after, 0.95, axis=2)
    least = level[0].sum(axis=0)
    return [
        Case(f"{name}, {share}", Problem(value, level, np.maximum(least, _whole(share * wanted))),
             wanted, short, after.mean(axis=2))
        for share in SHARES
    ]  # fmt: skip


def _whole(amount: Floats) -> Ints:
    return np.asarray(amount.sum(axis=0), dtype=np.int64)


def compare(case: Case) -> dict[str, Any]:
    """What each rule makes of a case."""
    solution = solve(case.problem, budget=BUDGET)
    claim_optimum(solution.status)
    found: dict[str, Any] = {"case": case.name}
    chosen = {"optimum": solution.bin.astype(np.int64)} | {
        name: rule(case) for name, rule in RULES.items()
    }
    for name, bins in chosen.items():
        level = np.take_along_axis(case.problem.level, bins[None], axis=0)[0]
        assert (level.sum(axis=0) <= case.problem.capacity).all(), name
        value = np.take_along_axis(case.problem.value, bins[None], axis=0)[0].sum(axis=0)
        short = np.take_along_axis(case.short, bins[None], axis=0)[0]
        lost = (solution.value - value) / np.abs(solution.value)
        found[name] = {
            "loss_percent": 100 * float((solution.value - value).sum() / solution.value.sum()),
            "loss_percent_most": 100 * float(lost.max()),
            "unmet_percent": 100 * float(short.sum() / case.demand.sum()),
            "worth_per_demand": float(value.sum() / SCALE * STEPS / case.demand.sum()),
        }
    return found


# ---- the rules: (n, h) bins that fit ----


def equal_share(case: Case) -> Ints:
    """As much for one as for the other."""
    return _rounded(case, np.ones_like(case.wanted))


def proportional(case: Case) -> Ints:
    """By the 95th percentile of demand."""
    return _rounded(case, np.maximum(case.wanted, 1e-6))


def _rounded(case: Case, weight: Floats) -> Ints:
    """Amounts `t * weight` between least and most that fill the host, in whole bins."""
    level, capacity = case.problem.level, case.problem.capacity
    least, most = level[0].astype(np.float64), level[-1].astype(np.float64)
    low, high = np.zeros(len(capacity)), (most / weight).max(axis=0)
    for _ in range(60):
        middle = (low + high) / 2
        fits = np.clip(middle * weight, least, most).sum(axis=0) <= capacity
        low, high = np.where(fits, middle, low), np.where(fits, high, middle)
    amount = np.clip(low * weight, least, most)
    bins = np.maximum((level <= amount).sum(axis=0) - 1, 0)
    left = capacity - np.take_along_axis(level, bins[None], axis=0)[0].sum(axis=0)
    order = np.argsort(np.take_along_axis(level, bins[None], axis=0)[0] - amount, axis=0)
    hosts = np.arange(len(capacity))
    for slot in order:
        after = np.minimum(bins[slot, hosts] + 1, BINS - 1)
        cost = level[after, slot, hosts] - level[bins[slot, hosts], slot, hosts]
        taken = cost <= left
        bins[slot, hosts] = np.where(taken, after, bins[slot, hosts])
        left -= np.where(taken, cost, 0)
    return bins


def greedy(case: Case) -> Ints:
    """From the least upwards: the next level that brings most per quantum, while any does."""
    level, value = case.problem.level, case.problem.value
    bins = np.zeros(value.shape[1:], dtype=np.int64)
    left = case.problem.capacity - level[0].sum(axis=0)
    cost = np.diff(level, axis=0, append=level[-1:] + 1)
    rate = np.diff(value, axis=0, append=value[-1:]) / np.maximum(cost, 1)
    rate[-1] = 0.0
    rate[:-1][cost[:-1] == 0] = np.inf  # a level that is there twice
    hosts = np.arange(len(left))
    while True:
        next_rate = np.take_along_axis(rate, bins[None], axis=0)[0]
        next_cost = np.take_along_axis(cost, bins[None], axis=0)[0]
        next_rate = np.where(next_cost <= left, next_rate, 0.0)
        slot = next_rate.argmax(axis=0)
        better = next_rate[slot, hosts] > 0
        if not better.any():
            return bins
        left -= np.where(better, next_cost[slot, hosts], 0)
        bins[slot, hosts] += better


RULES: dict[str, Callable[[Case], Ints]] = {
    "equal share": equal_share,
    "proportional": proportional,
    "greedy": greedy,
}
