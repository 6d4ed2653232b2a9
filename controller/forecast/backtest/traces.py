"""Traces of real VMs from parquet files, brought onto one regular grid; what is not there is NaN.

Columns: `vm_id`, `ts` (unix seconds at which a step starts) and, per resource, what `NEEDS` says.
Shares: 1.0 is what the VM is allotted.

- cpu: `cpu_util`; memory: `mem_util`, or `mem_bytes` over `cap_mem_bytes` where that is null.
- io: bytes read and written; net: bytes received and sent, both per second. The schema has no
  capacity for these, so 1.0 is the VM's own 99.9th percentile of the 24 h since it was first seen,
  at least `RATE_FLOOR`. Within those 24 h the scale knows what is still to come; it is a unit, and
  the same for every predictor.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from controller.core.state import Bools, Floats, Ints
from shared.errors import HrapaqError

Shares = NDArray[np.float32]
RESOURCE_NAMES = ("cpu", "memory", "io", "net")
# Per resource the alternatives, each a set of columns that is enough.
NEEDS: dict[str, tuple[tuple[str, ...], ...]] = {
    "cpu": (("cpu_util",),),
    "memory": (("mem_util",), ("mem_bytes", "cap_mem_bytes")),
    "io": (("disk_read_Bps", "disk_write_Bps"),),
    "net": (("net_rx_Bps", "net_tx_Bps"),),
}
STEPS_S = (30, 60, 300)
RATE_FLOOR = 100_000.0  # bytes/s: less is a VM that does nothing on its first day
_RATES = ("io", "net")
_DAY_S = 86_400
_ISLAND_S = 45 * _DAY_S  # rows that lie this far from all others had a wrong clock
_SHARE_MAX = 4.0  # half of the values above it: they are hardly shares
_CELLS_MAX = 1 << 29  # of a grid; 2 GiB as float32


class TraceError(HrapaqError):
    """A file is not a trace of the documented form; the text names file and column."""


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """One resource of v VMs on a grid of t steps."""

    name: str
    resource: str
    vm_ids: tuple[str, ...]
    start_s: int  # unix time at which the first step starts
    step_s: int
    share: Shares  # (v, t), NaN: not seen
    others: Shares  # (v, 3, t) the other resources in the order of `RESOURCE_NAMES`
    late_s: NDArray[np.int16]  # (v, t) by how much the source's own time is after the grid's
    notes: tuple[str, ...] = field(default=())  # what was left out, and why

    @property
    def steps(self) -> int:
        return int(self.share.shape[1])

    def part(self, rows: Ints, first: int = 0, stop: int | None = None) -> "Trace":
        """Some VMs, and the steps from `first` up to but not `stop`."""
        stop = self.steps if stop is None else stop
        wide = self.others.strides[-1] == 0  # nothing there: do not write it out
        others = _nothing(len(rows), stop - first) if wide else self.others[rows, :, first:stop]
        return replace(
            self,
            vm_ids=tuple(self.vm_ids[row] for row in rows),
            start_s=self.start_s + first * self.step_s,
            share=self.share[rows, first:stop],
            others=others,
            late_s=self.late_s[rows, first:stop],
        )


def read_trace(path: Path, resource: str, *, with_others: bool = True) -> Trace:
    """Reads one file. Errors: `TraceError` where it is no trace or lacks the resource."""
    columns = _columns(path, resource)
    asked = [each for each in RESOURCE_NAMES if each == resource or with_others]
    given = [each for each in asked if _choice(columns, each) is not None]
    rows, notes = _rows(path, given, columns)
    code = np.cumsum(_changes(rows["vm_id"]), dtype=np.int64) - 1
    ts = rows["ts"].to_numpy()
    step_s = _step(path, code, ts)
    start_s, place = _places(code, ts, step_s)
    vm_ids = tuple(rows["vm_id"].to_numpy()[_changes(rows["vm_id"])].tolist())
    shape = (len(vm_ids), int(place.max()) + 1)
    if shape[0] * shape[1] > _CELLS_MAX:
        raise TraceError(
            f"{path}: {shape[0]} VMs over {shape[1]} steps of {step_s} s do not fit into memory; "
            "split the file by VM"
        )
    grids = {each: _grid(rows[each].to_numpy(), code, place, shape) for each in given}
    for each in set(_RATES) & set(given):
        _scale(grids[each], step_s)
    if not np.isfinite(grids[resource]).any():
        raise TraceError(
            f"{path}: {resource} has no values: its columns hold nothing, or nothing that is "
            "finite and at least 0 (and of memory, no capacity above 0)"
        )
    notes += _of_percent(grids[resource])
    late = np.zeros(shape, dtype=np.int16)
    late[code, place] = np.clip(ts - start_s - place * step_s, -32768, 32767)
    return Trace(
        name=path.stem,
        resource=resource,
        vm_ids=vm_ids,
        start_s=start_s,
        step_s=step_s,
        share=grids[resource],
        others=_others(grids, resource, shape),
        late_s=late,
        notes=notes,
    )


def _of_percent(share: Shares) -> tuple[str, ...]:
    middle = float(np.nanmedian(share))
    if middle <= _SHARE_MAX:
        return ()
    return (f"half of all shares are above {middle:.0f}: 1.0 is the whole allotment, not 1 %",)


def _columns(path: Path, resource: str) -> frozenset[str]:
    """Names of the columns; an error names those that are missing."""
    try:
        names = pl.scan_parquet(path).collect_schema().names()
    except (OSError, pl.exceptions.PolarsError) as error:
        raise TraceError(f"{path}: cannot be read as parquet: {error}") from error
    columns = frozenset(names)
    missing = [name for name in ("vm_id", "ts") if name not in columns]
    if _choice(columns, resource) is None:
        missing.append(" or ".join(" + ".join(each) for each in NEEDS[resource]))
    if missing:
        raise TraceError(
            f"{path}: {resource} needs the columns that are missing here: {', '.join(missing)}; "
            f"there are {', '.join(names)}"
        )
    return columns


def _choice(columns: frozenset[str], resource: str) -> tuple[str, ...] | None:
    enough = (each for each in NEEDS[resource] if columns.issuperset(each))
    return next(enough, None)


def _rows(
    path: Path, resources: list[str], columns: frozenset[str]
) -> tuple[pl.DataFrame, tuple[str, ...]]:
    """vm_id, ts and a column per resource, ordered by both, one row for each pair: the last."""
    frame = pl.scan_parquet(path).select(
        pl.col("vm_id").cast(pl.String),
        _seconds(path),
        *(_share(each, columns).cast(pl.Float32).alias(each) for each in resources),
    )
    try:
        read = frame.collect()
    except (OSError, pl.exceptions.PolarsError) as error:
        raise TraceError(f"{path}: a column is not of the documented type: {error}") from error
    whole = read.drop_nulls(["vm_id", "ts"])
    placed = _one_island(whole)
    once = placed.unique(["vm_id", "ts"], keep="last", maintain_order=True).sort("vm_id", "ts")
    if once.is_empty():
        raise TraceError(f"{path}: there is no row with both vm_id and ts")
    counts = {
        "without vm_id or ts": len(read) - len(whole),
        "whose time lies months from all others": len(whole) - len(placed),
        "of a VM and time that were given again (the last counts)": len(placed) - len(once),
    }
    return once, tuple(f"left out {n} rows {why}" for why, n in counts.items() if n)


def _seconds(path: Path) -> pl.Expr:
    """`ts` as unix seconds, from whole numbers, text that is one, or dates."""
    ts = pl.col("ts")
    is_date = pl.read_parquet_schema(path)["ts"].is_temporal()
    return ts.cast(pl.Datetime("us")).dt.epoch("s") if is_date else ts.cast(pl.Int64)


def _share(resource: str, columns: frozenset[str]) -> pl.Expr:
    """Shares, or bytes/s for rates; null where nothing sensible was said."""
    if resource == "cpu":
        value = _number("cpu_util")
    elif resource in _RATES:
        one, two = NEEDS[resource][0]
        value = _number(one) + _number(two)
    else:
        ways = []
        if "mem_util" in columns:
            ways.append(_number("mem_util"))
        if columns.issuperset(NEEDS["memory"][1]):
            capacity = _number("cap_mem_bytes")
            # A capacity of 0 is one that nobody told.
            ways.append(_number("mem_bytes") / pl.when(capacity > 0).then(capacity))
        value = pl.coalesce(ways)
    return value


def _number(name: str) -> pl.Expr:
    value = pl.col(name).cast(pl.Float64)
    return pl.when(value.is_finite() & (value >= 0)).then(value)


def _one_island(frame: pl.DataFrame) -> pl.DataFrame:
    """Without the rows that lie `_ISLAND_S` or more from where most of them are."""
    times = frame["ts"].unique().sort()
    cuts = times.filter(times.diff().fill_null(0) >= _ISLAND_S).to_list()
    if not cuts:
        return frame
    island = np.searchsorted(np.array(cuts), frame["ts"].to_numpy(), side="right")
    return frame.filter(pl.Series(island == np.bincount(island).argmax()))


def _changes(vm_id: pl.Series) -> Bools:
    """Where a VM's first row is."""
    return (vm_id != vm_id.shift()).fill_null(value=True).to_numpy()


