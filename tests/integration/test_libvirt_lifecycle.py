"""What becomes of VMs while an agent looks on, and what becomes of libvirt: real guests, restarted,
defined anew and paused, under a libvirt that is killed, hung and started again."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from real_guests import RealGuest, real_guest

from agent.guard import GuardState
from agent.host import Host
from agent.hypervisor import VmEvent, VmEventKind
from agent.identity import node_identity
from agent.libvirt_host import LibvirtHypervisor
from agent.metrics import AgentMetrics
from agent.sampler import Sampler, Share
from agent.settings import AgentSettings
from agent.state import StateStore
from controller.up.image import GuestImage
from controller.up.libvirtd import Libvirt
from shared.clock import SECOND_NS, SystemClock
from shared.errors import HypervisorError
from shared.resources import MIB, Resource
from shared.telemetry import VmState

pytest.importorskip("libvirt", reason="libvirt-python is not installed")

WITHIN_S = 60.0
BUDGET_S = 3.0


class Watched:
    """An agent's hypervisor and all that it heard."""

    def __init__(self, libvirt: Libvirt, guest: RealGuest, **fields: Any) -> None:
        self.hypervisor = LibvirtHypervisor(libvirt.uri, SystemClock(), **fields)
        self.guest = guest
        self.events: list[VmEvent] = []
        self.hypervisor.listen(self.events.append)

    def kinds(self) -> list[VmEventKind]:
        """Of the guest's own events, in their order, each once in a row."""
        found: list[VmEventKind] = []
        for event in self.events:
            if event.vm_id == self.guest.vm_id and found[-1:] != [event.kind]:
                found.append(event.kind)
        return found

    def lost(self) -> int:
        return sum(event.kind is VmEventKind.LOST for event in self.events)

    def heard_again(self) -> int:
        return sum(event.kind is VmEventKind.HEARD_AGAIN for event in self.events)

    async def call(self, method: str, *arguments: object) -> Any:
        """As another program would; on a thread, so that events are heard meanwhile."""
        return await asyncio.to_thread(self.guest.call, method, *arguments)

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + WITHIN_S
        while not condition():
            assert time.monotonic() < deadline, f"not within {WITHIN_S} s: {what}; {self.events}"
            await asyncio.sleep(0.02)

    async def until_read(self, condition: Callable[[Any], bool], what: str) -> Any:
        """The first reading of the guest that is as wanted; libvirt may be away meanwhile."""
        deadline = time.monotonic() + WITHIN_S
        while True:
            try:
                vms = {vm.vm_id: vm for vm in await self.hypervisor.read_all()}
                found = vms.get(self.guest.vm_id)
                if condition(found):
                    return found
            except HypervisorError as error:
                found = error
            assert time.monotonic() < deadline, f"not within {WITHIN_S} s: {what}; {found}"
            await asyncio.sleep(0.1)


Scenario = Callable[[Watched], Coroutine[Any, Any, None]]


@pytest.fixture
def play(libvirt: Libvirt, image: GuestImage, tmp_path: Path) -> Callable[[Scenario], None]:
    """Runs a scenario beside one guest that is defined and does not run."""

    @asynccontextmanager
    async def watched(guest: RealGuest) -> AsyncIterator[Watched]:
        watched = Watched(libvirt, guest, may_configure=True, call_budget_s=BUDGET_S)
        await watched.hypervisor.read_all()
        try:
            yield watched
        finally:
            await watched.hypervisor.close()
            assert workers() == []

    def run(scenario: Scenario) -> None:
        async def beside(guest: RealGuest) -> None:
            async with watched(guest) as watching:
                await scenario(watching)

        with real_guest(libvirt.uri, image, tmp_path) as guest:
            asyncio.run(beside(guest))

    return run


