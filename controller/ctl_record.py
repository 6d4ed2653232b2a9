# ruff: noqa: PLC0415 - a command imports what it needs, so that --help and completion stay quick
"""The commands that read what was recorded, and settings before a program runs with them."""

import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from controller.ctl_types import Duration

if TYPE_CHECKING:
    from controller.core.chain import AuditLog, AuditRecord
    from shared.bus import Bus

T = TypeVar("T")

CONNECT_WITHIN_S = 3.0
PLACE_WIDTH = 44  # columns for when, which record, which cycle and what kind
WHAT_WIDTH_MIN = 10
BYTES_SHOWN_MAX = 64
BUS_HELP = "The bus to read from. Default: the running `hrapaq up`, else nats://127.0.0.1:4222."

nats_option = click.option("--nats", "nats_url", metavar="URL", envvar="HRAPAQ_NATS", help=BUS_HELP)
since_option = click.option("--since", type=Duration(), help="Only the last 90s, 10m, 2h, 1d.")


@click.command()
@click.option("--tail", type=click.IntRange(1), default=20, help="Newest records. Default: 20.")
@since_option
@click.option("--kind", help="decision, intent, command, ack, rejection, override or effect.")
@click.option(
    "--export",
    "export",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Writes all records as they are stored, for `hrapaq replay --from FILE`.",
)
@nats_option
@click.option("--json", "as_json", is_flag=True, help="Plain values instead of a table.")
def audit(
    *,
    tail: int,
    since: int | None,
    kind: str | None,
    export: Path | None,
    nats_url: str | None,
    as_json: bool,
) -> None:
    """What was decided, meant, sent and answered, from the audit stream, its chain verified."""
    from controller.audit import export_audit, read_audit
    from controller.core.chain import KINDS
    from controller.ctl_client import Complaint
    from controller.ctl_show import show_json

    if kind is not None and kind not in KINDS:
        raise click.UsageError(f"there is no kind {kind!r}; there are {', '.join(KINDS)}")
    since_ns = None if since is None else time.time_ns() - since * 1_000_000_000
    if export is not None:
        try:
            count = on_bus(nats_url, lambda bus: export_audit(bus, export, since_ns))
        except OSError as error:
            raise Complaint(f"{export}: cannot be written: {error.strerror}") from error
        click.echo(f"{count} records written to {export}")
        return
    log = on_bus(nats_url, lambda bus: read_audit(bus, since_ns))
    records = [record for record in log.records if kind in {None, record.kind}][-tail:]
    if as_json:
        damage = list(log.damage)
        show_json({"records": [_plain_record(record) for record in records], "damage": damage})
    else:
        _show_records(records)
    _complain_of_damage(log)


@click.command()
@click.option(
    "--from",
    "source",
    required=True,
    metavar="nats://HOST:PORT|FILE",
    help="A bus that holds the audit stream, or a file of `hrapaq audit --export`.",
)
@since_option
@click.option("--json", "as_json", is_flag=True, help="Plain values instead of text.")
def replay(source: str, *, since: int | None, as_json: bool) -> None:
    """Recomputes recorded decisions; exit code 0 only when there are some and all agree."""
    import asyncio
    from dataclasses import asdict

    from controller.audit import read_audit
    from controller.ctl_client import Complaint
    from controller.ctl_show import show_json
    from controller.replay import replay as recompute

    since_ns = None if since is None else time.time_ns() - since * 1_000_000_000
    if source.startswith(("nats://", "tls://")):
        log = on_bus(source, lambda bus: read_audit(bus, since_ns))
    else:
        log = asyncio.run(read_audit(Path(source), since_ns))
    report = recompute(log, source)
    if as_json:
        show_json({**asdict(report), "agrees": report.agrees})
    else:
        click.echo(f"{report.decisions} decisions recomputed from {source}")
        for each in report.differences:
            place = f"epoch {each.epoch}, cycle {each.cycle}, root {each.root}"
            click.echo(f"  DIFFERENT {place}: {', '.join(each.what)}")
        for damage in report.damage:
            click.echo(f"  DAMAGED {damage}")
        click.echo("no differences" if report.agrees else "the record and this code disagree")
    if not report.agrees:
        raise Complaint(
            f"{len(report.differences)} of {report.decisions} decisions came out otherwise, "
            f"{len(report.damage)} damages in the log"
        )


