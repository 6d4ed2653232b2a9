"""Nodes' messages made to measure, and what a fleet makes of them."""

import numpy as np

from controller.fleet import Fleet
from controller.overrides import Overrides
from controller.picture import Streams
from controller.settings import ControllerSettings
from shared.clock import SECOND_NS
from shared.resources import GIB, MIB
from shared.telemetry import NodeReadings, NodeSample, VmSample
from shared.wire import decode, encode

START = 1000 * SECOND_NS
UNIX = 1_700_000_000 * SECOND_NS
DEFAULTS = ControllerSettings()
NOTHING_SAID = Overrides()
ALL = {"cpu": "", "memory": "", "io": ""}


def machine(number):
    return f"00000000-0000-0000-0000-{number:012d}"


HOST, OTHER, L1, GUEST = machine(1), machine(2), machine(3), machine(4)

READINGS = NodeReadings(
    memory_total_bytes=16 * GIB,
    memory_available_bytes=12 * GIB,
    memory_allocatable_bytes=8 * GIB,
    cpu_total_millicores=8000,
    cpu_allocatable_millicores=6000,
    cpu_used_millicores=1500,
    io_allocatable_bytes_per_s=100 * MIB,
)


def vm(vm_id, **said):
    readings = {
        "memory_limit_bytes": 512 * MIB,
        "memory_maximum_bytes": 1024 * MIB,
        "memory_used_bytes": 200 * MIB,
        "memory_stats_age_ns": SECOND_NS,
        "cpu_limit_millicores": 1000,
        "cpu_maximum_millicores": 2000,
        "cpu_used_millicores": 300,
    }
    return VmSample(vm_id, f"name of {vm_id[-1]}", **{**readings, **said})


def sample(node_id=HOST, vms=(), **said):
    header = {
        "name": f"node {node_id[-1]}",
        "role": "host",
        "boot_id": "boot",
        "sequence": 1,
        "sampled_at_unix_ns": UNIX,
        "tick_ns": 77,
        "interval_ns": 10 * SECOND_NS,
        "generation": 5,
        "levers": ALL,
        "node": READINGS,
    }
    return NodeSample(node_id=node_id, vms=tuple(vms), **{**header, **said})


def fed(*samples, settings=DEFAULTS, at=START):
    fleet = Fleet(settings)
    for each in samples:
        fleet.apply(decode(encode(each)), at, UNIX)
    return fleet


def windows(history):
    """Mean and peak of everything that is known."""
    every = np.arange(len(history.ids))
    return history.windows.mean(every, history.steps), history.windows.peak(every, history.steps)


def look(fleet, at=START, overrides=NOTHING_SAID, connected=(HOST, OTHER, L1)):
    return fleet.snapshot(
        tick_ns=at,
        unix_ns=UNIX,
        epoch=1,
        cycle=2,
        overrides=overrides,
        streams=Streams(dict.fromkeys(connected, "")),
    )


def at(snapshot, machine_id, name, resource=None):
    value = getattr(snapshot, name)[snapshot.ids.index(machine_id)]
    return int(value if resource is None else value[resource])
