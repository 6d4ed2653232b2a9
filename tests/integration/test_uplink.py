"""The agent's stream over real gRPC, and the whole agent with a real bus and a controller's end."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections import deque
from dataclasses import replace
from pathlib import Path
from random import Random

import grpc
import pytest

from agent import loop, messages, uplink
from agent.leash import Bounds, Leash
from agent.settings import AgentSettings
from agent.steps import Ack, Command, Header, Outcome, Step
from shared.bus import NatsBus
from shared.clock import SystemClock
from shared.pb import commands_pb2 as pb
from shared.pb import commands_pb2_grpc
from shared.resources import MIB, Resource
from shared.subjects import TELEMETRY_ALL
from shared.testing import NatsServer, until
from shared.wire import decode

NODE_ID = "00000000-0000-4000-8000-000000000001"


class Controller(commands_pb2_grpc.CommandsServicer):
    """The controller's end of the stream: notes what comes, sends what it is given."""

    def __init__(self):
        self.heard = []
        self.streams = 0
        self._outgoing = None
        self.server = None
        self.port = 0

    async def start(self):
        self.server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
        commands_pb2_grpc.add_CommandsServicer_to_server(self, self.server)
        self.port = self.server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self.server.start()
        return self

    async def stop(self):
        await self.server.stop(None)

    async def Connect(self, request_iterator, context):  # noqa: N802 - a name from the protocol
        self.streams += 1
        self._outgoing = context
        async for message in request_iterator:
            self.heard.append(message)

    async def send(self, message):
        await self._outgoing.write(message)

    def of_kind(self, kind):
        return [getattr(m, kind) for m in self.heard if m.WhichOneof("kind") == kind]

    @property
    def address(self):
        return f"127.0.0.1:{self.port}"


class Obedient:
    """Orders that notes what it is told and answers when it may."""

    def __init__(self):
        self.applied = []
        self.renewed = []
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def apply(self, command):
        self.applied.append(command)
        await self.may_answer.wait()
        header = command.header
        return Ack(header.command_id, header.plan_id, header.epoch, 1, 2, accepted=True)

    async def renew(self, header, fallback, bounds):
        self.renewed.append((header, fallback, bounds))
        return None if header.epoch else self.refuse(header, "no epoch")

    def refuse(self, header, detail):
        return Ack(header.command_id, "", 0, 1, 2, accepted=False, refusal=detail)


HEADER = Header("c1", "p1", 3, 1, 0, 5, 15_000, 60_000)
STEP = Step(4, "vm", Resource.MEMORY, 512 * MIB, 448 * MIB, 64 * MIB, 512 * MIB, 8000)
LEASH = Leash(256 * MIB, 768 * MIB, 512 * MIB)
BOUNDS = Bounds({("vm", Resource.MEMORY): LEASH}, {Resource.MEMORY: 64 * MIB, Resource.CPU: 500})
COMMAND = Command(HEADER, (STEP,), (("vm", Resource.MEMORY, 512 * MIB),), BOUNDS)


def hello():
    return pb.Hello(node_id=NODE_ID, agent_tick_ns=9, generation=1, epoch_highest=3)


class Dialled:
    """An uplink to a controller, both running."""

    def __init__(self, controller, orders):
        self.controller, self.orders = controller, orders
        self.uplink = uplink.Uplink(controller.address, hello, orders, SystemClock(), Random(1))

    async def __aenter__(self):
        self._task = asyncio.create_task(self.uplink.run())
        return self

    async def __aexit__(self, *_):
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self.controller.stop()


async def dialled():
    return Dialled(await Controller().start(), Obedient())


def test_the_agent_says_hello_beats_and_answers_over_its_own_stream():
    async def scenario():
        async with await dialled() as end:
            controller = end.controller
            await until(lambda: len(controller.of_kind("beat")) >= 2)
            assert controller.heard[0].hello == hello()
            assert controller.of_kind("beat")[0].agent_tick_ns == 9
            assert end.uplink.connected
            await controller.send(messages.apply_message(COMMAND))
            await until(lambda: controller.of_kind("ack"))
            assert end.orders.applied == [COMMAND]
            assert controller.of_kind("ack")[0].command_id == "c1"

    asyncio.run(scenario())


