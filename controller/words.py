"""What settings and operators say of machines, by the order of a snapshot; pure."""

from collections.abc import Iterable, Mapping

import numpy as np

from controller.core.state import MISSING, RESOURCES, Bools, Ints, Mode
from controller.overrides import FLEET, NODE, VM, Overrides
from controller.settings import ControllerSettings, NodeSettings, VmSettings, mode_of
from controller.topology import Order
from shared.resources import MIB


class Words:
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

    def modes(self, hosts: Iterable[int], parent: Ints) -> Ints:
        """(m,) the nearest word counts: on the VM, on a node above it, on the fleet.

        At each of these an operator's override comes before the settings. `hosts`: places of
        machines that have guests or could, parents first.
        """
        fleet = self._modes(FLEET, {}).get(-1, self._settings.fleet_mode)
        on_nodes = self._modes(NODE, self._settings.nodes)
        below: Ints = np.full(self.count, fleet, dtype=np.int64)  # for the guests of a host
        for place in hosts:
            above = below[parent[place]] if parent[place] >= 0 else fleet
            below[place] = on_nodes.get(place, above)
        modes: Ints = np.where(parent >= 0, below[parent], int(Mode.OBSERVE))
        for place, mode in self._modes(VM, self._settings.vms).items():
            if parent[place] >= 0:
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


def _vm_bounds(vm: VmSettings, which: str) -> list[int]:
    cpu = getattr(vm, f"cpu_{which}_millicores")
    in_mib = (getattr(vm, f"memory_{which}_mib"), getattr(vm, f"io_{which}_mib_per_s"))
    scaled = [MISSING if amount is None else amount * MIB for amount in in_mib]
    return [MISSING if cpu is None else cpu, *scaled]
