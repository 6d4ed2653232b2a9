"""What a run may leave behind: looked for at its end."""

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

from controller.up.machine import our_cgroups, processes_with, remove_cgroups
from controller.up.nats import port_is_free

GONE_WITHIN_S = 5.0  # a killed QEMU and its control group need a moment
PROGRAMS = ("python", "nats-server", "qemu", "libvirtd", "virtlogd")


async def ends_left(
    marks: Sequence[str],
    ports: Sequence[int],
    cgroups: Path | None,
    within_s: float = GONE_WITHIN_S,
) -> list[str]:
    """In words, each process that bears one of the marks, each open port, each control group.

    `cgroups`: where groups of demo guests lie; None for a run without real ones, since then they
    belong to another run.
    """
    deadline = time.monotonic() + within_s
    while True:
        left = _look(marks, ports, cgroups)
        if not left or time.monotonic() > deadline:
            return left
        await asyncio.sleep(0.2)


def _look(marks: Sequence[str], ports: Sequence[int], cgroups: Path | None) -> list[str]:
    processes = [
        f"process {pid}: {command}"
        for pid, command in processes_with(marks)
        if Path(command.partition(" ")[0]).name.startswith(PROGRAMS)
    ]
    sockets = [f"port {port} is open" for port in ports if not port_is_free(port)]
    groups = remove_cgroups(our_cgroups(cgroups)) if cgroups else []
    return [*processes, *sockets, *(f"control group {group}" for group in groups)]
