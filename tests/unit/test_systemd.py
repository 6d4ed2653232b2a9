"""What systemd hears of an agent: up after its first sample, alive as long as it samples."""

import asyncio
import socket
from pathlib import Path

import pytest

from agent.loop import STUCK_NS, Agent, run
from agent.settings import AgentSettings
from agent.simulated import SimulatedHypervisor
from agent.systemd import ServiceManager
from shared.clock import SECOND_NS, FakeClock


@pytest.fixture(params=["path", "abstract"])
def heard(request, tmp_path):
    """The manager's end of the socket, and a function that empties it."""
    address = str(tmp_path / "notify") if request.param == "path" else f"@hrapaq-{tmp_path.name}"
    bound = "\0" + address[1:] if address.startswith("@") else address
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as there:
        there.bind(bound)

        def take():
            words = []
            while True:
                try:
                    words.append(there.recv(100).decode())
                except BlockingIOError:
                    return words

        yield ServiceManager.of_environment({"NOTIFY_SOCKET": address}), take


def test_ready_is_said_once(heard):
    manager, take = heard
    for say in (manager.ready, manager.ready, manager.alive, manager.stopping):
        say()
    assert take() == ["READY=1", "WATCHDOG=1", "STOPPING=1"]


@pytest.mark.parametrize("address", [None, "/nowhere/at/all"])
def test_nobody_listens_and_nothing_fails(address):
    manager = ServiceManager(address)
    manager.ready()
    manager.alive()


def test_without_systemd_nothing_is_said():
    assert ServiceManager.of_environment({})._address is None


def test_an_agent_that_no_longer_samples_is_not_alive(heard, tmp_path):
    manager, take = heard
    clock = FakeClock()
    settings = AgentSettings(state_directory=tmp_path / "state", metrics_listen="")
    agent = Agent(settings, Path("/"), clock, SimulatedHypervisor(1, clock), manager)

    async def scenario():
        agent.open()
        agent.look()
        assert take() == ["WATCHDOG=1"]
        clock.advance(STUCK_NS + int(3 * settings.sample_interval_s * SECOND_NS))
        agent.look()
        assert take() == []
        await agent.close()
        assert take() == ["STOPPING=1"]

    asyncio.run(scenario())


def test_an_agent_is_ready_after_its_first_sample(heard, tmp_path):
    manager, take = heard
    settings = AgentSettings(
        state_directory=tmp_path / "state",
        libvirt_uri="simulated:1",
        controller_address="",
        metrics_listen="",
    )

    async def scenario():
        stop = asyncio.Event()
        running = asyncio.create_task(run(settings, stop=stop, manager=manager))
        words = []
        while "READY=1" not in words:
            assert not running.done()
            words += take()
            await asyncio.sleep(0.01)
        stop.set()
        await running
        assert take()[-1] == "STOPPING=1"

    asyncio.run(scenario())
