"""Whose word on a machine counts where several nodes report it; pure.

The rule and its reasons stand at the top of `controller.fleet`, which keeps what is known up to
date and asks here.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from controller.core.state import Ints
from controller.table import COLUMN, Node, Table
from controller.topology import NOBODY, runs_on
from shared.clock import SECOND_NS
from shared.telemetry import VmState

HOME_NS = 600 * SECOND_NS  # undisputed for as long, a machine is at home with whoever has it
STATE = COLUMN["state"]
PHYSICAL_ROLE = "host"  # in telemetry: the machine is no VM
RUNNING = (int(VmState.RUNNING), int(VmState.STARTING))
_NAMED_MAX = 4
_LOOK_THERE = (
    "look at its agent and its libvirt: it lies, or is a copy of another hypervisor and its VMs"
    " need UUIDs of their own"
)


class Standing(IntEnum):
    """How much a node's word on machines that others have weighs."""

    GUEST = 0  # a VM of a node that reports, or that reported it last
    DETACHED = 1  # says that it is a VM, and nobody reports it
    PHYSICAL = 2  # says that it is none


def standing(table: Table, node: Node) -> Standing:
    """Against claims of others. Whoever says that it is no VM is taken at its word here: else it
    could be robbed by whoever says otherwise."""
    if node.role == PHYSICAL_ROLE:
        return Standing.PHYSICAL
    if table.host_of[node.slot] != NOBODY or table.home_of[node.slot] != NOBODY:
        return Standing.GUEST
    return Standing.DETACHED


def standing_to_claim(table: Table, node: Node) -> Standing:
    """Of its own claims. Where another that says it is no VM reports this one as its VM, it may be
    a guest that lies."""
    return Standing.GUEST if node.said_to_be_vm else standing(table, node)


def is_running(row: Ints) -> bool:
    return int(row[STATE]) in RUNNING


def takes(table: Table, node: Node, slot: int, row: Ints) -> bool:
    """Whether the machine at `slot`, not the node's so far, is the node's from now on."""
    if not may_have(table, node, slot):
        return False
    owner = int(table.host_of[slot])
    if owner == NOBODY or runs_on(owner, node.slot, table.host_of):
        return True
    return is_running(row) and bool(table.home_of[slot] == node.slot)


def may_have(table: Table, node: Node, slot: int) -> bool:
    """Whether the machine at `slot` could run on the node, whoever else says so."""
    if slot == node.slot or runs_on(node.slot, slot, table.host_of):
        return False
    itself = table.nodes.get(slot)
    if itself is None:
        return True
    if itself.role == PHYSICAL_ROLE:
        return False
    highest = top(table, node.slot)
    is_physical = highest in table.nodes and table.nodes[highest].role == PHYSICAL_ROLE
    return is_physical or highest not in itself.vm_slots


def contradicts(table: Table, node: Node) -> bool:
    """Whether the node reports a machine that it runs on itself, and no physical host above both
    says which of the two is right."""
    highest = table.nodes.get(top(table, node.slot))
    if highest is None or highest is node or highest.role == PHYSICAL_ROLE:
        return False
    return any(runs_on(node.slot, int(slot), table.host_of) for slot in node.vm_slots)


def top(table: Table, slot: int) -> int:
    """The machine that everything above `slot` runs on at last."""
    seen = set()
    while table.host_of[slot] != NOBODY and slot not in seen:
        seen.add(slot)
        slot = int(table.host_of[slot])
    return slot


def judge(table: Table, tick_ns: int, clone_after_ns: int) -> list[tuple[int, Node]]:
    """Brings every claim up to date: whether it holds its VM still, and whether it is a clone.
    Returns the slots that go to physical hosts from nested ones, and to which."""
    found = []
    for node in table.nodes.values():
        node.said_to_be_vm = False
    for node in table.nodes.values():
        if node.role == PHYSICAL_ROLE:
            for slot in node.foreign.keys() & table.nodes.keys():
                table.nodes[slot].said_to_be_vm = True
    for node in table.nodes.values():
        for slot, claim in node.foreign.items():
            both = is_running(claim.row) and is_running(table.readings[slot])
            if not both:
                claim.both_tick_ns = None
            elif claim.both_tick_ns is None:
                claim.both_tick_ns = tick_ns
            claim.clone = (
                claim.both_tick_ns is not None
                and min(node.received_tick_ns, int(table.received_tick_ns[slot]))
                >= claim.both_tick_ns + clone_after_ns
            )
            claim.heeded = is_heeded(table, node, slot)
            if claim.clone and _outranks(table, node, slot):
                found.append((slot, node))
    return found


def _outranks(table: Table, node: Node, slot: int) -> bool:
    owner = table.nodes.get(int(table.host_of[slot]))
    return (
        owner is not None
        and standing_to_claim(table, node) is Standing.PHYSICAL
        and standing(table, owner) < Standing.PHYSICAL
        and may_have(table, node, slot)
    )


def is_heeded(table: Table, node: Node, slot: int) -> bool:
    """Whether the node's word on another's VM counts beside that one's."""
    owner = table.nodes.get(int(table.host_of[slot]))
    if owner is None or runs_on(node.slot, owner.slot, table.host_of):
        return False
    if int(table.readings[slot, STATE]) == VmState.MIGRATING:
        return True  # by the owner's own word it is leaving
    own, other = standing_to_claim(table, node), standing(table, owner)
    return own >= max(other, Standing.DETACHED)


