"""What the allocator's rows share: peers asked in their own processes, optima compared, one line.

The peers live in an environment of their own, `.venv/peers`, which `make bench` sets up from the
group `peers` of pyproject.toml. A peer that is missing there is named in the table.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from allocate_models import Models
from measuring import BenchError
from numpy.typing import NDArray

from controller.core.allocate.problem import Problem, Status

T = TypeVar("T")

HERE = Path(__file__).parent
ENVIRONMENT = Path(sys.prefix) / "peers"
PEERS = {"cpsat": "CP-SAT", "highs": "HiGHS", "numba": "numba"}
LIMIT_S = 60.0  # of a peer per instance; what it has not proven by then counts as having taken that


class PeerMissingError(BenchError):
    """The peers' environment lacks what a row needs."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the table. `gate` and `stretch` are the least that is wanted, or the most."""

    row: str
    what: str
    unit: str  # x: times faster than the peer
    gate: float
    stretch: float
    measured: float | None  # None: the peer is missing
    ours: str = ""
    peer: str = ""
    instances: str = ""
    below: bool = False  # the most
    figures: dict[str, Any] = field(default_factory=dict)  # in full, for the JSON file

    def reached(self) -> str:
        if self.measured is None:
            return "not measured"
        for name, bound in (("stretch", self.stretch), ("gate", self.gate)):
            if self.measured <= bound if self.below else self.measured >= bound:
                return name
        return "MISSED"


@dataclass(frozen=True, slots=True)
class Found:
    """What a solver of mixed-integer programmes made of some instances; a place for each."""

    version: str
    value: list[int | None]
    proven: list[bool]
    build_s: list[float]
    solve_s: list[float]
    cpu_s: list[float]

    def first(self, count: int) -> "Found":
        """The same for the first instances alone."""
        lists = {name: getattr(self, name)[:count] for name in self.__slots__ if name != "version"}
        return replace(self, **lists)

    def words(self) -> str:
        mean, median = statistics.mean(self.cpu_s), statistics.median(self.cpu_s)
        return f"{milli(mean)} mean, {milli(median)} median"

    def count(self) -> str:
        return f"{sum(self.proven)}/{len(self.proven)} proven and equal"

    def figures(self) -> dict[str, Any]:
        return {"peer": self.version, "proven": sum(self.proven), "instances": len(self.proven),
                "peer_build_s_mean": statistics.mean(self.build_s),
                "peer_cpu_s_mean": statistics.mean(self.cpu_s),
                "peer_cpu_s_median": statistics.median(self.cpu_s),
                "peer_wall_s_mean": statistics.mean(self.solve_s),
                "peer_wall_s_median": statistics.median(self.solve_s),
                "peer_wall_s_most": max(self.solve_s)}  # fmt: skip


def ask(peer: str, models: Models, limit_s: float = LIMIT_S) -> Found:
    """Every instance, one after the other, on one thread."""

    def save(path: Path) -> None:
        models.save(path)

    return Found(**_run(peer, "allocate_peers.py", save, "--limit", f"{limit_s:g}"))


def ask_numba(problem: Problem, threads: int, rounds: int) -> dict[str, Any]:
    """Seconds of each round, and the value of each host."""

    def save(path: Path) -> None:
        np.savez(path, value=problem.value, level=problem.level, capacity=problem.capacity)

    words = ("--threads", str(threads), "--rounds", str(rounds))
    return _run("numba", "allocate_numba.py", save, *words)


def _run(peer: str, script: str, save: Callable[[Path], None], *words: str) -> dict[str, Any]:
    python = peers_python()
    with tempfile.TemporaryDirectory(prefix="hrapaq-bench-") as name:
        instances, results = Path(name) / "instances.npz", Path(name) / "results.json"
        save(instances)
        which = [] if peer == "numba" else [peer]
        command = [str(python), str(HERE / script), *which, str(instances), str(results), *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if "ModuleNotFoundError" in done.stderr:
            raise PeerMissingError(f"{PEERS[peer]} is not installed in {ENVIRONMENT}")
        if done.returncode:
            raise BenchError(f"{PEERS[peer]} failed:\n{done.stderr[-2000:]}")
        found: dict[str, Any] = json.loads(results.read_text())
        return found


def peers_python() -> Path:
    python = ENVIRONMENT / "bin" / "python"
    if not python.exists():
        raise PeerMissingError(f"there is no {ENVIRONMENT}: `make bench` sets it up")
    return python


def agree(found: Found, value: NDArray[np.int64], status: NDArray[np.uint8]) -> None:
    """BenchError unless we claim the optimum everywhere and every proven one is the same."""
    claim_optimum(status)
    for place, (theirs, proven) in enumerate(zip(found.value, found.proven, strict=True)):
        ours = int(value[place])
        if proven and theirs != ours:
            raise BenchError(f"instance {place}: {found.version} proves {theirs}, we {ours}")
        if theirs is not None and theirs > ours:
            raise BenchError(f"instance {place}: {found.version} has {theirs}, we only {ours}")


def claim_optimum(status: NDArray[np.uint8]) -> None:
    if (status > Status.OPTIMAL_BY_SEARCH).any():
        raise BenchError(f"{int((status > Status.OPTIMAL_BY_SEARCH).sum())} hosts are not optimal")


def timed(call: Callable[[], T], rounds: int) -> tuple[T, float, float]:
    """The last result, least CPU seconds, least wall seconds; one round before the clock."""
    result = call()
    walls, cpus = [], []
    for _ in range(rounds):
        wall, cpu = time.perf_counter(), time.process_time()
        result = call()
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    return result, min(cpus), min(walls)


def milli(seconds: float) -> str:
    return f"{1e3 * seconds:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


def micro(seconds: float) -> str:
    return f"{1e6 * seconds:,.1f} us" if seconds < 1e-3 else f"{1e3 * seconds:,.2f} ms"
