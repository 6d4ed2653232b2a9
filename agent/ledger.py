"""What is under way on this host over all runs, so that no two count on the same room (I1).

A command and the reflex move limits at the same time, each on readings of its own. Before a step is
admitted, its run's readings are laid under what any run has measured since, and under all that was
asked for and still stands: growing is spoken for from the moment it is asked, room that a shrink
makes counts only once it was measured.
"""

from collections.abc import Iterable
from dataclasses import replace

from agent.admission import Readings
from agent.leash import Lever
from agent.steps import limit_of, with_limit
from shared.clock import SECOND_NS, Clock
from shared.telemetry import VmSample

SEEN_NS = 120 * SECOND_NS  # no readings that a run goes by are older than that
STANDS_NS = 60 * SECOND_NS  # a request that failed may be carried out for as long


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
        """From now on nobody counts on what `lever` needs to come to `amount`."""
        self._asked[lever] = (amount, self._clock.tick_ns() + STANDS_NS)

    def settle(self, lever: Lever) -> None:
        """What was asked for is there, or was taken back: readings tell the truth again."""
        self._asked.pop(lever, None)

    def over(self, readings: Readings, but: Lever | None = None) -> Readings:
        """The readings as they stand with all of that; of `but` only what was measured."""
        self._forget()
        vms = dict(readings.vms)
        for vm_id, (tick_ns, vm) in self._seen.items():
            if tick_ns >= readings.tick_ns:
                vms[vm_id] = _with_rates_of(vms.get(vm_id), vm)
        for lever, (amount, _) in self._asked.items():
            vm_id, resource = lever
            limit = None if vm_id not in vms else limit_of(vms[vm_id], resource, readings.node)
            if lever != but and limit is not None and limit < amount:
                vms[vm_id] = with_limit(vms[vm_id], resource, amount)
        return replace(readings, vms=vms)

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
