"""The arrays and nodes behind the fleet: one slot per machine, the newest word of every node."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from controller.core.state import MISSING, Ints
from controller.topology import NOBODY
from shared.telemetry import Loan, NodeReadings, RoleUse
from shared.wire import COLUMN_NAMES, NodeBlock

COLUMN = {name: index for index, name in enumerate(COLUMN_NAMES)}
LIMIT = np.array(
    [COLUMN[n] for n in ("cpu_limit_millicores", "memory_limit_bytes", "io_limit_bytes_per_s")]
)
USED = np.array(
    [COLUMN[n] for n in ("cpu_used_millicores", "memory_used_bytes", "io_used_bytes_per_s")]
)


@dataclass(slots=True)
class Claim:
    """What a node says of a VM that is another's; changes with each message and each look."""

    row: Ints  # readings, by COLUMN
    since_tick_ns: int  # it stands in every message of the node since, by our clock
    heeded: bool = False  # it holds the VM still
    both_tick_ns: int | None = None  # since when both hosts say that the VM runs
    clone: bool = False  # they have said so for too long to be a migration


@dataclass(slots=True)
class Node:
    """The newest message of one node; changes with each."""

    node_id: str
    slot: int
    name: str = ""
    role: str = "guest"
    boot_id: str = ""
    sequence: int = 0
    generation: int = 0
    epoch_highest: int = 0
    simulated: bool = False
    tick_ns: int = 0  # the agent's clock at the sample
    interval_ns: int = 0
    sampled_at_unix_ns: int = 0  # by the agent's wall clock
    received_tick_ns: int = 0  # by our clock
    received_unix_ns: int = 0
    since_tick_ns: int = 0  # when it was first heard, by our clock
    levers: dict[str, str] = field(default_factory=dict)
    readings: NodeReadings = field(default_factory=NodeReadings)
    loans: tuple[Loan, ...] = ()  # what its agent lent, or had not to lend, since the last plan
    roles: tuple[RoleUse, ...] = ()
    vm_ids: tuple[str, ...] = ()
    vm_delay_us_per_s: Sequence[int] = ()  # of each: runnable but not running
    vm_net_used_bytes_per_s: Sequence[int] = ()
    vm_net_limit_bytes_per_s: Sequence[int] = ()
    vm_idle_levers: Sequence[int] = ()
    vm_slots: Ints = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    foreign: dict[int, Claim] = field(default_factory=dict)  # by slot
    said_to_be_vm: bool = False  # by another that says it is none itself
    clone_tick_ns: int | None = None  # when two machines were last seen to speak under its id

    @property
    def hosts(self) -> bool:
        """Whether it runs VMs, or could."""
        return self.role != "guest"

    def take(self, block: NodeBlock, received_tick_ns: int, received_unix_ns: int) -> None:
        self.name, self.role, self.boot_id = block.name, block.role, block.boot_id
        self.sequence, self.generation = block.sequence, block.generation
        self.epoch_highest, self.simulated = block.epoch_highest, block.simulated
        self.tick_ns, self.interval_ns = block.tick_ns, block.interval_ns
        self.sampled_at_unix_ns = block.sampled_at_unix_ns
        self.received_tick_ns, self.received_unix_ns = received_tick_ns, received_unix_ns
        self.levers, self.readings = block.levers, block.node
        self.loans, self.roles = block.loans, block.roles
        self.vm_delay_us_per_s = block.columns["cpu_delay_us_per_s"]
        self.vm_net_used_bytes_per_s = block.columns["net_used_bytes_per_s"]
        self.vm_net_limit_bytes_per_s = block.columns["net_limit_bytes_per_s"]
        self.vm_idle_levers = block.columns["idle_levers"]

    def used(self) -> Ints:
        """(3,) use of the node's own machine, MISSING where unknown."""
        total, available = self.readings.memory_total_bytes, self.readings.memory_available_bytes
        memory = None if total is None or available is None else max(0, total - available)
        return missing_or(
            (self.readings.cpu_used_millicores, memory, self.readings.io_used_bytes_per_s)
        )

    def allocatable(self) -> Ints:
        """(3,) what its operator lets VMs have together, MISSING where not said."""
        said = self.readings
        return missing_or(
            (
                said.cpu_allocatable_millicores,
                said.memory_allocatable_bytes,
                said.io_allocatable_bytes_per_s,
            )
        )


