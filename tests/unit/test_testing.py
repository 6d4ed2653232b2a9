"""The tools of the tests are code, and can be wrong too."""

import asyncio
import time

import pytest

from shared.bus import Bus
from shared.errors import BusError
from shared.testing import FakeBus, VirtualTimeLoop, _matches


@pytest.mark.parametrize(
    ("pattern", "subject", "matches"),
    [
        ("a.b", "a.b", True),
        ("a.*", "a.b", True),
        ("a.*", "a.b.c", False),
        ("a.>", "a.b.c", True),
        ("a.>", "a", False),
        (">", "a.b", True),
        ("*.b", "a.b", True),
        ("a", "b", False),
    ],
)
def test_wildcards_match_as_on_a_real_server(pattern, subject, matches):
    assert _matches(pattern, subject) is matches


def story(seed: int) -> list[bytes]:
    async def scenario():
        bus: Bus = FakeBus(seed, drop=0.2, double=0.2, reorder=0.2)
        got = []
        await bus.connect()
        await bus.subscribe("a", lambda subject, data: got.append(data))
        for number in range(200):
            assert await bus.try_publish("a", b"%d" % number)
        return got

    return asyncio.run(scenario())


def test_one_seed_one_story():
    got = [int(data) for data in story(7)]
    assert story(7) == story(7) != story(8)
    assert len(set(got)) < 200  # dropped
    assert len(got) > len(set(got))  # doubled
    assert got != sorted(got)  # reordered


def test_streams_of_the_fake_keep_everything_once_by_id():
    async def scenario():
        bus = FakeBus(1, drop=1.0)
        with pytest.raises(BusError, match="not connected"):
            await bus.publish_acknowledged("s.a", b"", "1")
        await bus.connect()
        with pytest.raises(BusError, match="no stream"):
            await bus.publish_acknowledged("s.a", b"", "1")
        await bus.ensure_stream("S", ["s.*"], max_age_s=0, max_bytes=0)
        assert await bus.publish_acknowledged("s.a", b"x", "1") == 1
        assert await bus.publish_acknowledged("s.a", b"x", "1") == 1
        assert await bus.publish_acknowledged("s.b", b"y", "2") == 2
        assert [m.data async for m in bus.read_stream("S", "s.*")] == [b"x", b"y"]
        assert [m.data async for m in bus.read_stream("S", "s.b")] == [b"y"]
        assert [m.data async for m in bus.read_stream("S", "s.*", start_sequence=2)] == [b"y"]

    asyncio.run(scenario())


def test_an_hour_passes_at_once():
    async def scenario():
        await asyncio.gather(asyncio.sleep(3600), asyncio.sleep(1800))
        return asyncio.get_running_loop().time()

    start = time.monotonic()
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        assert 3600 <= runner.run(scenario()) < 3601
    assert time.monotonic() - start < 5
