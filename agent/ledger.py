"""What is under way on this host over all runs, so that no two count on the same room (I1).

A command and the reflex move limits at the same time, each on readings of its own. Before a step is
admitted, its run's readings are laid under what any run has measured since, and under all that was
asked for: what grows is spoken for from the moment it is asked, and for a while after, since a
balloon that stops a few pages early may still take them; room that a shrink makes counts only once
it was measured.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from agent.admission import Readings
from agent.leash import Lever
from agent.steps import limit_of, with_limit
from shared.clock import SECOND_NS, Clock
from shared.resources import Resource
from shared.telemetry import VmSample

SEEN_NS = 120 * SECOND_NS  # no readings that a run goes by are older than that
STANDS_NS = 60 * SECOND_NS  # and a request that failed may be carried out for as long


class Ledger:
    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._held: set[Lever] = set()
        self._asked: dict[Lever, tuple[int, int]] = {}  # amount, until which tick
        self._seen: dict[str, tuple[int, VmSample]] = {}  # tick, as measured by some run

    @property
    def held(self) -> frozenset[Lever]:
        """Levers that a step moves right now."""
        return frozenset(self._held)

    def hold(self, lever: Lever) -> bool:
        """False when another step has it."""
        if lever in self._held:
            return False
        self._held.add(lever)
        return True

    def release(self, lever: Lever) -> None:
        self._held.discard(lever)

    def see(self, vm: VmSample) -> None:
        self._seen[vm.vm_id] = (self._clock.tick_ns(), vm)

    def ask(self, lever: Lever, amount: int) -> None:
        """From now on nobody counts on what `lever` needs to come to `amount`; what was asked for
        before may come first."""
        before, _ = self._asked.get(lever, (0, 0))
        self._asked[lever] = (max(before, amount), self._clock.tick_ns() + STANDS_NS)

    def settle(self, lever: Lever, amount: int) -> None:
        """Nothing that was asked for before can come any more, and no more than `amount`."""
        self._asked[lever] = (amount, self._clock.tick_ns() + STANDS_NS)

    def drop(self, vm_id: str) -> None:
        """The VM is gone."""
        self._asked = {k: v for k, v in self._asked.items() if k[0] != vm_id}

    def over(self, readings: Readings, but: Lever | None = None) -> Readings:
        """The readings as they stand with all of that; of `but` only what was measured."""
        readings = self.seen_over(readings)
        vms = dict(readings.vms)
        for (vm_id, resource), amount in self._standing(readings):
            if (vm_id, resource) != but:
                vms[vm_id] = with_limit(vms[vm_id], resource, amount)
        return replace(readings, vms=vms)

    def seen_over(self, readings: Readings) -> Readings:
        """The readings with what was measured since."""
        self._forget()
        vms = dict(readings.vms)
        for vm_id, (tick_ns, vm) in self._seen.items():
            if tick_ns >= readings.tick_ns:
                vms[vm_id] = _with_rates_of(vms.get(vm_id), vm)
        return replace(readings, vms=vms)

    def spoken_for(self, readings: Readings) -> dict[Resource, int]:
        """How much of what looks free was asked for and is not there yet."""
        total = dict.fromkeys(Resource, 0)
        for (vm_id, resource), amount in self._standing(readings):
            limit = limit_of(readings.vms[vm_id], resource, readings.node)
            total[resource] += amount - (limit or 0)
        return total

    def _standing(self, readings: Readings) -> Iterator[tuple[Lever, int]]:
        """What is above the limit in force."""
        for (vm_id, resource), (amount, _) in self._asked.items():
            vm = readings.vms.get(vm_id)
            limit = None if vm is None else limit_of(vm, resource, readings.node)
            if limit is not None and limit < amount:
                yield (vm_id, resource), amount

    def forget_all_but(self, vm_ids: Iterable[str]) -> None:
        there = set(vm_ids)
        self._seen = {k: v for k, v in self._seen.items() if k in there}
        self._asked = {k: v for k, v in self._asked.items() if k[0] in there}

    def _forget(self) -> None:
        now = self._clock.tick_ns()
        self._seen = {k: v for k, v in self._seen.items() if now - v[0] <= SEEN_NS}
        self._asked = {k: v for k, v in self._asked.items() if k in self._held or now < v[1]}


def _with_rates_of(known: VmSample | None, vm: VmSample) -> VmSample:
    """A VM read between two samples; its rates stay those of the last interval."""
    if known is None:
        return vm
    return replace(
        vm,
        memory_swap_in_bytes_per_s=known.memory_swap_in_bytes_per_s,
        memory_major_faults_per_s=known.memory_major_faults_per_s,
    )