def workers() -> list[int]:
    """Worker processes of this test."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(entry.read_text().rpartition(")")[2].split()[1])
            line = (entry.parent / "cmdline").read_bytes()
        except OSError:
            continue
        if parent == os.getpid() and b"agent.libvirt_worker" in line:
            found.append(int(entry.parent.name))
    return found


def test_starting_pausing_and_stopping_are_heard_at_once(play):
    async def scenario(watched: Watched) -> None:
        kind = VmEventKind
        for method, heard in (
            ("create", [kind.STARTED]),
            ("suspend", [kind.PAUSED]),
            ("resume", [kind.RESUMED]),
            ("destroy", [kind.STOPPED]),
        ):
            watched.events.clear()
            await watched.call(method)
            called = time.monotonic()
            await watched.until(lambda heard=heard: watched.kinds()[-1:] == heard, method)
            assert time.monotonic() - called < 1.0, method

    play(scenario)


def test_a_vm_started_anew_is_not_taken_for_the_old_one(play):
    """Its counters may have overtaken the old ones, and its limits are its definition's."""

    async def scenario(watched: Watched) -> None:
        guest = watched.guest
        await watched.call("create")
        await watched.until_read(lambda vm: vm is not None, "it runs")
        await watched.hypervisor.set_limit(guest.vm_id, Resource.CPU, 500)
        vm = await watched.until_read(lambda vm: vm.cpu_quota_millicores == 500, "the quota")
        assert vm.state is VmState.RUNNING
        await watched.call("destroy")
        await watched.call("create")
        vm = await watched.until_read(lambda vm: vm is not None, "it runs again")
        assert vm.cpu_quota_millicores is None
        assert vm.memory_actual_bytes == 256 * MIB

    play(scenario)


def test_a_quota_set_by_another_program_is_seen(play):
    async def scenario(watched: Watched) -> None:
        await watched.call("create")
        await watched.until_read(lambda vm: vm is not None, "it runs")
        await watched.call("setSchedulerParametersFlags", {"vcpu_quota": 30_000}, 1)
        await watched.until_read(lambda vm: vm.cpu_quota_millicores == 300, "their quota")

    play(scenario)


def test_a_vm_defined_anew_under_another_name_and_size(play):
    async def scenario(watched: Watched) -> None:
        guest = watched.guest
        await watched.call("create")
        await watched.until_read(lambda vm: vm is not None, "it runs")
        await watched.call("destroy")
        await watched.call("undefine")
        bigger = (r"<memory unit='MiB'>256<", "<memory unit='MiB'>384<")
        await asyncio.to_thread(
            guest.define, (f"<name>{guest.guest.name}<", "<name>other<"), bigger
        )
        await watched.call("create")
        vm = await watched.until_read(lambda vm: vm is not None and vm.name == "other", "it")
        assert vm.memory_maximum_bytes == 384 * MIB
        assert VmEventKind.DEFINED in watched.kinds()

    play(scenario)


def test_a_vm_that_was_saved_arrives_with_its_limits_and_does_not_start(play):
    """Saving and restoring is a migration to a file: what one machine shows of it."""

    async def scenario(watched: Watched) -> None:
        guest = watched.guest
        sampler = Sampler(Path("/"), watched.hypervisor, SystemClock())
        await watched.call("create")
        await watched.until_read(lambda vm: vm is not None and vm.memory_usable_bytes, "it is up")
        await watched.hypervisor.set_limit(guest.vm_id, Resource.CPU, 500)
        await sampler.sample()
        watched.events.clear()
        await watched.call("managedSave", 0)
        await watched.until_read(lambda vm: vm is None, "it is saved")
        await watched.call("create")
        await watched.until(lambda: VmEventKind.ARRIVED in watched.kinds(), "it arrives")
        assert VmEventKind.STARTED not in watched.kinds()
        vm = await watched.until_read(
            lambda vm: vm is not None and vm.state is VmState.RUNNING, "it runs again"
        )
        assert vm.cpu_quota_millicores == 500
        assert (await sampler.sample()).vms[0].state is VmState.RUNNING

    play(scenario)


# --- libvirt itself ------------------------------------------------------------------------------


@pytest.fixture
def daemon(libvirt: Libvirt) -> Libvirt:
    """A libvirt that may be killed."""
    if not libvirt.processes():
        pytest.skip("libvirt is the machine's own here, not started by us")
    return libvirt


def daemon_pid(libvirt: Libvirt) -> int:
    return next(pid for name, pid in libvirt.processes().items() if name != "virtlogd")


async def hears_its_guest(watched: Watched) -> bool:
    """Whether events come through, tried on a pause that changes nothing for long."""
    watched.events.clear()
    await watched.call("suspend")
    await watched.call("resume")
    await watched.until(lambda: VmEventKind.RESUMED in watched.kinds(), "events come again")
    return VmEventKind.PAUSED in watched.kinds()


