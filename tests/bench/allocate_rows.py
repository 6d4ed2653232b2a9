"""The rows of the allocator's table: what is measured, against whom, with which gate.

Against CP-SAT and HiGHS, CPU time stands against CPU time, since all run on one thread and the
machine may be shared; their time to build a model is left out, in their favour. Ours is the least
of some rounds, theirs is of each instance once; a latency is of each instance once for both. What
runs on several threads or processes is wall time.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
from allocate_compare import (
    PEERS,
    Found,
    Line,
    PeerMissingError,
    agree,
    ask,
    ask_numba,
    claim_optimum,
    micro,
    timed,
)
from allocate_instances import NODES, Flavours, Shape, flavours, fleet, forest
from allocate_models import Models, of_hosts, of_trees
from allocate_pool import Run, pool
from measuring import MIB, BenchError, quantile

from controller.core.allocate.coupled import CoupledProblem, solve_coupled
from controller.core.allocate.problem import Forest, Problem, Status
from controller.core.allocate.solve import solve
from controller.core.allocate.tree import solve_tree

USE = Shape()
FINE = Shape(capacity=4096, uniform=False)
WORST = Shape("strong", capacity=4096, uniform=False)
LONG = Shape(capacity=4096)  # one grid: what the dense programme can do


@dataclass(frozen=True, slots=True)
class Effort:
    """How many instances, and how often; `QUICK` only shows that all rows run."""

    fleet: int = 10_000
    long: int = 2_000  # hosts of 4096 quanta for numba
    hosts: int = 512  # for CP-SAT and HiGHS, of 512 quanta
    fine: int = 128  # of 4096
    worst: int = 48
    trees: int = 2_000
    joint: int = 48  # trees that HiGHS solves
    coupled: int = 128
    latencies: int = 200
    rounds: int = 5
    processes: int = 2


QUICK = Effort(
    fleet=300,
    long=64,
    hosts=4,
    fine=4,
    worst=2,
    trees=16,
    joint=2,
    coupled=4,
    latencies=4,
    rounds=1,
)


def fleet_row(effort: Effort) -> list[Line]:
    shape = sized(USE, effort.fleet)
    problem = fleet(shape)
    with pool(problem, effort.processes) as workers:
        runs = [workers.run() for _ in range(effort.rounds + 1)][1:]
    best = min(runs, key=lambda run: run.wall_s)
    alone = solve(problem)
    if not (alone.bin == best.solution.bin).all():
        raise BenchError("two processes found other bins than one")
    claim_optimum(alone.status)
    by_bound = int((alone.status == Status.OPTIMAL_BY_BOUND).sum())
    counts = f"{effort.fleet:,} optimal, {by_bound:,} by bound alone"
    what = f"{effort.fleet:,} hosts, {shape}, {effort.processes} processes"
    figures = {"walls_s": [run.wall_s for run in runs], "cpus_s": [run.cpu_s for run in runs]}
    line = Line("fleet", what, "s", 0.4, 0.12, None, below=True)
    return [filled(line, best.wall_s, _walls(runs), "", counts, figures)]


def _walls(runs: list[Run]) -> str:
    median = statistics.median(run.wall_s for run in runs)
    return f"median {median:.3f} s, CPU {min(run.cpu_s for run in runs):.3f} s"


def host_row(effort: Effort) -> list[Line]:
    return _against_both("host", sized(USE, effort.hosts), effort, {"cpsat": 500, "highs": 400},
                         {"cpsat": 2000, "highs": 1500})  # fmt: skip


def fine_row(effort: Effort) -> list[Line]:
    return _against_both("fine", sized(FINE, effort.fine), effort, {"cpsat": 200, "highs": 200},
                         {"cpsat": 1000, "highs": 1000})  # fmt: skip


def worst_row(effort: Effort) -> list[Line]:
    return _against_both("worst", sized(WORST, effort.worst), effort, {"highs": 20}, {"highs": 100})


def _against_both(
    row: str, shape: Shape, effort: Effort, gates: dict[str, float], stretches: dict[str, float]
) -> list[Line]:
    """Mean CPU per host of one call for all, against the peer's mean on the same hosts."""
    problem = fleet(shape)
    solution, cpu, _ = timed(lambda: solve(problem), effort.rounds)
    lines = []
    for peer, gate in gates.items():
        what = f"{shape}: mean per host against {PEERS[peer]}"
        line = Line(row, what, "x", gate, stretches[peer], None)

        def compare(peer: str = peer, line: Line = line) -> Line:
            found = on_hosts(peer, shape)
            agree(found, solution.value, solution.status)
            return _ratio(line, found, cpu / shape.hosts)

        lines.append(_or_missing(line, compare))
    return lines


