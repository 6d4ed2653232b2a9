"""What is known of the fleet now and over the window; fed by blocks, read as frozen values.

Every machine has a slot in arrays (shared by a VM and the node that reports from inside it).
A VM belongs to the node that reports it. Where two report it, as in a migration, the first keeps
it and it is held still until one stops, unless the second runs on the first: then it makes that up.
Not for several threads at once: `controller.ingest` holds a lock around it.
"""

from collections.abc import Collection, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import numpy as np

from controller.core.state import MISSING, Ints, Snapshot
from controller.forecast.protocol import History
from controller.overrides import Overrides
from controller.picture import Moment, take_snapshot
from controller.rings import Rings, RingWindows
from controller.settings import ControllerSettings
from controller.table import COLUMN, USED, Node, Table
from controller.topology import NOBODY, runs_on
from shared.clock import SECOND_NS
from shared.wire import COLUMN_NAMES, NodeBlock

_NO_LOCK: AbstractContextManager[object] = nullcontext()


@dataclass(slots=True)
class FleetCounters:
    """Since the start; gauges say so."""

    blocks: int = 0
    values: int = 0  # readings that went into rings
    contested: int = 0  # VM rows reported by a second node while the first still does
    claimed: int = 0  # VM rows that a node reports of a machine that it runs on, or of itself
    circular: int = 0  # gauge: machines left out, they run on each other in a circle
    expired: int = 0  # nodes that fell silent for too long


