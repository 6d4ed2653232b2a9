"""Demand of real VMs from traces: run by the peers' own Python, which has polars.

`python allocate_traces.py DIRECTORY RESULTS.npz`. For each trace and resource, per VM: the peaks of
72 periods of ten minutes from the middle of its record, and its size. CPU in millicores (a VM of
unknown size counts as one core), memory in MiB. VMs with fewer periods are left out.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

PERIOD_S = 600  # the horizon of a decision
PERIODS = 72
CORE_MILLICORES, MIB = 1000, 1 << 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("results", type=Path)
    options = parser.parse_args()
    arrays: dict[str, Any] = {}
    for path in sorted(options.directory.glob("*.parquet")):
        frame = pl.scan_parquet(path)
        known = frame.collect_schema().names()
        if not {"vm_id", "ts", "cpu_util"} <= set(known):
            continue  # arrivals, or means of a whole fleet
        cores = pl.col("cap_cores").cast(pl.Float64).fill_null(1.0) * CORE_MILLICORES
        kinds = {"CPU": (pl.col("cpu_util").cast(pl.Float64) * cores, cores),
                 "memory": (pl.col("mem_bytes") / MIB, pl.col("cap_mem_bytes") / MIB)}  # fmt: skip
        for kind, (used, size) in kinds.items():
            found = demand(frame, used, size)
            if found is not None:
                name = f"{path.stem.split('_')[0]} {kind}"
                arrays[f"{name}/demand"], arrays[f"{name}/size"] = found
    np.savez(options.results, **arrays)


def demand(
    frame: pl.LazyFrame, used: pl.Expr, size: pl.Expr
) -> tuple[np.ndarray, np.ndarray] | None:
    """(v, PERIODS) peaks and (v,) sizes; None where the trace does not have the resource."""
    middle = (pl.col("peak").len() - PERIODS) // 2
    vms = (
        frame.select("vm_id", pl.col("ts") // PERIOD_S, used.alias("used"), size.alias("size"))
        .drop_nulls()
        .group_by("vm_id", "ts")
        .agg(pl.col("used").max().alias("peak"), pl.col("size").max())
        .sort("vm_id", "ts")
        .group_by("vm_id", maintain_order=True)
        .agg(pl.col("peak").len().alias("periods"), pl.col("peak").slice(middle, PERIODS),
             pl.col("size").max())
        .filter((pl.col("periods") >= PERIODS) & (pl.col("size") > 0))
        .collect()
    )  # fmt: skip
    if vms.is_empty():
        return None
    peaks = np.array(vms["peak"].to_list())
    return np.minimum(peaks, vms["size"].to_numpy()[:, None]), vms["size"].to_numpy()


if __name__ == "__main__":
    main()
