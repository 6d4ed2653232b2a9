"""A guard behind every memory grant: a guest that takes pages back without leave is slowed down.

A balloon is the guest's to deflate. So once a VM has been made smaller, the memory of its process
on this host gets a `memory.high` a good way above the grant: past it the kernel reclaims from that
process and slows it, and neither kills it nor takes anything from its neighbours. It goes up before
the grant does, and away with the grant's end. Never a hard limit: what QEMU needs for itself is not
known to the byte, and a VM must not die of a guess.

`GuardedHypervisor` stands between the agent and its hypervisor, so nobody who moves memory has to
think of it. What it set is marked beside the VM itself: it is found again after a restart of the
agent and after a migration, and an operator's own soft limit is left alone.
"""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace

from agent.hypervisor import Hypervisor, Listener, MemoryGuard, Recorder, Sight, VmReading
from agent.steps import QUANTUM
from shared.clock import Clock
from shared.errors import HypervisorError, VmGone
from shared.log import RateLimited
from shared.resources import MIB, Resource
from shared.telemetry import VmState

logger = logging.getLogger(__name__)

OWN_BYTES_MIN = 256 * MIB  # what a hypervisor's process may need besides its guest's memory, or
OWN_DIVISOR = 10  # a tenth of it, or
OWN_FACTOR = 2  # twice what it is measured to have above it
TIGHTER_BYTES_MIN = 64 * MIB  # a guard that could be lower by less stays


class GuardedHypervisor:
    """`hypervisor` as it is, with a guard behind what it is told; `enabled` false only lifts the
    guards that were set before."""

    def __init__(self, hypervisor: Hypervisor, clock: Clock, *, enabled: bool = True) -> None:
        self.simulated = hypervisor.simulated
        self._hypervisor = hypervisor
        self._enabled = enabled
        self._known: dict[str, VmReading] = {}
        self._lifted: set[str] = set()  # for good, as far as we are concerned
        self._asked: dict[str, int] = {}  # memory that was asked for and has not shown yet
        self._said = RateLimited(logger, clock)

    async def levers(self) -> dict[str, str]:
        return await self._hypervisor.levers()

    async def read_all(self) -> tuple[VmReading, ...]:
        readings = await self._hypervisor.read_all()
        present = {vm.vm_id for vm in readings}
        self._known = {vm_id: vm for vm_id, vm in self._known.items() if vm_id in present}
        self._lifted &= present
        self._asked = {vm_id: asked for vm_id, asked in self._asked.items() if vm_id in present}
        await self._look_after(readings, may_tighten=True)
        return readings

    async def read(self, vm_id: str) -> VmReading:
        reading = await self._hypervisor.read(vm_id)
        await self._look_after((reading,), may_tighten=False)
        return reading

    async def set_limit(self, vm_id: str, resource: Resource, amount: int) -> None:
        """A guard that cannot be raised refuses the growth: it would end in being slowed."""
        if resource is not Resource.MEMORY:
            await self._hypervisor.set_limit(vm_id, resource, amount)
            return
        await self._make_room(vm_id, amount)
        await self._hypervisor.set_limit(vm_id, resource, amount)
        if not self._hypervisor.why_no_guard():
            self._asked[vm_id] = amount

    async def set_net_limit(self, vm_id: str, bytes_per_s: int | None) -> None:
        await self._hypervisor.set_net_limit(vm_id, bytes_per_s)

    async def set_guard(self, vm_id: str, guard: MemoryGuard | None) -> None:
        await self._hypervisor.set_guard(vm_id, guard)

    def why_no_guard(self) -> str:
        return self._hypervisor.why_no_guard()

    def record(self, recorder: Recorder) -> None:
        self._hypervisor.record(recorder)

    async def sight(self, vm_id: str) -> Sight:
        return await self._hypervisor.sight(vm_id)

    async def put_back(self, vm_id: str, settings: Mapping[str, int]) -> None:
        await self._hypervisor.put_back(vm_id, settings)

    async def unmark(self, vm_id: str) -> None:
        await self._hypervisor.unmark(vm_id)

    def listen(self, listener: Listener) -> None:
        self._hypervisor.listen(listener)

    async def close(self) -> None:
        await self._hypervisor.close()

    async def _make_room(self, vm_id: str, amount: int) -> None:
        if self._hypervisor.why_no_guard():
            return
        vm = self._known.get(vm_id) or await self.read(vm_id)
        if vm.memory_guarded_bytes is None or amount <= vm.memory_guarded_bytes:
            return
        guard = guard_for(vm, amount)
        if guard is not None:
            high = max(guard.high_bytes, vm.memory_guard_bytes or 0)
            guard = MemoryGuard(guard.granted_bytes, high)
        await self._set(vm, guard)

    async def _look_after(self, readings: Iterable[VmReading], *, may_tighten: bool) -> None:
        if self._hypervisor.why_no_guard():
            return
        for vm in readings:
            if vm.memory_actual_bytes is None:
                continue  # a gap: what was known of it still holds
            self._known[vm.vm_id] = vm
            try:
                await self._guard(vm, may_tighten=may_tighten)
            except VmGone:
                continue  # the next reading shows it
            except HypervisorError as error:
                extra = {"vm": vm.vm_id, "cause": str(error)}
                self._said.warning("guard", "a memory guard cannot be set", **extra)

    async def _guard(self, vm: VmReading, *, may_tighten: bool) -> None:
        is_ours = vm.memory_guarded_bytes is not None
        lifted = vm.vm_id in self._lifted  # and still marked: that failed, and is made up for
        if is_ours and (lifted or not self._enabled or vm.state is VmState.STARTING):
            await self._set(vm, None)
            return
        is_theirs = vm.memory_guard_bytes is not None and not is_ours
        if is_theirs or not self._enabled or vm.state is not VmState.RUNNING:
            return
        granted = self._settled(vm)
        if granted is None:
            if not (may_tighten and is_ours) or vm.vm_id in self._asked:
                return
            granted = vm.memory_guarded_bytes or 0
        wanted = guard_for(vm, granted)
        if wanted is None and is_ours:
            await self._set(vm, None)
        elif wanted is not None and _differs(wanted, vm):
            await self._set(vm, wanted)

    async def _set(self, vm: VmReading, guard: MemoryGuard | None) -> None:
        if guard is None:
            self._lifted.add(vm.vm_id)
        else:
            self._lifted.discard(vm.vm_id)
        await self._hypervisor.set_guard(vm.vm_id, guard)
        self._lifted.discard(vm.vm_id)
        self._known[vm.vm_id] = replace(
            vm,
            memory_guarded_bytes=None if guard is None else guard.granted_bytes,
            memory_guard_bytes=None if guard is None else guard.high_bytes,
        )

    def _settled(self, vm: VmReading) -> int | None:
        """The grant, once it is in force; None while there is none, or it is still to come."""
        asked = self._asked.get(vm.vm_id)
        if asked is None or vm.memory_actual_bytes is None:
            return None
        if abs(vm.memory_actual_bytes - asked) >= QUANTUM[Resource.MEMORY]:
            return None
        del self._asked[vm.vm_id]
        return asked


