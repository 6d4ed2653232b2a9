"""The bus against a real nats-server that is late, killed, stalled and restarted."""

import asyncio
import time
from contextlib import aclosing

import pytest

from shared.bus import NatsBus, NatsOptions
from shared.errors import BusError
from shared.testing import STORE_BYTES, NatsServer, until

QUICK = NatsOptions(
    connect_timeout_s=0.5,
    ping_interval_s=0.2,
    ping_timeout_s=0.3,
    backoff_first_s=0.02,
    backoff_max_s=0.1,
    pending_bytes=256 * 1024,
)


@pytest.fixture
def server():
    with NatsServer() as started:
        yield started


def run(scenario) -> None:
    """Runs it, and fails when it leaves a task behind."""

    async def watched() -> None:
        await asyncio.wait_for(scenario(), 30)
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left, left

    asyncio.run(watched())


class Connected:
    """`async with Connected(server) as bus`: connected, closed afterwards, errors kept."""

    def __init__(self, server: NatsServer, options: NatsOptions = QUICK) -> None:
        self.errors = []
        self.bus = NatsBus([server.url], "test", self.errors.append, options)

    async def __aenter__(self) -> NatsBus:
        await self.bus.connect()
        assert await self.bus.wait_connected(10), self.bus.status_text
        return self.bus

    async def __aexit__(self, *_exception) -> None:
        await self.bus.close()


def collected() -> tuple[list[tuple[str, bytes]], object]:
    messages = []
    return messages, lambda subject, data: messages.append((subject, data))


async def read(bus: NatsBus, stream: str, subject: str, **start) -> list[tuple[int, bytes]]:
    async with aclosing(bus.read_stream(stream, subject, **start)) as messages:
        return [(stored.sequence, stored.data) async for stored in messages]


def test_what_is_published_arrives(server):
    async def scenario():
        messages, keep = collected()
        async with Connected(server) as bus:
            await bus.subscribe("paq.telemetry.*", keep)
            assert await bus.try_publish("paq.telemetry.a", b"one")
            assert await bus.try_publish("paq.other.a", b"two")
            assert await bus.try_publish("paq.telemetry.b", b"three")
            await until(lambda: len(messages) == 2)
            assert bus.status_text == f"connected to {server.url}"
        assert messages == [("paq.telemetry.a", b"one"), ("paq.telemetry.b", b"three")]
        assert not bus.connected

    run(scenario)


def test_a_server_that_is_not_there_yet_is_no_error():
    async def scenario():
        with NatsServer() as server:
            server.stop()
            connected = Connected(server)
            bus = connected.bus
            messages, keep = collected()
            await bus.subscribe("a", keep)
            await bus.connect()
            await until(lambda: connected.errors)
            assert not bus.connected
            assert "not connected" in bus.status_text and "failed" in bus.status_text
            assert not await bus.try_publish("a", b"lost")
            with pytest.raises(BusError, match="not connected"):
                await bus.publish_acknowledged("a", b"", "1")
            server.start()
            assert await bus.wait_connected(10)
            assert await bus.try_publish("a", b"there")
            await until(lambda: messages == [("a", b"there")])
            assert bus.counters.refused == 1
            await bus.close()

    run(scenario)


def test_a_killed_server_that_comes_back_finds_everything_as_it_was(server):
    async def scenario():
        messages, keep = collected()
        async with Connected(server) as bus:
            await bus.subscribe("live", keep)
            await bus.ensure_stream("S", ["kept.>"], max_age_s=3600, max_bytes=10**6)
            assert await bus.publish_acknowledged("kept.a", b"before", "1") == 1
            server.kill()
            await until(lambda: not bus.connected)
            assert not await bus.try_publish("live", b"into the void")
            server.start()
            assert await bus.wait_connected(10)
            assert await bus.publish_acknowledged("kept.a", b"before", "1") == 1
            assert await bus.publish_acknowledged("kept.a", b"after", "2") == 2
            assert await bus.try_publish("live", b"again")
            await until(lambda: messages)
            assert messages == [("live", b"again")]
            assert await read(bus, "S", "kept.a") == [(1, b"before"), (2, b"after")]
            assert bus.counters.connections == 2

    run(scenario)


