"""The way back without an agent: by hand before it is removed, or by the unit of a dead agent."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec

from agent.act import Pause
from agent.discover import look, open_hypervisor
from agent.found import FILE_NAME, let_go, load
from agent.host import Host
from agent.hypervisor import Hypervisor
from agent.identity import node_identity
from agent.metrics import AgentMetrics
from agent.putback import PutBack
from agent.sampler import Sampler, Share
from agent.settings import AgentSettings, Goal
from agent.state import StateStore
from shared.clock import Clock, SystemClock
from shared.errors import ConfigError
from shared.resources import Resource


async def restore(
    settings: AgentSettings,
    goal: Goal,
    say: Callable[[str], None],
    *,
    dry_run: bool = False,
    root: Path = Path("/"),
    clock: Clock | None = None,
    hypervisor: Hypervisor | None = None,
    pause: Pause = asyncio.sleep,
) -> bool:
    """Whether all is as asked; `say` hears what became of each VM.

    ConfigError while an agent runs or where there is no hypervisor, HypervisorError where it does
    not answer. A hypervisor that is given is not looked for.
    """
    clock = clock or SystemClock()
    if goal == "found":  # this must not add to what it takes away
        settings = msgspec.structs.replace(settings, enable_guest_statistics=False)
    hypervisor = hypervisor or open_hypervisor(
        settings, look(settings, root), clock, guarded=goal != "found"
    )
    if hypervisor is None:
        raise ConfigError("libvirt_uri names no hypervisor: there is nothing to restore here")
    share = Share.of_settings(settings)
    sampler = Sampler(root, hypervisor, clock, share, settings.sample_interval_s)
    boot_id = node_identity(root, settings.node_id).boot_id
    if goal == "found":
        try:
            store = StateStore(settings.state_directory, boot_id)
            put_back = PutBack(hypervisor, sampler, clock, pause, say)
            return await _to_found(store, settings.state_directory, put_back, say, dry_run=dry_run)
        finally:
            await hypervisor.close()
    if dry_run:
        raise ConfigError("--dry-run shows the way back to what was found: --to found")
    identity = node_identity(root, settings.node_id)
    host = Host(settings, identity, hypervisor, sampler, clock, AgentMetrics(), pause)
    try:
        host.open(lease_is_over=True)
        if goal == "maximum":
            host.steward.fall_back_to(await _maxima(sampler))
        moved = await host.restore()
        say(f"{moved} limit{'' if moved == 1 else 's'} grown back")
        return True
    finally:
        await host.close()


async def _to_found(
    store: StateStore,
    folder: Path,
    put_back: PutBack,
    say: Callable[[str], None],
    *,
    dry_run: bool,
) -> bool:
    loaded = store.open()
    try:
        path = folder / FILE_NAME
        records = load(path)
        if records.said or not path.exists():
            say(records.said or f"{path} is not there: no agent ever looked at VMs from here")
            return False
        is_whole = await put_back.run(records.vms, dry_run=dry_run)
        if is_whole and not dry_run:
            # An agent that starts again must not walk to a fallback of plans that are over.
            state = replace(loaded.state, lease_until_tick_ns=None, fallback={})
            await store.save(replace(state, generation=state.generation + 1))
            await asyncio.to_thread(let_go, path, records.vms)
        return is_whole
    finally:
        store.close()


async def _maxima(sampler: Sampler) -> dict[tuple[str, Resource], int]:
    readings = await sampler.readings()
    found: dict[tuple[str, Resource], int] = {}
    for vm in readings.vms.values():
        if vm.memory_maximum_bytes is not None:
            found[vm.vm_id, Resource.MEMORY] = vm.memory_maximum_bytes
        if vm.cpu_maximum_millicores is not None:
            found[vm.vm_id, Resource.CPU] = vm.cpu_maximum_millicores
    return found
