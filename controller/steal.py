"""Who waits for whose CPUs, level by level, in a tree of machines. Pure.

A machine that is runnable and does not run waits for its host: seen from outside as its vCPUs'
delay, from inside as steal. Each level counts its own waiting only: while a hypervisor VM does not
run, the clocks of its guests see idle time or work, not steal. So what a VM waits for in all is
the sum over the levels below it, of each the share that falls on it: as it ran of what that machine
ran.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from controller.core.state import MISSING, Ints
from controller.view import NodeInfo
from shared.telemetry import NodeReadings

SHORT_MILLICORES = 50  # less waiting than that at a level makes nobody short


@dataclass(frozen=True, slots=True)
class Wait:
    """One level: `machine` waits for CPUs of `host`, both by their place."""

    machine: int
    host: int
    millicores: int
    share_millicores: int | None  # what of it falls on the VM asked about; None: not known


def waiting(ids: Sequence[str], parent: Ints, nodes: Iterable[NodeInfo]) -> Ints:
    """(n,) millicores that each machine waits for at its host; MISSING where nobody says.

    Its host's word counts before its own: a guest may say what it likes.
    """
    place = {machine_id: at for at, machine_id in enumerate(ids)}
    found = np.full(len(ids), MISSING, dtype=np.int64)
    known = [(place[node.node_id], node) for node in nodes if node.node_id in place]
    for at, node in known:
        if parent[at] >= 0:
            found[at] = _steal(node.readings)
    for at, node in known:
        for vm_id, delay in zip(node.vm_ids, node.vm_delay_us_per_s, strict=False):
            vm = place.get(vm_id)
            if vm is not None and parent[vm] == at and delay != MISSING:
                found[vm] = delay // 1000
    return found


def waits_of(parent: Ints, wait: Ints, used: Ints, machine: int) -> tuple[Wait, ...]:
    """From the VM's own host downwards, levels of which nothing is known left out.

    parent, wait, used (n,): places, millicores waited and used, MISSING where not known.
    """
    levels, at, share = [], machine, 1.0
    while parent[at] >= 0:
        if at != machine:
            share = _share(int(used[machine]), int(used[at]))
        millicores = int(wait[at])
        if millicores != MISSING:
            part = None if np.isnan(share) else round(millicores * share)
            levels.append(Wait(at, int(parent[at]), millicores, part))
        at = int(parent[at])
    return tuple(levels)


def short_host(waits: Iterable[Wait]) -> int | None:
    """The host whose CPUs are short for the VM: the one that most of its waiting is for; None
    where it hardly waits."""
    enough = [wait for wait in waits if (wait.share_millicores or 0) >= SHORT_MILLICORES]
    return max(enough, key=lambda wait: wait.share_millicores or 0).host if enough else None


def _steal(readings: NodeReadings) -> int:
    steal = readings.cpu_steal_millicores
    return MISSING if steal is None else steal


def _share(of_vm: int, of_all: int) -> float:
    """The VM's part of what a machine below it ran; NaN where that is not known."""
    if MISSING in (of_vm, of_all):
        return float("nan")
    return min(1.0, of_vm / of_all) if of_all > 0 else 0.0
