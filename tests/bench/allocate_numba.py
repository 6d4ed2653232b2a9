"""The dense dynamic programme as one would write it for numba: run by the peers' own Python.

`python allocate_numba.py HOSTS.npz RESULTS.json --threads 2`. For a fleet with one grid and one
capacity, in int32: for every VM and every capacity that can matter the best over all bins, in tiles
of capacities that stay in the vector registers (the fastest of four ways tried, by a factor of two
to ten); choices are found by going back. Compiled and warmed up before the clock; hosts are shared
out among the threads.
"""

import argparse
import json
import time
from pathlib import Path

import numba
import numpy as np

TILE = 128
SHARE = 64  # hosts of a thread at once
NEVER = -(1 << 29)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("hosts", type=Path)
    parser.add_argument("results", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    threads = min(options.threads, numba.config.NUMBA_NUM_THREADS)
    numba.set_num_threads(threads)
    with np.load(options.hosts) as arrays:
        value = np.ascontiguousarray(arrays["value"].transpose(2, 1, 0))  # (h, n, b): its layout
        level, capacity = arrays["level"].ravel(), int(arrays["capacity"][0])
        assert (arrays["capacity"] == capacity).all(), "one capacity for all hosts"
    step = (level - level[0]).astype(np.int64)
    room = capacity - value.shape[1] * int(level[0])
    best, chosen = np.zeros(len(value), np.int64), np.zeros(value.shape[:2], np.uint8)
    solve(value[:SHARE], step, room, best, chosen)
    walls, cpus = [], []
    for _ in range(options.rounds):
        wall, cpu = time.perf_counter(), time.process_time()
        solve(value, step, room, best, chosen)
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    found = {"version": f"numba {numba.__version__}", "threads": threads, "wall_s": walls,
             "cpu_s": cpus, "value": best.tolist()}  # fmt: skip
    options.results.write_text(json.dumps(found))


@numba.njit(parallel=True, boundscheck=False)
def solve(value, step, room, best, chosen):  # type: ignore[no-untyped-def]
    """value (h, n, b), step (b,) quanta above the least; writes best (h,) and chosen (h, n)."""
    hosts, slots, _ = value.shape
    widest = step[-1]
    for share in numba.prange((hosts + SHARE - 1) // SHARE):
        rows = np.full((slots + 1, widest + room + 1 + TILE), NEVER, np.int32)
        rows[0, widest:] = 0
        tile = np.empty(TILE, np.int32)
        for host in range(share * SHARE, min(hosts, share * SHARE + SHARE)):
            for slot in range(slots):
                lowest, highest = window(slot, slots, widest, room)
                add(rows[slot], rows[slot + 1], value[host, slot], step, lowest, highest, tile)
            best[host] = rows[slots, widest + room]
            go_back(rows, value[host], step, room, chosen[host])


@numba.njit
def window(slot, slots, widest, room):  # type: ignore[no-untyped-def]
    """Which capacities can matter once the first slots have been given something."""
    lowest = max(0, room - (slots - 1 - slot) * widest)
    return lowest, max(lowest, min(room, (slot + 1) * widest))


@numba.njit(boundscheck=False)
def add(before, after, value, step, lowest, highest, tile):  # type: ignore[no-untyped-def]
    """after[c] = max_j before[c - step_j] + value_j; both begin with step[-1] places of NEVER.

    Always whole tiles: the last one runs over into places that are written again after it.
    """
    widest = step[-1]
    for start in range(lowest, highest + 1, TILE):
        source = before[widest + start : widest + start + TILE]
        worth = value[0]
        for k in range(TILE):
            tile[k] = source[k] + worth
        for j in range(1, len(step)):
            place, worth = widest + start - step[j], value[j]
            source = before[place : place + TILE]
            for k in range(TILE):
                tile[k] = max(tile[k], np.int32(source[k] + worth))
        target = after[widest + start : widest + start + TILE]
        for k in range(TILE):
            target[k] = tile[k]
    most = after[widest + highest]
    for c in range(widest + highest + 1, len(after)):
        after[c] = most


@numba.njit(boundscheck=False)
def go_back(rows, value, step, room, chosen):  # type: ignore[no-untyped-def]
    """Which bin led to the best value of each slot, from the last to the first."""
    left, widest = room, step[-1]
    for slot in range(len(chosen) - 1, -1, -1):
        most = np.int64(NEVER) * 2
        for j in range(len(step)):
            worth = np.int64(rows[slot, widest + left - step[j]]) + value[slot, j]
            if worth > most:
                most, chosen[slot] = worth, j
        left -= step[chosen[slot]]


if __name__ == "__main__":
    main()
