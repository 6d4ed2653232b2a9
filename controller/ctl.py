# ruff: noqa: PLC0415 - a command imports what it needs, so that --help and completion stay quick
"""The `hrapaq` command: `up` runs everything here; the others ask a running controller.

Exit codes: 0 done, 1 refused or not found or a difference, 2 nobody to ask or a wrong call,
3 (of `allocate`) infeasible.
"""

import difflib
import sys
from pathlib import Path

import click

from controller import ctl_admin, ctl_allocate, ctl_backtest, ctl_history, ctl_record, ctl_train
from shared.errors import HrapaqError, how_to_install

# What to install when a library is missing: top-level module -> extra of this package.
EXTRA_OF = {
    "rich": "controller",
    "numpy": "controller",
    "polars": "controller",
    "matplotlib": "plot",
    "libvirt": "host",
    "nats_server": "embedded",
}


def main() -> None:
    """Entry point of `hrapaq`."""
    cli.main(prog_name="hrapaq")


class PlainErrors(click.Group):
    """Turns what an operator can meet into one line; a bug keeps its traceback."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as error:
            library = (error.name or "").partition(".")[0]
            extra = EXTRA_OF.get(library)
            if extra is None:
                raise
            raise click.ClickException(
                f"`{ctx.invoked_subcommand}` needs {library}: {how_to_install(extra)}"
            ) from error
        except HrapaqError as error:
            raise click.ClickException(str(error)) from error

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Names the closest command, as click does for options."""
        if self.get_command(ctx, args[0]) is None:
            near = difflib.get_close_matches(args[0], self.list_commands(ctx), n=1)
            hint = f"did you mean {near[0]!r}?" if near else "see hrapaq --help"
            ctx.fail(f"there is no command {args[0]!r}; {hint}")
        return super().resolve_command(ctx, args)


@click.group(cls=PlainErrors, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--controller",
    metavar="HOST:PORT",
    envvar="HRAPAQ_CONTROLLER",
    help="Where the controller listens. Default: the running `hrapaq up`, else 127.0.0.1:7421.",
)
@click.version_option(package_name="hrapaq", prog_name="hrapaq")
@click.pass_context
def cli(ctx: click.Context, controller: str | None) -> None:
    """Forecasts what nested KVM guests will need and moves CPU, memory and I/O before they do."""
    ctx.obj = controller


@cli.command()
@click.option("--minutes", type=click.FloatRange(min=0, min_open=True), help="Ends by itself.")
@click.option(
    "--json",
    "report",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="No screen; writes what happened there. Exit code 0 only when the loop closed.",
)
@click.option(
    "--guests",
    type=click.Choice(["auto", "libvirt", "simulated", "none"]),
    default="auto",
    help="Demo guests: real ones where libvirt and QEMU work, simulated ones otherwise.",
)
@click.option("--cycle", type=click.IntRange(2, 600), default=10, help="Seconds per cycle.")
@click.option(
    "--state-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where this run keeps its files. Default: a new one below /var/lib/hrapaq (root) or "
    "~/.local/state/hrapaq.",
)
@click.option(
    "--memory-pool",
    type=click.IntRange(256, 1 << 20),
    metavar="MIB",
    help="What the demo guests may have together. Default: what they start with, which is less "
    "than all their maxima, so that memory must move between them.",
)
def up(
    *,
    minutes: float | None,
    report: Path | None,
    guests: str,
    cycle: int,
    state_dir: Path | None,
    memory_pool: int | None,
) -> None:
    """Runs everything on this machine: bus, controller, agent and four demo guests."""
    from controller.up.run import UpOptions, run_up

    options = UpOptions(minutes, report, guests, cycle, state_dir, memory_pool)
    sys.exit(run_up(options))


@cli.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Prints completion for SHELL, e.g. eval "$(hrapaq completion bash)"."""
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(cli, {}, "hrapaq", "_HRAPAQ_COMPLETE").source())


for _command in (
    *ctl_admin.COMMANDS,
    *ctl_record.COMMANDS,
    ctl_allocate.allocate,
    ctl_backtest.backtest,
    ctl_history.history,
    ctl_train.train,
):
    cli.add_command(_command)
