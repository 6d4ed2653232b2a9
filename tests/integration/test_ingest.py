"""Telemetry over a real NATS server into the fleet: live, after restarts, and what is refused."""

import asyncio
import logging
import time
from contextlib import contextmanager
from dataclasses import replace

import msgpack
import numpy as np
import pytest

from controller.core.state import Hold
from controller.ingest import Ingest
from controller.picture import Streams
from controller.settings import ControllerSettings
from shared.bus import NatsBus
from shared.clock import SECOND_NS, SystemClock
from shared.subjects import TELEMETRY_STREAM, telemetry_subject
from shared.telemetry import NodeReadings, NodeSample, VmSample
from shared.testing import NatsServer
from shared.wire import encode

HOST = "00000000-0000-0000-0000-000000000001"
OTHER = "00000000-0000-0000-0000-000000000002"
GUEST = "00000000-0000-0000-0000-000000000003"
CLOCK = SystemClock()


@pytest.fixture
def server():
    with NatsServer() as running:
        yield running


def sample(sequence, node_id=HOST, **said):
    header = {
        "name": "host",
        "role": "host",
        "boot_id": "boot",
        "sampled_at_unix_ns": CLOCK.unix_ns(),
        "tick_ns": 1000 + sequence,
        "interval_ns": 10 * SECOND_NS,
        "node": NodeReadings(cpu_used_millicores=100 * sequence),
        "vms": (VmSample(GUEST, "guest", cpu_used_millicores=10 * sequence),)
        if node_id == HOST
        else (),
    }
    return NodeSample(node_id=node_id, sequence=sequence, **{**header, **said})


class LaterClock(SystemClock):
    """A controller's that starts 100 seconds from now."""

    def unix_ns(self):
        return super().unix_ns() + 100 * SECOND_NS

    def tick_ns(self):
        return super().tick_ns() + 100 * SECOND_NS


@contextmanager
def ingesting(server, clock=CLOCK, **settings):
    ingest = Ingest(ControllerSettings(bus_servers=(server.url,), **settings), clock)
    ingest.start()
    try:
        yield ingest
    finally:
        ingest.stop()
        assert not ingest.status().alive


def publish(server, *messages):
    """Each a sample, or a pair of node and bytes."""

    async def scenario():
        bus = NatsBus([server.url], "agent", lambda error: None)
        await bus.connect()
        assert await bus.wait_connected(10)
        for each in messages:
            node, data = each if isinstance(each, tuple) else (each.node_id, encode(each))
            assert await bus.try_publish(telemetry_subject(node), data)
        await bus.close()

    asyncio.run(scenario())


def stored(server):
    async def scenario():
        bus = NatsBus([server.url], "reader", lambda error: None)
        await bus.connect()
        assert await bus.wait_connected(10)
        found = [each async for each in bus.read_stream(TELEMETRY_STREAM, "paq.telemetry.*")]
        await bus.close()
        return found

    return asyncio.run(scenario())


