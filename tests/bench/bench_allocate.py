"""How fast the exact allocator is beside what else one would use, and how far from the machine.

`python tests/bench/bench_allocate.py [--row host --row tree] [--quick] [--json FILE]
[--traces DIR]`. Three tables: speed against CP-SAT, HiGHS and numba with equal optima asserted;
the distance to what NumPy could do at best on this machine; what simpler rules lose on demand from
real traces (`make bench TRACES=DIR`). The peers run in processes and an environment of their own,
which `make bench` sets up.
"""

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from allocate_compare import ENVIRONMENT, Line
from allocate_floor import floor_table
from allocate_quality import quality_table
from allocate_rows import QUICK, ROWS, Effort
from measuring import machine, say, say_table

TABLES = (*ROWS, "floor", "quality")


def main() -> None:
    options = _options()
    wanted = options.row or TABLES
    effort = QUICK if options.quick else Effort()
    say(machine())
    if options.quick:
        say("--quick: too few instances for the figures to mean anything")
    lines = speed(effort, [row for row in ROWS if row in wanted])
    floor = floor_table(effort) if "floor" in wanted else []
    quality = quality_table(options.traces, options.quick) if "quality" in wanted else []
    say(f"load {os.getloadavg()[0]:.1f} at the end")
    if options.json:
        found = {"machine": machine(), "speed": [asdict(line) for line in lines],
                 "floor": floor, "quality": quality}  # fmt: skip
        options.json.write_text(json.dumps(found, indent=1))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--row", choices=TABLES, action="append", help="only this; repeatable")
    parser.add_argument("--quick", action="store_true", help="so few instances that it only runs")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--traces", type=Path, help="folder of *.parquet with real demand")
    return parser.parse_args()


def speed(effort: Effort, rows: Sequence[str]) -> list[Line]:
    """Measures the rows, prints them in one table."""
    if not rows:
        return []
    say(f"peers in {ENVIRONMENT}\n")
    lines = [line for row in rows for line in ROWS[row](effort)]
    say("Speed. CPU time unless said otherwise; x: so many times faster than the peer")
    heads = ["", "gate", "stretch", "measured", "reached", "ours", "peer", "instances"]
    say_table(heads, [_cells(line) for line in lines])
    return lines


def _cells(line: Line) -> list[str]:
    sign = "<=" if line.below else ">="
    measured = "-" if line.measured is None else _amount(line.measured, line.unit)
    return [
        f"{line.row}: {line.what}",
        f"{sign} {_amount(line.gate, line.unit)}",
        _amount(line.stretch, line.unit),
        measured,
        line.reached(),
        line.ours or "-",
        line.peer or "-",
        line.instances,
    ]


def _amount(amount: float, unit: str) -> str:
    if unit == "x":
        return f"{amount:,.0f}x" if amount >= 20 else f"{amount:.3g}x"
    return f"{amount:.3g} {unit}"


if __name__ == "__main__":
    main()
