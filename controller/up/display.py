"""Where a run is seen: the live screen on a terminal, plain lines everywhere else."""

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from rich.console import Console
from rich.live import Live

from controller.up.screen import render
from controller.up.view import View
from shared.pb import admin_pb2 as pb
from shared.resources import MIB

REFRESH_S = 0.5
SUMMARY_EVERY_S = 15.0


@asynccontextmanager
async def display(view: View, *, screen: bool) -> AsyncIterator[None]:
    """Shows `view` until the block ends; a terminal is given back as it was."""
    task = asyncio.create_task(_live(view) if screen else _plain(view), name="display")
    try:
        yield
    finally:
        task.cancel()
        # OSError: whoever read our output has gone; the run was not for them alone.
        with contextlib.suppress(asyncio.CancelledError, OSError):
            await task


async def _live(view: View) -> None:
    console = Console()

    def draw() -> object:
        return render(view, time.monotonic(), console.width, console.height)

    # On the alternate screen: what was in the terminal is there again afterwards.
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            live.update(draw(), refresh=True)  # type: ignore[arg-type] # a Layout
            await asyncio.sleep(REFRESH_S)


async def _plain(view: View) -> None:
    """Each new record line, and how far the run is now and then."""
    shown, next_summary_s = 0, time.monotonic() + SUMMARY_EVERY_S
    try:
        while True:
            shown = _print_new(view, shown)
            if time.monotonic() >= next_summary_s:
                next_summary_s += SUMMARY_EVERY_S
                _print(summary_line(view))
            await asyncio.sleep(REFRESH_S)
    finally:
        _print_new(view, shown)


def summary_line(view: View) -> str:
    status = view.status
    if status is None:
        return f"-- {view.stage}"
    sizes = " ".join(
        f"{name.removeprefix('hrapaq-demo-')}={actual // MIB}"
        for name, actual in sorted(view.actual_by_name().items())
    )
    return (
        f"-- cycle {status.cycles}: {status.telemetry_messages} messages, "
        f"{status.plans_verified} plans verified, {status.commands_acknowledged} commands "
        f"acknowledged, {view.moved_bytes / MIB:.0f} MiB moved; guests (MiB): {sizes or 'none'}"
        + _not_done(view.plan)
        + (f"; the controller {view.controller_silent}" if view.controller_silent else "")
    )


def _not_done(plan: pb.PlanReply | None) -> str:
    """Why the last plan was not carried out, where it was not."""
    if plan is None or plan.verdict == "verified":
        return ""
    return f"; last plan: {plan.verdict}"


def _print_new(view: View, shown: int) -> int:
    """Prints the notes after the first `shown` of all; returns how many there were in all."""
    new = view.noted - shown
    for line in list(view.notes)[-new:] if new else []:
        _print(line)
    return view.noted


def _print(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
