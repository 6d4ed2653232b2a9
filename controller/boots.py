"""Whose messages come under one node's id: one boot after the other, or two machines'. Pure.

Within a boot the agent's clock rises with every message, restarts of the agent included. A reboot
begins another boot, and the old one is never heard again but for messages that come late; so an
old boot counts as alive only by what it *sampled* after the new one had been heard. Then either
the machine was taken back to a snapshot, and the newer boot is silent from then on; or it is not
one machine but two, and the newer one is heard again as well: a clone. Two agents of one boot show
by their sequences, which rise within a run of an agent and begin anew with the next.
"""

from collections import deque
from dataclasses import dataclass, field

from shared.clock import SECOND_NS
from shared.errors import WireError
from shared.wire import NodeBlock

SILENT_NS = 30 * SECOND_NS  # after which a boot that is heard no more gives way to an older one
_BOOTS_MAX = 5  # that are remembered, so that their late messages are known as such
_SLACK_NS = 2 * SECOND_NS  # when a message was sampled is known as well as that by our clock
_DRIFT = 10_000  # clocks part by less than one part in so many
_RESTART_SEQUENCES = 3  # a new run's first message that is not lost has one of these
_BACKWARDS = 3  # so many runs that go on where another is are two agents
_BACKWARDS_NS = 300 * SECOND_NS  # within so long


@dataclass(slots=True)
class _Boot:
    boot_id: str
    tick_ns: int  # of its newest message, by its own clock
    sequence: int
    heard_tick_ns: int  # when that came, by our clock
    ahead_ns: int  # of our clock before its own, less the way of the quickest message

    def sampled(self, block: NodeBlock) -> int:
        """When the message was made, by our clock."""
        return block.tick_ns + self.ahead_ns

    def hear(self, block: NodeBlock, tick_ns: int) -> None:
        drift_ns = max(0, tick_ns - self.heard_tick_ns) // _DRIFT
        self.ahead_ns = min(self.ahead_ns + drift_ns, tick_ns - block.tick_ns)
        self.tick_ns, self.sequence = block.tick_ns, block.sequence
        self.heard_tick_ns = tick_ns


@dataclass(slots=True)
class Boots:
    """What is remembered of one node's boots. Ticks are the receiver's."""

    clone_tick_ns: int | None = None  # when two were last seen to be alive
    _boots: list[_Boot] = field(default_factory=list)  # the first is the one that is believed
    _since_tick_ns: int = 0  # that it is
    _rival_tick_ns: int | None = None  # when another was seen alive beside it
    _back: tuple[str, int, int] = ("", 0, 0)  # boot, its tick and ours, of what came out of time
    _backwards: deque[int] = field(default_factory=lambda: deque(maxlen=_BACKWARDS))

    def take(self, block: NodeBlock, tick_ns: int) -> int:
        """How many messages are missing before this one; WireError when it is not to be used:
        "duplicate" where it came before, or late, "clone" where it is another machine's."""
        present = self._boots[0] if self._boots else None
        known = next((boot for boot in self._boots if boot.boot_id == block.boot_id), None)
        if known is None or present is None:
            ahead_ns = tick_ns - block.tick_ns
            new = _Boot(block.boot_id, block.tick_ns, block.sequence, tick_ns, ahead_ns)
            self._believe(new, tick_ns)
        elif self._was_taken_back(present, known, block, tick_ns):
            known.ahead_ns = tick_ns - block.tick_ns
            known.hear(block, tick_ns)
            self._believe(known, tick_ns)
        elif block.tick_ns <= known.tick_ns:
            raise WireError("duplicate", f"sequence {block.sequence} came before, or late")
        elif known is present:
            return self._go_on(present, block, tick_ns)
        else:
            self._refuse(known, block, tick_ns)
        return 0

    def _go_on(self, present: _Boot, block: NodeBlock, tick_ns: int) -> int:
        rival = self._rival_tick_ns
        if rival is not None and present.sampled(block) > rival + _SLACK_NS:
            self.clone_tick_ns, self._rival_tick_ns = tick_ns, None
        if _RESTART_SEQUENCES < block.sequence <= present.sequence:
            self._note_backwards(tick_ns)
        lost = max(0, block.sequence - present.sequence - 1)
        present.hear(block, tick_ns)
        return lost

    def _refuse(self, known: _Boot, block: NodeBlock, tick_ns: int) -> None:
        """A message of another boot than the present one, which is alive."""
        if known.sampled(block) <= self._since_tick_ns + _SLACK_NS:
            raise WireError("duplicate", "from before its machine started anew")
        known.hear(block, tick_ns)
        if self._rival_tick_ns is None:
            self._rival_tick_ns = tick_ns
        raise WireError("clone", "another boot of this node is alive too")

    def _was_taken_back(self, present: _Boot, known: _Boot, block: NodeBlock, tick_ns: int) -> bool:
        """Whether the present boot is silent, and what is heard instead, an older boot or an older
        time of the same, goes on at an agent's pace: one message might be a late one."""
        silent_ns = tick_ns - present.heard_tick_ns
        is_newer = known is present and block.tick_ns > present.tick_ns
        if is_newer or silent_ns <= max(SILENT_NS, 3 * block.interval_ns):
            return False
        before, self._back = self._back, (block.boot_id, block.tick_ns, tick_ns)
        boot_id, at_ns, heard_ns = before
        goes_on = boot_id == block.boot_id and block.tick_ns > at_ns
        return goes_on and tick_ns - heard_ns >= block.interval_ns // 2

    def _believe(self, boot: _Boot, tick_ns: int) -> None:
        others = [each for each in self._boots if each is not boot]
        self._boots = [boot, *others][:_BOOTS_MAX]
        self._since_tick_ns, self._rival_tick_ns = tick_ns, None

    def _note_backwards(self, tick_ns: int) -> None:
        self._backwards.append(tick_ns)
        full = len(self._backwards) == _BACKWARDS
        if full and tick_ns - self._backwards[0] <= _BACKWARDS_NS:
            self.clone_tick_ns = tick_ns