def test_commands_wait_for_each_other_and_renewals_for_none():
    async def scenario():
        async with await dialled() as end:
            end.orders.may_answer.clear()
            await until(lambda: end.uplink.connected and end.controller.heard)
            for number in (1, 2):
                header = replace(HEADER, command_id=f"c{number}", sequence=number)
                told = replace(COMMAND, header=header)
                await end.controller.send(messages.apply_message(told))
            same = messages.apply_message(COMMAND).apply
            renewal = pb.Renew(
                header=messages.header_message(HEADER),
                fallback=same.fallback,
                leash=same.leash,
                reserve=same.reserve,
            )
            await end.controller.send(pb.ControllerMessage(renew=renewal))
            await until(lambda: end.orders.renewed)
            assert end.orders.renewed == [(HEADER, COMMAND.fallback, BOUNDS)]
            assert len(end.orders.applied) == 1
            end.orders.may_answer.set()
            await until(lambda: len(end.controller.of_kind("ack")) == 2)
            assert [a.command_id for a in end.controller.of_kind("ack")] == ["c1", "c2"]

    asyncio.run(scenario())


def test_an_answer_outlives_its_stream():
    async def scenario():
        async with await dialled() as end:
            end.orders.may_answer.clear()
            await until(lambda: end.uplink.connected and end.controller.heard)
            await end.controller.send(messages.apply_message(COMMAND))
            await until(lambda: end.orders.applied)
            await end.controller.stop()
            await until(lambda: not end.uplink.connected)
            end.orders.may_answer.set()
            await end.controller.start()
            await until(lambda: end.controller.of_kind("ack"))
            assert end.controller.streams == 2
            assert len(end.controller.of_kind("hello")) == 2

    asyncio.run(scenario())


def test_too_many_waiting_commands_are_refused_at_once():
    async def scenario():
        async with await dialled() as end:
            end.orders.may_answer.clear()
            await until(lambda: end.uplink.connected and end.controller.heard)
            for number in range(uplink.WAITING_COMMANDS_MAX + 2):
                header = replace(HEADER, command_id=f"c{number}")
                told = replace(COMMAND, header=header)
                await end.controller.send(messages.apply_message(told))
            await until(lambda: end.controller.of_kind("ack"))
            (refusal,) = end.controller.of_kind("ack")
            assert not refusal.accepted
            assert "waiting" in refusal.refusal

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "message",
    [
        pb.ControllerMessage(),
        pb.ControllerMessage(apply=pb.Apply()),
        pb.ControllerMessage(
            apply=pb.Apply(header=pb.Header(command_id="x"), steps=[pb.Step(vm_id="vm")])
        ),
        pb.ControllerMessage(renew=pb.Renew(header=pb.Header(command_id="x", epoch=2**63))),
    ],
)
def test_what_makes_no_sense_is_dropped_and_the_stream_goes_on(message):
    async def scenario():
        async with await dialled() as end:
            await until(lambda: end.uplink.connected and end.controller.heard)
            await end.controller.send(message)
            await end.controller.send(messages.apply_message(COMMAND))
            await until(lambda: end.controller.of_kind("ack"))
            assert end.orders.applied == [COMMAND]
            assert end.controller.streams == 1

    asyncio.run(scenario())


def test_values_survive_the_protocol():
    assert messages.command_of(messages.apply_message(COMMAND).apply) == COMMAND


def test_reconnecting_spreads_and_is_bounded():
    waits = [uplink.backoff_s(attempt, Random(attempt)) for attempt in range(20)]
    assert all(0 < wait <= uplink.BACKOFF_S_MAX for wait in waits)
    assert max(waits) >= uplink.BACKOFF_S_MAX / 2
    assert uplink.backoff_s(4, Random(1)) != uplink.backoff_s(4, Random(2))


# --- the whole agent ---------------------------------------------------------------------------


