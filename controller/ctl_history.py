# ruff: noqa: PLC0415 - a command imports what it needs, so that --help and completion stay quick
"""`hrapaq history`: the fleet's own past as a trace, for `hrapaq train` and `hrapaq backtest`."""

import os
import struct
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import aclosing, contextmanager
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Self

import click

from controller.ctl_record import BUS_HELP, on_bus

if TYPE_CHECKING:
    import polars as pl

    from controller.history import Grid, Tally
    from shared.bus import Bus

# A record as it is stored, and how far through the trail it stands, 0 to 1; False: enough.
Take = Callable[[bytes, float], bool]

READ_WITHIN_S = 3600.0
RECORD_BYTES_MAX = 1024 * 1024  # more than any record has: what claims to be longer is damaged
PART_ROWS = 200_000  # are held before they go to the disk,
PART_FRAMES = 2_000  # or so many steps of a small fleet


@click.command()
@click.option(
    "--out",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Parquet; appears, or is replaced, when all of it is there.",
)
@click.option(
    "--last",
    type=click.FloatRange(min=0, min_open=True),
    metavar="HOURS",
    help="Only what was decided in the last HOURS. Default: all that is held.",
)
@click.option(
    "--from",
    "source",
    metavar="nats://HOST:PORT|FILE",
    envvar="HRAPAQ_NATS",
    help=f"{BUS_HELP} Or a file of `hrapaq audit --export`.",
)
@click.option(
    "--step",
    type=click.Choice(["30", "60", "300"]),
    help="Seconds. Default: the least that whole cycles fill.",
)
def history(*, out: Path, last: float | None, source: str | None, step: str | None) -> None:
    """Writes what the fleet used as a trace that `train` and `backtest` read.

    It comes from the audit trail: one reading per VM and cycle, CPU and memory as shares of what
    the VM can have at the most, disk in bytes per second (read and written together, in
    disk_read_Bps). Readings too old to act upon are missing; VMs that do not run are left out.
    """
    from controller.history import Steps, Trail

    since_ns = None if last is None else time.time_ns() - round(last * 3600e9)
    grid = _grid(source, since_ns, step)
    trail, steps = Trail(since_ns), Steps(out.stem, grid)
    with TraceFile(out) as file, _bar() as show:

        def take(packed: bytes, at: float) -> bool:
            file.add(steps.add(trail.take(packed)))
            show(at)
            return True

        read_trail(source, since_ns, take)
        file.add(steps.rest())
        file.finish()
    _tell(file, grid, trail.tally)


def _grid(source: str | None, since_ns: int | None, step: str | None) -> "Grid":
    """From the first cycles; HistoryError that says where they were looked for."""
    from controller.history import HistoryError, Pace
    from shared.nats_session import without_secret

    pace = Pace(since_ns)
    read_trail(source, since_ns, lambda packed, _: pace.add(packed))
    try:
        return pace.grid(None if step is None else int(step))
    except HistoryError as error:
        since = "" if since_ns is None else f" since {_when(since_ns / 1e9)}"
        where = without_secret(source or "the audit trail")
        raise HistoryError(f"{where}{since}: {error}") from error


# ---- where the records are ----


def read_trail(source: str | None, since_unix_ns: int | None, take: Take) -> None:
    """Gives `take` one decision's record after the other, until it has enough.

    `source`: a bus, a file, or None for the bus of the running `hrapaq up`. A file gives all of
    its records, whenever they were written. AuditError where there is no trail.
    """
    if source is None or source.startswith(("nats://", "tls://")):
        on_bus(source, lambda bus: _read_stream(bus, since_unix_ns, take))
    else:
        _read_file(Path(source), take)


async def _read_stream(bus: "Bus", since_unix_ns: int | None, take: Take) -> None:
    from shared.errors import AuditError, BusError
    from shared.subjects import AUDIT_STREAM, audit_subject

    reading = bus.read_stream(
        AUDIT_STREAM,
        audit_subject("decision"),
        since_unix_ns=since_unix_ns,
        deadline_s=READ_WITHIN_S,
    )
    now_ns, first_ns = time.time_ns(), None
    try:
        async with aclosing(reading):
            async for stored in reading:
                first_ns = stored.stored_at_unix_ns if first_ns is None else first_ns
                passed = (stored.stored_at_unix_ns - first_ns) / max(now_ns - first_ns, 1)
                if not take(stored.data, passed):
                    return
    except BusError as error:
        raise AuditError(f"the audit stream cannot be read: {error}") from error


