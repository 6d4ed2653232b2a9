"""Some hosts of a problem in the form that the solvers compute in: relative to everyone's least.

Each VM's first bin is taken as given, so that what remains are gains, weights of 0 and more, and
the room that the first bins leave. Prices are fixed-point: whole units of 2**-shift value per
quantum, so that every bound is an integer and exact.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from controller.core.allocate.problem import AnyInts, Ints, Problem, ProblemError

SHIFT_MOST = 10  # a price finer than 1/1024 closes no more hosts
SHIFT_NARROW = 4  # coarser than 1/16 the bound leaves gaps: such hosts take 64-bit integers
_SPARE = 0.01  # bits, for the rounding of the logarithm
_PLAIN = 1 << 30  # values below it can be subtracted in 32 bits


class Memory:
    """Arrays that each batch uses again: fresh pages would cost as much as what is done in them."""

    def __init__(self) -> None:
        self._kept: dict[str, NDArray[np.uint8]] = {}

    def array(self, name: str, shape: tuple[int, ...], dtype: np.dtype[np.integer]) -> AnyInts:
        """Uninitialised; what was in it under this name is lost."""
        size = math.prod(shape) * dtype.itemsize
        kept = self._kept.get(name)
        if kept is None or kept.size < size:
            kept = self._kept[name] = np.empty(size, dtype=np.uint8)
        return kept[:size].view(dtype).reshape(shape)


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """h hosts, n slots, b bins. Integers are 32 bits wide where the keys of `bound` fit."""

    gain: AnyInts  # (b, n, h) value above the first bin's
    weight: AnyInts  # (b, 1 or n, 1 or h) quanta above the first bin's, of the same width
    room: Ints  # (h,) quanta that the first bins leave, at most what all could take
    base: Ints  # (h,) value of the first bins
    steepest: Ints  # (h,) no gain per quantum exceeds it
    shift: Ints  # (h,) of the host's prices
    step: int | None  # quanta between neighbouring bins, where it is the same everywhere

    @property
    def index_bits(self) -> int:
        return int(self.gain.shape[0] - 1).bit_length()

    @property
    def slots(self) -> int:
        return int(self.gain.shape[1])

    @property
    def hosts(self) -> int:
        return int(self.room.size)

    def select(self, hosts: AnyInts) -> "Block":
        """The block of some of its hosts."""
        return Block(
            columns(self.gain, hosts),
            self.weight if self.weight.shape[2] == 1 else columns(self.weight, hosts),
            self.room[hosts],
            self.base[hosts],
            self.steepest[hosts],
            self.shift[hosts],
            self.step,
        )


def blocks_of(problem: Problem, start: int, stop: int, memory: Memory) -> list[tuple[Ints, Block]]:
    """Hosts start to stop as one block, or as two where some need wide integers; with their places.

    They live in `memory` until the next call.

    A host's own numbers alone decide its shift and width, so that it has the same solution in every
    batch. ProblemError where 64 bits do not hold a host.
    """
    hosts = np.arange(start, min(stop, problem.hosts))
    part = problem.of(slice(start, stop))
    gain = _relative(part.value, memory)
    weight = np.ascontiguousarray(part.level - part.level[:1])
    least = np.broadcast_to(part.level[0], (part.slots, hosts.size)).sum(axis=0, dtype=np.int64)
    most = np.broadcast_to(weight[-1], (part.slots, hosts.size)).sum(axis=0, dtype=np.int64)
    # With one slot, a grid per host would look like one for all whenever its host is alone.
    step = _even_step(weight) if part.slots > 1 else None
    room = np.minimum(part.capacity - least, most)
    room -= room % (step or 1)  # less than a step is of no use
    base = part.value[0].sum(axis=0, dtype=np.int64)
    highest = gain.max(axis=1)
    steepest = _steepest(gain, highest, weight)
    spread = np.maximum(highest.max(axis=0), -gain.min(axis=(0, 1)))
    narrow, wide = _shifts(part, spread, steepest, weight, hosts)
    found = []
    for dtype, chosen, shift in (
        (np.int32, np.flatnonzero(narrow >= SHIFT_NARROW), narrow),
        (np.int64, np.flatnonzero(narrow < SHIFT_NARROW), wide),
    ):
        if not chosen.size:
            continue
        block = Block(gain, weight, room, base, steepest, shift, step)
        if chosen.size < hosts.size:
            block = block.select(chosen)
        found.append((hosts[chosen], _as(block, dtype)))
    return found


def picked(table: AnyInts, bins: AnyInts, hosts: AnyInts) -> AnyInts:
    """(n, k) entries of a table (b, 1 or n, 1 or h) at bins (n, k) of hosts (k,)."""
    slots = np.arange(bins.shape[0])[:, None] if table.shape[1] != 1 else 0
    return np.asarray(table[bins, slots, hosts if table.shape[2] != 1 else 0])


def _even_step(weight: AnyInts) -> int | None:
    """Quanta between neighbouring bins where it is the same everywhere; None: it is not."""
    if weight.shape[1:] != (1, 1) or weight.shape[0] == 1:
        return None
    steps = np.diff(weight[:, 0, 0])
    return int(steps[0]) if steps[0] > 0 and bool((steps == steps[0]).all()) else None


def columns(table: AnyInts, hosts: AnyInts, out: AnyInts | None = None) -> AnyInts:
    """(b, n, k) a table of some of the hosts, contiguous."""
    # "clip" lets NumPy write into `out` without a copy of its own; places are all valid.
    return np.take(table, hosts, axis=2, out=out, mode="clip")


def _as(block: Block, dtype: type[np.int32 | np.int64]) -> Block:
    if block.gain.dtype == dtype and block.weight.dtype == dtype:
        return block
    gain: AnyInts = block.gain.astype(dtype, copy=False)
    weight: AnyInts = block.weight.astype(dtype, copy=False)
    return Block(gain, weight, block.room, block.base, block.steepest, block.shift, block.step)


def _relative(value: AnyInts, memory: Memory) -> AnyInts:
    """(b, n, h) above the first bin, contiguous; in 32 bits where that is certain to fit."""
    gain = memory.array("gain", value.shape, value.dtype)
    np.copyto(gain, value)  # first of all: the hosts of a batch lie far apart in `value`
    if gain.dtype != np.int32 or max(int(gain.max()), -int(gain.min())) >= _PLAIN:
        gain = gain.astype(np.int64)
    gain -= gain[0].copy()
    return gain


def _steepest(gain: AnyInts, highest: AnyInts, weight: AnyInts) -> Ints:
    """(h,) from every bin to the first; at a higher price all VMs stay at their lightest bin.

    `highest`: (b, h) gain of any slot.
    """
    if gain.shape[0] == 1:
        return np.zeros(gain.shape[2], dtype=np.int64)
    if weight.shape[1:] == (1, 1):
        gain, weight = highest, weight[:, 0]
    slope = gain[1:] / np.maximum(weight[1:], 1)
    if bool((weight[1] == 0).any()):
        slope *= weight[1:] > 0
    most = slope.max(axis=tuple(range(slope.ndim - 1)))
    return np.asarray(np.ceil(np.maximum(most, 0)) + 1).astype(np.int64)


def _shifts(
    part: Problem, spread: AnyInts, steepest: Ints, weight: AnyInts, hosts: Ints
) -> tuple[Ints, Ints]:
    """(h,) finest shift in 32 and in 64 bits: gain and price x weight, with the bin's index below.

    Sums over the slots are 64 bits wide, so only the wide lane leaves bits for them.
    """
    heaviest = weight[-1].max(axis=0).astype(np.float64)
    bits = np.log2(1.0 + spread + (steepest + 1.0) * heaviest) + _SPARE
    bits += (part.bins - 1).bit_length()
    narrow = np.floor(31 - bits).astype(np.int64)
    wide = np.floor(62 - part.slots.bit_length() - bits).astype(np.int64)
    if (wide < 0).any():
        host = int(hosts[np.argmin(wide)])
        raise ProblemError(
            f"host {host}: values and levels together exceed 62 bits; use coarser values or quanta"
        )
    return np.minimum(narrow, SHIFT_MOST), np.minimum(wide, SHIFT_MOST)