def wait(condition, timeout_s=10.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s"
        time.sleep(0.005)


def test_what_agents_publish_is_in_the_snapshot(server):
    with ingesting(server) as ingest:
        assert ingest.wait_ready(10)
        publish(server, sample(1), sample(2))
        wait(lambda: ingest.status().messages == 2)
        snapshot, history = ingest.observe(epoch=3, cycle=4, streams=Streams({HOST: ""}))
        assert snapshot.ids == (HOST, GUEST)
        assert snapshot.used[1].tolist() == [20, -1, -1]
        assert (snapshot.epoch, snapshot.cycle) == (3, 4)
        peak = history.windows.peak(np.array([1]), history.steps)
        assert np.nanmax(peak[0, 0]) == 20
        assert [node.name for node in ingest.nodes()] == ["host"]
        assert ingest.status().dropped == {}


def test_two_machines_under_one_id_are_held_still_and_told_of(server, caplog):
    streams = Streams({HOST: "", OTHER: ""})
    with ingesting(server) as ingest:
        assert ingest.wait_ready(10)
        publish(server, sample(1, node_id=OTHER, name="other"))
        for second in range(4):
            tick_ns = (1000 + 10 * second) * SECOND_NS
            for boot_id in ("one", "two"):
                publish(server, sample(second, boot_id=boot_id, tick_ns=tick_ns))
        wait(lambda: ingest.status().messages + ingest.status().dropped.get("clone", 0) == 9)
        snapshot, _ = ingest.observe(epoch=1, cycle=1, streams=streams)
        hold = dict(zip(snapshot.ids, snapshot.hold.tolist(), strict=True))
        assert hold == {OTHER: Hold.NONE, HOST: Hold.CLONE, GUEST: Hold.CLONE}
        (trouble,) = ingest.status().troubles
        assert trouble.machine_id == HOST
        ingest.observe(epoch=1, cycle=2, streams=streams)
    (said,) = [each for each in caplog.records if "two machines" in each.message]
    assert "node_id" in said.todo


def test_a_controller_that_restarts_reads_what_it_missed(server):
    with ingesting(server) as ingest:
        assert ingest.wait_ready(10)
        publish(server, sample(1), sample(2))
        wait(lambda: ingest.status().messages == 2)
    publish(server, sample(3))
    with ingesting(server, LaterClock()) as ingest:
        assert ingest.wait_ready(10)
        status = ingest.status()
        assert (status.messages, status.dropped, status.lost) == (3, {}, 0)
        snapshot, _ = ingest.observe(epoch=1, cycle=1)
        assert snapshot.used[1, 0] == 30
        assert 100 * SECOND_NS <= snapshot.sample_age_ns[0] < 120 * SECOND_NS
        publish(server, sample(4))
        wait(lambda: ingest.status().messages == 4)


def test_a_server_that_comes_late_or_back_is_no_error(server):
    server.stop()
    with ingesting(server) as ingest:
        wait(lambda: "not connected: [" in ingest.status().detail)
        assert not ingest.status().ready
        server.start()
        assert ingest.wait_ready(10)
        publish(server, sample(1))
        wait(lambda: ingest.status().messages == 1)
        server.kill()
        wait(lambda: not ingest.status().connected)
        server.start()
        wait(lambda: ingest.status().connected)
        publish(server, sample(2))
        wait(lambda: ingest.status().messages == 2)


def test_bad_messages_are_counted_by_cause_and_disturb_nothing(server, caplog):
    hour_ns = 3600 * SECOND_NS
    now = CLOCK.unix_ns()
    good = encode(sample(1))
    bad = {
        "malformed": good[:-7],
        "oversized": encode(sample(2)) + b"x" * 1_041_000,
        "version": msgpack.packb({**msgpack.unpackb(good), "version": 99}),
        "schema": msgpack.packb({**msgpack.unpackb(good), "more": 1}),
        "range": msgpack.packb({**msgpack.unpackb(good), "tick_ns": -5}),
        "subject": encode(sample(1, OTHER)),
        "future": encode(sample(2, sampled_at_unix_ns=now + hour_ns)),
        "past": encode(sample(2, sampled_at_unix_ns=now - hour_ns)),
        "duplicate": good,
    }
    caplog.set_level(logging.WARNING, "controller.ingest")
    with ingesting(server) as ingest:
        assert ingest.wait_ready(10)
        publish(server, sample(1), *((HOST, data) for data in bad.values()), sample(2))
        wait(lambda: ingest.status().messages == 2)
        assert ingest.status().dropped == dict.fromkeys(bad, 1)
        assert ingest.observe(epoch=1, cycle=1)[0].used[1, 0] == 20
    dropped = [line for line in caplog.records if line.message == "telemetry dropped"]
    assert len(dropped) == 1  # a minute has not passed


def test_a_flood_of_one_node_leaves_the_others_alone(server):
    with ingesting(server, node_messages_per_minute=20) as ingest:
        assert ingest.wait_ready(10)
        flood = [sample(i) for i in range(200)]
        publish(server, *flood, sample(1, OTHER))
        wait(lambda: sum(ingest.status().dropped.values()) + ingest.status().messages == 201)
        assert set(ingest.status().dropped) == {"flood"}
        assert {node.node_id for node in ingest.nodes()} == {HOST, OTHER}
        assert ingest.status().messages < 30


def test_an_agent_that_restarts_goes_on_and_an_earlier_boot_does_not_return(server):
    with ingesting(server) as ingest:
        assert ingest.wait_ready(10)
        first = sample(9)
        restarted = replace(sample(1), tick_ns=first.tick_ns + 5)
        rebooted = replace(sample(1), boot_id="second", tick_ns=3)
        late = replace(sample(12), tick_ns=first.tick_ns + 9)
        publish(server, first, restarted, rebooted, late, replace(sample(4), boot_id="second"))
        wait(lambda: ingest.status().messages == 4)
        assert ingest.status().dropped == {"duplicate": 1}
        assert ingest.status().lost == 2  # between the first and the fourth of the second boot
        wait(lambda: len(stored(server)) == 5)  # the stream and the controller each get their own
