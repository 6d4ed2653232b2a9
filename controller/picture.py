"""From the fleet's table, settings and overrides to one Snapshot; pure.

What is not known stays MISSING. Words of a VM's host decide; what an agent inside a VM says of
itself is kept and shown, it moves nothing.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from controller.core.state import MISSING, RESOURCES, Bools, Hold, Ints, Mode, Snapshot
from controller.overrides import FLEET, NODE, VM, Overrides
from controller.settings import ControllerSettings, NodeSettings, Shares, VmSettings, mode_of
from controller.table import COLUMN, LIMIT, USED, Node, Table
from controller.topology import NOBODY, Order, in_order
from shared.resources import MIB, Resource
from shared.telemetry import VmState


@dataclass(frozen=True, slots=True)
class Moment:
    """When, by our clocks, and in whose reign."""

    tick_ns: int
    unix_ns: int
    epoch: int
    cycle: int


def take_snapshot(
    table: Table,
    settings: ControllerSettings,
    moment: Moment,
    overrides: Overrides,
    connected: frozenset[str],
) -> tuple[Snapshot, int]:
    """The snapshot, and how many machines a circle of reports kept out of it."""
    hosts = [node for node in table.nodes.values() if node.hosts]
    roots = [node.slot for node in hosts if table.host_of[node.slot] == NOBODY]
    order = in_order(np.array(roots, dtype=np.int64), table.guests(), table.host_of)
    view = _View(table, order, hosts)
    said = _Said(settings, overrides, order, table.slot_of)
    limit, maximum, used = _amounts(view)
    ceiling = _lower(said.bounds("ceiling"), maximum)
    floor = _lower(_floor(said, view), ceiling)
    contested = _contested(view)
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
        mode=said.modes(view),
        hold=_hold(view, said.frozen(), contested, connected),
        lever=_levers(view),
        generation=view.of_hosts(lambda node: node.generation),
        tick_ns=view.of_hosts(lambda node: node.tick_ns),
        simulated=_simulated(view),
    )
    return snapshot, len(order.unplaced)


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


class _Said:
    """What settings and operators say, by the snapshot's order."""

    def __init__(
        self,
        settings: ControllerSettings,
        overrides: Overrides,
        order: Order,
        slot_of: Mapping[str, int],
    ) -> None:
        self._settings = settings
        self._overrides = overrides
        self._order = order
        self._slot_of = slot_of
        self.count = len(order.slots)
        self._vms = [(p, vm) for name, vm in settings.vms.items() if (p := self.place(name)) >= 0]

    def place(self, machine_id: str) -> int:
        """Of the machine in the snapshot, -1 where it is not there."""
        slot = self._slot_of.get(machine_id)
        return -1 if slot is None else int(self._order.place[slot])

    def bounds(self, which: str) -> Ints:
        """(m, 3) "floor" or "ceiling" as set for single VMs, MISSING elsewhere."""
        found = np.full((self.count, RESOURCES), MISSING, dtype=np.int64)
        for place, vm in self._vms:
            found[place] = _vm_bounds(vm, which)
        return found

    def default_floor(self) -> Ints:
        said = self._settings
        mib = (said.memory_floor_mib, said.io_floor_mib_per_s)
        return np.array([said.cpu_floor_millicores, mib[0] * MIB, mib[1] * MIB], dtype=np.int64)

    def number(self, name: str, default: int) -> Ints:
        """(m,) "priority" or "violation_ppm"."""
        found = np.full(self.count, default, dtype=np.int64)
        for place, vm in self._vms:
            said = getattr(vm, name)
            found[place] = default if said is None else said
        return found

    def pins(self) -> Ints:
        found = np.full((self.count, RESOURCES), MISSING, dtype=np.int64)
        for pin in self._overrides.pins():
            if (place := self.place(pin.vm_id)) >= 0:
                found[place, pin.resource] = pin.amount
        return found

    def frozen(self) -> Bools:
        found = np.zeros(self.count, dtype=np.bool_)
        for freeze in self._overrides.freezes():
            if (place := self.place(freeze.vm_id)) >= 0:
                found[place] = True
        return found

    def modes(self, view: _View) -> Ints:
        """(m,) the nearest word counts: on the VM, on a node above it, on the fleet.

        At each of these an operator's override comes before the settings.
        """
        fleet = self._modes(FLEET, {}).get(-1, self._settings.fleet_mode)
        on_nodes = self._modes(NODE, self._settings.nodes)
        below: Ints = np.full(self.count, fleet, dtype=np.int64)  # for the guests of a host
        for place in view.hosts:  # parents first
            above = below[view.parent[place]] if view.is_guest[place] else fleet
            below[place] = on_nodes.get(place, above)
        modes = view.from_parent(below, int(Mode.OBSERVE))
        for place, mode in self._modes(VM, self._settings.vms).items():
            if view.is_guest[place]:
                modes[place] = mode
        return modes

    def _modes(
        self, scope: str, table: Mapping[str, VmSettings] | Mapping[str, NodeSettings]
    ) -> dict[int, Mode]:
        """By place (-1: the fleet)."""
        found = {self.place(name): mode_of(said.mode) for name, said in table.items() if said.mode}
        found.pop(-1, None)
        for change in self._overrides.modes():
            if change.scope == scope:
                found[self.place(change.target)] = change.mode
        if scope != FLEET:
            found.pop(-1, None)
        return found


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
            if place >= 0 and view.parent[place] == host:
                wanted[place, loan.resource] = max(loan.wanted_amount, loan.amount)
    return wanted


