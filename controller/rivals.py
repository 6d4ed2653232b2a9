"""Agents that connect under one node's id: one run after the other, or two at once. Pure.

A restarted agent is a new run of the same boot, a rebooted machine a new boot: the old stream is
dead then, and the newest Hello wins. While the stream that is there is alive, a Hello of another
boot is another machine's, and one of a run that was superseded before is another process's: were
they to win, two clones would take turns for ever, and a command meant for one could reach the
other. So the one that is there stays and the other is refused; it dials again and again, and by
that it is known as a clone.
"""

from collections import deque
from dataclasses import dataclass, field

from shared.clock import SECOND_NS

ALIVE_NS = 3 * SECOND_NS  # agents say something every second
REFUSALS_MIN = 3  # before it is a clone: one Hello that lay about may be a dead process's
REFUSED_FOR_NS = 5 * SECOND_NS  # at least
CLEARS_NS = 120 * SECOND_NS  # since the last refusal; an agent dials again within 15 s
_RUNS_KEPT = 8

REFUSAL = (
    "another agent speaks for this node: if this machine is a clone, give it a UUID of its own"
    " (of a VM: define it anew without <uuid>; of a physical machine: node_id in agent.toml)"
)


@dataclass(slots=True)
class _Record:
    """Of one node."""

    runs: deque[str] = field(default_factory=lambda: deque(maxlen=_RUNS_KEPT))  # superseded ones
    refusals: int = 0
    first_tick_ns: int = 0
    last_tick_ns: int = 0

    def is_clone(self, tick_ns: int) -> bool:
        return (
            self.refusals >= REFUSALS_MIN
            and self.last_tick_ns - self.first_tick_ns >= REFUSED_FOR_NS
            and tick_ns - self.last_tick_ns < CLEARS_NS
        )


@dataclass(frozen=True, slots=True)
class Caller:
    """Who says Hello, or said it last."""

    node_id: str
    boot_id: str
    run_id: str


class Rivals:
    def __init__(self) -> None:
        self._records: dict[str, _Record] = {}

    def admits(self, caller: Caller, present: Caller, heard_tick_ns: int, tick_ns: int) -> bool:
        """Whether the caller takes the place of the one whose stream is there and was last heard
        at `heard_tick_ns`."""
        record = self._records.setdefault(caller.node_id, _Record())
        if caller.run_id == present.run_id:
            return True
        is_alive = tick_ns - heard_tick_ns <= ALIVE_NS
        is_other = caller.boot_id != present.boot_id or caller.run_id in record.runs
        if is_alive and is_other:
            self._refuse(record, tick_ns)
            return False
        record.runs.append(present.run_id)
        return True

    def clones(self, tick_ns: int) -> frozenset[str]:
        """Ids of nodes under which two agents connect."""
        return frozenset(
            node_id for node_id, record in self._records.items() if record.is_clone(tick_ns)
        )

    def is_clone(self, node_id: str, tick_ns: int) -> bool:
        record = self._records.get(node_id)
        return record is not None and record.is_clone(tick_ns)

    def _refuse(self, record: _Record, tick_ns: int) -> None:
        if record.refusals == 0 or tick_ns - record.last_tick_ns >= CLEARS_NS:
            record.refusals, record.first_tick_ns = 0, tick_ns
        record.refusals += 1
        record.last_tick_ns = tick_ns