class Table:
    """One row per slot; rows of machines that were forgotten are used again."""

    def __init__(self, room: int = 64) -> None:
        self.slot_of: dict[str, int] = {}
        self.ids: list[str] = [""] * room
        self.names: list[str] = [""] * room
        self.nodes: dict[int, Node] = {}  # by slot
        self.readings: Ints = np.full((room, len(COLUMN)), MISSING, dtype=np.int64)
        self.host_of: Ints = np.full(room, NOBODY, dtype=np.int64)
        self.home_of: Ints = np.full(room, NOBODY, dtype=np.int64)  # who last had it by right
        self.held_tick_ns: Ints = np.zeros(room, dtype=np.int64)  # since when `host_of` is so
        self.received_tick_ns: Ints = np.zeros(room, dtype=np.int64)  # of `readings`
        self.seen_tick_ns: Ints = np.zeros(room, dtype=np.int64)  # by anybody
        self._free = list(range(room - 1, -1, -1))

    @property
    def room(self) -> int:
        return len(self.ids)

    def slot(self, machine_id: str) -> int:
        """The machine's slot; a new one where it has none."""
        slot = self.slot_of.get(machine_id)
        if slot is None:
            if not self._free:
                self._double()
            slot = self._free.pop()
            self.slot_of[machine_id] = slot
            self.ids[slot] = machine_id
        return slot

    def name(self, names: Iterable[tuple[int, str]]) -> None:
        for slot, name in names:
            self.names[slot] = name

    def guests(self) -> Ints:
        """Slots of the VMs that a node has."""
        return np.flatnonzero(self.host_of != NOBODY)

    def give(self, slot: int, host: int, tick_ns: int, *, by_right: bool) -> None:
        """The machine runs on `host` (a slot or NOBODY) from now on."""
        self.host_of[slot] = host
        self.held_tick_ns[slot] = tick_ns
        if by_right or self.home_of[slot] == NOBODY:
            self.home_of[slot] = host

    def forget(self, before_tick_ns: int) -> Ints:
        """Frees the slots of machines that nobody has or is and that were last seen before."""
        idle = (self.host_of == NOBODY) & (self.seen_tick_ns < before_tick_ns)
        slots = [
            slot
            for slot in np.flatnonzero(idle).tolist()
            if self.ids[slot] and slot not in self.nodes
        ]
        for slot in slots:
            del self.slot_of[self.ids[slot]]
            self.ids[slot] = self.names[slot] = ""
            self.seen_tick_ns[slot] = 0
            self.home_of[slot] = NOBODY
            self._free.append(slot)
        self.home_of[np.isin(self.home_of, slots)] = NOBODY
        return np.array(slots, dtype=np.int64)

    def _double(self) -> None:
        room = self.room
        self.ids += [""] * room
        self.names += [""] * room
        self.readings = np.concatenate([self.readings, np.full_like(self.readings, MISSING)])
        for name in ("host_of", "home_of"):
            held = getattr(self, name)
            setattr(self, name, np.concatenate([held, np.full_like(held, NOBODY)]))
        for name in ("received_tick_ns", "seen_tick_ns", "held_tick_ns"):
            held = getattr(self, name)
            setattr(self, name, np.concatenate([held, np.zeros_like(held)]))
        self._free += range(2 * room - 1, room - 1, -1)


def missing_or(amounts: Iterable[int | None]) -> Ints:
    return np.array([MISSING if amount is None else amount for amount in amounts], dtype=np.int64)
