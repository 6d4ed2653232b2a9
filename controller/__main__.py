"""`hrapaq-controller`: the program on the management node."""

import asyncio
import logging
import os
import signal
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import click

from shared.clock import SystemClock
from shared.command_line import check_config, config_option, run_program
from shared.config import load_program
from shared.errors import ConfigError, how_to_install
from shared.log import setup

if TYPE_CHECKING:
    from controller.settings import ControllerSettings

log = logging.getLogger(__name__)

# The controller's libraries; an agent's machine has the package without them.
NEEDED = ("numpy",)


def main() -> None:
    # Before NumPy is there. Products of small matrices are most of a forecast: threads of its
    # algebra would wait for each other at each of them, and cohorts have threads of their own.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    run_program(cli, "hrapaq-controller")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="hrapaq", prog_name="hrapaq-controller")
def cli() -> None:
    """Forecasts what VMs will need, decides, and has agents carry out what was verified.

    Runs in the foreground until SIGTERM or Ctrl-C; logs are JSON lines on standard error.
    """


@cli.command()
@config_option("controller")
def serve(config_path: Path | None) -> None:
    """Run the controller."""
    settings = _settings(config_path)
    setup(settings.log_level, sys.stderr, "controller")
    asyncio.run(_serve(settings))


async def _serve(settings: "ControllerSettings") -> None:
    from controller.daemon import Daemon  # noqa: PLC0415 - `--help` needs none of it

    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await Daemon(settings, SystemClock(), version("hrapaq")).run(stop)
    log.info("stopped")


def _settings(config_path: Path | None) -> "ControllerSettings":
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise ConfigError(f"{', '.join(missing)} is not installed: {how_to_install('controller')}")
    from controller.settings import ControllerSettings  # noqa: PLC0415 - needs numpy

    return load_program("controller", config_path, ControllerSettings, os.environ)


cli.add_command(check_config("controller", _settings))


if __name__ == "__main__":
    main()
