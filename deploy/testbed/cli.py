"""`python deploy/testbed`: the testbed as a person uses it."""

import json
import sys
import time
from pathlib import Path

import click

from shared.command_line import run_program
from testbed.bed import READY_WITHIN_S, Bed
from testbed.image import build, default_cache
from testbed.layout import Places
from testbed.lifetime import KEEP, TestbedError, keep, start_keeper, take_down
from testbed.needs import missing

cache_option = click.option(
    "--cache",
    type=click.Path(file_okay=False, path_type=Path),
    default=default_cache,
    show_default="~/.cache/hrapaq/testbed",
    help="Where images are kept.",
)


def main() -> None:
    run_program(cli, "testbed")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """A nested KVM stack of our own software: this machine (l0), VMs on it that are hypervisors
    (l1a, l1b), KVM guests in these (l2a1, l2a2, l2b1, l2b2)."""


@cli.command("build")
@cache_option
@click.option("--quietly", is_flag=True, help="Say nothing where nothing has to be built.")
def build_command(cache: Path, *, quietly: bool) -> None:
    """Build the image, unless it is there for the inputs as they are."""
    _require()
    began = time.monotonic()
    image = build(cache, lambda text: click.echo(f"testbed: {text}"))
    if not quietly:
        click.echo(f"{image.disk.parent} ({time.monotonic() - began:.1f} s)")


@cli.command()
@cache_option
@click.argument("kind", type=click.Choice(["short", "full"]), default="full")
@click.option("--timeout", "timeout_s", default=READY_WITHIN_S, help="Seconds until all is up.")
def up(cache: Path, kind: str, timeout_s: float) -> None:
    """Bring a bed up: short (one L1, two L2s) or full (two L1s, four L2s); it stays."""
    _require()
    began, places = time.monotonic(), Places()
    build(cache, click.echo)
    start_keeper(kind, cache, places, with_us=False)
    bed = Bed(places)
    bed.wait_until_ready(timeout_s)
    click.echo(f"all machines are up ({time.monotonic() - began:.1f} s); files: {places.state}")
    click.echo(f"ask the controller: XDG_RUNTIME_DIR={places.run} hrapaq status (nodes, vms, ...)")


@cli.command()
def down() -> None:
    """Take down whatever there is of a bed, however it ended."""
    left = take_down(Places())
    if left:
        raise TestbedError(f"could not be ended: {', '.join(left)}")


@cli.command()
def status() -> None:
    """Where everything is, as JSON."""
    click.echo(json.dumps(Bed().status(), indent=2))


@cli.command("exec", context_settings={"ignore_unknown_options": True})
@click.option("--timeout", "timeout_s", default=60.0)
@click.argument("machine")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def exec_command(machine: str, command: tuple[str, ...], timeout_s: float) -> None:
    """Run a shell command in a machine: `exec l2a1 -- free -m`."""
    done = Bed().exec(machine, " ".join(command), timeout_s)
    sys.stdout.write(done.out)
    sys.stderr.write(done.err)
    sys.exit(1 if done.code is None else done.code)


@cli.command()
@click.argument("l2")
@click.argument("kind", type=click.Choice(["memory", "cpu", "disk"]))
@click.argument("points", nargs=-1, required=True)
@click.option("--ramp", is_flag=True, help="Straight lines between the points instead of steps.")
def load(l2: str, kind: str, points: tuple[str, ...], *, ramp: bool) -> None:
    """Make load in an L2: MiB, millicores or MiB/s. `load l2a1 memory 0:50 30:200`: 50 MiB now,
    200 MiB from second 30 on; `load l2a1 memory 0` ends it."""
    pairs = [point.rpartition(":") for point in points]
    Bed().start_load(
        l2, kind, kind, [(float(at or 0), float(amount)) for at, _, amount in pairs], ramp=ramp
    )


@cli.command()
@click.argument("what")
def kill(what: str) -> None:
    """kill -9: l0/agent, l0/controller, l0/nats, l0/libvirtd, l1a, l1a/agent, l2a1/agent, ..."""
    Bed().kill(what)


@cli.command()
@click.argument("machine")
def start(machine: str) -> None:
    """Boot a machine that has ended."""
    Bed().start(machine)


@cli.command()
def watch() -> None:
    """What the witness sees, a line each two seconds, until Ctrl-C."""
    bed = Bed()
    while True:
        since, words = time.time() - 5, []
        for name in bed.uuids:
            for sight in bed.records.series(name, since)[-1:]:
                actual, rss = sight.actual_mib or 0, sight.rss_mib or 0
                words.append(f"{name} {actual:.0f}/rss {rss:.0f}/free {sight.usable_mib or 0:.0f}")
        click.echo(f"{time.strftime('%H:%M:%S')} " + "  ".join(words))
        time.sleep(2)


@cli.command(KEEP, hidden=True)
@click.argument("kind")
@click.argument("cache", type=click.Path(path_type=Path))
def keep_command(kind: str, cache: Path) -> None:
    keep(kind, cache, Places())


def _require() -> None:
    lacking = missing()
    if lacking:
        raise TestbedError("this machine lacks:\n  " + "\n  ".join(lacking))