def _step(path: Path, code: Ints, ts: Ints) -> int:
    """The most common distance between two rows of a VM, in seconds."""
    distance = np.diff(ts)[np.diff(code) == 0]
    if not len(distance):
        raise TraceError(f"{path}: no VM has two rows, so that there is no step")
    values, counts = np.unique(distance, return_counts=True)
    step = int(values[counts.argmax()])
    if step not in STEPS_S:
        known = ", ".join(map(str, STEPS_S))
        hint = ""
        if step % 1000 == 0 and step // 1000 in STEPS_S:
            hint = "; `ts` counts seconds, these look like milliseconds"
        raise TraceError(
            f"{path}: its rows are mostly {step} s apart; known steps: {known} s{hint}"
        )
    return step


def _places(code: Ints, ts: Ints, step_s: int) -> tuple[int, Ints]:
    """Start of the grid and each row's place on it.

    A source's clock drifts: rows 300.1 s apart would now and then share a step and leave the next
    empty. So rows that follow each other by about a step take places that follow each other, and
    the first after a gap takes the place that its time says.
    """
    start_s = int(ts.min())
    by_clock = (ts - start_s + step_s // 2) // step_s
    since = np.diff(ts, prepend=0)
    follows = np.diff(code, prepend=-1) == 0
    follows &= (2 * since > step_s) & (2 * since < 3 * step_s)
    rows = np.arange(len(ts))
    anchor = np.maximum.accumulate(np.where(follows, 0, rows))
    return start_s, by_clock[anchor] + rows - anchor


def _grid(value: Shares, code: Ints, place: Ints, shape: tuple[int, int]) -> Shares:
    grid = np.full(shape, np.nan, dtype=np.float32)
    grid[code, place] = value  # of rows in one place the last stays
    return grid


def _scale(rate: Shares, step_s: int) -> None:
    """Bytes/s into shares of what a VM's first day showed, in place."""
    for vm in range(len(rate)):
        row = rate[vm]
        seen = np.flatnonzero(np.isfinite(row))
        if len(seen):
            first_day = row[seen[0] : seen[0] + _DAY_S // step_s]
            rate[vm] = row / max(float(np.nanquantile(first_day, 0.999)), RATE_FLOOR)


def _others(grids: dict[str, Shares], resource: str, shape: tuple[int, int]) -> Shares:
    names = [each for each in RESOURCE_NAMES if each != resource]
    if not any(each in grids and np.isfinite(grids[each]).any() for each in names):
        return _nothing(*shape)
    others = np.full((shape[0], len(names), shape[1]), np.nan, dtype=np.float32)
    for place, each in enumerate(names):
        if each in grids:
            others[:, place] = grids[each]
    return others


def _nothing(vms: int, steps: int) -> Shares:
    """NaN everywhere, taking no memory."""
    nothing: Shares = np.full((), np.nan, dtype=np.float32)
    return np.broadcast_to(nothing, (vms, len(RESOURCE_NAMES) - 1, steps))


def hourly(trace: Trace) -> Floats:
    """(v, hours) means of whole hours, NaN where nothing was seen."""
    per_hour = 3600 // trace.step_s
    hours = trace.steps // per_hour
    cut = trace.share[:, : hours * per_hour].reshape(len(trace.vm_ids), hours, per_hour)
    seen = np.isfinite(cut)
    count = seen.sum(axis=-1)
    total = np.where(seen, cut, 0).sum(axis=-1, dtype=np.float64)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
