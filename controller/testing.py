"""Fleets made to measure or at random from a seed; for tests and benchmarks only."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from controller.core.state import MISSING, Floats, Forecast, Hold, Ints, Mode, Policy, Snapshot
from shared.resources import GIB, MIB

MINUTE_NS = 60_000_000_000
PROBABILITY = np.array([0.0, 0.05, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0])


@dataclass(frozen=True, slots=True)
class Machine:
    """One row of a snapshot; resources in the order cpu, memory, io. None: not known."""

    name: str
    parent: str | None = None
    capacity: tuple[int | None, int | None, int | None] = (None, None, None)
    overhead: tuple[int, int, int] = (0, 0, 0)
    reserve: tuple[int, int, int] = (0, 0, 0)
    limit: tuple[int | None, int | None, int | None] = (1000, 256 * MIB, 64 * MIB)
    maximum: tuple[int | None, int | None, int | None] = (1000, 512 * MIB, 64 * MIB)
    used: tuple[int | None, int | None, int | None] = (100, 100 * MIB, MIB)
    demand: tuple[float, float, float] = (100, 100 * MIB, MIB)  # middle of the forecast
    spread: float = 0.2  # of the forecast, as a share of its middle
    wanted: tuple[int | None, int | None, int | None] = (None, None, None)
    memory_free: int | None = 100 * MIB
    memory_cache: int | None = 20 * MIB
    stats_age_ns: int | None = 0
    sample_age_ns: int | None = 0
    floor: tuple[int, int, int] = (100, 64 * MIB, MIB)
    priority: int = 1
    violation_ppm: int = 50_000
    mode: Mode = Mode.ENFORCE
    hold: Hold = Hold.NONE
    lever: tuple[bool, bool, bool] = (True, True, True)
    pin: tuple[int | None, int | None, int | None] = (None, None, None)
    generation: int = 0


def host(name: str, memory: int | None = GIB, cpu: int | None = 4000) -> Machine:
    """A physical host without I/O capacity."""
    return Machine(name, capacity=(cpu, memory, None))


def machine_id(name: str) -> str:
    """A UUID-shaped identity that carries its name, for readable failures.

    The name's first four letters and its last six: different for names of up to ten.
    """
    letters = name.encode().hex()
    return f"{letters:0>8.8}-0000-4000-8000-{letters[-12:]:0>12}"


def make_snapshot(machines: list[Machine], epoch: int = 1, cycle: int = 1) -> Snapshot:
    """A snapshot of machines given parents first."""
    place = {m.name: i for i, m in enumerate(machines)}
    parent = np.array([MISSING if m.parent is None else place[m.parent] for m in machines])
    maximum = _table([m.maximum for m in machines])
    hosts = set(parent[parent >= 0].tolist())
    is_host = np.array([p < 0 or i in hosts for i, p in enumerate(parent.tolist())])
    return Snapshot(
        taken_at_unix_ns=1_700_000_000_000_000_000,
        epoch=epoch,
        cycle=cycle,
        ids=tuple(machine_id(m.name) for m in machines),
        names=tuple(m.name for m in machines),
        parent=parent,
        is_host=is_host,
        capacity=_table([m.capacity for m in machines]),
        overhead=_table([m.overhead for m in machines]),
        reserve=_table([m.reserve for m in machines]),
        limit=_table([m.limit for m in machines]),
        maximum=maximum,
        used=_table([m.used for m in machines]),
        wanted=_table([m.wanted for m in machines]),
        memory_free=_column([m.memory_free for m in machines]),
        memory_cache=_column([m.memory_cache for m in machines]),
        memory_stats_age_ns=_column([m.stats_age_ns for m in machines]),
        sample_age_ns=_column([m.sample_age_ns for m in machines]),
        floor=_table([m.floor for m in machines]),
        ceiling=maximum.copy(),
        pin=_table([m.pin for m in machines]),
        priority=_column([m.priority for m in machines]),
        violation_ppm=_column([m.violation_ppm for m in machines]),
        mode=_column([m.mode for m in machines]),
        hold=_column([m.hold for m in machines]),
        lever=np.array([m.lever for m in machines], dtype=np.bool_).reshape(-1, 3),
        generation=np.where(is_host, _column([m.generation for m in machines]), MISSING),
        tick_ns=np.where(is_host, 1_000_000_000, MISSING),
        simulated=np.zeros(len(machines), dtype=np.bool_),
    )


def make_forecast(machines: list[Machine]) -> Forecast:
    """Quantiles spread evenly around each machine's middle."""
    middle = np.array([m.demand for m in machines], dtype=np.float64).reshape(-1, 3)
    spread = np.array([m.spread for m in machines])[:, None, None]
    quantile: Floats = middle[:, :, None] * (1 + spread * (2 * PROBABILITY - 1))
    n = len(machines)
    return Forecast(
        made_at_unix_ns=1_700_000_000_000_000_000,
        horizon_ns=10 * MINUTE_NS,
        method="made for a test",
        probability=PROBABILITY,
        quantile=quantile,
        age_ns=np.zeros(n, dtype=np.int64),
        samples=np.full((n, 3), 60, dtype=np.int64),
        skill=np.full((n, 3), np.nan),
    )