def _floor(said: _Said, view: _View) -> Ints:
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
    leaves that out of what it gives). A VM on its way in counts here with its limits.
    """
    overhead = np.zeros((view.count, RESOURCES), dtype=np.int64)
    guests = np.bincount(view.parent[view.is_guest], minlength=view.count)
    overhead[:, Resource.MEMORY] = guests * (settings.vm_overhead_mib * MIB)
    for place, node in view.hosts.items():
        if view.is_guest[place]:
            overhead[place] += _own_needs(node, settings)
        for reading in node.foreign.values():
            overhead[place] += np.maximum(reading[LIMIT], 0)
    return overhead


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


def _contested(view: _View) -> Bools:
    """(m,) VMs that two nodes report: they arrive or leave, or somebody cloned them."""
    found = np.zeros(view.count, dtype=np.bool_)
    for node in view.hosts.values():
        places = view.order.place[list(node.foreign)]
        found[places[places >= 0]] = True
    return found


def _hold(view: _View, frozen: Bools, contested: Bools, connected: frozenset[str]) -> Ints:
    """(m,) the first that holds, in the order of the last lines read upwards."""
    state = view.column("state")
    reachable = np.zeros(view.count, dtype=np.bool_)
    for place, node in view.hosts.items():
        reachable[place] = node.node_id in connected
    managed = np.where(view.is_guest, reachable[view.parent], reachable)
    hold = np.where(managed, int(Hold.NONE), int(Hold.UNMANAGED))
    hold[view.is_guest & (state != VmState.RUNNING)] = Hold.NOT_RUNNING
    hold[view.is_guest & (state == VmState.STARTING)] = Hold.STARTING
    hold[view.is_guest & ((state == VmState.MIGRATING) | contested)] = Hold.MIGRATING
    hold[frozen] = Hold.FROZEN
    return hold.astype(np.int64)


def _levers(view: _View) -> Bools:
    """(m, 3) whether a VM's host says that it can move the limit; no word: it cannot."""
    of_host = np.zeros((view.count, RESOURCES), dtype=np.bool_)
    for place, node in view.hosts.items():
        of_host[place] = [node.levers.get(resource.word) == "" for resource in Resource]
    lever = of_host[view.parent]
    lever[~view.is_guest] = False
    return lever


def _simulated(view: _View) -> Bools:
    """(m,) a VM is as real as the node that reports it."""
    own = view.of_hosts(lambda node: int(node.simulated)) > 0
    return np.where(view.is_guest, own[view.parent], own)


def _older(age_ns: Ints, by_ns: Ints) -> Ints:
    return np.where(age_ns == MISSING, MISSING, age_ns + by_ns)


def _vm_bounds(vm: VmSettings, which: str) -> list[int]:
    cpu = getattr(vm, f"cpu_{which}_millicores")
    in_mib = (getattr(vm, f"memory_{which}_mib"), getattr(vm, f"io_{which}_mib_per_s"))
    scaled = [MISSING if amount is None else amount * MIB for amount in in_mib]
    return [MISSING if cpu is None else cpu, *scaled]


def _in_order(shares: Shares) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
    return np.array([shares.cpu, shares.memory, shares.io])


def _first(pair: tuple[int, Node]) -> int:
    return pair[0]
