"""From the fleet's table, settings and overrides to one Snapshot; pure.

What is not known stays MISSING. Words of a VM's host decide; what an agent inside a VM says of
itself is kept and shown, it moves nothing.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from controller.core.state import MISSING, RESOURCES, Bools, Hold, Ints, Snapshot
from controller.overrides import Overrides
from controller.settings import ControllerSettings, Shares
from controller.table import COLUMN, LIMIT, USED, Node, Table
from controller.topology import NOBODY, Order, in_order
from controller.words import Words
from shared.resources import MIB, Resource
from shared.telemetry import IDLE, IDLE_SHRINKING, VmState


@dataclass(frozen=True, slots=True)
class Moment:
    """When, by our clocks, and in whose reign."""

    tick_ns: int
    unix_ns: int
    epoch: int
    cycle: int


@dataclass(frozen=True, slots=True)
class Streams:
    """Whose agent is there to carry out steps."""

    boots: Mapping[str, str] = field(default_factory=dict)  # node id -> boot id; "": of any boot
    clones: frozenset[str] = frozenset()  # ids of nodes under which two agents connect


NO_STREAMS = Streams()


def take_snapshot(
    table: Table,
    settings: ControllerSettings,
    moment: Moment,
    overrides: Overrides,
    streams: Streams,
    cloned: Collection[int] = (),
) -> tuple[Snapshot, Ints]:
    """The snapshot, and the slots of machines that a circle of reports kept out of it. `cloned`:
    slots of machines that there are two of."""
    hosts = [node for node in table.nodes.values() if node.hosts]
    roots = [node.slot for node in hosts if table.host_of[node.slot] == NOBODY]
    order = in_order(np.array(roots, dtype=np.int64), table.guests(), table.host_of)
    view = _View(table, order, hosts)
    said = Words(settings, overrides, order, table.slot_of)
    limit, maximum, used = _amounts(view)
    ceiling = _lower(said.bounds("ceiling"), maximum)
    stubborn = _idle(view, IDLE_SHRINKING) & (limit != MISSING)
    floor = _lower(np.where(stubborn, limit, _floor(said, view)), ceiling)
    two = _two_hosts(view)
    column = view.column
    snapshot = Snapshot(
        taken_at_unix_ns=moment.unix_ns,
        epoch=moment.epoch,
        cycle=moment.cycle,
        ids=tuple(table.ids[slot] for slot in order.slots),
        names=tuple(table.names[slot] for slot in order.slots),
        parent=order.parent,
        is_host=view.is_host,
        capacity=_capacity(view),
        overhead=_overhead(view, settings),
        reserve=_reserve(view, settings, limit),
        limit=limit,
        maximum=maximum,
        used=used,
        wanted=_wanted(view),
        memory_free=column("memory_free_bytes"),
        memory_cache=column("memory_cache_bytes"),
        memory_stats_age_ns=_older(column("memory_stats_age_ns"), view.age_ns(moment.tick_ns)),
        sample_age_ns=view.age_ns(moment.tick_ns),
        floor=floor,
        ceiling=ceiling,
        pin=said.pins(),
        priority=said.number("priority", 1),
        violation_ppm=said.number("violation_ppm", settings.violation_ppm),
        mode=said.modes(list(view.hosts), view.parent),
        hold=_hold(view, said.frozen(), two, _with_guests(view, cloned), streams),
        lever=_levers(view),
        generation=view.of_hosts(lambda node: node.generation),
        tick_ns=view.of_hosts(lambda node: node.tick_ns),
        simulated=_simulated(view),
    )
    return snapshot, order.unplaced


class _View:
    """The table's rows in the snapshot's order. m machines."""

    def __init__(self, table: Table, order: Order, hosts: Iterable[Node]) -> None:
        self.table = table
        self.order = order
        self.parent = order.parent
        self.count = len(order.slots)
        self.readings = table.readings[order.slots]  # (m, columns)
        placed = ((int(order.place[node.slot]), node) for node in hosts)
        self.hosts = {place: node for place, node in sorted(placed, key=_first) if place >= 0}
        self.is_host: Bools = np.zeros(self.count, dtype=np.bool_)
        self.is_host[list(self.hosts)] = True
        self.is_guest: Bools = self.parent >= 0

    def column(self, name: str) -> Ints:
        return self.readings[:, COLUMN[name]].copy()

    def of_hosts(self, value: Callable[[Node], int]) -> Ints:
        """(m,) a figure of the agent inside each host, MISSING for other machines."""
        found = np.full(self.count, MISSING, dtype=np.int64)
        for place, node in self.hosts.items():
            found[place] = value(node)
        return found

    def from_parent(self, of_host: Ints, otherwise: int) -> Ints:
        """What each VM's host has in `of_host` (m, ...); `otherwise` for roots."""
        found = of_host[self.parent]
        found[~self.is_guest] = otherwise
        return found

    def age_ns(self, tick_ns: int) -> Ints:
        """(m,) of the message that brought the readings: for a VM that of its host."""
        received = self.table.received_tick_ns[self.order.slots]
        for place, node in self.hosts.items():
            if not self.is_guest[place]:
                received[place] = node.received_tick_ns
        return np.maximum(tick_ns - received, 0)