RARE = 0.04  # how often a random VM has a gap in its readings
OFTEN = 0.2  # how often one asks for more than it has
SMALL_POLICY = Policy(quantum=(50, 8 * MIB, MIB))


def random_fleet(seed: int, roots: int = 1, vms: int = 5, nested: int = 2) -> list[Machine]:
    """Hosts with VMs, some of them hypervisors with guests; sizes, gaps and holds at random."""
    rng = np.random.default_rng(seed)
    machines = []
    for root in range(roots):
        name = f"h{root}"
        machines.append(
            host(name, int(rng.integers(1, 6)) * 512 * MIB, 1000 * int(rng.integers(1, 9)))
        )
        for index in range(vms):
            vm = _random_vm(rng, f"{name}v{index}", name)
            machines.append(vm)
            guests = range(int(rng.integers(0, nested + 1)))
            machines += [_random_vm(rng, f"{vm.name}g{g}", vm.name, scale=4) for g in guests]
    return machines


def _random_vm(rng: np.random.Generator, name: str, parent: str, scale: int = 1) -> Machine:
    full = int(rng.integers(16, 128)) * 8 * MIB // scale
    limit = int(full * rng.uniform(0.3, 1.0)) // MIB * MIB
    used = int(limit * rng.uniform(0.1, 0.95))
    free = int((limit - used) * rng.uniform(0.2, 1.0))
    cores = 1000 * int(rng.integers(1, 5)) // scale
    unread, unsized, stale = rng.uniform(size=3) < RARE
    return Machine(
        name,
        parent,
        limit=(cores, None if unsized else limit, None),
        maximum=(cores, full, None),
        used=(int(cores * rng.uniform(0, 1)), None if unread else used, None),
        demand=(cores * rng.uniform(0, 1.2), used * rng.uniform(0.5, 2), 1),
        spread=rng.uniform(0, 0.9),
        memory_free=free,
        memory_cache=limit - used - free,
        stats_age_ns=10 * MINUTE_NS if stale else 0,
        floor=(cores // 10, 16 * MIB // scale, 0),
        priority=int(rng.integers(1, 4)),
        mode=Mode(int(rng.choice([0, 1, 2, 2, 2, 2]))),
        hold=Hold(int(rng.choice([0, 0, 0, 0, 0, 0, 1, 2]))),
        overhead=(0, int(rng.integers(0, 3)) * 8 * MIB, 0),
        reserve=(cores // 20, int(rng.integers(0, 3)) * 8 * MIB, 0),
        wanted=(None, limit * 5 // 4 if rng.uniform() < OFTEN else None, None),
        generation=int(rng.integers(0, 9)),
    )  # fmt: skip


def _column(values: Sequence[int | None]) -> Ints:
    return np.array([MISSING if v is None else int(v) for v in values], dtype=np.int64)


def _table(
    rows: list[tuple[int | None, int | None, int | None]] | list[tuple[int, int, int]],
) -> Ints:
    return np.array(
        [[MISSING if v is None else v for v in row] for row in rows], dtype=np.int64
    ).reshape(-1, 3)
