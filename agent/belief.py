"""What the agent believes of its VMs' needs: a word makes it look, its own measures decide. Pure.

What a lying guest can get. A guest's word, its balloon figures and its use are all in its hands; so
each stride of memory after the first is only lent once the host has seen the guest's process use
half of the last one (its resident size rises), which costs the guest what a true need costs it, and
not while the guest's own newer figures belie it.
Who claims and does not use holds one stride (a quarter of its size, at least 64 MiB) at most, for
as long as it claims, and is not lent another for a while after it came back. Who really uses what
it gets comes as far as its leash, as it would with a true need: that far the plan has entitled it.
Others are not harmed: nothing that a plan granted is taken for a loan. It comes out of the reserve,
which the plan kept free, and out of room that was measured (agent.reflex); at worst an honest
burst finds less of the reserve. CPU is lent on throttled time alone, which the host's kernel
counts: who is throttled by its quota uses all of it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from agent.leash import Lever
from shared.guest_word import GuestWord
from shared.resources import MIB, Resource
from shared.telemetry import VmSample, VmState
from shared.units import SECOND_NS

WORD_AGE_NS_MAX = 5 * SECOND_NS  # older words say nothing of now
USABLE_BYTES_MIN = 32 * MIB  # a guest with less left is short, or with less than
USABLE_PERCENT_MIN = 8  # of its limit
NEAR_BYTES = 64 * MIB  # resident size this near to the limit: it has touched what it has; or
NEAR_PERCENT = 12  # of the limit
THROTTLED_US_PER_S = 50_000  # of each second, of all its vCPUs together
CPU_IN_USE_PERCENT = 85  # of what the plan gives: below that, a loan is not needed


@dataclass(frozen=True, slots=True)
class Heard:
    """A guest's newest word and when it came."""

    word: GuestWord
    tick_ns: int


@dataclass(frozen=True, slots=True)
class VmSignals:
    heard: Heard | None = None
    throttled_us_per_s: int | None = None  # since `Signals.since_tick_ns`
    throttled_since_tick_ns: int = 0  # what that is a mean since


@dataclass(frozen=True, slots=True)
class Signals:
    """All that came since the last look, from whatever source."""

    vms: Mapping[str, VmSignals] = field(default_factory=dict)
    is_pressed: bool = False  # the host itself lacks memory
    held: frozenset[Lever] = frozenset()  # what somebody else moves just now
    spoken_for: Mapping[Resource, int] = field(default_factory=dict)  # of what looks free

    def of(self, vm_id: str) -> VmSignals:
        return self.vms.get(vm_id, VmSignals())


@dataclass(frozen=True, slots=True)
class Stride:
    """The last one that was lent, to see whether it is used."""

    amount: int
    resident_bytes: int | None  # before it; None: not measured
    is_over: bool = False  # on its way back, or from before a restart: nothing to compare with


def memory_asked(signals: VmSignals, now_tick_ns: int) -> int:
    """Bytes that the guest's fresh word asks for; 0: none."""
    word = _fresh_word(signals, now_tick_ns)
    return 0 if word is None else word.memory_wanted_bytes


def cpu_asked(signals: VmSignals, now_tick_ns: int) -> int:
    word = _fresh_word(signals, now_tick_ns)
    return 0 if word is None else word.cpu_wanted_millicores


def is_short(vm: VmSample) -> bool:
    """By the guest's own fresh figures."""
    limit, used = vm.memory_limit_bytes, vm.memory_used_bytes
    if limit is None or used is None:
        return False
    return limit - used < max(USABLE_BYTES_MIN, limit * USABLE_PERCENT_MIN // 100)


def has_room(vm: VmSample) -> bool:
    """By the guest's own figures since its size last changed: twice what would make it short.

    Its page cache also touches what it was lent; without this, a false word would be borne out.
    """
    limit, used = vm.memory_limit_bytes, vm.memory_used_bytes
    if limit is None or used is None:
        return False
    return limit - used >= 2 * max(USABLE_BYTES_MIN, limit * USABLE_PERCENT_MIN // 100)


def is_near_limit(vm: VmSample) -> bool:
    """By the resident size of its process on this host."""
    limit, resident = vm.memory_limit_bytes, vm.memory_resident_bytes
    if limit is None or resident is None:
        return False
    return resident >= limit - max(NEAR_BYTES, limit * NEAR_PERCENT // 100)


def has_used(vm: VmSample, stride: Stride) -> bool:
    """Whether the host has seen half of it being touched; False where that was not measured."""
    if vm.memory_resident_bytes is None or stride.resident_bytes is None:
        return False
    return vm.memory_resident_bytes - stride.resident_bytes >= stride.amount // 2


def needs_memory(vm: VmSample, signals: VmSignals, stride: Stride | None, now_tick_ns: int) -> bool:
    """Whether to lend it (more); `stride` is the last that it has on loan."""
    short = is_short(vm)
    if not short and not memory_asked(signals, now_tick_ns):
        return False
    if stride is None:
        return short or is_near_limit(vm)
    if stride.is_over:
        return short
    return has_used(vm, stride) and not has_room(vm)


def needs_cpu(vm: VmSample, signals: VmSignals, moved_tick_ns: int) -> bool:
    """Whether its quota held it back since the last change of it."""
    limit, most = vm.cpu_limit_millicores, vm.cpu_maximum_millicores
    if limit is None or most is None or limit >= most or signals.throttled_us_per_s is None:
        return False
    is_new = signals.throttled_since_tick_ns >= moved_tick_ns
    return is_new and signals.throttled_us_per_s >= THROTTLED_US_PER_S


def is_starting(vm: VmSample) -> bool:
    return vm.state is VmState.STARTING


def _fresh_word(signals: VmSignals, now_tick_ns: int) -> GuestWord | None:
    heard = signals.heard
    if heard is None or not 0 <= now_tick_ns - heard.tick_ns <= WORD_AGE_NS_MAX:
        return None
    return heard.word
