"""The settings that a demo runs its controller and agent with, as the files that they read. Pure.

Small guests and ten-second cycles need finer steps than a fleet: whole 100 MiB are a third of a
demo guest. The agent's file is written by hand: its settings type belongs to the agent.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from controller.settings import ControllerSettings, PolicySettings, VmSettings
from shared.resources import MIB
from shared.settings_text import as_toml

GRID_STEPS_PER_WINDOW = 8  # short, so that the forecast follows loads that change each minute
VM_OVERHEAD_MIB = 32
RESERVE_SHARE = 0.05


@dataclass(frozen=True, slots=True)
class Addresses:
    """Loopback HOST:PORT of each part; `nats` is a URL."""

    nats: str
    commands: str
    admin: str
    controller_metrics: str
    agent_metrics: str


@dataclass(frozen=True, slots=True)
class Demo:
    """What differs between runs. `enforced`: UUIDs of the demo guests; all else is observed."""

    cycle_s: int
    enforced: tuple[str, ...]
    simulated_seed: int | None
    libvirt_uri: str  # "none" without a hypervisor
    memory_allocatable_mib: int
    cpu_allocatable_millicores: int
    io_allocatable_mib_per_s: int | None  # None: disk traffic is left alone


def controller_toml(demo: Demo, at: Addresses, state_directory: Path) -> str:
    settings = ControllerSettings(
        bus_servers=(at.nats,),
        commands_listen=at.commands,
        admin_listen=at.admin,
        metrics_listen=at.controller_metrics,
        state_directory=state_directory,
        # Simulated guests are the only VMs that an agent of simulated guests reports.
        mode="observe" if demo.simulated_seed is None else "enforce",
        cycle_interval_s=float(demo.cycle_s),
        grid_step_s=demo.cycle_s,
        window_steps=GRID_STEPS_PER_WINDOW,
        horizon_s=3 * demo.cycle_s,
        lease_s=3.0 * demo.cycle_s + 15.0,
        command_ttl_s=10.0,
        vm_overhead_mib=VM_OVERHEAD_MIB,
        memory_floor_mib=96,
        node_expiry_s=120.0 + 3 * demo.cycle_s,
        telemetry_stream_mib_max=128,
        audit_stream_mib_max=256,
        policy=PolicySettings(memory_quantum_mib=8),
        vms={uuid: VmSettings(mode="enforce") for uuid in demo.enforced},
    )
    problems = settings.problems()
    assert not problems, problems
    return as_toml(settings)


def agent_toml(demo: Demo, at: Addresses, state_directory: Path) -> str:
    seed = demo.simulated_seed
    values: dict[str, str | int | float | list[str]] = {
        "bus_servers": [at.nats],
        "controller_address": at.commands,
        "sample_interval_s": min(10.0, demo.cycle_s / 2),
        "state_directory": str(state_directory),
        "libvirt_uri": demo.libvirt_uri if seed is None else f"simulated:{seed}",
        "role": "host",
        "memory_allocatable_bytes": demo.memory_allocatable_mib * MIB,
        "cpu_allocatable_millicores": demo.cpu_allocatable_millicores,
        "metrics_listen": at.agent_metrics,
    }
    if demo.io_allocatable_mib_per_s is not None:
        values["io_allocatable_bytes_per_s"] = demo.io_allocatable_mib_per_s * MIB
    # JSON's strings, numbers and lists are TOML's too.
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())
