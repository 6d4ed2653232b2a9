"""What one look of the reflex goes by, and the sizes of its moves. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass

from agent.admission import WORTHWHILE_BYTES, Readings
from agent.belief import Signals
from agent.leash import Grant, Leash, Lever
from agent.steps import limit_of, maximum_of
from shared.resources import MIB, Resource
from shared.telemetry import VmSample
from shared.units import SECOND_NS

LENDABLE = (Resource.MEMORY, Resource.CPU)
STRIDE_BYTES = 64 * MIB  # of memory at a time, or
STRIDE_DIVISOR = 4  # a quarter of the limit where that is more
CPU_STRIDE_MILLICORES = 250  # or half of the quota
CPU_STRIDE_DIVISOR = 2
LEAST = {Resource.MEMORY: WORTHWHILE_BYTES, Resource.CPU: 50}  # less is not worth a move
MOVE_AGAIN_NS = 2 * SECOND_NS  # between two payments back, or squeezes, of one lever
FAILED_AGAIN_NS = SECOND_NS  # after a loan that did not come
REFUSED_AGAIN_NS = 10 * SECOND_NS  # after one that moved nothing
CHECK_NS = 5 * SECOND_NS  # loans are looked at this often: as often as guests give figures
SQUEEZED_MAX = 4  # VMs at a time
LOAN_DEADLINE_MS = 5_000
PAYMENT_DEADLINE_MS = 8_000

# Like an escalation ladder; each word is the highest that holds.
LADDER = ("normal", "lending", "unmet", "squeezing_free", "squeezing_cache", "exhausted")


@dataclass(frozen=True, slots=True)
class Rules:
    """The operator's part (agent.settings)."""

    pay_back_after_ns: int = 30 * SECOND_NS
    start_boost: bool = True


@dataclass(frozen=True, slots=True)
class Look:
    """What one look goes by."""

    grant: Grant
    signals: Signals
    readings: Readings
    rules: Rules
    now: int

    def leash(self, lever: Lever) -> Leash:
        return self.grant.bounds.leash[lever]

    def vms(self, resource: Resource) -> Iterator[tuple[Lever, VmSample]]:
        """Of the levers that may be moved at all."""
        if self.readings.levers.get(resource.word):
            return
        for lever in sorted(self.grant.bounds.leash):
            vm = self.readings.vms.get(lever[0])
            idle = lever in self.readings.quarantined and lever not in self.readings.growable
            works = lever[1] is resource and not idle
            if vm is not None and works and self.limit(lever) is not None:
                yield lever, vm

    def limit(self, lever: Lever) -> int | None:
        """As measured."""
        return measured(self.readings, lever)

    def reach(self, lever: Lever) -> int:
        """How far the lever and the plan reach."""
        most = maximum_of(self.readings.vms[lever[0]], lever[1])
        high = self.leash(lever).high_amount
        return high if most is None else min(high, most)


def measured(readings: Readings, lever: Lever) -> int | None:
    """The limit in force."""
    vm = readings.vms.get(lever[0])
    return None if vm is None else limit_of(vm, lever[1], readings.node)


def memory_stride(limit: int) -> int:
    return max(STRIDE_BYTES, limit // STRIDE_DIVISOR)


def whole_blocks(readings: Readings, vm_id: str, amount: int) -> int:
    """Bytes, rounded up to the blocks in which the VM's memory moves, where it does."""
    blocks = readings.blocks.get(vm_id)
    return amount if blocks is None else -(-amount // blocks.size_bytes) * blocks.size_bytes


def cpu_stride(limit: int) -> int:
    return max(CPU_STRIDE_MILLICORES, limit // CPU_STRIDE_DIVISOR)
