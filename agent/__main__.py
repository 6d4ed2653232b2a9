"""`hrapaq-agent`: the program on every host and in every guest."""

import asyncio
import logging
import os
import sys
from pathlib import Path

import click
import msgspec

from agent.settings import AgentSettings
from shared.config import as_toml, load_program
from shared.errors import HrapaqError
from shared.log import setup

logger = logging.getLogger(__name__)

config_option = click.option(
    "--config",
    "config_path",
    type=click.Path(dir_okay=False, path_type=Path),
    help="agent.toml, or a common file with a table [agent]; without one the defaults hold."
    " HRAPAQ_* variables override both.",
)


def main() -> None:
    """Exit code 1 and one text on standard error for what an operator can put right."""
    try:
        cli(prog_name="hrapaq-agent")
    except HrapaqError as error:
        click.echo(f"hrapaq-agent: {error}", err=True)
        sys.exit(1)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="hrapaq", prog_name="hrapaq-agent")
def cli() -> None:
    """Reads this machine and its VMs, publishes what it sees, and carries out what is safe.

    Runs in the foreground until SIGTERM or Ctrl-C; logs are JSON lines on standard error.
    """


@cli.command()
@config_option
def auto(config_path: Path | None) -> None:
    """Find out the role by looking: libvirt makes a host, a virtual machine a guest."""
    _serve(config_path, None)


@cli.command()
@config_option
def host(config_path: Path | None) -> None:
    """Be a host: report VMs, obey the controller, guard the VMs when it falls silent."""
    _serve(config_path, "host")


@cli.command()
@config_option
def guest(config_path: Path | None) -> None:
    """Be a guest: report this machine, move nothing; needs no root."""
    _serve(config_path, "guest")


@cli.command()
@config_option
@click.option(
    "--to-maximum",
    is_flag=True,
    help="Grow every VM to the size that it was started with: for when the record is lost.",
)
def restore(config_path: Path | None, to_maximum: bool) -> None:
    """Grow VMs back to their recorded fallback while no agent runs; nothing ever shrinks."""
    settings = _settings(config_path, "host")
    from agent.restore import restore as walk_back  # noqa: PLC0415 - loads the host role

    moved = asyncio.run(walk_back(settings, to_maximum=to_maximum))
    click.echo(f"{moved} limit{'' if moved == 1 else 's'} grown back")


@cli.command("check-config")
@config_option
@click.option("--print", "show", is_flag=True, help="Print all settings, defaults included.")
def check_config(config_path: Path | None, *, show: bool) -> None:
    """Say whether the settings hold together; starts nothing."""
    settings = _settings(config_path, None)
    click.echo(as_toml(settings) if show else f"{config_path or 'the defaults'}: well")


def _serve(config_path: Path | None, role: str | None) -> None:
    settings = _settings(config_path, role)
    from agent.loop import run  # noqa: PLC0415 - `--help` needs none of it

    asyncio.run(run(settings))


def _settings(config_path: Path | None, role: str | None) -> AgentSettings:
    settings = load_program("agent", config_path, AgentSettings, os.environ)
    if role is not None:
        settings = msgspec.structs.replace(settings, role=role)
    setup(settings.log_level, sys.stderr, "agent")
    return settings


if __name__ == "__main__":
    main()