def _read_file(path: Path, take: Take) -> None:
    """As `audit` wrote it, one record at a time."""
    from controller.audit import MAGIC
    from shared.errors import AuditError

    length = struct.Struct(">I")
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if file.read(len(MAGIC)) != MAGIC:
                raise AuditError(
                    f"{path} is no exported audit log: it does not begin with {MAGIC!r}"
                )
            while head := file.read(length.size):
                claimed = length.unpack(head)[0] if len(head) == length.size else 0
                packed = file.read(min(claimed, RECORD_BYTES_MAX))
                file.seek(claimed - len(packed), os.SEEK_CUR)  # nothing, or past what is damaged
                if not take(packed, file.tell() / size):
                    return
    except OSError as error:
        raise AuditError(f"{path}: {error.strerror}") from error


# ---- what is written ----


class TraceFile:
    """A parquet file that appears when it is complete; parts of it lie beside it until then.

    To be entered; what was not finished is gone on leaving. HistoryError where it cannot be
    written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = 0
        self.vms = 0  # of the step with most
        self.span: tuple[int, int] | None = None  # start of the first and of the last step
        self._held: list[pl.DataFrame] = []
        self._flushed = 0  # rows
        self._parts = 0

    def __enter__(self) -> Self:
        with self._writing():
            prefix = f".{self.path.name}."
            self._directory = TemporaryDirectory(dir=self.path.parent, prefix=prefix)
        return self

    def __exit__(self, *_: object) -> None:
        self._directory.cleanup()

    def add(self, frames: "Iterable[pl.DataFrame]") -> None:
        """Rows of one step each."""
        for frame in frames:
            if frame.is_empty():
                continue
            start = frame["ts"][0]
            first, last = self.span or (start, start)
            self.span = min(first, start), max(last, start)
            self.rows, self.vms = self.rows + len(frame), max(self.vms, len(frame))
            self._held.append(frame)
            if self.rows - self._flushed >= PART_ROWS or len(self._held) >= PART_FRAMES:
                self._flush()

    def finish(self) -> None:
        """Joins the parts and puts the whole in its place."""
        import polars as pl

        from controller.history import HistoryError

        if self.span is None or self.span[0] == self.span[1]:
            raise HistoryError(
                "what was recorded is shorter than two steps"
                if self.span
                else "decisions were recorded, but no VM that runs and was read in time"
            )
        self._flush()
        whole = Path(self._directory.name) / f"{self.path.name}.part"
        with self._writing():
            parts = [self._part(number) for number in range(self._parts)]
            pl.scan_parquet(parts).sink_parquet(whole)
            with whole.open("rb") as file:
                os.fsync(file.fileno())
            whole.replace(self.path)

    def _flush(self) -> None:
        import polars as pl

        if self._held:
            with self._writing():
                pl.concat(self._held).write_parquet(self._part(self._parts))
            self._parts, self._flushed, self._held = self._parts + 1, self.rows, []

    def _part(self, number: int) -> Path:
        return Path(self._directory.name) / f"{number:08}.parquet"

    @contextmanager
    def _writing(self) -> Iterator[None]:
        import polars as pl

        from controller.history import HistoryError

        try:
            yield
        except (OSError, pl.exceptions.PolarsError) as error:
            why = getattr(error, "strerror", None) or error
            raise HistoryError(f"{self.path}: cannot be written: {why}") from error


# ---- what a person sees ----


@contextmanager
def _bar() -> Iterator[Callable[[float], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TimeRemainingColumn

    columns = ("{task.description}", BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("audit trail", total=1.0)
        yield lambda at: progress.update(task, completed=at)


def _tell(file: TraceFile, grid: "Grid", tally: "Tally") -> None:
    assert file.span is not None
    first, last = file.span
    click.echo(
        f"{file.path}: {file.rows} rows, up to {file.vms} VMs at a time, steps of {grid.step_s} s "
        f"({grid.cycles} cycle{'' if grid.cycles == 1 else 's'} each) "
        f"from {_when(first)} to {_when(last + grid.step_s)}"
    )
    if tally.stale:
        click.echo(f"{tally.stale} of {tally.readings} readings of VMs were too old", err=True)
    if tally.unreadable:
        click.echo(
            f"{tally.unreadable} damaged records are left out; `hrapaq audit` names them", err=True
        )
    if tally.simulated:
        click.echo("simulated VMs are among them", err=True)


def _when(unix_s: float) -> str:
    return f"{datetime.fromtimestamp(unix_s).astimezone():%Y-%m-%d %H:%M}"
