"""CP-SAT and HiGHS on the same instances: run by the peers' own Python, one peer per process.

`python allocate_peers.py cpsat|highs MODELS.npz RESULTS.json [--limit 60]`. A process of its own
for each, because HiGHS finds the wrong symbols once OR-Tools has been imported; an environment of
their own, because OR-Tools wants an older protobuf than the project. Both run with one thread, to
a proven optimum of the integer objective. Time to build the model is kept apart.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from allocate_models import Models, load


@dataclass(slots=True)
class Found:
    """Lists with a place per instance; seconds."""

    version: str
    value: list[int | None] = field(default_factory=list)
    proven: list[bool] = field(default_factory=list)
    build_s: list[float] = field(default_factory=list)
    solve_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)  # of solving


# What one peer does with one instance: builds, and gives what solves.
Answer = tuple[int | None, bool]
Build = Callable[[Models, int, float], Callable[[], Answer]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("models", type=Path)
    parser.add_argument("results", type=Path)
    parser.add_argument("--limit", type=float, default=60.0, help="seconds per instance")
    options = parser.parse_args()
    prepare, version = PEERS[options.peer]()
    found = run(prepare, version, load(options.models), options.limit)
    options.results.write_text(json.dumps(asdict(found)))


def run(build: Build, version: str, models: Models, limit_s: float) -> Found:
    build(models, 0, limit_s)()  # the first call of a library costs more than the others
    found = Found(version)
    for place in range(len(models)):
        began = time.perf_counter()
        solve = build(models, place, limit_s)
        built, cpu = time.perf_counter(), time.process_time()
        value, proven = solve()
        found.solve_s.append(time.perf_counter() - built)
        found.cpu_s.append(time.process_time() - cpu)
        found.build_s.append(built - began)
        found.value.append(value)
        found.proven.append(proven)
    return found


# ---- OR-Tools CP-SAT ----


def cpsat() -> tuple[Build, str]:
    import ortools  # noqa: PLC0415 - only in this peer's process
    from ortools.sat.python import cp_model  # noqa: PLC0415

    def build(models: Models, place: int, limit_s: float) -> Callable[[], Answer]:
        model = cp_model.CpModel()
        taken = [model.new_bool_var("") for _ in range(models.value.shape[1])]
        edges = models.group_first.tolist()
        for start, stop in pairwise(edges):
            if stop > start:
                model.add_exactly_one(taken[start:stop])
        weight, limit = models.row_weight[place].tolist(), models.row_limit[place].tolist()
        for row, most in enumerate(limit):
            span = slice(int(models.row_first[row]), int(models.row_first[row + 1]))
            those = [taken[option] for option in models.row_option[span].tolist()]
            model.add(cp_model.LinearExpr.weighted_sum(those, weight[span]) <= most)
        worth = models.value[place].tolist()
        model.maximize(cp_model.LinearExpr.weighted_sum(taken, worth))
        solver = cp_model.CpSolver()
        solver.parameters.num_workers = 1
        solver.parameters.max_time_in_seconds = limit_s

        def solve() -> Answer:
            status = solver.solve(model)
            known = status in {cp_model.OPTIMAL, cp_model.FEASIBLE}
            return round(solver.objective_value) if known else None, status == cp_model.OPTIMAL

        return solve

    return build, f"OR-Tools CP-SAT {ortools.__version__}"


# ---- HiGHS ----


def highs() -> tuple[Build, str]:
    import highspy  # noqa: PLC0415 - only in this peer's process

    settings: dict[str, Any] = {
        "output_flag": False,
        "threads": 1,
        "parallel": "off",
        "mip_rel_gap": 0.0,  # the default of 1e-4 is no proof
        "mip_abs_gap": 0.5,  # enough for integers
        "mip_allow_restart": False,  # measured: up to twice as fast here, never slower
    }

    def build(models: Models, place: int, limit_s: float) -> Callable[[], Answer]:
        solver = highspy.Highs()
        for name, setting in {**settings, "time_limit": limit_s}.items():
            solver.setOptionValue(name, setting)
        solver.passModel(_programme(highspy, models, place))

        def solve() -> Answer:
            solver.run()
            info = solver.getInfo()
            optimal = solver.getModelStatus() == highspy.HighsModelStatus.kOptimal
            known = info.primal_solution_status == highspy.SolutionStatus.kSolutionStatusFeasible
            return round(-info.objective_function_value) if known else None, optimal

        return solve

    return build, f"HiGHS {highspy.Highs().version()}"


def _programme(highspy: Any, models: Models, place: int) -> Any:
    options, edges = models.value.shape[1], models.group_first
    groups = np.flatnonzero(np.diff(edges))
    group_first = np.append(edges[groups], options)
    limits = models.row_limit[place].astype(np.float64)
    programme = highspy.HighsLp()
    programme.num_col_, programme.num_row_ = options, len(groups) + len(limits)
    programme.col_cost_ = -models.value[place].astype(np.float64)
    programme.col_lower_, programme.col_upper_ = np.zeros(options), np.ones(options)
    programme.row_lower_ = np.append(np.ones(len(groups)), np.full(len(limits), -highspy.kHighsInf))
    programme.row_upper_ = np.append(np.ones(len(groups)), limits)
    matrix = programme.a_matrix_
    matrix.format_ = highspy.MatrixFormat.kRowwise
    matrix.start_ = np.append(group_first[:-1], options + models.row_first).astype(np.int32)
    matrix.index_ = np.append(np.arange(options), models.row_option).astype(np.int32)
    matrix.value_ = np.append(np.ones(options), models.row_weight[place].astype(np.float64))
    programme.integrality_ = [highspy.HighsVarType.kInteger] * options
    return programme


PEERS: dict[str, Callable[[], tuple[Build, str]]] = {"cpsat": cpsat, "highs": highs}

if __name__ == "__main__":
    main()
