"""A fleet's hosts shared out among processes, input and output in shared memory.

Threads would wait for each other at the interpreter's lock, since the solver makes many short
calls. Workers are started, and have touched their memory, before the clock; then each takes the
next few hosts until none are left, so that a slow one holds nobody up. Hosts are independent: any
sharing gives the same solution.
"""

import multiprocessing
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from controller.core.allocate.problem import Problem, Solution
from controller.core.allocate.solve import solve

BLOCK = 128  # hosts that the solver takes together; so many are solved before the clock
TAKE_MOST = 10 * BLOCK  # hosts at a time: more saves little and waits longer for the last
SHARES = 4  # of a worker at least, so that a slow one does less
READY_S, DONE_S = 60.0, 600.0

Arrays = dict[str, NDArray[Any]]
Shapes = dict[str, tuple[str, tuple[int, ...]]]


@dataclass(frozen=True, slots=True)
class Run:
    """One solution of the whole fleet."""

    wall_s: float
    solution: Solution
    cpu_s: float  # of all workers together
    memory_bytes: int  # at its peak, all together, beyond what workers had before any solving


@contextmanager
def pool(problem: Problem, processes: int, take: int = 0) -> Iterator["Pool"]:
    """Workers that are ready to solve `problem`, `take` hosts at a time, while the block lasts."""
    n, h = problem.slots, problem.hosts
    take = take or min(TAKE_MOST, -(-h // (SHARES * processes * BLOCK)) * BLOCK)
    inputs = {name: getattr(problem, name) for name in ("value", "level", "capacity")}
    outputs = {name: np.empty(h, np.int64) for name in ("value", "bound", "price", "shift")}
    outputs |= {"bin": np.empty((n, h), np.uint8), "status": np.empty(h, np.uint8)}
    arrays = inputs | {f"out_{name}": array for name, array in outputs.items()}
    shapes = {name: (array.dtype.str, array.shape) for name, array in arrays.items()}
    memory = SharedMemory(create=True, size=sum(_size(*shape) for shape in shapes.values()))
    try:
        views = _views(memory, shapes)
        for name, array in inputs.items():
            views[name][:] = array
        started = Pool(views, _Workers(processes, (take, memory.name, shapes)))
        try:
            yield started
        finally:
            started.close()
            del views, started  # the segment cannot be closed while arrays look into it
    finally:
        memory.close()
        memory.unlink()


class _Workers:
    def __init__(self, processes: int, what: tuple[int, str, Shapes]) -> None:
        context = multiprocessing.get_context("spawn")
        self.next = context.Value("q", 0)
        self.ends: list[Connection] = []
        self.processes = []
        for _ in range(processes):
            here, there = context.Pipe()
            process = context.Process(target=_work, args=(there, self.next, *what))
            process.daemon = True
            process.start()
            there.close()
            self.ends.append(here)
            self.processes.append(process)
        self.replies(READY_S)

    def replies(self, within_s: float) -> list[tuple[float, int]]:
        """CPU seconds and bytes from each; EOFError when one has died, TimeoutError after that."""
        deadline = time.monotonic() + within_s
        for end in self.ends:
            if not end.poll(max(0.0, deadline - time.monotonic())):
                raise TimeoutError(f"a worker has not answered within {within_s:g} s")
        return [end.recv() for end in self.ends]


class Pool:
    """See `pool`."""

    def __init__(self, views: Arrays, workers: _Workers) -> None:
        self._views, self._workers = views, workers

    def run(self) -> Run:
        self._workers.next.value = 0
        began = time.perf_counter()
        for end in self._workers.ends:
            end.send(True)
        replies = self._workers.replies(DONE_S)
        wall = time.perf_counter() - began
        cpus, memory = zip(*replies, strict=True)
        found = {
            name.removeprefix("out_"): array.copy()
            for name, array in self._views.items()
            if name.startswith("out_")
        }
        return Run(wall, Solution(**found), sum(cpus), sum(memory))

    def close(self) -> None:
        for end in self._workers.ends:
            end.close()  # a worker ends when nobody can ask it any more
        for process in self._workers.processes:
            process.join()
        self._views.clear()


def _work(orders: Connection, upcoming: Any, take: int, segment: str, shapes: Shapes) -> None:
    memory = SharedMemory(name=segment)
    views = _views(memory, shapes)
    for array in views.values():  # what is shared is not to be counted as extra
        array.max(initial=0)
    problem = Problem(views["value"], views["level"], views["capacity"])
    before = _forget_peak()
    solve(problem.of(slice(0, BLOCK)))
    try:
        orders.send((0.0, 0))
        while orders.recv():
            cpu = time.process_time()
            _take(problem, views, upcoming, take)
            orders.send((time.process_time() - cpu, _status_bytes("VmHWM") - before))
    except (EOFError, ConnectionError):
        pass  # the pool was closed
    finally:
        del problem, views, array
        memory.close()


def _take(problem: Problem, views: Arrays, upcoming: Any, take: int) -> None:
    while True:
        with upcoming.get_lock():
            start, upcoming.value = upcoming.value, upcoming.value + take
        if start >= problem.hosts:
            return
        hosts = slice(start, start + take)
        solution = solve(problem.of(hosts))
        for name, array in views.items():
            if name.startswith("out_"):
                array[..., hosts] = getattr(solution, name.removeprefix("out_"))


def _views(memory: SharedMemory, shapes: Shapes) -> Arrays:
    views, place = {}, 0
    for name, (dtype, shape) in shapes.items():
        views[name] = np.ndarray(shape, dtype=dtype, buffer=memory.buf, offset=place)
        place += _size(dtype, shape)
    return views


def _size(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes, in whole cache lines."""
    return -(-np.dtype(dtype).itemsize * int(np.prod(shape)) // 64) * 64


def _forget_peak() -> int:
    """Starts the kernel's peak of this process anew; bytes that it has now."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status_bytes("VmRSS")


def _status_bytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":"))