def _amounts(view: _View) -> tuple[Ints, Ints, Ints]:
    """(m, 3) each: limit in force, physical maximum, use.

    Without an I/O limit in force a VM may take all that its node gives: that is its limit.
    """
    limit, used = view.readings[:, LIMIT], view.readings[:, USED]
    maximum = np.full_like(limit, MISSING)
    maximum[:, Resource.CPU] = view.column("cpu_maximum_millicores")
    maximum[:, Resource.MEMORY] = view.column("memory_maximum_bytes")
    of_node = view.of_hosts(lambda node: int(node.allocatable()[Resource.IO]))
    maximum[:, Resource.IO] = view.from_parent(of_node, MISSING)
    unlimited = limit[:, Resource.IO] == MISSING
    limit[unlimited, Resource.IO] = maximum[unlimited, Resource.IO]
    for place, node in view.hosts.items():
        if not view.is_guest[place]:
            used[place] = node.used()
    return limit, maximum, used


def _wanted(view: _View) -> Ints:
    """(m, 3) what hosts say their own VMs need beyond what was planned."""
    wanted = np.full((view.count, RESOURCES), MISSING, dtype=np.int64)
    for host, node in view.hosts.items():
        for loan in node.loans:
            slot = view.table.slot_of.get(loan.vm_id)
            place = -1 if slot is None else int(view.order.place[slot])
            asks = max(loan.wanted_amount, loan.amount)
            is_squeeze = asks <= loan.base_amount  # its host lacks memory itself
            if place >= 0 and view.parent[place] == host and not is_squeeze:
                wanted[place, loan.resource] = asks
    return wanted


def _floor(said: Words, view: _View) -> Ints:
    floor = said.bounds("floor")
    floor = np.where(floor == MISSING, said.default_floor(), floor)
    floor[~view.is_guest] = MISSING
    return floor


def _lower(amount: Ints, bound: Ints) -> Ints:
    """The lower of two amounts where both are known, else the one that is."""
    lower = np.minimum(amount, bound)
    return np.where((amount == MISSING) | (bound == MISSING), np.maximum(amount, bound), lower)


def _capacity(view: _View) -> Ints:
    """(m, 3) what physical hosts may give; a nested host's capacity is its own limit."""
    capacity = np.full((view.count, RESOURCES), MISSING, dtype=np.int64)
    for place, node in view.hosts.items():
        if not view.is_guest[place]:
            capacity[place] = node.allocatable()
    return capacity


def _overhead(view: _View, settings: ControllerSettings) -> Ints:
    """(m, 3) what hosts need besides their guests' limits.

    Each guest costs its hypervisor process; a nested host also its own system (a physical one
    leaves that out of what it gives). What is reported here and belongs elsewhere counts like a
    guest: a VM on its way in needs its room before it is here.
    """
    overhead = np.zeros((view.count, RESOURCES), dtype=np.int64)
    guests = np.bincount(view.parent[view.is_guest], minlength=view.count)
    overhead[:, Resource.MEMORY] = guests * (settings.vm_overhead_mib * MIB)
    for place, node in view.hosts.items():
        if view.is_guest[place]:
            overhead[place] += _own_needs(node, settings)
        for slot, claim in node.foreign.items():
            overhead[place] += _room(claim.row, view.table.readings[slot])
            overhead[place, Resource.MEMORY] += settings.vm_overhead_mib * MIB
    return overhead


def _room(row: Ints, elsewhere: Ints) -> Ints:
    """(3,) of a VM that belongs to another host: its limits here, else there, else all that it
    could have. Disk traffic without a limit has no amount."""
    most = np.full(RESOURCES, MISSING, dtype=np.int64)
    most[Resource.CPU] = row[COLUMN["cpu_maximum_millicores"]]
    most[Resource.MEMORY] = row[COLUMN["memory_maximum_bytes"]]
    room = most
    for limit in (elsewhere[LIMIT], row[LIMIT]):
        room = np.where(limit == MISSING, room, limit)
    return np.maximum(room, 0)


