"""Hears the words of this host's guests on the bus, and keeps the newest of each.

Who speaks is in the subject, never in the message. Bytes that are no word, words of others and
words that come too fast are counted and dropped; what is believed of the rest is decided elsewhere
(agent.belief).
"""

import logging
from collections import deque
from collections.abc import Callable, Collection, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from agent.belief import Heard
from shared.bus import Bus
from shared.clock import SECOND_NS, Clock
from shared.errors import BusError, WireError
from shared.guest_word import GuestWord, decode
from shared.log import RateLimited
from shared.subjects import guest_of, guest_subject, is_machine_id

logger = logging.getLogger(__name__)

WORDS_PER_S = 4  # of one guest, in the mean
WORDS_AT_ONCE = 8
BOOTS_KEPT = 4  # of a guest: an old one's words that come late are not those of a new one


class Watcher(Protocol):
    """Who counts (agent.metrics)."""

    def guest_word(self, outcome: str) -> None: ...


@dataclass(slots=True)
class _Guest:
    newest: Heard | None = None
    boots: deque[str] = field(default_factory=lambda: deque(maxlen=BOOTS_KEPT))
    credit_ns: int = WORDS_AT_ONCE * SECOND_NS // WORDS_PER_S
    credit_tick_ns: int | None = None


class GuestWords:
    """`on_word` gets each word that counts, whose it is, and whether it asks for more than the
    one before it."""

    def __init__(
        self,
        bus: Bus,
        clock: Clock,
        watcher: Watcher,
        on_word: Callable[[str, GuestWord, bool], None],
    ) -> None:
        self._bus = bus
        self._clock = clock
        self._watcher = watcher
        self._on_word = on_word
        self._guests: dict[str, _Guest] = {}
        self._said = RateLimited(logger, clock)

    async def follow(self, vm_ids: Collection[str]) -> None:
        """Listens to these VMs and no others from now on."""
        wanted = {vm_id for vm_id in vm_ids if is_machine_id(vm_id)}
        for vm_id in sorted(self._guests.keys() - wanted):
            del self._guests[vm_id]
            await self._quietly(self._bus.unsubscribe(guest_subject(vm_id), self._on_message))
        for vm_id in sorted(wanted - self._guests.keys()):
            self._guests[vm_id] = _Guest()
            await self._quietly(self._bus.subscribe(guest_subject(vm_id), self._on_message))

    @property
    def newest(self) -> Mapping[str, Heard]:
        """By VM; however old."""
        return {vm_id: one.newest for vm_id, one in self._guests.items() if one.newest is not None}

    async def _quietly(self, asking: Coroutine[None, None, None]) -> None:
        """A bus that does not answer has the subscription all the same, once it is back."""
        try:
            await asking
        except BusError as error:
            self._said.warning("bus", "guests may not be heard", cause=str(error))

    def _on_message(self, subject: str, data: bytes) -> None:
        vm_id = guest_of(subject)
        guest = None if vm_id is None else self._guests.get(vm_id)
        if vm_id is None or guest is None:
            self._watcher.guest_word("stranger")
            return
        if not self._has_credit(guest):
            self._watcher.guest_word("too_fast")
            return
        try:
            word = decode(data)
        except WireError as error:
            self._watcher.guest_word(error.cause)
            return
        self._take(vm_id, guest, word)

    def _take(self, vm_id: str, guest: _Guest, word: GuestWord) -> None:
        before = None if guest.newest is None else guest.newest.word
        same_boot = before is not None and before.boot_id == word.boot_id
        is_old = word.boot_id in guest.boots and not same_boot
        if is_old or (before is not None and same_boot and word.sequence <= before.sequence):
            self._watcher.guest_word("old")
            return
        if not same_boot:
            guest.boots.append(word.boot_id)
        guest.newest = Heard(word, self._clock.tick_ns())
        self._watcher.guest_word("heard")
        self._on_word(vm_id, word, _asks_for_more(word, before))

    def _has_credit(self, guest: _Guest) -> bool:
        """A bucket that fills with time: who talks too fast is not listened to for a while."""
        now = self._clock.tick_ns()
        price = SECOND_NS // WORDS_PER_S
        waited = 0 if guest.credit_tick_ns is None else now - guest.credit_tick_ns
        credit = min(WORDS_AT_ONCE * price, guest.credit_ns + waited)
        guest.credit_tick_ns = now
        guest.credit_ns = credit - price if credit >= price else credit
        return credit >= price


def _asks_for_more(word: GuestWord, before: GuestWord | None) -> bool:
    memory, cpu = (0, 0) if before is None else (
        before.memory_wanted_bytes, before.cpu_wanted_millicores
    )  # fmt: skip
    return word.memory_wanted_bytes > memory or word.cpu_wanted_millicores > cpu
