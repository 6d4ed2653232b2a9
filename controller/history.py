"""The fleet's own past as a trace like any other: from recorded decisions to rows. Pure.

Every decision's record holds what its cycle read (`core.record`), so the audit trail is a history
with one reading per VM and cycle. Readings become shares of what the VM can have at the most, those
that were too old to act upon (I6) are missing, and a step of the grid holds the mean of the cycles
in it. A reading is what an agent measured over its last interval: where that is shorter than a
cycle, a step is a sample of what happened and not all of it.

Rows are those of `forecast.backtest.traces`. The record knows disk traffic as one sum, and so does
the trace: it stands under `disk_read_Bps`, with 0 under `disk_write_Bps`. Network is not recorded.
k VMs of one tree, n VMs of a step.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median

import numpy as np
import polars as pl

from controller.core.chain import AuditRecord, hash_of, joined, unpack
from controller.core.record import Inputs, unpack_inputs
from controller.core.state import MISSING, Bools, Floats, Hold, Ints
from controller.forecast.backtest.traces import STEPS_S
from shared.clock import SECOND_NS
from shared.errors import HrapaqError, WireError
from shared.resources import Resource

SCHEMA = {
    "trace": pl.String,
    "vm_id": pl.String,
    "ts": pl.Int64,  # unix seconds at which the step starts
    "cpu_util": pl.Float32,
    "mem_bytes": pl.Int64,
    "mem_util": pl.Float32,
    "disk_read_Bps": pl.Int64,
    "disk_write_Bps": pl.Int64,
    "net_rx_Bps": pl.Int64,
    "net_tx_Bps": pl.Int64,
    "disk_busy_util": pl.Float32,
    "cap_cores": pl.Float32,
    "cap_cpu_mhz": pl.Float32,
    "cap_mem_bytes": pl.Int64,
}
PACE_CYCLES = 60  # are enough to know how far apart cycles are
_UNEVEN = 0.02  # of its cycles a step may have more or less than the next one
_REPEATS = 64  # newest records that are known again when they come twice
_PARTS_MAX = 4096  # of one record: more than the largest tree takes
_CPU, _MEMORY, _MEMORY_BYTES, _IO = range(4)  # columns of `Seen.value`


class HistoryError(HrapaqError):
    """The trail makes no trace; the text says what is missing."""


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """The running VMs of one tree, as one cycle saw them."""

    epoch: int
    taken_at_unix_ns: int
    ids: tuple[str, ...]
    value: Floats  # (k, 4) CPU and memory as shares, memory in bytes, disk bytes/s; NaN: unknown
    maximum: Floats  # (k, 2) millicores, bytes; NaN: not known
    simulated: bool


@dataclass(slots=True)
class Tally:
    """What was gone through, and what of it says nothing."""

    decisions: int = 0
    unreadable: int = 0  # records
    readings: int = 0  # of running VMs
    stale: int = 0  # of them, too old as a whole
    simulated: bool = False


class Pace:
    """How far apart cycles are, by when the first record of each was written."""

    def __init__(self, since_unix_ns: int | None = None) -> None:
        self._since_ns = since_unix_ns or 0
        self._newest: dict[int, tuple[int, int]] = {}  # by epoch: cycle, when
        self._apart_ns: list[int] = []

    def add(self, packed: bytes) -> bool:
        """Takes in a record; False once enough are known."""
        try:
            record = unpack(packed)
        except WireError:
            return True
        if record.kind != "decision" or record.at_unix_ns < self._since_ns:
            return True
        before = self._newest.get(record.epoch)
        if before is None or record.cycle > before[0]:
            if before is not None and record.at_unix_ns > before[1]:
                self._apart_ns.append(record.at_unix_ns - before[1])
            self._newest[record.epoch] = record.cycle, record.at_unix_ns
        return len(self._apart_ns) < PACE_CYCLES

    def grid(self, step_s: int | None = None) -> "Grid":
        """The finest grid of which cycles fill steps evenly, or that of `step_s` if they do.

        HistoryError where there is none.
        """
        if not self._newest:
            raise HistoryError("no decision was recorded")
        if not self._apart_ns:
            raise HistoryError("a single cycle was recorded; a history needs more")
        apart_s = median(self._apart_ns) / SECOND_NS
        for each in STEPS_S if step_s is None else (step_s,):
            cycles = round(each / apart_s)
            if cycles and abs(cycles * apart_s / each - 1) <= _UNEVEN:
                return Grid(each, cycles)
        wanted = ", ".join(map(str, STEPS_S)) if step_s is None else str(step_s)
        raise HistoryError(
            f"cycles are {apart_s:.3g} s apart, which is no whole part of a step of {wanted} s; a "
            f"trace needs one: set cycle_interval_s to a divisor of {STEPS_S[-1]}"
        )


@dataclass(slots=True)
class Grid:
    """Where cycles belong. One that trembles around the edge of a step stays on its side of it:
    the next cycle takes the next place, unless the clock says otherwise by more than a place."""

    step_s: int
    cycles: int  # per step
    _newest: dict[int, tuple[int, int]] = field(default_factory=dict)  # by epoch: when, place

    def step(self, epoch: int, taken_at_unix_ns: int) -> int:
        """Unix second at which the step of a cycle starts."""
        step_ns = self.step_s * SECOND_NS
        place = taken_at_unix_ns * self.cycles // step_ns
        if epoch in self._newest:
            before_ns, before = self._newest[epoch]
            follows = before + round((taken_at_unix_ns - before_ns) * self.cycles / step_ns)
            place = follows if abs(follows - place) <= 1 else place
        self._newest[epoch] = taken_at_unix_ns, place
        return place // self.cycles * self.step_s


class Trail:
    """Records as they are stored, one after the other; gives what decisions among them saw.

    Damage is counted and left out; a record of which the log holds only the beginning or only the
    end, as one that is being written does, is no damage. Whether the chain is whole is not looked
    at: `replay` does that.
    """

    def __init__(self, since_unix_ns: int | None = None) -> None:
        self.tally = Tally()
        self._since_ns = since_unix_ns or 0
        self._recent: deque[bytes] = deque(maxlen=_REPEATS)
        self._held: list[AuditRecord] = []  # parts of a record that is not whole yet

    def take(self, packed: bytes) -> list[Seen]:
        """What the decisions saw that are whole with this record."""
        found = hash_of(packed)
        if found in self._recent:
            return []  # sent again after an answer was lost
        self._recent.append(found)
        try:
            record = unpack(packed)
        except WireError:
            self.tally.unreadable += 1
            return []
        if record.kind != "decision" or record.at_unix_ns < self._since_ns:
            return []
        if not (self._held or self.tally.decisions) and record.body.get("part"):
            return []  # the log, or what is asked for of it, begins in the middle of a record
        self._held.append(record)
        return [] if self._more_to_come(record) else self._whole()

    def _whole(self) -> list[Seen]:
        held, self._held = self._held, []
        return [seen for each in joined(held) if (seen := self._seen(each)) is not None]

    def _more_to_come(self, record: AuditRecord) -> bool:
        part, parts = record.body.get("part"), record.body.get("parts")
        if not isinstance(part, int) or not isinstance(parts, int):
            return False
        return part + 1 < parts and len(self._held) < _PARTS_MAX

    def _seen(self, record: AuditRecord) -> Seen | None:
        self.tally.decisions += 1
        try:
            seen, stale = seen_by(unpack_inputs(record.body["inputs"]))
        except (WireError, KeyError, TypeError, AttributeError, IndexError, ValueError):
            self.tally.unreadable += 1  # as `replay` meets them: nothing there is ours
            return None
        self.tally.readings += len(seen.ids)
        self.tally.stale += stale
        self.tally.simulated |= seen.simulated
        return seen


def seen_by(inputs: Inputs) -> tuple[Seen, int]:
    """What the cycle of these inputs saw of its VMs, and of how many the sample was too old."""
    snapshot, _, policy = inputs
    running = np.flatnonzero((snapshot.parent >= 0) & (snapshot.hold != Hold.NOT_RUNNING))
    fresh = _young(snapshot.sample_age_ns[running], policy.sample_age_ns_max)
    figures = _young(snapshot.memory_stats_age_ns[running], policy.stats_age_ns_max)
    maximum = snapshot.maximum[running][:, [Resource.CPU, Resource.MEMORY]]
    bound = np.where(maximum > 0, maximum, np.nan)
    used = snapshot.used[running]
    known = np.where((used != MISSING) & fresh[:, None], used, np.nan)
    known[:, Resource.MEMORY] = np.where(figures, known[:, Resource.MEMORY], np.nan)
    value = np.empty((len(running), 4))
    value[:, _CPU] = known[:, Resource.CPU] / bound[:, 0]
    value[:, _MEMORY] = known[:, Resource.MEMORY] / bound[:, 1]
    value[:, _MEMORY_BYTES] = known[:, Resource.MEMORY]
    value[:, _IO] = known[:, Resource.IO]
    ids = tuple(snapshot.ids[place] for place in running.tolist())
    simulated = bool(snapshot.simulated[running].any())
    when = int(snapshot.epoch), int(snapshot.taken_at_unix_ns)
    return Seen(*when, ids, value, bound, simulated), int((~fresh).sum())


def _young(age_ns: Ints, age_ns_max: int) -> Bools:
    return np.asarray((age_ns != MISSING) & (age_ns <= age_ns_max))


class Steps:
    """Means per VM and step, given out as rows when a step is over.

    Two steps are open at a time: two controllers may both write for a while. Where a clock was
    set back a step may be given twice; who reads a trace takes the last.
    """

    def __init__(self, name: str, grid: Grid) -> None:
        self._name = name
        self._grid = grid
        self._open: dict[int, _Step] = {}  # by start

    def add(self, several: Iterable[Seen]) -> Iterator[pl.DataFrame]:
        """Takes in what cycles saw; the rows of steps that are over."""
        for seen in several:
            start = self._grid.step(seen.epoch, seen.taken_at_unix_ns)
            if start not in self._open:
                if len(self._open) > 1:
                    first = next(iter(self._open))
                    yield self._open.pop(first).rows(self._name, first)
                self._open[start] = _Step()
            self._open[start].add(seen)

    def rest(self) -> Iterator[pl.DataFrame]:
        """The rows of the steps that are still open."""
        for start, step in self._open.items():
            yield step.rows(self._name, start)


class _Step:
    """Sums of one step."""

    def __init__(self) -> None:
        self._place: dict[str, int] = {}
        self._total: Floats = np.zeros((0, 4))  # at least n rows
        self._count: Ints = np.zeros((0, 4), dtype=np.int64)
        self._maximum: Floats = np.zeros((0, 2))  # the newest that is known

    def add(self, seen: Seen) -> None:
        place = self._place
        rows = np.array([place.setdefault(each, len(place)) for each in seen.ids], dtype=np.int64)
        self._grow()
        known = np.isfinite(seen.value)
        self._total[rows] += np.where(known, seen.value, 0)
        self._count[rows] += known
        newer = np.isfinite(seen.maximum)
        self._maximum[rows] = np.where(newer, seen.maximum, self._maximum[rows])

    def rows(self, name: str, start_s: int) -> pl.DataFrame:
        """One row of `SCHEMA` per VM of which anything is known."""
        n = len(self._place)
        count = self._count[:n]
        mean = np.where(count > 0, self._total[:n] / np.maximum(count, 1), np.nan)
        some = np.flatnonzero((count > 0).any(axis=1))
        ids = list(self._place)
        return _frame(name, start_s, [ids[row] for row in some], mean[some], self._maximum[some])

    def _grow(self) -> None:
        more = len(self._place) - len(self._total)
        if more <= 0:
            return
        more = max(more, len(self._total))  # in leaps, so that each is copied a few times only
        self._total = np.concatenate([self._total, np.zeros((more, 4))])
        self._count = np.concatenate([self._count, np.zeros((more, 4), dtype=np.int64)])
        self._maximum = np.concatenate([self._maximum, np.full((more, 2), np.nan)])


def _frame(
    name: str, start_s: int, ids: Sequence[str], mean: Floats, maximum: Floats
) -> pl.DataFrame:
    disk = _column(np.rint(mean[:, _IO]))
    columns = {
        "vm_id": ids,
        "cpu_util": _column(mean[:, _CPU]),
        "mem_bytes": _column(np.rint(mean[:, _MEMORY_BYTES])),
        "mem_util": _column(mean[:, _MEMORY]),
        "disk_read_Bps": disk,
        "disk_write_Bps": disk * 0,  # null where the sum is
        "cap_cores": _column(maximum[:, 0] / 1000),
        "cap_mem_bytes": _column(maximum[:, 1]),
    }
    whole = {"trace": pl.lit(name), "ts": pl.lit(start_s)}
    absent = {each: pl.lit(None) for each in SCHEMA.keys() - columns.keys() - whole.keys()}
    frame = pl.DataFrame(columns).with_columns(**whole, **absent)
    return frame.select(pl.col(each).cast(kind) for each, kind in SCHEMA.items())


def _column(value: Floats) -> pl.Series:
    return pl.Series(value).fill_nan(None)
