"""The settings of the testbed's controller and agents, as the files that they read. Pure.

Cycles of ten seconds and quanta of a few MiB: what takes an hour in a fleet is seen in minutes.
"""

import json
from dataclasses import dataclass

from controller.settings import ControllerSettings, PolicySettings, Shares, VmSettings
from shared.resources import MIB
from shared.settings_text import as_toml
from testbed.layout import L1, L1_OVERHEAD_MIB, RESERVE_SHARE, VM_OVERHEAD_MIB, Layout, Places

SEEN_FROM_INSIDE = "10.0.2.2"  # L0's loopback, from an L1 and, through it, from its L2s
GRID_STEPS_PER_WINDOW = 8
IO_POOL_MIB_PER_S = 64
SAMPLE_S = 2.0


@dataclass(frozen=True, slots=True)
class Ports:
    nats: int
    nats_monitor: int
    commands: int
    admin: int
    controller_metrics: int
    agent_metrics: int

    def bus(self, *, inside: bool = False) -> str:
        return f"nats://{SEEN_FROM_INSIDE if inside else '127.0.0.1'}:{self.nats}"


def controller_toml(layout: Layout, ports: Ports, places: Places) -> str:
    cycle_s = layout.cycle_s
    settings = ControllerSettings(
        bus_servers=(ports.bus(),),
        commands_listen=f"127.0.0.1:{ports.commands}",
        admin_listen=f"127.0.0.1:{ports.admin}",
        metrics_listen=f"127.0.0.1:{ports.controller_metrics}",
        state_directory=places.state / "controller",
        mode="enforce",  # this libvirt has no VMs but ours
        cycle_interval_s=float(cycle_s),
        grid_step_s=cycle_s,
        window_steps=GRID_STEPS_PER_WINDOW,
        horizon_s=3 * cycle_s,
        lease_s=3.0 * cycle_s + 15.0,
        command_ttl_s=15.0,
        reserve_share=Shares(cpu=RESERVE_SHARE, memory=RESERVE_SHARE, io=0.0),
        node_overhead_mib=L1_OVERHEAD_MIB,
        vm_overhead_mib=VM_OVERHEAD_MIB,
        memory_floor_mib=160,
        node_expiry_s=120.0 + 3 * cycle_s,
        telemetry_stream_mib_max=128,
        audit_stream_mib_max=256,
        policy=PolicySettings(memory_quantum_mib=8),
        # What it needs itself, also before its guests are known.
        vms={l1.uuid: VmSettings(memory_floor_mib=L1_OVERHEAD_MIB) for l1 in layout.l1s},
    )
    problems = settings.problems()
    assert not problems, problems
    return as_toml(settings)


def l0_agent_toml(layout: Layout, ports: Ports, places: Places) -> str:
    return _toml(
        bus_servers=[ports.bus()],
        controller_address=f"127.0.0.1:{ports.commands}",
        sample_interval_s=SAMPLE_S,
        state_directory=str(places.state / "agent"),
        libvirt_uri=places.libvirt_uri,
        role="host",
        node_name="l0",
        memory_allocatable_bytes=layout.memory_allocatable_mib * MIB,
        cpu_allocatable_millicores=layout.cpu_allocatable_millicores,
        io_allocatable_bytes_per_s=IO_POOL_MIB_PER_S * MIB,
        metrics_listen=f"127.0.0.1:{ports.agent_metrics}",
    )


def l1_agent_toml(l1: L1, ports: Ports) -> str:
    return _toml(
        bus_servers=[ports.bus(inside=True)],
        controller_address=f"{SEEN_FROM_INSIDE}:{ports.commands}",
        libvirt_uri="qemu:///system",  # it is not root there, and would look for its own
        sample_interval_s=SAMPLE_S,
        node_name=l1.name,
        memory_reserved_bytes=L1_OVERHEAD_MIB * MIB,
        metrics_listen="",
    )


def _toml(**values: str | float | list[str]) -> str:
    # JSON's strings, numbers and lists are TOML's too.
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())
