"""What a run may leave behind: looked for at its end, and removed before the next one."""

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

from controller.up.machine import our_cgroups, processes_with, remove_cgroups
from controller.up.nats import port_is_free

GONE_WITHIN_S = 5.0  # a killed QEMU and its control group need a moment
PROGRAMS = ("python", "nats-server", "qemu", "libvirtd", "virtlogd")


def remove_old_cgroups() -> None:
    """Of guests of a killed run; groups that are in use stay."""
    remove_cgroups(our_cgroups())


async def ends_left(
    marks: Sequence[str], ports: Sequence[int], within_s: float = GONE_WITHIN_S
) -> list[str]:
    """In words, each process that bears one of the marks, each open port, each control group."""
    deadline = time.monotonic() + within_s
    while True:
        left = _look(marks, ports)
        if not left or time.monotonic() > deadline:
            return left
        await asyncio.sleep(0.2)


def _look(marks: Sequence[str], ports: Sequence[int]) -> list[str]:
    processes = [
        f"process {pid}: {command}"
        for pid, command in processes_with(marks)
        if Path(command.partition(" ")[0]).name.startswith(PROGRAMS)
    ]
    sockets = [f"port {port} is open" for port in ports if not port_is_free(port)]
    groups = [f"control group {group}" for group in remove_cgroups(our_cgroups())]
    return [*processes, *sockets, *groups]