@dataclass(slots=True)
class Fleet:
    settings: ControllerSettings
    counters: FleetCounters = field(default_factory=FleetCounters)
    table: Table = field(default_factory=Table)
    rings: Rings = field(init=False)

    def __post_init__(self) -> None:
        said = self.settings
        peak_steps = min(said.horizon_s // said.grid_step_s, said.window_steps)
        step_ns = said.grid_step_s * SECOND_NS
        self.rings = Rings(step_ns, said.window_steps, max(1, peak_steps))

    def apply(self, block: NodeBlock, received_tick_ns: int, received_unix_ns: int) -> None:
        """Takes in one message; its time is when it was received, by our clocks."""
        node = self._node_of(block)
        node.take(block, received_tick_ns, received_unix_ns)
        if node.hosts:
            self._take_guests(node, block, received_tick_ns)
        else:
            self._release(node, node.vm_slots)
        if self.table.host_of[node.slot] == NOBODY:
            here = np.array([node.slot])
            used = node.used()[None, :]
            self.counters.values += self.rings.add(here, used, received_tick_ns)
        self.table.seen_tick_ns[node.slot] = received_tick_ns
        self.counters.blocks += 1

    def snapshot(
        self,
        *,
        tick_ns: int,
        unix_ns: int,
        epoch: int,
        cycle: int,
        overrides: Overrides = Overrides(),  # noqa: B008 - frozen
        connected: Collection[str] = (),
    ) -> Snapshot:
        """All machines now; `connected`: ids of the nodes whose agent can carry out steps."""
        self._expire(tick_ns)
        moment = Moment(tick_ns, unix_ns, epoch, cycle)
        in_force = overrides.at(tick_ns)
        snapshot, circular = take_snapshot(
            self.table, self.settings, moment, in_force, frozenset(connected)
        )
        self.counters.circular = circular
        return snapshot

    def history(
        self,
        snapshot: Snapshot,
        tick_ns: int,
        lock: AbstractContextManager[object] = _NO_LOCK,
    ) -> History:
        """The window of every machine of `snapshot`, in its order; read under `lock` when it is
        asked for, until the next snapshot is taken."""
        slots = np.array([self.table.slot_of.get(i, -1) for i in snapshot.ids], dtype=np.int64)
        assert (slots >= 0).all(), "a snapshot of another fleet, or one from long ago"
        newest_step = tick_ns // self.rings.step_ns
        return History(
            made_at_unix_ns=snapshot.taken_at_unix_ns,
            newest_step=newest_step,
            step_ns=self.rings.step_ns,
            steps=self.rings.window_steps,
            ids=snapshot.ids,
            limit=snapshot.limit,
            maximum=np.where(snapshot.maximum == MISSING, snapshot.capacity, snapshot.maximum),
            age_ns=self.rings.age_ns(slots, tick_ns),
            windows=RingWindows(self.rings, slots, newest_step, lock),
        )

    def nodes(self) -> tuple[Node, ...]:
        """Every node that reports, guest agents included; live objects: read, then let go."""
        return tuple(self.table.nodes.values())

    def epoch_highest(self) -> int:
        """The highest epoch that any agent says it has obeyed; 0 when none did."""
        return max((node.epoch_highest for node in self.nodes()), default=0)

    def _node_of(self, block: NodeBlock) -> Node:
        slot = self._slot(block.node_id)
        if slot not in self.table.nodes:
            self.table.nodes[slot] = Node(block.node_id, slot)
        if self.table.host_of[slot] == NOBODY:
            self.table.names[slot] = block.name  # its host's word for it comes first
        return self.table.nodes[slot]

    def _take_guests(self, node: Node, block: NodeBlock, tick_ns: int) -> None:
        table = self.table
        if block.vm_ids != node.vm_ids:
            slots = np.array([self._slot(vm_id) for vm_id in block.vm_ids], dtype=np.int64)
            self._release(node, np.setdiff1d(node.vm_slots, slots))
            node.vm_ids, node.vm_slots = block.vm_ids, slots
        slots = node.vm_slots
        rows = _matrix(block)
        mine = self._claim(node)
        table.readings[slots[mine]] = rows[mine]
        table.received_tick_ns[slots[mine]] = tick_ns
        table.seen_tick_ns[slots] = tick_ns
        table.name(zip(slots[mine].tolist(), _chosen(block.vm_names, mine), strict=True))
        self.counters.values += self.rings.add(slots[mine], rows[mine][:, USED], tick_ns)
        foreign = np.flatnonzero(~mine)
        node.foreign = {int(slots[i]): rows[i] for i in foreign if self._contests(node, slots[i])}
        self.counters.contested += len(node.foreign)
        self.counters.claimed += len(foreign) - len(node.foreign)

    def _claim(self, node: Node) -> "np.ndarray[tuple[int], np.dtype[np.bool_]]":
        """Which of the node's rows are of VMs that are its own; takes those of nobody."""
        host_of, slots = self.table.host_of, node.vm_slots
        free = (host_of[slots] == NOBODY) & (slots != node.slot)
        host_of[slots[free]] = node.slot
        for slot in slots[(host_of[slots] != node.slot) & (slots != node.slot)]:
            if runs_on(int(host_of[slot]), node.slot, host_of):
                host_of[slot] = node.slot  # whoever had it runs on this node: it made that up
        return np.asarray(host_of[slots] == node.slot)

    def _contests(self, node: Node, slot: int) -> bool:
        """Whether the word of `node` on somebody else's VM has to be heeded."""
        owner = int(self.table.host_of[slot])
        return slot != node.slot and not runs_on(node.slot, owner, self.table.host_of)

    def _release(self, node: Node, slots: Ints) -> None:
        """The node no longer reports `slots`: whoever also does gets them, or nobody."""
        table = self.table
        node.vm_ids, node.vm_slots, node.foreign = (), np.zeros(0, dtype=np.int64), {}
        for slot in slots[table.host_of[slots] == node.slot].tolist():
            heirs = [other for other in table.nodes.values() if slot in other.foreign]
            table.host_of[slot] = heirs[0].slot if heirs else NOBODY
            table.readings[slot] = heirs[0].foreign.pop(slot) if heirs else MISSING
            table.received_tick_ns[slot] = heirs[0].received_tick_ns if heirs else 0

    def _expire(self, tick_ns: int) -> None:
        """Drops nodes silent for too long, and the rings of machines gone for longer."""
        table = self.table
        limit_ns = round(self.settings.node_expiry_s * SECOND_NS)
        for node in [n for n in table.nodes.values() if tick_ns - n.received_tick_ns > limit_ns]:
            self._release(node, node.vm_slots)
            del table.nodes[node.slot]
            self.counters.expired += 1
        forgotten = table.forget(tick_ns - round(self.settings.forget_s * SECOND_NS))
        self.rings.clear(forgotten)

    def _slot(self, machine_id: str) -> int:
        slot = self.table.slot(machine_id)
        self.rings.grow(self.table.room)
        return slot


def _matrix(block: NodeBlock) -> Ints:
    """Readings as (VMs, columns), MISSING where there was none."""
    columns = [np.frombuffer(block.columns[name], dtype=np.int64) for name in COLUMN_NAMES]
    assert len(columns) == len(COLUMN)
    return np.stack(columns, axis=1)


def _chosen(names: tuple[str, ...], mine: Iterable[bool]) -> list[str]:
    return [name for name, chosen in zip(names, mine, strict=True) if chosen]