def latency_row(effort: Effort) -> list[Line]:
    """Median of one host in a call of its own, against the peers' medians on the same hosts."""
    shape = sized(USE, effort.hosts)
    problem = fleet(shape)
    count = min(effort.latencies, shape.hosts)
    solve(problem)  # the first call of a library costs more than the others, for the peers too
    cpus, values = zip(*(_alone(problem, host) for host in range(count)), strict=True)
    ours, lines = statistics.median(cpus), []
    for peer, gate, stretch in (("cpsat", 50, 100), ("highs", 20, 50)):
        what = f"{shape}: one host alone, median, against {PEERS[peer]}"
        line = Line("latency", what, "x", gate, stretch, None)

        def compare(peer: str = peer, line: Line = line) -> Line:
            found = on_hosts(peer, shape).first(count)
            agree(found, np.array(values), np.zeros(count, np.uint8))
            words = f"{micro(ours)}, p95 {micro(quantile(cpus, 0.95))}"
            figures = found.figures() | {"ours_cpu_s": cpus}
            ratio = statistics.median(found.cpu_s) / ours
            return filled(line, ratio, words, found.words(), found.count(), figures)

        lines.append(_or_missing(line, compare))
    return lines


def _alone(problem: Problem, host: int) -> tuple[float, int]:
    """CPU seconds and value of one host, whose numbers lie together as if there were no others."""
    some = slice(host, host + 1)
    one = Problem(problem.value[:, :, some].copy(), problem.level, problem.capacity[some].copy())
    began = time.process_time()
    solution = solve(one)
    took = time.process_time() - began
    claim_optimum(solution.status)
    return took, int(solution.value[0])


