"""The real worker process on libvirt's own test driver, which needs no daemon."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from agent.hypervisor import Hypervisor
from agent.libvirt_host import LibvirtHypervisor
from agent.libvirt_known import BACKOFF_NS_MIN
from shared.clock import SECOND_NS, FakeClock
from shared.errors import HypervisorError, HypervisorTimeout, HypervisorUnavailable, VmGone
from shared.resources import MIB, Resource
from shared.telemetry import VmState

pytest.importorskip("libvirt", reason="libvirt-python is not installed")

URI = "test:///default"
UNKNOWN = "0a0a0a0a-1111-4222-8333-444444444444"
# Longer than a worker takes to start on a busy machine: what is timed here is the hanging call.
BUDGET_S = 3.0

Scenario = Callable[[LibvirtHypervisor, FakeClock], Coroutine[Any, Any, None]]


@asynccontextmanager
async def opened(uri: str, clock: FakeClock) -> AsyncIterator[LibvirtHypervisor]:
    hypervisor = LibvirtHypervisor(uri, clock, may_configure=True, call_budget_s=BUDGET_S)
    try:
        yield hypervisor
    finally:
        await hypervisor.close()


def play(scenario: Scenario, uri: str = URI) -> None:
    async def with_hypervisor() -> None:
        clock = FakeClock()
        async with opened(uri, clock) as hypervisor:
            await scenario(hypervisor, clock)

    asyncio.run(with_hypervisor())


async def only_vm(hypervisor: Hypervisor) -> str:
    (vm,) = await hypervisor.read_all()
    return vm.vm_id


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "waited for 20 s"
        await asyncio.sleep(0.01)


def running_worker(hypervisor: LibvirtHypervisor) -> int:
    pid = hypervisor.worker_pid
    assert pid is not None
    return pid


def is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def test_all_vms_are_read_and_missing_figures_are_none() -> None:
    async def scenario(hypervisor: LibvirtHypervisor, clock: FakeClock) -> None:
        assert not hypervisor.simulated
        (vm,) = await hypervisor.read_all()
        assert (vm.name, vm.state, vm.cpu_count) == ("test", VmState.RUNNING, 2)
        assert vm.memory_maximum_bytes == 8192 * MIB
        assert vm.cpu_time_ns is not None
        assert vm.memory_usable_bytes is None and vm.io_bytes is None
        again = await hypervisor.read(vm.vm_id)
        assert (again.vm_id, again.memory_actual_bytes) == (vm.vm_id, vm.memory_actual_bytes)

    play(scenario)


def test_memory_is_set_and_read_back() -> None:
    async def scenario(hypervisor: LibvirtHypervisor, clock: FakeClock) -> None:
        vm_id = await only_vm(hypervisor)
        await hypervisor.set_limit(vm_id, Resource.MEMORY, 1000 * MIB)
        assert (await hypervisor.read(vm_id)).memory_actual_bytes == 1000 * MIB
        with pytest.raises(HypervisorError, match="libvirt:"):
            await hypervisor.set_limit(vm_id, Resource.MEMORY, 9000 * MIB)

    play(scenario)


def test_levers_say_why_not() -> None:
    async def scenario(hypervisor: LibvirtHypervisor, clock: FakeClock) -> None:
        levers = await hypervisor.levers()
        assert levers["memory"] == ""
        assert "cgroup" in levers["cpu"] and "block device" in levers["io"]
        vm_id = await only_vm(hypervisor)
        for resource in (Resource.CPU, Resource.IO):
            with pytest.raises(HypervisorError, match=r"no \S+ lever"):
                await hypervisor.set_limit(vm_id, resource, 500)

    play(scenario)


def test_the_balloon_is_asked_for_statistics() -> None:
    async def scenario(hypervisor: LibvirtHypervisor, clock: FakeClock) -> None:
        vm_id = await only_vm(hypervisor)
        inspected = await hypervisor._call("statistics", "inspect", vm_id)
        assert "<stats period='2'/>" in inspected[0]

    play(scenario)


def test_an_unknown_vm_is_gone() -> None:
    async def scenario(hypervisor: LibvirtHypervisor, clock: FakeClock) -> None:
        for resource in Resource:
            with pytest.raises(VmGone):
                await hypervisor.set_limit(UNKNOWN, resource, 500 * MIB)
        with pytest.raises(VmGone):
            await hypervisor.read(UNKNOWN)
        assert len(await hypervisor.read_all()) == 1

    play(scenario)


def test_a_worker_killed_in_the_middle_of_a_call_is_replaced_and_the_call_repeated() -> None:
    async def scenario(hypervisor: LibvirtHypervisor, clock: FakeClock) -> None:
        await hypervisor.read_all()
        pid = running_worker(hypervisor)
        os.kill(pid, signal.SIGSTOP)
        reading = await in_flight(hypervisor, hypervisor.read_all())
        os.kill(pid, signal.SIGKILL)
        assert len(await reading) == 1
        assert running_worker(hypervisor) != pid
        assert not is_alive(pid)
        assert hypervisor.worker_starts == 2

    play(scenario)


def test_a_worker_that_keeps_dying_is_not_started_again_at_once() -> None:
    async def scenario(hypervisor: LibvirtHypervisor, clock: FakeClock) -> None:
        reading = await in_flight(hypervisor, hypervisor.read_all())
        first = running_worker(hypervisor)
        os.kill(first, signal.SIGKILL)
        await until(lambda: hypervisor.worker_pid not in (None, first))
        os.kill(running_worker(hypervisor), signal.SIGKILL)
        with pytest.raises(HypervisorUnavailable, match="next start"):
            await reading
        clock.advance(SECOND_NS)
        assert len(await hypervisor.read_all()) == 1

    play(scenario)


def test_a_hanging_vm_is_given_up_after_the_budget_and_asked_again_later() -> None:
    async def scenario(hypervisor: LibvirtHypervisor, clock: FakeClock) -> None:
        vm_id = await only_vm(hypervisor)
        pid = running_worker(hypervisor)
        os.kill(pid, signal.SIGSTOP)
        before = time.monotonic()
        with pytest.raises(HypervisorTimeout, match="within 3 s"):
            await hypervisor.read(vm_id)
        assert BUDGET_S <= time.monotonic() - before < 2 * BUDGET_S
        assert not is_alive(pid)
        before = time.monotonic()
        with pytest.raises(HypervisorTimeout, match="frozen"):
            await hypervisor.set_limit(vm_id, Resource.MEMORY, 500 * MIB)
        (gap,) = await hypervisor.read_all()
        assert (gap.vm_id, gap.state) == (vm_id, VmState.RUNNING)
        assert gap.memory_actual_bytes is None and gap.cpu_time_ns is None
        assert time.monotonic() - before < BUDGET_S
        clock.advance(BACKOFF_NS_MIN)
        (thawed,) = await hypervisor.read_all()
        assert thawed.memory_actual_bytes is not None

    play(scenario)


def test_a_hanging_bulk_call_falls_back_to_single_vms() -> None:
    async def scenario(hypervisor: LibvirtHypervisor, clock: FakeClock) -> None:
        await hypervisor.read_all()
        pid = running_worker(hypervisor)
        os.kill(pid, signal.SIGSTOP)
        (vm,) = await hypervisor.read_all()
        assert vm.memory_actual_bytes is not None
        assert running_worker(hypervisor) != pid and not is_alive(pid)

    play(scenario)


def test_an_unreachable_libvirt_is_said() -> None:
    async def scenario(hypervisor: LibvirtHypervisor, clock: FakeClock) -> None:
        with pytest.raises(HypervisorUnavailable, match="nowhere-sock"):
            await hypervisor.read_all()
        with pytest.raises(HypervisorUnavailable, match="nowhere-sock"):
            await hypervisor.levers()  # no reason that would be remembered for a while

    play(scenario, "qemu+unix:///system?socket=/nonexistent/nowhere-sock")


def test_many_readings_at_once_are_all_answered() -> None:
    async def scenario(hypervisor: LibvirtHypervisor, clock: FakeClock) -> None:
        found = await asyncio.gather(*(hypervisor.read_all() for _ in range(30)))
        assert {len(vms) for vms in found} == {1}

    play(scenario)


def test_nothing_is_left_after_close() -> None:
    async def scenario(hypervisor: LibvirtHypervisor, clock: FakeClock) -> None:
        await hypervisor.read_all()
        pid = running_worker(hypervisor)
        os.kill(pid, signal.SIGSTOP)
        reading = await in_flight(hypervisor, hypervisor.read_all())
        await hypervisor.close()
        assert not is_alive(pid) and hypervisor.worker_pid is None
        with pytest.raises(HypervisorUnavailable):
            await reading
        with pytest.raises(HypervisorUnavailable, match="closed"):
            await hypervisor.read_all()

    play(scenario)


def test_the_worker_ends_when_its_agent_is_gone() -> None:
    command = [sys.executable, "-m", "agent.libvirt_worker", URI]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as worker:
        assert worker.stdin is not None
        worker.stdin.close()
        assert worker.wait(timeout=20) == 0


async def in_flight(hypervisor: LibvirtHypervisor, call: Awaitable[Any]) -> asyncio.Task[Any]:
    """The call as a task, once the worker has been asked."""
    task = asyncio.ensure_future(call)
    client = hypervisor._client
    await until(lambda: client._worker is not None and bool(client._worker.pending))
    assert isinstance(task, asyncio.Task)
    return task
