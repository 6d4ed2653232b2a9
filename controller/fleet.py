"""What is known of the fleet now and over the window; fed by blocks, read as frozen values.

Every machine has a slot in arrays (shared by a VM and the node that reports from inside it), and
its history stays with it wherever it runs. Not for several threads at once: `controller.ingest`
holds a lock around it. Whom a machine belongs to (`controller.claims` holds the details):

- A VM belongs to the node that reports it. Where several do, it stays where it was, and its limits
  count at all of them: as a grant where it was, as overhead elsewhere. When its host reports it no
  more, it is the other's at once, history, overrides and all. So a migration moves it, and nothing
  is counted twice or not at all meanwhile.
- A VM that two hosts report is held still while it is on its way, and held as a clone when both say
  for `clone_after_s` that it runs: whichever is moved, the other's figures might be meant.
- But anybody can report a UUID. A node that is a VM itself is somebody's guest, and what it says of
  machines beside it is not believed against the word of the host that has them: it neither gets
  them nor holds them still, unless that host itself says that the VM is migrating. Otherwise one
  hostile hypervisor VM that reports everybody's UUIDs would freeze the fleet. Its claims are shown.
- A physical host's word outweighs a nested one's: a VM of which both say for as long that it runs
  is the physical host's, and what the other had said of it is forgotten. A VM that a guest of its
  true host made up is that host's at once.
- Whoever last had a machine by right is its home. A host that falls silent, or stops a VM, gets it
  back by reporting it running, also where somebody else has claimed it meanwhile.
- A machine that says it is no VM is nobody's VM: else a guest could put its own host, and with it
  all of that host's guests, below itself. Of two nested hosts that report each other neither is
  the other's, unless a physical host above them has one of the two.
- A nested host that falls silent while its own host says it runs still has its guests, as it last
  reported them: nothing moves there, and what they were given is not taken from it.
"""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import numpy as np

from controller.claims import (
    HOME_NS,
    PHYSICAL_ROLE,
    Standing,
    Trouble,
    best_heir,
    claimants,
    cloned,
    contradicts,
    is_heeded,
    is_running,
    judge,
    standing_to_claim,
    takes,
    troubles,
)
from controller.core.state import MISSING, Ints, Snapshot
from controller.forecast.protocol import History
from controller.overrides import Overrides
from controller.picture import NO_STREAMS, Moment, Streams, take_snapshot
from controller.rings import Rings, RingWindows
from controller.settings import ControllerSettings
from controller.table import COLUMN, USED, Claim, Node, Table
from controller.topology import NOBODY
from shared.clock import SECOND_NS
from shared.wire import COLUMN_NAMES, NodeBlock

GONE_NS = 30 * SECOND_NS  # silence of a VM that its host reports no more
CLONE_CLEARS_NS = 300 * SECOND_NS  # since two machines were last heard under one id
_NO_LOCK: AbstractContextManager[object] = nullcontext()


@dataclass(slots=True)
class FleetCounters:
    """Since the start; gauges say so."""

    blocks: int = 0
    values: int = 0  # readings that went into rings
    contested: int = 0  # VM rows of machines that somebody else has
    claimed: int = 0  # VM rows that a node reports of itself
    circular: int = 0  # gauge: machines left out, they run on each other in a circle
    expired: int = 0  # nodes that fell silent for too long


