"""How far the allocator is from what NumPy could do at best on this machine, in the same run.

The unit is a pair: one addition and one maximum, the step of a dynamic programme. Its floor is
what NumPy reaches on arrays that stay in the second-level cache, one core, nothing else done.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from allocate_compare import PeerMissingError, ask_numba, micro, timed
from allocate_instances import fleet
from allocate_rows import USE, Effort, sized
from measuring import say, say_table
from numpy.typing import DTypeLike

from controller.core.allocate.block import Memory, blocks_of
from controller.core.allocate.bound import Keys
from controller.core.allocate.problem import Problem
from controller.core.allocate.solve import hosts_at_once, solve
from controller.core.allocate.windows import Core, core_rows

SIZES = (1 << 13, 1 << 14, 1 << 15, 3 << 14, 1 << 16)  # elements of each of three arrays
LASTING_S = 0.05
Row = dict[str, Any]


def floor_table(effort: Effort) -> list[Row]:
    """Prints it; the rows as values."""
    shape = sized(USE, effort.long)
    problem = fleet(shape)
    most = floor_pairs_per_s(np.int32)
    pairs = dense_pairs(problem)
    rows: list[Row] = [
        _row("NumPy's floor: int32 pairs in the cache", 1, 1 / most, most),
        _row("the same in int64", 1, 1 / floor_pairs_per_s(np.int64), most),
        _row("the dense programme at that floor", pairs, pairs / most, most),
    ]
    rows += [_row(what, count, seconds, most) for what, count, seconds in (
        ("one evaluation of the bound", shape.slots * shape.bins, evaluation_s(problem)),
        ("dense rows, as trees need them", pairs, rows_s(problem)),
    )]  # fmt: skip
    try:
        found = ask_numba(problem, 1, max(2, effort.rounds))
        rows.append(_row("numba's dense programme", pairs, min(found["cpu_s"]) / shape.hosts, most))
    except PeerMissingError as error:
        say(f"numba is left out: {error}")
    _, cpu, _ = timed(lambda: solve(problem), effort.rounds)
    reading = best_s(problem.value.max) / shape.hosts
    ours = cpu / shape.hosts
    rows += [_row("reading a host's values once", None, reading, most),
             _row("solve(), all of a host", None, ours, most)]  # fmt: skip
    say(f"Distance to the machine's floor, per host: {shape}, one core")
    cells = [[row["what"], *_cells(row)] for row in rows]
    say_table(["", "pairs", "time", "Gpairs/s", "x the floor's time"], cells)
    say(f"solve() takes {ours * most / pairs:.2f} of the dense programme's time at the floor, and "
        f"{ours / reading:,.0f} times as long as reading its input once\n")  # fmt: skip
    return rows


def _row(what: str, pairs: int | None, seconds: float, floor: float) -> Row:
    rate = None if pairs is None else pairs / seconds
    return {"what": what, "pairs": pairs, "seconds": seconds, "pairs_per_s": rate,
            "times_floor": None if rate is None else floor / rate}  # fmt: skip


def _cells(row: Row) -> list[str]:
    time_ = "-" if row["pairs"] == 1 else micro(row["seconds"])
    if row["pairs"] is None:
        return ["-", time_, "-", "-"]
    return [f"{row['pairs']:,}", time_, f"{row['pairs_per_s'] / 1e9:.2f}",
            f"{row['times_floor']:.2f}"]  # fmt: skip


def floor_pairs_per_s(dtype: DTypeLike) -> float:
    """Of one core, the best of some sizes."""
    rates = []
    for size in SIZES:
        source, scratch, target = (np.ones(size, dtype) for _ in range(3))
        worth = np.ones((), dtype)

        def pair(
            source: Any = source, scratch: Any = scratch, target: Any = target, worth: Any = worth
        ) -> None:
            np.add(source, worth, out=scratch)
            np.maximum(target, scratch, out=target)

        rates.append(size / best_s(pair))
    return max(rates)


def best_s(call: Callable[[], object]) -> float:
    """Least seconds of a call, of as many as fit into a moment."""
    least, end = float("inf"), time.perf_counter() + LASTING_S
    while (began := time.perf_counter()) < end:
        call()
        least = min(least, time.perf_counter() - began)
    return least


def dense_pairs(problem: Problem) -> int:
    """Pairs of one host, of which only capacities that can matter count; for one grid."""
    step = problem.level[:, 0, 0] - problem.level[0, 0, 0]
    slots, widest = problem.slots, int(step[-1])
    room = int(problem.capacity[0]) - slots * int(problem.level[0, 0, 0])
    count = 0
    for slot in range(slots):
        lowest = max(0, room - (slots - 1 - slot) * widest)
        highest = max(lowest, min(room, (slot + 1) * widest))
        count += int(np.maximum(highest + 1 - np.maximum(lowest, step), 0).sum())
    return count


def evaluation_s(problem: Problem) -> float:
    """Of the bound at one price, per host, in blocks of the solver's size."""
    (hosts, block), *_ = blocks_of(problem, 0, hosts_at_once(problem), memory := Memory())
    keys, price = Keys(block, memory), np.full(len(hosts), 100, dtype=np.int64) << block.shift
    return best_s(lambda: keys.best(price)) / len(hosts)


def rows_s(problem: Problem) -> float:
    """Of all rows of the dynamic programme, per host."""
    some = problem.of(slice(0, 256))
    level = np.broadcast_to(some.level, some.value.shape).transpose(1, 0, 2).astype(np.int64)
    value = some.value.transpose(1, 0, 2).astype(np.int64)
    room = some.capacity - level[:, 0].sum(axis=0)
    core = Core(level - level[:, :1], value - value[:, :1], room, room)
    return best_s(lambda: core_rows(core)) / some.hosts
