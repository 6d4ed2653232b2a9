"""What the command lines of agent and controller have in common; loads nothing heavy."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from msgspec import Struct

from shared.config import as_toml
from shared.errors import HrapaqError

Decorated = TypeVar("Decorated", bound=Callable[..., Any] | click.Command)


def run_program(cli: click.Command, name: str) -> None:
    """Exit code 1 and one text on standard error for what an operator can put right."""
    try:
        cli(prog_name=name)
    except HrapaqError as error:
        click.echo(f"{name}: {error}", err=True)
        sys.exit(1)


def config_option(program: str) -> Callable[[Decorated], Decorated]:
    """`--config`, which arrives as `config_path`: Path or None."""
    return click.option(
        "--config",
        "config_path",
        type=click.Path(dir_okay=False, path_type=Path),
        help=f"{program}.toml, or a common file with a table [{program}]; without one the defaults"
        " hold. HRAPAQ_* variables override both.",
    )


def check_config(program: str, read: Callable[[Path | None], Struct]) -> click.Command:
    """The command `check-config`; `read` raises ConfigError for what cannot be."""

    @click.command("check-config")
    @config_option(program)
    @click.option("--print", "show", is_flag=True, help="Print all settings, defaults included.")
    def command(config_path: Path | None, *, show: bool) -> None:
        """Say whether the settings hold together; starts nothing."""
        settings = read(config_path)
        click.echo(as_toml(settings) if show else f"{config_path or 'the defaults'}: well")

    return command