@dataclass(slots=True)
class Fleet:
    settings: ControllerSettings
    counters: FleetCounters = field(default_factory=FleetCounters)
    table: Table = field(default_factory=Table)
    rings: Rings = field(init=False)
    troubles: tuple[Trouble, ...] = ()  # as of the newest snapshot

    def __post_init__(self) -> None:
        said = self.settings
        peak_steps = min(said.horizon_s // said.grid_step_s, said.window_steps)
        step_ns = said.grid_step_s * SECOND_NS
        self.rings = Rings(step_ns, said.window_steps, max(1, peak_steps))

    def apply(self, block: NodeBlock, received_tick_ns: int, received_unix_ns: int) -> None:
        """Takes in one message; its time is when it was received, by our clocks."""
        node = self._node_of(block, received_tick_ns)
        sees_none = not block.vm_ids and bool(block.levers) and all(block.levers.values())
        is_blind = sees_none and node.boot_id == block.boot_id
        node.take(block, received_tick_ns, received_unix_ns)
        if node.role == PHYSICAL_ROLE:
            self._set_free(node, received_tick_ns)
        if not node.hosts:
            self._hand_over(node, (), np.zeros(0, dtype=np.int64), received_tick_ns)
        elif not is_blind:  # else it lost its hypervisor, and unknown is not gone
            self._take_guests(node, block, received_tick_ns)
        if self.table.host_of[node.slot] == NOBODY:
            here = np.array([node.slot])
            used = node.used()[None, :]
            self.counters.values += self.rings.add(here, used, received_tick_ns)
        self.table.seen_tick_ns[node.slot] = received_tick_ns
        self.counters.blocks += 1

    def note_clone(self, node_id: str, tick_ns: int) -> None:
        """Two machines speak under this id."""
        slot = self.table.slot_of.get(node_id)
        if slot is not None and slot in self.table.nodes:
            self.table.nodes[slot].clone_tick_ns = tick_ns

    def snapshot(
        self,
        *,
        tick_ns: int,
        unix_ns: int,
        epoch: int,
        cycle: int,
        overrides: Overrides = Overrides(),  # noqa: B008 - frozen
        streams: Streams = NO_STREAMS,
    ) -> Snapshot:
        """All machines now; `streams`: the agents that can carry out steps."""
        self._expire(tick_ns)
        clone_after_ns = round(self.settings.clone_after_s * SECOND_NS)
        for slot, node in judge(self.table, tick_ns, clone_after_ns):
            self._take_over(slot, node, tick_ns)
        moment = Moment(tick_ns, unix_ns, epoch, cycle)
        in_force = overrides.at(tick_ns)
        clones = self._clones(tick_ns, streams)
        snapshot, unplaced = take_snapshot(
            self.table, self.settings, moment, in_force, streams, cloned(self.table) | clones.keys()
        )
        self.counters.circular = len(unplaced)
        self.troubles = tuple(troubles(self.table, clones, unplaced))
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

    def _node_of(self, block: NodeBlock, tick_ns: int) -> Node:
        slot = self._slot(block.node_id)
        if slot not in self.table.nodes:
            self.table.nodes[slot] = Node(block.node_id, slot, since_tick_ns=tick_ns)
        if self.table.host_of[slot] == NOBODY:
            self.table.names[slot] = block.name  # its host's word for it comes first
        return self.table.nodes[slot]

    def _take_guests(self, node: Node, block: NodeBlock, tick_ns: int) -> None:
        table = self.table
        if block.vm_ids != node.vm_ids:
            slots = np.array([self._slot(vm_id) for vm_id in block.vm_ids], dtype=np.int64)
            self._hand_over(node, block.vm_ids, slots, tick_ns)
        slots = node.vm_slots
        rows = _matrix(block)
        mine = self._claim(node, rows, tick_ns)
        table.readings[slots[mine]] = rows[mine]
        table.received_tick_ns[slots[mine]] = tick_ns
        table.seen_tick_ns[slots] = tick_ns
        table.name(zip(slots[mine].tolist(), _chosen(block.vm_names, mine), strict=True))
        self.counters.values += self.rings.add(slots[mine], rows[mine][:, USED], tick_ns)
        foreign = np.flatnonzero(~mine & (slots != node.slot))
        self._note_claims(node, {int(slots[i]): rows[i] for i in foreign}, tick_ns)
        self.counters.claimed += len(slots) - int(mine.sum()) - len(foreign)

    def _claim(
        self, node: Node, rows: Ints, tick_ns: int
    ) -> "np.ndarray[tuple[int], np.dtype[np.bool_]]":
        """Which of the node's rows are of VMs that are its own; takes those that it may take."""
        table, slots = self.table, node.vm_slots
        if contradicts(table, node):
            self._part(node.slot, tick_ns)
        for i in np.flatnonzero(table.host_of[slots] != node.slot).tolist():
            slot = int(slots[i])
            if takes(table, node, slot, rows[i]):
                self._part(slot, tick_ns)
                by_right = standing_to_claim(table, node) is Standing.PHYSICAL
                table.give(slot, node.slot, tick_ns, by_right=by_right)
        mine = table.host_of[slots] == node.slot
        self._settle(node, slots[mine & (table.home_of[slots] != node.slot)], tick_ns)
        return np.asarray(mine)

    def _settle(self, node: Node, slots: Ints, tick_ns: int) -> None:
        """What its old home could have claimed back for long is at home here."""
        table = self.table
        for slot in slots.tolist():
            home = table.nodes.get(int(table.home_of[slot]))
            if home is not None:
                since_ns = max(int(table.held_tick_ns[slot]), home.since_tick_ns)
                if tick_ns - since_ns >= HOME_NS:
                    table.home_of[slot] = node.slot

    def _note_claims(self, node: Node, rows: dict[int, Ints], tick_ns: int) -> None:
        """What the node reports of machines that others have."""
        before = node.foreign
        node.foreign = {slot: before.get(slot) or Claim(row, tick_ns) for slot, row in rows.items()}
        for slot, claim in node.foreign.items():
            claim.row = rows[slot]
        self.counters.contested += len(node.foreign)

    def _set_free(self, node: Node, tick_ns: int) -> None:
        """The machine says that it is no VM: whoever has it made that up, or it does."""
        owner = self.table.nodes.get(int(self.table.host_of[node.slot]))
        if owner is not None:
            self._part(node.slot, tick_ns)
            node.said_to_be_vm = owner.role == PHYSICAL_ROLE
        self.table.home_of[node.slot] = NOBODY

    def _take_over(self, slot: int, node: Node, tick_ns: int) -> None:
        if slot in node.foreign:
            claim = node.foreign.pop(slot)
            self._part(slot, tick_ns)
            self._give(slot, node, claim, tick_ns, by_right=True)

    def _give(self, slot: int, node: Node, claim: Claim, tick_ns: int, *, by_right: bool) -> None:
        table = self.table
        table.give(slot, node.slot, tick_ns, by_right=by_right)
        table.readings[slot] = claim.row
        table.received_tick_ns[slot] = node.received_tick_ns

    def _part(self, slot: int, tick_ns: int) -> None:
        """Takes a machine from whoever has it against that one's word, which remains a claim; what
        it said of its use is forgotten."""
        table = self.table
        owner = table.nodes.get(int(table.host_of[slot]))
        if owner is None:
            return
        owner.foreign[slot] = Claim(table.readings[slot].copy(), tick_ns)
        self._leave(slot, tick_ns)
        self.rings.clear(np.array([slot]))

    def _hand_over(self, node: Node, vm_ids: tuple[str, ...], slots: Ints, tick_ns: int) -> None:
        """The node reports these VMs from now on: whoever else reports one that it reports no more
        gets it, or nobody."""
        table = self.table
        gone = np.setdiff1d(node.vm_slots, slots)
        node.vm_ids, node.vm_slots = vm_ids, slots
        if not vm_ids:
            self._note_claims(node, {}, tick_ns)
        owned = gone[table.host_of[gone] == node.slot].tolist()
        others = claimants(table) if owned else []
        for slot in owned:
            heir = best_heir(table, slot, others)
            if heir is None:
                self._leave(slot, tick_ns)
                continue
            by_right = is_heeded(table, heir, slot)
            claim = heir.foreign.pop(slot)
            self._give(slot, heir, claim, tick_ns, by_right=by_right)

    def _leave(self, slot: int, tick_ns: int) -> None:
        """Nobody has the machine any more; its home stays."""
        self.table.give(slot, NOBODY, tick_ns, by_right=False)
        self.table.readings[slot] = MISSING
        self.table.received_tick_ns[slot] = 0

    def _expire(self, tick_ns: int) -> None:
        """Drops nodes silent for too long, and the rings of machines gone for longer."""
        table = self.table
        for node in [n for n in table.nodes.values() if self._is_over(n, tick_ns)]:
            self._hand_over(node, (), np.zeros(0, dtype=np.int64), tick_ns)
            del table.nodes[node.slot]
            self.counters.expired += 1
        forgotten = table.forget(tick_ns - round(self.settings.forget_s * SECOND_NS))
        self.rings.clear(forgotten)

    def _is_over(self, node: Node, tick_ns: int) -> bool:
        table, said = self.table, self.settings
        silent_ns = tick_ns - node.received_tick_ns
        if table.host_of[node.slot] == NOBODY and table.home_of[node.slot] != NOBODY:
            # Its host reports it no more: gone, unless it says otherwise.
            expiry_ns = max(GONE_NS, 3 * node.interval_ns)
        elif len(node.vm_slots) and is_running(table.readings[node.slot]):
            expiry_ns = round(max(said.forget_s, said.node_expiry_s) * SECOND_NS)
        else:
            expiry_ns = round(said.node_expiry_s * SECOND_NS)
        return silent_ns > min(expiry_ns, round(said.forget_s * SECOND_NS))

    def _clones(self, tick_ns: int, streams: Streams) -> dict[int, str]:
        """Slots of nodes that are two machines, and how that is known."""
        found = {
            self.table.slot_of[node_id]: "two agents connect under its id"
            for node_id in streams.clones
            if node_id in self.table.slot_of
        }
        for node in self.table.nodes.values():
            seen = node.clone_tick_ns
            if seen is not None and tick_ns - seen < max(CLONE_CLEARS_NS, 3 * node.interval_ns):
                found[node.slot] = "two agents send telemetry under its id"
        return found

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
