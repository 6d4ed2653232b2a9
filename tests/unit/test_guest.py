"""What a guest tells its host, and when: on a machine of files and a bus in memory."""

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from agent.guest import ENDS_TOLD, Guest, Rhythm
from agent.metrics import AgentMetrics
from agent.readiness import Readiness
from shared.clock import MILLISECOND_NS, SECOND_NS, FakeClock, to_next_s
from shared.guest_word import GuestWord, decode
from shared.resources import MIB
from shared.subjects import guest_subject
from shared.testing import FakeBus, until

VM_ID = "00000000-0000-4000-8000-000000000001"
SUBJECT = guest_subject(VM_ID)
TOTAL = 512 * MIB
BOOT_NS = 40 * SECOND_NS


class Machine:
    """A VM of 512 MiB in files, its agent's guest part, and all that its host hears."""

    def __init__(self, root: Path) -> None:
        self.root, self.clock, self.bus = root, FakeClock(tick_ns=BOOT_NS), FakeBus()
        self.heard: list[GuestWord] = []
        self.readiness = Readiness(root, self.clock, root / "never")
        self.metrics = AgentMetrics()
        (root / "proc").mkdir()
        self.available(300 * MIB)
        self.guest = self.begin()

    def begin(self) -> Guest:
        bus, clock = self.bus, self.clock
        return Guest(self.root, VM_ID, "boot", bus, self.readiness, clock, self.metrics)

    def available(self, amount: int) -> None:
        text = f"MemTotal: {TOTAL // 1024} kB\nMemFree: 1 kB\nMemAvailable: {amount // 1024} kB\n"
        (self.root / "proc/meminfo").write_text(text)

    async def listen(self) -> None:
        await self.bus.connect()
        await self.bus.subscribe(SUBJECT, lambda _, data: self.heard.append(decode(data)))

    async def look(self, times: int = 1) -> list[GuestWord]:
        """Looks half a second apart; what was heard of them."""
        before = len(self.heard)
        for _ in range(times):
            await self.guest.look()
            self.clock.advance(500 * MILLISECOND_NS)
        return self.heard[before:]


def played(root: Path, story: Callable[[Machine], Coroutine[Any, Any, None]]) -> None:
    async def scenario() -> None:
        machine = Machine(root)
        await machine.listen()
        await story(machine)

    asyncio.run(scenario())


def test_a_quiet_guest_says_so_with_every_sample(tmp_path: Path) -> None:
    async def story(machine: Machine) -> None:
        words = await machine.look(41)
        assert [word.memory_wanted_bytes for word in words] == [0, 0, 0]
        assert words[0].boot_id == "boot"
        assert words[0].ready_ns is None

    played(tmp_path, story)


def test_a_need_is_told_at_once_and_every_second_and_its_end_more_than_once(
    tmp_path: Path,
) -> None:
    async def story(machine: Machine) -> None:
        await machine.look(8)
        machine.available(20 * MIB)
        (first,) = await machine.look()
        assert first.memory_wanted_bytes > 0
        during = await machine.look(20)
        assert 10 <= len(during) <= 12
        assert all(word.memory_wanted_bytes > 0 for word in during)
        machine.available(300 * MIB)
        after = [word.memory_wanted_bytes for word in await machine.look(16)]
        assert after[-ENDS_TOLD:] == [0] * ENDS_TOLD
        assert after.count(0) == ENDS_TOLD, "then silence, until the next sample is due"

    played(tmp_path, story)


def test_a_need_that_grows_does_not_wait_for_its_second(tmp_path: Path) -> None:
    async def story(machine: Machine) -> None:
        await machine.look(8)
        told = []
        for amount in (30, 20, 10, 0):
            machine.available(amount * MIB)
            told += await machine.look()
        wanted = [word.memory_wanted_bytes for word in told]
        assert len(wanted) >= 2
        assert wanted == sorted(wanted)

    played(tmp_path, story)


def test_ready_is_told_at_once_and_goes_with_every_later_word(tmp_path: Path) -> None:
    async def story(machine: Machine) -> None:
        await machine.look(3)
        machine.readiness.ready_ns = 17 * SECOND_NS
        words = await machine.look(30)
        assert [word.ready_ns for word in words] == [17 * SECOND_NS] * 2

    played(tmp_path, story)


def test_nothing_counts_as_told_while_the_bus_is_away(tmp_path: Path) -> None:
    async def story(machine: Machine) -> None:
        machine.bus.online = False
        machine.available(20 * MIB)
        assert await machine.look(5) == []
        machine.bus.online = True
        assert len(await machine.look()) == 1

    played(tmp_path, story)


def test_sequences_rise_over_a_restart_of_the_agent(tmp_path: Path) -> None:
    """Its host takes no word of the same boot that is older than the newest."""

    async def story(machine: Machine) -> None:
        machine.available(20 * MIB)
        before = await machine.look(10)
        machine.guest = machine.begin()
        after = await machine.look(10)
        sequences = [word.sequence for word in (*before, *after)]
        assert sequences == sorted(set(sequences))
        assert sequences[0] >= BOOT_NS // MILLISECOND_NS

    played(tmp_path, story)


def test_what_its_own_vms_lack_is_told_with_its_own_need(tmp_path: Path) -> None:
    async def story(machine: Machine) -> None:
        await machine.look(8)
        machine.guest.lack(memory_bytes=200 * MIB, cpu_millicores=500)
        (word,) = await machine.look()
        assert (word.memory_wanted_bytes, word.cpu_wanted_millicores) == (200 * MIB, 500)
        machine.guest.lack()
        (word,) = await machine.look()
        assert (word.memory_wanted_bytes, word.cpu_wanted_millicores) == (0, 0)

    played(tmp_path, story)


def test_while_it_runs_a_lack_is_told_without_a_turn(tmp_path: Path) -> None:
    async def story(machine: Machine) -> None:
        running = asyncio.create_task(machine.guest.run())
        await until(lambda: bool(machine.heard))
        machine.clock.advance(SECOND_NS)
        machine.guest.lack(memory_bytes=MIB)
        await until(lambda: machine.heard[-1].memory_wanted_bytes == MIB)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    played(tmp_path, story)


def test_metrics_tell_what_is_wanted(tmp_path: Path) -> None:
    async def story(machine: Machine) -> None:
        machine.available(0)
        await machine.look(3)
        value = machine.metrics.registry.get_sample_value
        assert (value("hrapaq_agent_wanted_memory_bytes") or 0) > 0
        assert value("hrapaq_agent_words_total") == len(machine.heard)

    played(tmp_path, story)


def test_with_samples_faster_than_a_second_so_are_words() -> None:
    rhythm, word = Rhythm(200 * MILLISECOND_NS), GuestWord("boot", 1)
    rhythm.told(word, 0)
    assert not rhythm.is_due(word, 199 * MILLISECOND_NS)
    assert rhythm.is_due(word, 200 * MILLISECOND_NS)


def test_what_wakes_at_whole_moments_wakes_together() -> None:
    """A timer that fired a little early does not fire again at once."""
    at_s = (10.0, 10.25, 10.5, 10.96)
    assert [to_next_s(int(at * SECOND_NS), SECOND_NS) for at in at_s] == [1.0, 0.75, 0.5, 1.04]
