"""The way back without an agent: for the unit that runs when the agent itself is dead."""

from pathlib import Path

from agent.discover import look, open_hypervisor
from agent.host import Host
from agent.identity import node_identity
from agent.memory_guard import hand_back
from agent.metrics import AgentMetrics
from agent.sampler import Sampler, Share
from agent.settings import AgentSettings
from shared.clock import Clock, SystemClock
from shared.errors import ConfigError
from shared.resources import Resource


async def restore(
    settings: AgentSettings,
    *,
    to_maximum: bool,
    root: Path = Path("/"),
    clock: Clock | None = None,
) -> int:
    """Number of changes; ConfigError while an agent runs or where there is no hypervisor.

    `to_maximum` takes what each VM was started with in place of the record.
    """
    clock = clock or SystemClock()
    hypervisor = open_hypervisor(settings, look(settings, root), clock)
    if hypervisor is None:
        raise ConfigError("libvirt_uri names no hypervisor: there is nothing to restore here")
    share = Share.of_settings(settings)
    sampler = Sampler(root, hypervisor, clock, share, settings.sample_interval_s)
    host = Host(
        settings, node_identity(root, settings.node_id), hypervisor, sampler, clock, AgentMetrics()
    )
    try:
        host.open(lease_is_over=True)
        if to_maximum:
            host.steward.fall_back_to(await _maxima(sampler))
        moved = await host.restore()
        await hand_back(hypervisor)
        return moved
    finally:
        await host.close()


async def _maxima(sampler: Sampler) -> dict[tuple[str, Resource], int]:
    readings = await sampler.readings()
    found: dict[tuple[str, Resource], int] = {}
    for vm in readings.vms.values():
        if vm.memory_maximum_bytes is not None:
            found[vm.vm_id, Resource.MEMORY] = vm.memory_maximum_bytes
        if vm.cpu_maximum_millicores is not None:
            found[vm.vm_id, Resource.CPU] = vm.cpu_maximum_millicores
    return found
