"""An agent that samples every ten minutes, and what it tells in between all the same."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from agent.hypervisor import VmEventKind, VmReading
from agent.loop import Agent
from agent.settings import AgentSettings
from agent.simulated import SimulatedHypervisor, SimulatedVm
from shared.clock import SystemClock
from shared.errors import HypervisorUnavailable
from shared.telemetry import NodeSample, VmState
from shared.wire import decode

WITHIN_S = 20.0


class Away(SimulatedHypervisor):
    """Sometimes does not answer."""

    away = False

    async def read_all(self) -> tuple[VmReading, ...]:
        if self.away:
            raise HypervisorUnavailable("libvirt is away")
        return await super().read_all()


class Scene:
    def __init__(self, folder: Path) -> None:
        settings = AgentSettings(
            bus_servers=("nats://127.0.0.1:1",),  # nobody: messages wait where they can be seen
            controller_address="",
            metrics_listen="",
            state_directory=folder,
            sample_interval_s=600,
        )
        clock = SystemClock()
        self.hypervisor = Away(1, clock, (SimulatedVm("old"),))
        self.agent = Agent(settings, Path("/"), clock, self.hypervisor)

    def samples(self) -> list[NodeSample]:
        return [decode(message).sample() for message in self.agent.publisher._waiting]

    def states(self) -> dict[str, VmState]:
        """Of the newest sample."""
        samples = self.samples()
        return {vm.name: vm.state for vm in samples[-1].vms} if samples else {}

    async def until(self, condition: Callable[[], bool], what: str) -> float:
        """Seconds waited."""
        began = time.monotonic()
        while not condition():
            assert time.monotonic() - began < WITHIN_S, f"{what}: {self.states()}"
            await asyncio.sleep(0.02)
        return time.monotonic() - began


def play(folder: Path, scenario: Callable[[Scene], Coroutine[Any, Any, None]]) -> None:
    async def beside() -> None:
        scene = Scene(folder)
        scene.agent.open()
        duties = [asyncio.create_task(each) for each in scene.agent.duties()]
        try:
            await scene.until(lambda: "old" in scene.states(), "the first sample")
            await scenario(scene)
        finally:
            for duty in duties:
                duty.cancel()
            await asyncio.gather(*duties, return_exceptions=True)
            await scene.agent.close()

    asyncio.run(beside())


def test_a_vm_that_starts_or_ends_is_told_at_once(tmp_path: Path) -> None:
    async def scenario(scene: Scene) -> None:
        vm_id = scene.hypervisor.start(SimulatedVm("new"))
        assert await scene.until(lambda: "new" in scene.states(), "the new VM") < 5
        assert scene.states() == {"old": VmState.RUNNING, "new": VmState.STARTING}
        scene.hypervisor.vanish(vm_id)
        assert await scene.until(lambda: "new" not in scene.states(), "it is gone") < 5

    play(tmp_path, scenario)


def test_a_hypervisor_that_is_away_is_told_once_and_its_return_within_seconds(
    tmp_path: Path,
) -> None:
    async def scenario(scene: Scene) -> None:
        scene.hypervisor.away = True
        scene.hypervisor._tell("", VmEventKind.LOST)
        await scene.until(lambda: scene.states() == {"old": VmState.OTHER}, "a gap")
        before = len(scene.samples())
        await asyncio.sleep(5)  # more than one look for its return
        assert len(scene.samples()) == before, "the same gap is told again and again"
        scene.hypervisor.away = False
        assert await scene.until(lambda: scene.states() == {"old": VmState.RUNNING}, "back") < 5

    play(tmp_path, scenario)
