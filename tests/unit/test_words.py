"""Which words of guests are heard, and which are counted and dropped."""

import asyncio
from collections import Counter

from agent.words import WORDS_AT_ONCE, GuestWords
from shared.clock import SECOND_NS, FakeClock
from shared.guest_word import GuestWord, encode
from shared.subjects import guest_subject
from shared.testing import FakeBus

A, B = (f"00000000-0000-4000-8000-00000000000{n}" for n in (1, 2))


class Scene:
    """A bus, a listener for A, and what it counted and passed on."""

    def __init__(self):
        self.clock, self.bus = FakeClock(), FakeBus()
        self.outcomes, self.heard = Counter(), []
        self.words = GuestWords(self.bus, self.clock, self, self._on_word)

    def guest_word(self, outcome):
        self.outcomes[outcome] += 1

    def _on_word(self, vm_id, word, asks_for_more):
        self.heard.append((vm_id, word.sequence, asks_for_more))

    async def say(self, sequence, mib=0, vm_id=A, boot="boot"):
        await self.tell(vm_id, encode(GuestWord(boot, sequence, None, mib)))

    async def tell(self, vm_id, data):
        await self.bus.try_publish(guest_subject(vm_id), data)


def play(scenario):
    async def run():
        scene = Scene()
        await scene.bus.connect()
        await scene.words.follow([A])
        await scenario(scene)

    asyncio.run(run())


def test_the_newest_word_of_each_vm_counts():
    async def scenario(scene):
        await scene.say(1, mib=5)
        await scene.say(3, mib=4)
        await scene.say(2, mib=9)  # it was overtaken
        assert scene.words.newest[A].word.memory_wanted_bytes == 4
        assert scene.heard == [(A, 1, True), (A, 3, False)]
        assert scene.outcomes == {"heard": 2, "old": 1}

    play(scenario)


def test_a_boot_begins_anew_and_the_one_before_it_is_over():
    async def scenario(scene):
        await scene.say(900, boot="first")
        await scene.say(1, mib=7, boot="second")
        await scene.say(901, mib=9, boot="first")
        assert scene.words.newest[A].word.memory_wanted_bytes == 7
        assert scene.outcomes["old"] == 1

    play(scenario)


def test_only_this_hosts_vms_are_heard_and_that_follows_them():
    async def scenario(scene):
        await scene.say(1, vm_id=B)
        assert not scene.heard
        await scene.words.follow([B, "no id at all"])
        await scene.say(1, vm_id=B)
        await scene.say(2, vm_id=A)
        assert [vm_id for vm_id, *_ in scene.heard] == [B]
        assert set(scene.words.newest) == {B}

    play(scenario)


def test_bytes_that_are_no_word_are_counted_and_dropped():
    async def scenario(scene):
        for data in (b"", b"\xff" * 20, b"x" * 5000, encode(GuestWord("b", 1))[:-3]):
            await scene.tell(A, data)
        assert scene.heard == []
        assert scene.words.newest == {}
        assert sum(scene.outcomes.values()) == 4
        assert "heard" not in scene.outcomes

    play(scenario)


def test_who_talks_too_fast_is_not_listened_to_for_a_while():
    async def scenario(scene):
        await scene.words.follow([A, B])
        for number in range(200):
            await scene.say(number)
        assert len(scene.heard) == WORDS_AT_ONCE
        assert scene.outcomes["too_fast"] == 200 - WORDS_AT_ONCE
        await scene.say(1, vm_id=B)  # others are heard all the same
        assert scene.heard[-1][0] == B
        scene.clock.advance(SECOND_NS)
        await scene.say(1000)
        assert scene.words.newest[A].word.sequence == 1000

    play(scenario)