def _own_needs(node: Node, settings: ControllerSettings) -> Ints:
    """(3,) of the system inside a nested host: as set, or what its operator keeps from VMs."""
    total = (node.readings.cpu_total_millicores, node.readings.memory_total_bytes)
    given = node.allocatable()
    needs = np.zeros(RESOURCES, dtype=np.int64)
    needs[Resource.MEMORY] = settings.node_overhead_mib * MIB
    for resource in (Resource.CPU, Resource.MEMORY):
        whole = total[resource]
        if whole is not None and given[resource] != MISSING:
            needs[resource] = max(needs[resource], whole - given[resource])
    return needs


def _reserve(view: _View, settings: ControllerSettings, limit: Ints) -> Ints:
    """(m, 3) at hosts a share of what they have; 0 elsewhere and where that is not known."""
    shares = _in_order(settings.reserve_share)
    have = np.where(view.is_guest[:, None], limit, _capacity(view))
    reserve: Ints = (np.maximum(have, 0) * shares).astype(np.int64)
    reserve[~view.is_host] = 0
    return reserve


def _two_hosts(view: _View) -> Bools:
    """(m,) VMs that two nodes report, where that is to be heeded: they arrive or leave."""
    found = np.zeros(view.count, dtype=np.bool_)
    for node in view.hosts.values():
        heeded = [slot for slot, claim in node.foreign.items() if claim.heeded]
        places = view.order.place[heeded]
        found[places[places >= 0]] = True
    return found


def _with_guests(view: _View, slots: Collection[int]) -> Bools:
    """(m,) these machines and all below them."""
    found = np.zeros(view.count, dtype=np.bool_)
    places = view.order.place[list(slots)]
    found[places[places >= 0]] = True
    if found.any():
        for place in view.hosts:  # parents first
            found[place] |= view.is_guest[place] and found[view.parent[place]]
        found |= view.is_guest & found[view.parent]
    return found


def _hold(view: _View, frozen: Bools, two: Bools, cloned: Bools, streams: Streams) -> Ints:
    """(m,) the first that holds, in the order of the last lines read upwards."""
    state = view.column("state")
    reachable = np.zeros(view.count, dtype=np.bool_)
    for place, node in view.hosts.items():
        boot_id = streams.boots.get(node.node_id)
        reachable[place] = boot_id is not None and boot_id in {"", node.boot_id}
    managed = np.where(view.is_guest, reachable[view.parent], reachable)
    hold = np.where(managed, int(Hold.NONE), int(Hold.UNMANAGED))
    hold[view.is_guest & (state != VmState.RUNNING)] = Hold.NOT_RUNNING
    hold[view.is_guest & (state == VmState.STARTING)] = Hold.STARTING
    hold[view.is_guest & ((state == VmState.MIGRATING) | two)] = Hold.MIGRATING
    hold[frozen] = Hold.FROZEN
    hold[cloned] = Hold.CLONE
    return hold.astype(np.int64)


def _levers(view: _View) -> Bools:
    """(m, 3) whether a VM's host says that it can move the limit; no word: it cannot."""
    of_host = np.zeros((view.count, RESOURCES), dtype=np.bool_)
    for place, node in view.hosts.items():
        of_host[place] = [node.levers.get(resource.word) == "" for resource in Resource]
    lever = of_host[view.parent] & ~_idle(view, IDLE)
    lever[~view.is_guest] = False
    return lever


def _idle(view: _View, bit: int) -> Bools:
    """(m, 3) levers that lately did nothing, in one way or the other."""
    bits = np.maximum(view.column("idle_levers"), 0)[:, None]
    found: Bools = (bits >> np.arange(RESOURCES)) & bit > 0
    return found


def _simulated(view: _View) -> Bools:
    """(m,) a VM is as real as the node that reports it."""
    own = view.of_hosts(lambda node: int(node.simulated)) > 0
    return np.where(view.is_guest, own[view.parent], own)


def _older(age_ns: Ints, by_ns: Ints) -> Ints:
    return np.where(age_ns == MISSING, MISSING, age_ns + by_ns)


def _in_order(shares: Shares) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
    return np.array([shares.cpu, shares.memory, shares.io])


def _first(pair: tuple[int, Node]) -> int:
    return pair[0]