def guard_for(vm: VmReading, granted_bytes: int) -> MemoryGuard | None:
    """The guard behind a grant; None where the VM has all that it can have, and nothing to take.

    Pages that it has given back and the kernel still counts raise it, so that no VM is slowed for
    what was taken from it a moment ago; `GuardedHypervisor` lowers it when they are gone.
    """
    maximum = vm.memory_maximum_bytes
    if maximum is None or granted_bytes > maximum - QUANTUM[Resource.MEMORY]:
        return None
    above = max(0, (vm.memory_resident_bytes or 0) - granted_bytes)
    own = max(OWN_BYTES_MIN, granted_bytes // OWN_DIVISOR, OWN_FACTOR * above)
    return MemoryGuard(granted_bytes, granted_bytes + own + -(granted_bytes + own) % MIB)


async def hand_back(hypervisor: Hypervisor) -> None:
    """Lifts every guard and network limit of ours, whoever set them; what stays is said."""
    for vm in await hypervisor.read_all():
        try:
            if vm.memory_guarded_bytes is not None:
                await hypervisor.set_guard(vm.vm_id, None)
            if vm.net_found_bytes_per_s is not None:
                await hypervisor.set_net_limit(vm.vm_id, None)
        except HypervisorError as error:
            extra = {"vm": vm.name, "cause": str(error)}
            logger.warning("a guard or a network limit may still be in force", extra=extra)


def _differs(wanted: MemoryGuard, vm: VmReading) -> bool:
    """Another grant, or a guard that need not be so high. A guest that took pages back is larger
    now, and for that its guard is not raised."""
    if vm.memory_guarded_bytes != wanted.granted_bytes or vm.memory_guard_bytes is None:
        return True
    return wanted.high_bytes <= vm.memory_guard_bytes - TIGHTER_BYTES_MIN