def test_a_killed_libvirt_is_noticed_and_found_again_with_its_events(play, daemon):
    async def scenario(watched: Watched) -> None:
        await watched.call("create")
        await watched.until_read(lambda vm: vm is not None, "it runs")
        os.kill(daemon_pid(daemon), signal.SIGKILL)
        await watched.until(lambda: watched.lost() == 1, "the loss is heard")
        with pytest.raises(HypervisorError):
            await watched.hypervisor.read_all()
        assert await asyncio.to_thread(daemon.revive)
        answers = time.monotonic()
        vm = await watched.until_read(lambda vm: vm is not None, "the guest lived on")
        assert vm.memory_actual_bytes == 256 * MIB
        assert time.monotonic() - answers < 5, "readings came back late"
        assert watched.heard_again() >= 2  # a daemon that is coming up may drop the first again
        assert await hears_its_guest(watched)
        assert len(workers()) == 1

    play(scenario)


def test_a_hung_libvirt_costs_no_more_than_the_budget_and_nothing_is_left_of_it(play, daemon):
    async def scenario(watched: Watched) -> None:
        await watched.call("create")
        await watched.until_read(lambda vm: vm is not None, "it runs")
        pid = daemon_pid(daemon)
        os.kill(pid, signal.SIGSTOP)
        try:
            for _ in range(2):
                began = time.monotonic()
                with pytest.raises(HypervisorError):
                    await watched.hypervisor.read_all()
                assert time.monotonic() - began < 2 * BUDGET_S + 2
            assert len(workers()) <= 1
        finally:
            os.kill(pid, signal.SIGCONT)
        answers = time.monotonic()
        await watched.until_read(lambda vm: vm is not None, "the guest")
        assert time.monotonic() - answers < 5, "readings came back late"
        assert await hears_its_guest(watched)
        assert len(workers()) == 1

    play(scenario)


@pytest.mark.parametrize("how", ["killed", "hung"])
def test_a_lease_that_ends_while_libvirt_is_away_is_walked_back_when_it_is_there(
    play, daemon, tmp_path, how
):
    """And never before: the walk needs readings."""

    async def scenario(watched: Watched) -> None:
        guest, clock = watched.guest, SystemClock()
        await watched.call("create")
        await watched.until_read(lambda vm: vm is not None and vm.memory_usable_bytes, "it is up")
        await watched.hypervisor.set_limit(guest.vm_id, Resource.MEMORY, 160 * MIB)
        await watched.until_read(lambda vm: vm.memory_actual_bytes == 160 * MIB, "it shrinks")
        settings = AgentSettings(
            state_directory=tmp_path / "state",
            controller_address="",
            memory_allocatable_bytes=512 * MIB,
        )
        identity = node_identity(Path("/"))
        state = GuardState(
            lease_until_tick_ns=clock.tick_ns() + SECOND_NS,
            fallback={(guest.vm_id, Resource.MEMORY): 224 * MIB},
        )
        store = StateStore(settings.state_directory, identity.boot_id)
        store.open()
        store.write(state)
        store.close()
        sampler = Sampler(Path("/"), watched.hypervisor, clock, Share.of_settings(settings))
        host = Host(settings, identity, watched.hypervisor, sampler, clock, AgentMetrics())
        host.open()
        pid = daemon_pid(daemon)
        os.kill(pid, signal.SIGKILL if how == "killed" else signal.SIGSTOP)
        running = asyncio.create_task(host.run())
        try:
            await watched.until(lambda: host.facts().lease == "ended", "the lease ends")
            await watched.until(lambda: watched.lost() > 0, "libvirt is away")
            if how == "killed":
                await asyncio.to_thread(daemon.revive)
        finally:
            if how == "hung":
                os.kill(pid, signal.SIGCONT)
        answers = time.monotonic()
        await watched.until(lambda: host.facts().generation > 0, "the walk")
        assert time.monotonic() - answers < 15, "the walk came late"
        await watched.until_read(lambda vm: vm and vm.memory_actual_bytes == 224 * MIB, "it grows")
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        host._store.close()

    play(scenario)