def settings_for(tmp_path, **fields):
    known = {
        "libvirt_uri": "simulated:7",
        "sample_interval_s": 0.3,
        "state_directory": tmp_path / "state",
        "metrics_listen": "",
        "controller_address": "",
        "memory_allocatable_bytes": 2048 * MIB,
    }
    return AgentSettings(**{**known, **fields})


class Listening:
    """Telemetry as it arrives, decoded."""

    def __init__(self):
        self.samples = deque(maxlen=1000)

    def take(self, subject, data):
        self.samples.append((subject, decode(data).sample()))

    @property
    def newest(self):
        return self.samples[-1][1]


async def _listen(server):
    listening = Listening()
    bus = NatsBus([server.url], "test", lambda _: None)
    await bus.subscribe(TELEMETRY_ALL, listening.take)
    await bus.connect()
    assert await bus.wait_connected(10)
    return bus, listening


def test_a_host_reports_obeys_and_reports_what_came_of_it(tmp_path):
    async def scenario(server):
        controller = await Controller().start()
        bus, listening = await _listen(server)
        stop = asyncio.Event()
        settings = settings_for(
            tmp_path, bus_servers=(server.url,), controller_address=controller.address
        )
        running = asyncio.create_task(loop.run(settings, stop=stop))
        await until(lambda: len(listening.samples) > 2 and controller.of_kind("hello"))
        seen = listening.newest
        (said,) = controller.of_kind("hello")
        assert (said.node_id, said.boot_id) == (seen.node_id, seen.boot_id)
        assert listening.samples[-1][0].endswith(seen.node_id)
        assert seen.simulated
        assert set(seen.levers.values()) == {""}
        vm = next(vm for vm in seen.vms if vm.name == "sim-cpu")
        header = replace(HEADER, agent_tick_ns=seen.tick_ns)
        step = Step(0, vm.vm_id, Resource.CPU, vm.cpu_limit_millicores, 1500, 100, 2000, 2000)
        await controller.send(messages.apply_message(Command(header, (step,))))
        await until(lambda: controller.of_kind("ack"))
        ack = controller.of_kind("ack")[0]
        assert ack.accepted, ack.refusal
        assert [r.outcome for r in ack.results] == [Outcome.APPLIED], ack.results
        await until(lambda: listening.newest.generation == 1)
        moved = next(each for each in listening.newest.vms if each.vm_id == vm.vm_id)
        assert moved.cpu_limit_millicores == 1500
        assert listening.newest.epoch_highest == 3
        await _ends(running, stop)
        await bus.close()
        await controller.stop()

    with NatsServer() as server:
        asyncio.run(scenario(server))


def test_a_network_limit_of_an_operator_is_set_shown_and_lifted_with_the_lease(tmp_path):
    async def scenario(server):
        controller = await Controller().start()
        bus, listening = await _listen(server)
        stop = asyncio.Event()
        settings = settings_for(
            tmp_path, bus_servers=(server.url,), controller_address=controller.address
        )
        running = asyncio.create_task(loop.run(settings, stop=stop))
        await until(lambda: len(listening.samples) > 2 and controller.of_kind("hello"))
        vm_id = listening.newest.vms[0].vm_id

        def limit():
            return next(
                vm for vm in listening.newest.vms if vm.vm_id == vm_id
            ).net_limit_bytes_per_s

        def header(sequence, lease_ms):
            now = replace(HEADER, agent_tick_ns=listening.newest.tick_ns, lease_ms=lease_ms)
            return messages.header_message(replace(now, sequence=HEADER.sequence + sequence))

        renew = pb.Renew(header=header(0, 1500))
        await controller.send(pb.ControllerMessage(renew=renew))
        wanted = pb.NetLimits(
            header=header(1, 1500), limits=[pb.NetLimit(vm_id=vm_id, bytes_per_s=4096)]
        )
        await controller.send(pb.ControllerMessage(net_limits=wanted))
        await until(lambda: limit() == 4096)
        await until(lambda: limit() is None)  # nobody renews the lease
        await _ends(running, stop)
        await bus.close()
        await controller.stop()

    with NatsServer() as server:
        asyncio.run(scenario(server))


