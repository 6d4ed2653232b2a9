"""Random hosts and trees through the allocator, each result compared with the oracle.

`python tests/fuzz/fuzz_allocate.py [--hosts 1000000] [--seed 1] [--minutes M] [--processes 2]`.
Batch number k of seed s is always the same: `--seed s --batch k` runs it alone. Exit code 1 when
anything differed; the smallest host that still fails is printed as code.
"""

import argparse
import sys
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context

import click
import numpy as np
from allocate_checks import Tally, Wrong, check_case, fails_alone
from allocate_families import Case, draw_case
from allocate_shrink import as_code, shrunk
from allocate_tree_checks import check_forest

BATCHES_AT_ONCE = 20  # in one task of a process
FOREST_SHARE = 0.15  # of the batches
PROGRESS_S = 10.0
SHOWN_MAX = 5  # failing batches


@dataclass(slots=True)
class Report:
    """What became of some batches."""

    tally: Tally = field(default_factory=Tally)
    failed: dict[int, str] = field(default_factory=dict)  # by batch, what the first failure was
    families: set[str] = field(default_factory=set)

    def add(self, other: "Report") -> None:
        self.tally.add(other.tally)
        self.failed |= other.failed
        self.families |= other.families


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--hosts", type=int, default=1_000_000)
    parser.add_argument("--minutes", type=float, default=60.0, help="ends then at the latest")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--batch", type=int, help="only this one")
    options = parser.parse_args()
    started = time.monotonic()
    if options.batch is not None:
        whole = run_batches(options.seed, range(options.batch, options.batch + 1))
    else:
        whole = run(options.seed, options.hosts, options.minutes * 60, options.processes)
    for batch, text in sorted(whole.failed.items())[:SHOWN_MAX]:
        click.echo(f"--seed {options.seed} --batch {batch}: {text}")
    click.echo(summary(whole, options.seed, time.monotonic() - started))
    return int(bool(whole.failed))


def run(seed: int, hosts: int, seconds: float, processes: int) -> Report:
    """Batches until so many hosts were seen, the time is over, or enough failed."""
    whole = Report()
    started = told = time.monotonic()
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        numbers = _tasks()
        ahead = [pool.submit(run_batches, seed, next(numbers)) for _ in range(2 * processes)]
        while ahead:
            whole.add(ahead.pop(0).result())
            now = time.monotonic()
            enough = whole.tally.hosts >= hosts or len(whole.failed) >= SHOWN_MAX
            if not enough and now - started < seconds:
                ahead.append(pool.submit(run_batches, seed, next(numbers)))
            if now - told > PROGRESS_S:
                told = now
                click.echo(summary(whole, seed, now - started), err=True)
    return whole


def _tasks() -> Iterator[range]:
    first = 0
    while True:
        yield range(first, first + BATCHES_AT_ONCE)
        first += BATCHES_AT_ONCE


def run_batches(seed: int, batches: range) -> Report:
    """Some batches in this process; an exception counts as a failure of its batch."""
    report = Report()
    for batch in batches:
        try:
            wrong = _run_batch(seed, batch, report)
        except Exception:  # noqa: BLE001 - whatever breaks is what is looked for, with its batch
            wrong = traceback.format_exc()
        if wrong:
            report.failed[batch] = wrong
    return report


def _run_batch(seed: int, batch: int, report: Report) -> str:
    """Text of the first failure, with a small example; empty when all is well."""
    random = np.random.default_rng([seed, batch])
    if random.random() < FOREST_SHARE:
        report.families.add("forest")
        _, wrong = check_forest(random, report.tally)
        return str(wrong[0]) if wrong else ""
    case = draw_case(random)
    report.families.add(case.family)
    wrong = check_case(random, case, report.tally)
    return _with_example(case, wrong[0]) if wrong else ""


def _with_example(case: Case, wrong: Wrong) -> str:
    """With the smallest host that fails by itself; else it takes its batch, or another start."""
    host = case.problem.of(np.array([wrong.host]))
    small = shrunk(host, partial(fails_alone, dense=case.dense))
    return f"{case.family}: {wrong}\n{as_code(small)}"


def summary(whole: Report, seed: int, seconds: float) -> str:
    tally = whole.tally
    return (
        f"{tally.hosts:,} hosts and {tally.trees:,} trees of {len(whole.families)} families: "
        f"{len(whole.failed)} failed batches; {tally.infeasible:,} infeasible, "
        f"{tally.searched:,} searched, {tally.stopped:,} stopped by a budget, "
        f"{tally.refused:,} refused; seed {seed}, {seconds:.0f} s, "
        f"{tally.hosts / max(seconds, 1e-9):,.0f} hosts/s"
    )


if __name__ == "__main__":
    sys.exit(main())
