"""`hrapaq-agent restore --to found` on simulated VMs: an agent has moved things and is dead."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from loop_parts import WorldLoop

from agent.found import FILE_NAME
from agent.host import Host
from agent.identity import node_identity
from agent.metrics import AgentMetrics
from agent.restore import restore
from agent.sampler import Sampler, Share
from agent.settings import AgentSettings
from agent.simulated import SimulatedHypervisor, SimulatedVm, Wave
from agent.state import StateStore
from shared.clock import SECOND_NS
from shared.resources import MIB, Resource

SMALL = Wave(low=96 * MIB, high=96 * MIB, noise=0)
VMS = tuple(SimulatedVm(name, memory=SMALL, cpu_count=2) for name in ("a", "b", "c"))


class LoopClock:
    def __init__(self):
        self._loop = asyncio.get_running_loop()

    def unix_ns(self):
        return 1_700_000_000 * SECOND_NS + self.tick_ns()

    def tick_ns(self):
        return 1000 * SECOND_NS + round(self._loop.time() * SECOND_NS)


class Killed(BaseException):
    """The end of the process."""


class Mortal(SimulatedHypervisor):
    """Its VMs outlive agents. The agent dies right before or after the change of that number."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.changes = 0
        self.dies_at = None

    async def set_limit(self, vm_id, resource, amount):
        self._change()
        await super().set_limit(vm_id, resource, amount)
        self._change()

    async def put_back(self, vm_id, settings):
        self._change()
        await super().put_back(vm_id, settings)
        self._change()

    async def close(self):
        pass

    def _change(self):
        self.changes += 1
        if self.changes == self.dies_at:
            raise Killed


class Scene:
    """A machine whose operator has set b to 384 MiB and half a CPU; then an agent comes."""

    def __init__(self, root: Path, vms=VMS, **settings):
        _make_machine(root)
        self.root = root
        self.clock = LoopClock()
        self.settings = AgentSettings(
            libvirt_uri="simulated:1",
            state_directory=root / "state",
            memory_allocatable_bytes=1536 * MIB,
            cpu_allocatable_millicores=6000,
            **settings,
        )
        self.hypervisor = Mortal(1, self.clock, vms)
        self.ids = self.hypervisor.vm_ids()
        self.said: list[str] = []

    async def limits(self):
        """Name -> MiB, millicores of quota, bytes/s."""
        found = await self.hypervisor.read_all()
        return {
            vm.name: (
                vm.memory_actual_bytes // MIB,
                vm.cpu_quota_millicores,
                vm.io_limit_bytes_per_s,
            )
            for vm in found
        }

    async def set(self, name, *changes):
        """As anybody may, past every record."""
        for resource, amount in changes:
            await SimulatedHypervisor.set_limit(self.hypervisor, self.ids[name], resource, amount)
        await asyncio.sleep(8)

    async def agent(self, *moves):
        """One life of an agent, in which it moves (name, resource, amount)."""
        share = Share.of_settings(self.settings)
        sampler = Sampler(self.root, self.hypervisor, self.clock, share)
        identity = node_identity(self.root)
        host = Host(self.settings, identity, self.hypervisor, sampler, self.clock, AgentMetrics())
        host.open()
        await sampler.sample()
        for name, resource, amount in moves:
            await self.set(name, (resource, amount))
        await sampler.sample()
        await host.close()
        self.hypervisor._recorder = None

    async def restore(self, **how):
        self.said.clear()
        how = {"root": self.root, "clock": self.clock, "hypervisor": self.hypervisor, **how}
        return await restore(self.settings, how.pop("goal", "found"), self.said.append, **how)

    def said_of(self, name):
        return [line for line in self.said if line.startswith(f"{name}: ")]


MOVES = (
    ("a", Resource.MEMORY, 256 * MIB),
    ("a", Resource.CPU, 700),
    ("a", Resource.IO, 5 * MIB),
    ("b", Resource.MEMORY, 512 * MIB),
    ("b", Resource.CPU, 1500),
)
AS_FOUND = {"a": (512, None, None), "b": (384, 500, None), "c": (512, None, None)}


def play(scenario):
    async def bounded():
        async with asyncio.timeout(24 * 3600):  # of virtual time
            await scenario()

    with asyncio.Runner(loop_factory=WorldLoop) as runner:
        runner.run(bounded())


async def prepared(root, *moves, **settings):
    scene = Scene(root, **settings)
    await scene.set("b", (Resource.MEMORY, 384 * MIB), (Resource.CPU, 500))
    assert await scene.limits() == AS_FOUND
    await scene.agent(*moves)
    return scene


def test_all_is_as_it_was_and_a_second_time_there_is_nothing_to_do(tmp_path):
    async def scenario():
        scene = await prepared(tmp_path, *MOVES)
        moved = {"a": (256, 700, 5 * MIB), "b": (512, 1500, None), "c": (512, None, None)}
        assert await scene.limits() == moved
        assert await scene.restore(dry_run=True)
        assert await scene.limits() == moved
        assert scene.said_of("b") == [
            "b: cpu quota millicores 1500 -> 500, memory 512 MiB -> 384 MiB"
        ]
        assert await scene.restore()
        assert await scene.limits() == AS_FOUND
        assert [line.rpartition(": ")[2] for line in scene.said] == [
            "put back",
            "put back",
            "as found",
        ]
        assert await scene.restore()
        assert {line.rpartition(": ")[2] for line in scene.said} == {"as found"}

    play(scenario)