def claimants(table: Table) -> list[Node]:
    """Nodes that report machines of others: few, of many."""
    return [node for node in table.nodes.values() if node.foreign]


def best_heir(table: Table, slot: int, among: list[Node]) -> Node | None:
    """Who gets a machine that its host no longer reports, of those who report it besides."""
    heirs = [node for node in among if slot in node.foreign and may_have(table, node, slot)]

    def weight(node: Node) -> tuple[int, bool, bool, int]:
        claim = node.foreign[slot]
        return (
            standing_to_claim(table, node),
            is_heeded(table, node, slot),
            is_running(claim.row),
            -claim.since_tick_ns,
        )

    return max(heirs, key=weight, default=None)


# ---- what operators are told ----


@dataclass(frozen=True, slots=True)
class Trouble:
    """Something about the tree that a person has to put right."""

    kind: str  # "clone", "claim", "circle" or "orphan"
    machine_id: str
    name: str
    hosts: tuple[str, ...]  # names of the nodes that are involved
    text: str  # one line: what is wrong
    advice: str  # and what to do


def troubles(table: Table, clones: Mapping[int, str], unplaced: Ints) -> Iterator[Trouble]:
    """Clones first. `clones`: slots of nodes that are two machines, with how that was seen."""
    for slot, seen in sorted(clones.items()):
        yield _two_machines(table, slot, seen)
    for node in claimants(table):
        refused = []
        for slot, claim in node.foreign.items():
            owner = table.nodes.get(int(table.host_of[slot]))
            if owner is not None and claim.clone and claim.heeded:
                yield _two_vms(table, slot, owner, node)
            elif claim.clone or owner is None or runs_on(node.slot, slot, table.host_of):
                refused.append(slot)
        if refused:
            yield _refused(table, refused, node)
    if len(unplaced):
        yield _circle(table, unplaced)
    yield from _orphans(table)


def cloned(table: Table) -> set[int]:
    """Slots of VMs that run on two hosts, on the word of one that is heeded."""
    return {
        slot
        for node in table.nodes.values()
        for slot, claim in node.foreign.items()
        if claim.clone and claim.heeded
    }


def _two_machines(table: Table, slot: int, seen: str) -> Trouble:
    name, machine_id = table.names[slot], table.ids[slot]
    host = table.nodes.get(int(table.host_of[slot]))
    node = table.nodes.get(slot)
    advice = (
        "give one of them a UUID of its own: of a VM by `virsh undefine --keep-nvram`, `virsh"
        " define` without its <uuid> and a start; of a physical machine by `node_id` in its"
        " agent.toml; where the agents go by /etc/machine-id, by removing that file on one and"
        " `systemd-machine-id-setup`"
    )
    return Trouble(
        "clone",
        machine_id,
        name or (node.name if node is not None else ""),
        (host.name,) if host is not None else (),
        f"{name} ({machine_id}) is two machines: {seen}",
        advice,
    )


def _two_vms(table: Table, slot: int, owner: Node, other: Node) -> Trouble:
    name, machine_id = table.names[slot], table.ids[slot]
    text = f"{name} ({machine_id}) runs on {owner.name} and on {other.name}"
    advice = (
        f"shut it down on one of them and give that one a UUID of its own: `virsh undefine"
        f" --keep-nvram {machine_id}` and `virsh define` of its XML without <uuid>"
    )
    return Trouble("clone", machine_id, name, (owner.name, other.name), text, advice)


def _refused(table: Table, slots: list[int], node: Node) -> Trouble:
    """One line for all that a node claims: it may be a whole fleet."""
    named = [f"{table.names[slot]} ({table.ids[slot]})" for slot in sorted(slots)[:_NAMED_MAX]]
    more = f" and {len(slots) - len(named)} more" if len(slots) > len(named) else ""
    text = (
        f"{node.name} says that it runs {', '.join(named)}{more}, as others do with more right;"
        " nobody is held still for it"
    )
    return Trouble("claim", node.node_id, node.name, (node.name,), text, _LOOK_THERE)


def _orphans(table: Table) -> Iterator[Trouble]:
    """Nested hosts that no host reports, where there are physical ones that might."""
    nodes = [node for node in table.nodes.values() if node.hosts]
    if not any(node.role == PHYSICAL_ROLE for node in nodes):
        return
    for node in nodes:
        if standing(table, node) is Standing.DETACHED and node.role != PHYSICAL_ROLE:
            text = f"{node.name} ({node.node_id}) is a VM, and no host reports it"
            advice = (
                "either its host has no agent, or its own agent goes by another id than its host:"
                " it needs its product UUID, see node_id in the agent's settings"
            )
            yield Trouble("orphan", node.node_id, node.name, (), text, advice)


def _circle(table: Table, unplaced: Ints) -> Trouble:
    nodes = [table.nodes[slot].name for slot in np.sort(unplaced).tolist() if slot in table.nodes]
    names = ", ".join(nodes[:8])
    return Trouble(
        "circle",
        "",
        names,
        tuple(nodes),
        f"{len(unplaced)} machines are left out, they say that they run on each other: {names}",
        _LOOK_THERE,
    )