async def _ends(running, stop):
    began = time.monotonic()
    stop.set()
    await running
    assert time.monotonic() - began < 2.5
    assert not [t for t in asyncio.all_tasks() if "agent" in repr(t) and not t.done()]


def test_without_bus_and_controller_the_agent_samples_on_and_catches_up(tmp_path):
    async def scenario():
        server = NatsServer(tmp_path)
        server.start()
        server.stop()
        settings = settings_for(
            tmp_path,
            bus_servers=(server.url,),
            controller_address=f"127.0.0.1:{_free_port()}",
            buffer_messages=3,
            metrics_listen="127.0.0.1:0",
        )
        agent = loop.Agent(settings, Path("/"), SystemClock())
        agent.open()
        duties = [asyncio.create_task(each) for each in agent.duties()]
        try:
            await until(lambda: agent.publisher.dropped >= 2)
            assert agent.publisher.waiting == 3
            server.start()
            bus, listening = await _listen(server)
            await until(lambda: listening.samples)
            sequences = [sample.sequence for _, sample in listening.samples]
            assert sequences[0] > agent.publisher.dropped - 3
            page = await asyncio.to_thread(_page, agent.metrics_port)
            assert 'hrapaq_agent_dropped_total{cause="buffer_full"}' in page
            assert 'hrapaq_agent_connected{peer="controller"} 0.0' in page
            await bus.close()
        finally:
            for duty in duties:
                duty.cancel()
            await asyncio.gather(*duties, return_exceptions=True)
            await agent.close()
            server.kill()

    asyncio.run(scenario())


def _page(port):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        return answer.read().decode()


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


GUEST = """
import asyncio, json, sys
from pathlib import Path
from agent.loop import run
from agent.settings import AgentSettings

async def main():
    stop = asyncio.Event()
    settings = AgentSettings(role="guest", bus_servers=("nats://127.0.0.1:1",), metrics_listen="")
    task = asyncio.create_task(run(settings, stop=stop))
    await asyncio.sleep(0.5)
    stop.set()
    await task
    print(json.dumps(sorted({name.split(".")[0] for name in sys.modules})))

asyncio.run(main())
"""


def test_a_guest_loads_neither_grpc_nor_libvirt():
    done = subprocess.run(
        [sys.executable, "-c", GUEST], capture_output=True, text=True, check=True, timeout=60
    )
    loaded = set(json.loads(done.stdout))
    assert "nats" in loaded
    assert not loaded & {"grpc", "google", "libvirt", "numpy", "torch", "psutil"}


@pytest.mark.parametrize(
    ("role", "variables"), [("guest", {}), ("host", {"HRAPAQ_LIBVIRT_URI": "simulated:1"})]
)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_program_ends_cleanly_on_a_signal(tmp_path, role, variables, number):
    variables = {
        "HRAPAQ_STATE_DIRECTORY": str(tmp_path),
        "HRAPAQ_METRICS_LISTEN": "",
        "HRAPAQ_BUS_SERVERS": '["nats://127.0.0.1:1"]',
        "HRAPAQ_CONTROLLER_ADDRESS": "127.0.0.1:1",
        **variables,
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "agent", role],
        env={**os.environ, **variables},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert "agent starts" in _line_with(process.stderr, "agent starts")
        began = time.monotonic()
        process.send_signal(number)
        _, log = process.communicate(timeout=10)
        assert process.returncode == 0, log
        assert time.monotonic() - began < 3
        assert "Traceback" not in log
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def _line_with(stream, words):
    for line in stream:
        if words in line:
            return line
    return ""


def test_a_wrong_setting_stops_the_start_and_is_named():
    done = subprocess.run(
        [sys.executable, "-m", "agent", "auto"],
        env={**os.environ, "HRAPAQ_METRICS_LISTN": "x"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1
    assert "HRAPAQ_METRICS_LISTN" in done.stderr
    assert "HRAPAQ_METRICS_LISTEN" in done.stderr