@pytest.mark.parametrize("change", range(1, 13))
def test_killed_in_the_middle_and_repeated_it_ends_as_found(tmp_path, change):
    async def scenario():
        scene = await prepared(tmp_path, *MOVES)
        scene.hypervisor.changes, scene.hypervisor.dies_at = 0, change
        try:
            is_whole = await scene.restore()
        except (Killed, BaseExceptionGroup):
            is_whole = False
        assert is_whole == (scene.hypervisor.changes < change)
        assert await scene.restore()
        assert await scene.limits() == AS_FOUND

    play(scenario)


def test_a_second_life_of_the_agent_does_not_take_its_own_limits_for_found(tmp_path):
    async def scenario():
        scene = await prepared(tmp_path, *MOVES)
        await scene.agent(("a", Resource.MEMORY, 320 * MIB))
        assert await scene.restore()
        assert await scene.limits() == AS_FOUND

    play(scenario)


def test_no_vm_is_taken_below_its_working_set_and_that_is_said(tmp_path):
    async def scenario():
        busy = SimulatedVm(
            "b",
            memory=Wave(
                low=96 * MIB, high=400 * MIB, period_s=4000, duty=0.5, phase_s=2000, noise=0
            ),
        )
        scene = Scene(tmp_path, vms=(VMS[0], busy))
        await scene.set("b", (Resource.MEMORY, 256 * MIB))
        await scene.agent(("b", Resource.MEMORY, 512 * MIB), ("a", Resource.CPU, 700))
        await asyncio.sleep(2200)  # meanwhile its programs hold 400 MiB
        assert not await scene.restore()
        limits = await scene.limits()
        assert 480 <= limits["b"][0] < 512
        assert limits["a"] == (512, None, None), "the others are put back all the same"
        (line,) = scene.said_of("b")
        assert "NOT as found: memory is" in line and "I3" in line

    play(scenario)


def test_growth_as_found_goes_beyond_what_this_agent_may_give(tmp_path):
    async def scenario():
        scene = await prepared(tmp_path, *MOVES)
        scene.settings = AgentSettings(
            libvirt_uri="simulated:1",
            state_directory=scene.settings.state_directory,
            memory_allocatable_bytes=1024 * MIB,
        )
        assert await scene.restore()
        assert await scene.limits() == AS_FOUND
        assert any(
            "1408 MiB of memory together; this agent gives 1024 MiB" in s for s in scene.said
        )

    play(scenario)


def test_vms_that_were_started_anew_or_are_gone_have_nothing_of_ours(tmp_path):
    async def scenario():
        scene = await prepared(tmp_path, *MOVES)
        scene.hypervisor.restart(scene.ids["a"])
        scene.hypervisor.vanish(scene.ids["c"])
        assert await scene.restore()
        assert await scene.limits() == {"a": (512, None, None), "b": (384, 500, None)}
        assert "started anew" in scene.said_of("a")[0]
        assert "does not run here" in scene.said_of("c")[0]

    play(scenario)


def test_a_frozen_vm_is_said_and_the_others_are_put_back(tmp_path):
    async def scenario():
        scene = await prepared(tmp_path, *MOVES)
        scene.hypervisor.freeze(scene.ids["a"])
        assert not await scene.restore()
        assert "NOT as found: cannot be looked at" in scene.said_of("a")[0]
        scene.hypervisor.thaw(scene.ids["a"])
        limits = await scene.limits()
        assert limits["b"] == AS_FOUND["b"]
        assert await scene.restore()
        assert await scene.limits() == AS_FOUND

    play(scenario)


def test_an_agent_that_starts_again_does_not_walk_to_a_fallback_of_old(tmp_path):
    async def scenario():
        scene = await prepared(tmp_path, *MOVES)
        store = StateStore(scene.settings.state_directory, node_identity(tmp_path).boot_id)
        state = store.open().state
        fallback = {(scene.ids["b"], Resource.MEMORY): 512 * MIB}
        store.write(replace(state, lease_until_tick_ns=1, fallback=fallback))
        store.close()
        assert await scene.restore()
        assert await scene.restore(goal="fallback")
        assert scene.said == ["0 limits grown back"]
        assert await scene.limits() == AS_FOUND

    play(scenario)


def test_what_is_changed_after_a_restore_is_found_anew(tmp_path):
    async def scenario():
        scene = await prepared(tmp_path, *MOVES)
        assert await scene.restore()
        await scene.set("a", (Resource.CPU, 900))
        await scene.agent(("a", Resource.CPU, 400))
        assert await scene.restore()
        assert (await scene.limits())["a"] == (512, 900, None)

    play(scenario)


def test_to_the_fallback_and_to_the_maximum_only_grow(tmp_path):
    async def scenario():
        scene = await prepared(tmp_path, *MOVES)
        assert await scene.restore(goal="maximum")
        limits = await scene.limits()
        assert limits["a"] == (512, None, 5 * MIB) and limits["b"] == (512, None, None)

    play(scenario)


@pytest.mark.parametrize("damage", [None, b"{"])
def test_lost_records_are_no_success(tmp_path, damage):
    async def scenario():
        scene = await prepared(tmp_path, *MOVES)
        path = scene.settings.state_directory / FILE_NAME
        path.unlink()
        if damage is not None:
            path.write_bytes(damage)
        before = await scene.limits()
        assert not await scene.restore()
        assert str(path) in scene.said[0]
        assert await scene.limits() == before

    play(scenario)


def _make_machine(root):
    for path, text in (
        ("proc/sys/kernel/random/boot_id", "11111111-2222-4333-8444-555555555555"),
        ("sys/class/dmi/id/product_uuid", "0a0a0a0a-1111-4222-8333-444444444444"),
    ):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
