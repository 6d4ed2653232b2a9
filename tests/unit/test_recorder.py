"""Whose epoch it is, by the record; and that nothing is recorded in one that is not ours."""

import asyncio

from controller.recorder import Recorder
from shared.clock import FakeClock
from shared.testing import FakeBus


def test_an_epoch_that_is_on_the_record_already_is_not_used():
    """A controller on another disk counts from its own beginning; commands of the one before it
    may still be under way in the epoch that it would take."""

    async def scenario():
        bus = FakeBus()
        await bus.connect()
        older = Recorder(bus, FakeClock(), 64)
        assert await older.prepare(2)
        assert await older.change({"what": "freeze"}, 1)
        newer = Recorder(bus, FakeClock(), 64)
        for epoch in (1, 2):
            assert not await newer.prepare(epoch)
            assert newer.epoch_of_others == 2
            assert "epoch 2" in newer.detail
        assert await newer.prepare(3)
        assert newer.healthy

    asyncio.run(scenario())


def test_our_own_earlier_epoch_is_no_other_controllers():
    async def scenario():
        bus = FakeBus()
        await bus.connect()
        recorder = Recorder(bus, FakeClock(), 64)
        for epoch in (1, 2):
            assert await recorder.prepare(epoch)
            assert await recorder.change({"what": "freeze"}, epoch)
        assert recorder.epoch_of_others == 0

    asyncio.run(scenario())
