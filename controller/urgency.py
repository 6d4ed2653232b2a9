"""Which nodes cannot wait for the next cycle: their agents lent, or had too little to lend. Pure.

A loan that is new or has grown is heard at once. A want that nobody could meet is brought up again
later and later, so that a tree with nothing to give does not keep the controller busy.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from shared.clock import SECOND_NS
from shared.telemetry import Loan

AGAIN_NS_MIN = 4 * SECOND_NS
AGAIN_NS_MAX = 64 * SECOND_NS


@dataclass(slots=True)
class _Heard:
    """Of one node: amounts by VM and resource, and when an unmet want is due again."""

    amounts: dict[tuple[str, int], tuple[int, int]] = field(default_factory=dict)
    due_tick_ns: int = 0
    pause_ns: int = AGAIN_NS_MIN


@dataclass(slots=True)
class Urgency:
    """`hear` every message, `take` what is urgent. Ticks are the controller's clock."""

    _heard: dict[str, _Heard] = field(default_factory=dict)
    _urgent: set[str] = field(default_factory=set)

    def hear(self, node_id: str, loans: Iterable[Loan], tick_ns: int) -> bool:
        """Whether the node has become urgent by this message."""
        amounts = {(one.vm_id, one.resource): (one.amount, one.wanted_amount) for one in loans}
        if not amounts:
            self._heard.pop(node_id, None)
            self._urgent.discard(node_id)
            return False
        heard = self._heard.setdefault(node_id, _Heard())
        grown = any(
            key not in heard.amounts or amounts[key] > heard.amounts[key] for key in amounts
        )
        heard.amounts = amounts
        unmet = any(amount < wanted for amount, wanted in amounts.values())
        if grown:
            heard.pause_ns = AGAIN_NS_MIN
        elif not unmet or tick_ns < heard.due_tick_ns:
            return False
        heard.due_tick_ns = tick_ns + heard.pause_ns
        heard.pause_ns = min(2 * heard.pause_ns, AGAIN_NS_MAX)
        self._urgent.add(node_id)
        return True

    def take(self) -> frozenset[str]:
        """The nodes that became urgent since the last call."""
        taken, self._urgent = frozenset(self._urgent), set()
        return taken