@click.command("check-config")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--kind",
    type=click.Choice(["auto", "controller", "agent"]),
    default="auto",
    help="Whose settings FILE holds. Default: by its tables and keys.",
)
@click.option("--print", "shown", is_flag=True, help="Prints all settings with their meaning.")
@click.option("--json", "as_json", is_flag=True, help="Plain values instead of text.")
def check_config(file: Path, *, kind: str, shown: bool, as_json: bool) -> None:
    """Says what is wrong in a file of settings, with its line and the closest known key."""
    from controller.ctl_show import show_json

    kinds = [kind] if kind != "auto" else _kinds_in(file)
    texts = {each: _check(each, file) for each in kinds}
    if as_json:
        show_json({"file": str(file), "good": True, "for": kinds})
        return
    for each in kinds:
        click.echo(f"{file}: good for the {each}")
        if shown:
            click.echo(texts[each])


def _kinds_in(file: Path) -> list[str]:
    """By its tables [controller] and [agent], else by its name, else by its keys."""
    from controller.settings import ControllerSettings

    keys = _top_keys(file)
    tables: list[str] = [name for name in ("controller", "agent") if name in keys]
    named = [name for name in ("controller", "agent") if name in file.name]
    if tables or named:
        return tables or named[:1]
    in_both = {"bus_servers", "state_directory", "metrics_listen", "log_level"}
    controllers = keys & set(ControllerSettings.__struct_fields__) - in_both
    return ["controller"] if controllers or keys <= in_both else ["agent"]


def _top_keys(file: Path) -> set[str]:
    """None of a file that cannot be read: who reads it next says why."""
    import tomllib

    try:
        return set(tomllib.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return set()


def _check(kind: str, file: Path) -> str:
    """The settings as text, by the program that reads them; Complaint with what it said.

    A process, since the agent's settings belong to the agent, which this side never imports.
    """
    import subprocess

    from controller.ctl_client import Complaint

    command = [sys.executable, "-m", kind, "check-config", "--config", str(file), "--print"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    if done.returncode != 0:
        raise Complaint(done.stderr.strip().removeprefix(f"hrapaq-{kind}: "))
    return done.stdout


def on_bus(url: str | None, work: "Callable[[Bus], Coroutine[object, object, T]]") -> T:
    """Runs `work` with a connected bus; BusError with the address when nobody answers there."""
    import asyncio

    from controller.ctl_client import nats_address

    async def run() -> T:
        async with _connected(nats_address(url)) as bus:
            return await work(bus)

    return asyncio.run(run())


@asynccontextmanager
async def _connected(url: str) -> "AsyncIterator[Bus]":
    from controller.ctl_client import Complaint
    from shared.bus import NatsBus

    bus = NatsBus([url], "hrapaq", lambda _error: None)
    await bus.connect()
    try:
        if not await bus.wait_connected(CONNECT_WITHIN_S):
            raise Complaint(
                f"no bus: {url} does not answer ({bus.status_text}). Start `hrapaq up`, or name "
                "the server: HRAPAQ_NATS=nats://HOST:PORT",
                exit_code=2,
            )
        yield bus
    finally:
        await bus.close()


def _show_records(records: "list[AuditRecord]") -> None:
    from rich.markup import escape
    from rich.table import Table

    from controller.ctl_tables import console

    if not records:
        click.echo("no record of that kind and time")
        return
    out = console()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for header in ("at", "record", "cycle", "kind"):
        table.add_column(header, no_wrap=True)
    table.add_column("what")  # cut by us: a narrow terminal would squeeze the others too
    room = max(out.width - PLACE_WIDTH, WHAT_WIDTH_MIN)
    for record in records:
        at = datetime.fromtimestamp(record.at_unix_ns / 1e9).astimezone()
        body = _plain_record(record)["body"]
        assert isinstance(body, dict)
        what = "  ".join(f"{key}={_brief(value)}" for key, value in body.items() if value)
        place = (f"{at:%m-%d %H:%M:%S}", record.record_id, str(record.cycle), record.kind)
        table.add_row(*place, escape(what if len(what) <= room else what[: room - 1] + "…"))
    out.print(table)


def _brief(value: object) -> str:
    """Lists and tables by their length: --json has all of them."""
    if isinstance(value, (list, dict)):
        return f"({len(value)})"
    return str(value)


def _complain_of_damage(log: "AuditLog") -> None:
    from controller.ctl_client import Complaint

    if log.damage:
        raise Complaint(f"the log is damaged: {'; '.join(log.damage[:5])}")


def _plain_record(record: "AuditRecord") -> dict[str, object]:
    return {
        "id": record.record_id,
        "kind": record.kind,
        "epoch": record.epoch,
        "cycle": record.cycle,
        "at_unix_ns": record.at_unix_ns,
        "body": _plain(record.body),
    }


def _plain(value: object) -> object:
    """Bytes as text where they are short, else their number: inputs of decisions are long."""
    if isinstance(value, bytes):
        if len(value) > BYTES_SHOWN_MAX:
            return f"{len(value)} bytes"
        return value.hex()
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return value


COMMANDS = (audit, replay, check_config)
