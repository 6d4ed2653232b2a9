"""Commands, steps and their results as values, and the arithmetic of one step on one host.

Pure. `agent.messages` turns them into protocol buffers and back.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import IntEnum

from agent.leash import NO_BOUNDS, Bounds
from shared.resources import MIB, Resource, amount_text
from shared.telemetry import NodeReadings, VmSample

# The smallest change worth making: below it a limit counts as unchanged and a `from` as matching.
# Balloons are page-exact but stop a few pages early; a CPU quota of a period of 100 ms is exact.
QUANTUM = {Resource.CPU: 10, Resource.MEMORY: 4 * MIB, Resource.IO: 64 * 1024}

DEADLINE_MS_DEFAULT = 10_000
DEADLINE_MS_MAX = 60_000


Fallback = tuple[tuple[str, Resource, int], ...]  # vm id, resource, amount


class Outcome(IntEnum):
    """What became of a step; the numbers of the protocol."""

    APPLIED = 1
    PARTIAL = 2
    NO_EFFECT = 3
    UNCHANGED = 4
    GONE = 5
    REFUSED = 6
    FAILED = 7
    DRY_RUN = 8


# Outcomes after which the machine is, or may be, another than before.
MOVED = frozenset({Outcome.APPLIED, Outcome.PARTIAL})


@dataclass(frozen=True, slots=True)
class Step:
    """One limit of one VM, from an amount to another; units by resource (shared.resources)."""

    index: int  # position in the whole plan
    vm_id: str
    resource: Resource
    from_amount: int
    to_amount: int
    floor_amount: int = 0
    ceiling_amount: int = 2**63 - 1
    deadline_ms: int = DEADLINE_MS_DEFAULT  # for the effect to be measured

    @property
    def lever(self) -> tuple[str, Resource]:
        return (self.vm_id, self.resource)

    @property
    def shrinks(self) -> bool:
        return self.to_amount < self.from_amount


@dataclass(frozen=True, slots=True)
class StepResult:
    """What was measured before and after; None where it could not be."""

    index: int
    outcome: Outcome
    detail: str = ""
    before_amount: int | None = None
    after_amount: int | None = None
    host_freed_bytes: int | None = None  # fall of the VM's resident size; memory only
    took_ms: int = 0
    invariant: str = ""  # of a refusal: "I1" to "I10", or "lever"


@dataclass(frozen=True, slots=True)
class Header:
    """Authority of a command; the meaning of each field is in proto/commands.proto."""

    command_id: str
    plan_id: str
    epoch: int
    sequence: int
    based_on_generation: int
    agent_tick_ns: int
    ttl_ms: int
    lease_ms: int
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class Command:
    """An Apply: steps, where each lever goes back to when the controller falls silent, and what
    the agent may do by itself until the next one."""

    header: Header
    steps: tuple[Step, ...] = ()
    fallback: Fallback = ()
    bounds: Bounds = NO_BOUNDS


@dataclass(frozen=True, slots=True)
class Ack:
    """The answer to a command; kept, and given again to the same command id."""

    command_id: str
    plan_id: str
    epoch: int
    generation: int  # after the command
    agent_tick_ns: int
    accepted: bool
    refusal: str = ""  # begins with the invariant's number
    results: tuple[StepResult, ...] = ()


@dataclass(frozen=True, slots=True)
class Facts:
    """What beats and samples say of this agent."""

    generation: int = 0
    epoch_highest: int = 0
    lease: str = "none"  # "none", "held" or "ended"


def in_safe_order(steps: Iterable[Step]) -> tuple[Step, ...]:
    """Shrinks before the grows that they feed (I5); otherwise as the plan has them."""
    return tuple(sorted(steps, key=lambda step: not step.shrinks))


def limit_of(vm: VmSample, resource: Resource, node: NodeReadings) -> int | None:
    """The limit in force as measured; an unlimited disk counts as all that the node has."""
    if resource is Resource.CPU:
        return vm.cpu_limit_millicores
    if resource is Resource.MEMORY:
        return vm.memory_limit_bytes
    if vm.io_limit_bytes_per_s is None:
        return node.io_allocatable_bytes_per_s
    return vm.io_limit_bytes_per_s


def maximum_of(vm: VmSample, resource: Resource) -> int | None:
    """What the lever can reach at all; None where nothing is known or nothing bounds it."""
    if resource is Resource.CPU:
        return vm.cpu_maximum_millicores
    return vm.memory_maximum_bytes if resource is Resource.MEMORY else None


def allocatable_of(node: NodeReadings, resource: Resource) -> int | None:
    if resource is Resource.CPU:
        return node.cpu_allocatable_millicores
    if resource is Resource.MEMORY:
        return node.memory_allocatable_bytes
    return node.io_allocatable_bytes_per_s


def with_limit(vm: VmSample, resource: Resource, amount: int) -> VmSample:
    """The VM as it will read once its limit is `amount`.

    A balloon takes free pages first and cache after them; what is used stays used.
    """
    if resource is Resource.CPU:
        return replace(vm, cpu_limit_millicores=amount)
    if resource is Resource.IO:
        return replace(vm, io_limit_bytes_per_s=amount)
    return _with_memory(vm, amount)


def is_unchanged(resource: Resource, limit: int, amount: int) -> bool:
    return abs(amount - limit) < QUANTUM[resource]


def matches(resource: Resource, expected: int, measured: int) -> bool:
    """Whether a plan's `from` is what is in force; one quantum apart still is."""
    return abs(expected - measured) <= QUANTUM[resource]


def whole_quanta(resource: Resource, amount: int) -> int:
    """`amount` without the part that is less than a quantum; never below zero."""
    return max(0, amount - amount % QUANTUM[resource])


def deadline_of(step: Step) -> int:
    """Milliseconds for the effect to show; zero in a command means the default."""
    return min(step.deadline_ms or DEADLINE_MS_DEFAULT, DEADLINE_MS_MAX)


def step_text(step: Step) -> str:
    """`memory 256 MiB -> 192 MiB`."""
    before = amount_text(step.resource, step.from_amount)
    return f"{step.resource.word} {before} -> {amount_text(step.resource, step.to_amount)}"


def _with_memory(vm: VmSample, amount: int) -> VmSample:
    taken = (vm.memory_limit_bytes or 0) - amount
    free, cache = vm.memory_free_bytes, vm.memory_cache_bytes
    if taken < 0:
        free = None if free is None else free - taken
    elif free is not None:
        from_cache = max(0, taken - free)
        free = max(0, free - taken)
        cache = None if cache is None else max(0, cache - from_cache)
    return replace(vm, memory_limit_bytes=amount, memory_free_bytes=free, memory_cache_bytes=cache)