def test_ten_kills_while_publishing_lose_nothing_that_was_acknowledged(server):
    async def scenario():
        acknowledged = []

        async def publish_until(stop: asyncio.Event) -> None:
            number = 0
            while not stop.is_set():
                try:
                    await bus.publish_acknowledged("s", b"%d" % number, f"id{number}", 1.0)
                except BusError:
                    await bus.wait_connected(5)
                else:
                    acknowledged.append(number)
                    number += 1

        async with Connected(server) as bus:
            await bus.ensure_stream("S", ["s"], max_age_s=3600, max_bytes=10**8)
            stop = asyncio.Event()
            publisher = asyncio.create_task(publish_until(stop))
            for _ in range(10):
                before = len(acknowledged)
                await until(lambda before=before: len(acknowledged) > before + 5)
                server.kill()
                server.start()
            stop.set()
            await publisher
            assert await bus.wait_connected(10)
            stored = [int(data) for _, data in await read(bus, "S", "s")]
            assert stored[: len(acknowledged)] == acknowledged
            assert len(stored) <= len(acknowledged) + 1  # the last one's answer may have died

    run(scenario)


def test_a_stream_that_fills_its_store_is_found_again(server):
    """Seen: a server reserves the size once more when a stream is described again, and refuses."""

    async def scenario():
        for life in range(3):
            async with Connected(server) as bus:
                await bus.ensure_stream("S", ["s"], max_age_s=60, max_bytes=STORE_BYTES * 6 // 10)
                assert await bus.publish_acknowledged("s", b"", str(life)) == life + 1
            server.kill()
            server.start()

    run(scenario)


def test_a_stream_of_that_name_is_changed_to_what_is_described(server):
    async def scenario():
        async with Connected(server) as bus:
            await bus.ensure_stream("S", ["a"], max_age_s=60, max_bytes=10**6)
            await bus.ensure_stream("S", ["a", "b"], max_age_s=120, max_bytes=10**6)
            assert await bus.publish_acknowledged("b", b"", "1") == 1

    run(scenario)


def test_a_stalled_server_blocks_no_publisher_and_is_noticed(server):
    async def scenario():
        async with Connected(server) as bus:
            await bus.ensure_stream("S", ["s"], max_age_s=60, max_bytes=10**6)
            server.pause()
            longest_s, refused = 0.0, False
            for _ in range(2000):
                start = time.monotonic()
                refused |= not await bus.try_publish("a", b"x" * 10_000)
                longest_s = max(longest_s, time.monotonic() - start)
                await asyncio.sleep(0)
            assert refused
            assert longest_s < 0.2
            await until(lambda: not bus.connected, timeout_s=5)
            await until(lambda: "not connected" in bus.status_text)
            server.resume()
            assert await bus.wait_connected(10)
            assert await bus.publish_acknowledged("s", b"", "1") == 1

    run(scenario)


def test_waiting_for_an_acknowledgement_ends_in_time_or_with_the_connection(server):
    async def scenario():
        async with Connected(server, NatsOptions(ping_interval_s=60)) as bus:
            await bus.ensure_stream("S", ["s"], max_age_s=60, max_bytes=10**6)
            server.pause()
            with pytest.raises(BusError, match="publish to s"):
                await bus.publish_acknowledged("s", b"", "1", timeout_s=0.3)
            waiting = asyncio.create_task(bus.publish_acknowledged("s", b"", "1", timeout_s=20))
            await asyncio.sleep(0)
            server.kill()
            start = time.monotonic()
            with pytest.raises(BusError, match="connection was lost"):
                await waiting
            assert time.monotonic() - start < 5
            server.start()

    run(scenario)


def test_closing_under_a_stalled_server_ends(server):
    async def scenario():
        async with Connected(server, NatsOptions(ping_interval_s=60)) as bus:
            server.pause()
            for _ in range(4000):  # more than kernel and bus let wait
                await bus.try_publish("a", b"x" * 10_000)
                await asyncio.sleep(0)
            assert bus.counters.refused
            start = time.monotonic()
        assert time.monotonic() - start < 5
        server.resume()

    run(scenario)


def test_closing_while_trying_to_connect_ends():
    async def scenario():
        with NatsServer() as server:
            server.pause()
            bus = Connected(server).bus
            await bus.connect()
            assert not await bus.wait_connected(0.1)
            await bus.close()
            assert bus.status_text == "not connected: closed"

    run(scenario)


def test_closing_delivers_what_was_handed_over(server):
    async def scenario():
        messages, keep = collected()
        async with Connected(server) as receiver:
            await receiver.subscribe("a", keep)
            async with Connected(server) as sender:
                for number in range(20):
                    assert await sender.try_publish("a", b"%d" % number)
            await until(lambda: len(messages) == 20)

    run(scenario)


def test_a_stream_is_made_once_and_changed_to_what_is_asked(server):
    async def scenario():
        async with Connected(server) as bus:
            for age_s in (60, 60, 120):
                await bus.ensure_stream("S", ["a", "b.>"], max_age_s=age_s, max_bytes=10**6)
            assert await bus.publish_acknowledged("b.c", b"", "1") == 1
            info = await bus._session.stream_api.stream_info("S")
            assert info.config.max_age == 120
            with pytest.raises(BusError, match="overlap"):
                await bus.ensure_stream("T", ["a"], max_age_s=60, max_bytes=10**6)

    run(scenario)


def test_an_append_only_stream_lets_no_one_delete(server):
    async def scenario():
        async with Connected(server) as bus:
            await bus.ensure_stream("S", ["s"], max_age_s=0, max_bytes=10**6, append_only=True)
            await bus.publish_acknowledged("s", b"", "1")
            api = bus._session.stream_api
            with pytest.raises(BusError, match="not permitted"):
                await bus._session.ask("purge", api.purge_stream("S"), 5)

    run(scenario)


def test_a_stream_asked_for_without_a_connection_is_there_with_it(server):
    async def scenario():
        bus = Connected(server).bus
        await bus.ensure_stream("S", ["s"], max_age_s=60, max_bytes=10**6)
        await bus.connect()
        assert await bus.wait_connected(10)
        assert await bus.publish_acknowledged("s", b"", "1") == 1
        await bus.close()

    run(scenario)


def test_without_a_stream_nothing_is_acknowledged(server):
    async def scenario():
        async with Connected(server) as bus:
            with pytest.raises(BusError, match="publish to s"):
                await bus.publish_acknowledged("s", b"", "1")

    run(scenario)


def test_a_stream_is_read_from_anywhere_to_where_it_ended_at_the_start(server):
    async def scenario():
        async with Connected(server) as bus:
            await bus.ensure_stream("S", ["s.*"], max_age_s=3600, max_bytes=10**8)
            for number in range(350):
                await bus.publish_acknowledged(f"s.{number % 2}", b"%d" % number, f"{number}")
            everything = await read(bus, "S", "s.*")
            assert everything == [(n + 1, b"%d" % n) for n in range(350)]
            odd = await read(bus, "S", "s.1", start_sequence=300)
            assert odd == [(n + 1, b"%d" % n) for n in range(299, 350, 2)]
            assert await read(bus, "S", "s.*", since_unix_ns=0) == everything
            assert await read(bus, "S", "s.*", since_unix_ns=time.time_ns() + 10**12) == []
            assert await read(bus, "S", "s.*", start_sequence=351) == []
            assert await read(bus, "S", "s.none") == []
            grown = []
            async with aclosing(bus.read_stream("S", "s.*", start_sequence=349)) as messages:
                async for stored in messages:
                    grown.append(stored.sequence)
                    await bus.publish_acknowledged("s.0", b"", f"more {stored.sequence}")
            assert grown == [349, 350]
            with pytest.raises(BusError, match="NONE"):
                await read(bus, "NONE", "s.*")

    run(scenario)


def test_reading_from_a_killed_server_is_an_error_not_an_end(server):
    async def scenario():
        async with Connected(server) as bus:
            await bus.ensure_stream("S", ["s"], max_age_s=3600, max_bytes=10**8)
            for number in range(150):
                await bus.publish_acknowledged("s", b"", f"{number}")
            async with aclosing(bus.read_stream("S", "s", deadline_s=5)) as messages:
                assert (await anext(messages)).sequence == 1
                server.kill()
                with pytest.raises(BusError):
                    assert len([stored async for stored in messages]) < 149
            server.start()

    run(scenario)


def test_what_no_retry_would_help_is_said_at_once(server):
    async def scenario():
        async with Connected(server, NatsOptions(pending_bytes=4 * 1024 * 1024)) as bus:
            with pytest.raises(BusError, match="the server takes 1048576"):
                await bus.try_publish("a", b"x" * (1024 * 1024 + 1))
            with pytest.raises(BusError, match="no subject"):
                await bus.try_publish("a\r\nPUB b 0", b"")
            assert await bus.try_publish("a", b"goes on")

    run(scenario)
    for url in ("127.0.0.1:4222", "http://localhost", "nats://", "nats://host:port"):
        with pytest.raises(BusError, match="nats://host:port is needed"):
            NatsBus([url], "test", print)
    with pytest.raises(BusError, match="no NATS server"):
        NatsBus([], "test", print)


def test_secrets_in_a_url_are_not_shown():
    with pytest.raises(BusError) as refusal:
        NatsBus(["http://secret@host:1"], "test", print)
    assert "secret" not in str(refusal.value)


def test_a_callback_that_fails_is_reported_and_the_next_message_comes(server, capfd):
    async def scenario():
        messages = []

        def fussy(subject: str, data: bytes) -> None:
            if data == b"bad":
                raise ValueError("did not like it")
            messages.append(data)

        connected = Connected(server)
        async with connected as bus:
            await bus.subscribe("a", fussy)
            await bus.try_publish("a", b"bad")
            await bus.try_publish("a", b"good")
            await until(lambda: messages == [b"good"])
            assert [str(error) for error in connected.errors] == ["did not like it"]
            assert bus.counters.errors == 1

    run(scenario)
    assert capfd.readouterr() == ("", "")


def test_messages_beyond_what_may_wait_are_dropped_and_counted(server):
    async def scenario():
        messages, keep = collected()
        options = NatsOptions(receive_messages=10)
        async with Connected(server, options) as bus, Connected(server) as sender:
            await bus.subscribe("a", keep)
            for _ in range(1000):
                await sender.try_publish("a", b"x" * 16)
            await until(lambda: len(messages) + bus.counters.dropped_slow == 1000)
            assert bus.counters.dropped_slow > 0
            assert bus.connected

    run(scenario)


def test_a_subscription_that_was_ended_is_not_there_after_a_reconnection_either(server):
    async def scenario():
        async with Connected(server) as bus:
            got = []

            def hear(subject, data):
                got.append(data)

            await asyncio.gather(*(bus.subscribe(subject, hear) for subject in ("a", "b", "c")))
            await bus.unsubscribe("b", hear)
            await bus.unsubscribe("never", hear)
            for subject in ("b", "a", "c"):
                await bus.try_publish(subject, subject.encode())
            await until(lambda: got == [b"a", b"c"])
            server.kill()
            await until(lambda: not bus.connected)
            await bus.unsubscribe("c", hear)
            server.start()
            await until(lambda: bus.connected)
            for subject in ("c", "b", "a"):
                await bus.try_publish(subject, b"again " + subject.encode())
            await until(lambda: got == [b"a", b"c", b"again a"])

    run(scenario)