def tree_row(effort: Effort) -> list[Line]:
    """CPU per root of one call for the whole forest, against the joint programme of some of it."""
    whole = forest(effort.trees)
    solution, cpu, _ = timed(lambda: solve_tree(whole), max(1, effort.rounds // 2))
    vms = effort.trees * (NODES - 1)
    what = (
        f"{effort.trees:,} trees of three levels, {vms:,} VMs: mean per tree against HiGHS, joint"
    )
    line = Line("tree", what, "x", 1000, 5000, None)

    def compare() -> Line:
        found = ask("highs", trees_as_models(whole, effort.joint))
        agree(found, solution.value, solution.status)
        return _ratio(line, found, cpu / effort.trees)

    return [_or_missing(line, compare)]


def trees_as_models(whole: Forest, trees: int) -> Models:
    """The first trees of it."""
    nodes = trees * NODES
    options = int(whole.first[nodes])
    return of_trees(np.repeat(whole.roots[:trees], NODES), whole.parent[:nodes],
                    whole.capacity[:nodes], whole.overhead[:nodes], whole.first[: nodes + 1],
                    whole.level[:options], whole.value[:options])  # fmt: skip


def numba_row(effort: Effort) -> list[Line]:
    """CPU on one thread, wall time on several, hosts of 512 and of 4096 quanta."""
    lines = []
    for shape in (sized(USE, effort.fleet), sized(LONG, effort.long)):
        for threads in (1, effort.processes):
            what = f"{shape.hosts:,} hosts, {shape}: numba's dense programme, {threads} threads"
            line = Line("numba", what, "x", 1.5, 3, None)
            lines.append(_or_missing(line, lambda s=shape, t=threads, one=line:
                                     _against_numba(one, s, t, effort.rounds)))  # fmt: skip
    return lines


def _against_numba(line: Line, shape: Shape, threads: int, rounds: int) -> Line:
    problem = fleet(shape)
    found = ask_numba(problem, threads, rounds)
    with pool(problem, threads) as workers:
        runs = [workers.run() for _ in range(rounds + 1)][1:]
    if found["value"] != runs[-1].solution.value.tolist():
        raise BenchError("numba's programme has other values")
    claim_optimum(runs[-1].solution.status)
    if threads == 1:
        ours, theirs, kind = min(run.cpu_s for run in runs), min(found["cpu_s"]), "CPU"
    else:
        ours, theirs, kind = min(run.wall_s for run in runs), min(found["wall_s"]), "wall"
    figures = {"peer": found["version"], "peer_cpu_s": found["cpu_s"],
               "peer_wall_s": found["wall_s"], "cpus_s": [run.cpu_s for run in runs],
               "walls_s": [run.wall_s for run in runs]}  # fmt: skip
    mine, other = (f"{micro(seconds / shape.hosts)} {kind}" for seconds in (ours, theirs))
    return filled(line, theirs / ours, mine, other, f"{shape.hosts:,} equal", figures)


def coupled_row(effort: Effort) -> list[Line]:
    drawn = flavours(effort.coupled)
    problem = CoupledProblem(drawn.value, drawn.level[:, :, None, None], drawn.capacity)
    solution, cpu, _ = timed(lambda: solve_coupled(problem), effort.rounds)
    options, slots, _ = drawn.value.shape
    what = f"2 coupled resources, {slots} VMs, {options} flavours, 128 x 128: mean against HiGHS"
    line = Line("coupled", what, "x", 50, 150, None)

    def compare() -> Line:
        found = ask("highs", flavours_as_models(drawn))
        agree(found, solution.value, solution.status)
        return _ratio(line, found, cpu / effort.coupled)

    return [_or_missing(line, compare)]


def flavours_as_models(drawn: Flavours) -> Models:
    return of_hosts(drawn.value, [one[:, None, None] for one in drawn.level], drawn.capacity.T)


def memory_row(effort: Effort) -> list[Line]:
    """Peak beyond input and output: one process with all hosts in one call, or all workers."""
    problem = fleet(sized(USE, effort.fleet))
    lines = []
    for processes, take in ((1, effort.fleet), (effort.processes, 0)):
        with pool(problem, processes, take) as workers:
            run = workers.run()
        what = f"{effort.fleet:,} hosts, {USE}: extra memory, {processes} processes"
        line = Line("memory", what, "MiB", 100, 60, None, below=True)
        words = "peak resident memory beyond input and output"
        lines.append(filled(line, run.memory_bytes / MIB, "", "", words, {}))
    return lines


ROWS: dict[str, Callable[[Effort], list[Line]]] = {
    "fleet": fleet_row,
    "host": host_row,
    "fine": fine_row,
    "latency": latency_row,
    "tree": tree_row,
    "numba": numba_row,
    "worst": worst_row,
    "coupled": coupled_row,
    "memory": memory_row,
}


# ---- helpers ----


def sized(shape: Shape, hosts: int) -> Shape:
    return replace(shape, hosts=hosts)


@cache  # two rows look at the same hosts
def on_hosts(peer: str, shape: Shape) -> Found:
    problem = fleet(shape)
    return ask(peer, of_hosts(problem.value, [problem.level], problem.capacity[:, None]))


def filled(
    line: Line, measured: float, ours: str, peer: str, instances: str, figures: dict[str, Any]
) -> Line:
    return replace(
        line, measured=measured, ours=ours, peer=peer, instances=instances, figures=figures
    )


def _ratio(line: Line, found: Found, ours_s: float) -> Line:
    figures = found.figures() | {"ours_cpu_s_mean": ours_s}
    return filled(line, statistics.mean(found.cpu_s) / ours_s, micro(ours_s),
                  found.words(), found.count(), figures)  # fmt: skip


def _or_missing(line: Line, compare: Callable[[], Line]) -> Line:
    try:
        return compare()
    except PeerMissingError as error:
        return replace(line, instances=str(error))
