"""`hrapaq-agent`: the program on every host and in every guest."""

import asyncio
import os
import sys
from pathlib import Path

import click
import msgspec

from agent.settings import AgentSettings, Goal
from shared.command_line import check_config, config_option, run_program
from shared.config import load_program
from shared.log import setup

with_config = config_option("agent")


def main() -> None:
    run_program(cli, "hrapaq-agent")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="hrapaq", prog_name="hrapaq-agent")
def cli() -> None:
    """Reads this machine and its VMs, publishes what it sees, and carries out what is safe.

    Runs in the foreground until SIGTERM or Ctrl-C; logs are JSON lines on standard error.
    """


@cli.command()
@with_config
def auto(config_path: Path | None) -> None:
    """Find out the role by looking: libvirt makes a host, a virtual machine a guest."""
    _serve(config_path, None)


@cli.command()
@with_config
def host(config_path: Path | None) -> None:
    """Be a host: report VMs, obey the controller, guard the VMs when it falls silent."""
    _serve(config_path, "host")


@cli.command()
@with_config
def guest(config_path: Path | None) -> None:
    """Be a guest: report this machine, move nothing; needs no root."""
    _serve(config_path, "guest")


@cli.command()
@with_config
@click.option(
    "--to",
    type=click.Choice(["found", "fallback", "maximum"]),
    default="found",
    show_default=True,
    help="found: as before the agent's first change. fallback: grown to what the last plan called"
    " safe without a controller, for a dead agent. maximum: grown to the size that each VM was"
    " started with, for when the records are lost.",
)
@click.option("--dry-run", is_flag=True, help="Only say what would be put back (--to found).")
def restore(config_path: Path | None, to: Goal, *, dry_run: bool) -> None:
    """Put VMs back while no agent runs; exit code 0 only when all are. May be repeated."""
    settings = _settings(config_path, "host")
    from agent.restore import restore as put_back  # noqa: PLC0415 - loads the host role

    if not asyncio.run(put_back(settings, to, click.echo, dry_run=dry_run)):
        sys.exit(1)


cli.add_command(check_config("agent", lambda path: _settings(path, None)))


def _serve(config_path: Path | None, role: str | None) -> None:
    settings = _settings(config_path, role)
    from agent.loop import run  # noqa: PLC0415 - `--help` needs none of it
    from agent.systemd import ServiceManager  # noqa: PLC0415 - likewise

    asyncio.run(run(settings, manager=ServiceManager.of_environment(os.environ)))


def _settings(config_path: Path | None, role: str | None) -> AgentSettings:
    settings = load_program("agent", config_path, AgentSettings, os.environ)
    if role is not None:
        settings = msgspec.structs.replace(settings, role=role)
    setup(settings.log_level, sys.stderr, "agent")
    return settings


if __name__ == "__main__":
    main()
