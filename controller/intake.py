"""Which telemetry is taken in: what comes from the bus is anybody's word until it passed here.

Knows no clock and no log. A refusal is a WireError whose cause is one of CAUSES.
"""

from collections import Counter
from dataclasses import dataclass, field

from controller.boots import Boots
from controller.settings import ControllerSettings
from shared import wire
from shared.clock import SECOND_NS
from shared.errors import WireError
from shared.subjects import node_of
from shared.wire import NodeBlock

CAUSES = (*wire.CAUSES, "subject", "future", "past", "duplicate", "clone", "flood")
NODES_MAX = 1_000_000  # senders that are remembered; beyond it, new ones are a flood
_MINUTE_NS = 60 * SECOND_NS


@dataclass(slots=True)
class _Sender:
    """What is remembered of one node."""

    tokens: float
    refilled_tick_ns: int
    boots: Boots = field(default_factory=Boots)


@dataclass(slots=True)
class Intake:
    settings: ControllerSettings
    dropped: Counter[str] = field(default_factory=Counter)  # by cause
    lost: int = 0  # messages missing between two that came, by their sequences
    clones: dict[str, int] = field(default_factory=dict)  # node -> when it was last seen to be two
    _senders: dict[str, _Sender] = field(default_factory=dict)

    def check(self, subject: str, data: bytes, tick_ns: int, unix_ns: int) -> NodeBlock:
        """The message, received at that time; WireError when it is refused. Counting is left to
        the caller: a message that the stream gives again is a duplicate by right.
        """
        node_id = node_of(subject)
        if node_id is None:
            raise WireError("subject", f"{subject[:100]!r} is no telemetry subject")
        sender = self._sender(node_id, tick_ns)
        self._take_token(sender, tick_ns)
        block = wire.decode(data)
        if block.node_id != node_id:
            raise WireError("subject", f"a message of {block.node_id} came as {node_id}'s")
        self._check_time(block, unix_ns)
        self.lost += sender.boots.take(block, tick_ns)
        if sender.boots.clone_tick_ns == tick_ns:
            self.clones[node_id] = tick_ns
        return block

    def _sender(self, node_id: str, tick_ns: int) -> _Sender:
        sender = self._senders.get(node_id)
        if sender is None:
            if len(self._senders) >= NODES_MAX:
                raise WireError("flood", f"{NODES_MAX} senders are known, {node_id} is one more")
            sender = _Sender(float(self.settings.node_messages_per_minute), tick_ns)
            self._senders[node_id] = sender
        return sender

    def _take_token(self, sender: _Sender, tick_ns: int) -> None:
        """A bucket that holds a minute's worth and fills evenly."""
        per_minute = self.settings.node_messages_per_minute
        passed_ns = max(0, tick_ns - sender.refilled_tick_ns)
        sender.tokens = min(per_minute, sender.tokens + per_minute * passed_ns / _MINUTE_NS)
        sender.refilled_tick_ns = max(tick_ns, sender.refilled_tick_ns)
        if sender.tokens < 1:
            raise WireError("flood", f"over {per_minute} messages a minute")
        sender.tokens -= 1

    def _check_time(self, block: NodeBlock, unix_ns: int) -> None:
        ahead_s = (block.sampled_at_unix_ns - unix_ns) / SECOND_NS
        if ahead_s > self.settings.sample_future_s_max:
            raise WireError("future", f"its clock is {ahead_s:.0f} s ahead of ours")
        if -ahead_s > self.settings.sample_past_s_max:
            raise WireError("past", f"{-ahead_s:.0f} s old, or its clock is that far behind")
