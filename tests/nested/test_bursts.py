"""A burst under one L1 while another L1 holds what an idle guest does not need: it is served within
seconds, and what served it comes out of the idle guest, through both levels."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from scenes import Scene
from testbed.bed import BedError
from testbed.figures import actual_at, cpu_used, first_quota_rise_at, first_rise_at
from testbed.layout import L1, RESERVE_SHARE, VM_OVERHEAD_MIB
from testbed.plot import Burst, plot_burst
from testbed.records import Sight
from testbed.report import Report

pytestmark = pytest.mark.full

IDLE, IDLE_L1, NEIGHBOUR = "l2a1", "l1a", "l2a2"
BUSY, BUSY_L1, BESIDE = "l2b1", "l1b", "l2b2"
BURST_MIB = 200
WITHIN_S = 10.0  # what is demanded; the stretch is 2
SERVED_WITHIN_S = 120.0  # how long we watch a burst that is late
TRANSFER_WITHIN_S = 90.0
HELD_MIB = 230  # by the guest that then is idle
TIGHT_MIB = 40  # the most that L0 may have left beside its reserve
FILL_STEP_MIB = 24
FILL_TIMES_MAX = 12
MOVED_SHARE = 0.5  # of the burst that must have come from the idle guest and its L1


@dataclass(frozen=True)
class Watch:
    """What the witness saw of a burst."""

    scene: Scene
    began: float
    served: float | None

    def sights(self, name: str) -> list[Sight]:
        return self.scene.bed.records.series(name, self.began - 30.0)

    def moved_mib(self, name: str) -> float:
        """What its balloon leaves it now, above what it left it when the burst began."""
        before = actual_at(self.sights(name), self.began)
        assert before is not None, f"nobody saw {name}"
        return self.scene.actual(name) - before


def test_a_burst_is_fed_from_an_idle_guest_of_another_l1(bed, report: Report):
    scene = Scene(bed, report, "a) memory burst of 200 MiB, fed through two levels")
    scene.settle()
    left = _make_tight(scene)
    bed.start_load(IDLE, "work", "memory", [(0, 0)])  # from now on it is idle
    began = time.time()
    bed.start_load(BUSY, "burst", "memory", [(0, BURST_MIB)])
    served = _served(scene, "burst", BURST_MIB, began)
    watch = Watch(scene, began, served)
    transferred = _transferred(watch)
    _tell_memory(watch, left, transferred)
    burst = Burst(BUSY, "burst", (BUSY_L1, IDLE_L1), (IDLE, NEIGHBOUR), began - 30, time.time())
    marks = {
        "burst": began,
        "first grant": first_rise_at(watch.sights(BUSY), began),
        "served": served,
        "paid by the idle one": transferred,
    }
    plot_burst(bed.records, burst, marks, report.picture("burst-memory.png"), scene.name)
    bed.stop_load(BUSY, "burst")
    _let_go(scene)


def _make_tight(scene: Scene) -> float:
    """The idle guest's L1 has work, and others hold so much that L0 has nothing left to give.

    MiB that L0 has left, its reserve included.
    """
    bed = scene.bed
    bed.start_load(IDLE, "work", "memory", [(0, HELD_MIB)])
    bed.wait_for(
        lambda: bed.records.satisfied_at(IDLE, "work", HELD_MIB, time.time() - 30.0),
        TRANSFER_WITHIN_S,
        f"{IDLE} holds {HELD_MIB} MiB",
    )
    fill = 0
    for _ in range(FILL_TIMES_MAX):
        scene.wait_until_calm()
        if _left_mib(scene) <= _reserve_mib(scene) + TIGHT_MIB:
            break
        fill += FILL_STEP_MIB
        for name in (NEIGHBOUR, BESIDE):
            bed.start_load(name, "fill", "memory", [(0, fill)])
    return _left_mib(scene)


def _left_mib(scene: Scene) -> float:
    """What L0 could still give, by its balloons."""
    given = sum(scene.actual(l1.name) + VM_OVERHEAD_MIB for l1 in scene.layout.l1s)
    return scene.layout.memory_allocatable_mib - given


def _reserve_mib(scene: Scene) -> float:
    return scene.layout.memory_allocatable_mib * RESERVE_SHARE


def _let_go(scene: Scene) -> None:
    for name in (NEIGHBOUR, BESIDE):
        scene.bed.stop_load(name, "fill")
    scene.bed.stop_load(IDLE, "work")


def _served(scene: Scene, load: str, wanted: float, since: float) -> float | None:
    """Unix seconds at which the load said that it has what it wants."""
    records = scene.bed.records
    return _within(scene, lambda: records.satisfied_at(BUSY, load, wanted, since), SERVED_WITHIN_S)


def _transferred(watch: Watch) -> float | None:
    """When both the idle guest and its L1 had given their part, and the busy L1 had got it."""
    part = MOVED_SHARE * BURST_MIB

    def is_done() -> float | None:
        given = min(-watch.moved_mib(IDLE), -watch.moved_mib(IDLE_L1))
        got = watch.moved_mib(BUSY_L1)
        return time.time() if given >= part and got >= part else None

    return _within(watch.scene, is_done, TRANSFER_WITHIN_S)


def _tell_memory(watch: Watch, left: float, transferred: float | None) -> None:
    scene, began = watch.scene, watch.began
    first = first_rise_at(watch.sights(BUSY), began)
    scene.wanted("what L0 had left, its reserve included", left, "MiB")
    scene.wanted("until the first memory came", first and first - began, "s", 3.0)
    took = None if watch.served is None else watch.served - began
    scene.wanted(f"until the burst of {BURST_MIB} MiB was served", took, "s", WITHIN_S)
    moved = {name: watch.moved_mib(name) for name in (IDLE, IDLE_L1, BUSY_L1, BUSY)}
    said = ", ".join(f"{name} {amount:+.0f}" for name, amount in moved.items())
    scene.wanted(
        "until half of it had come from the idle guest, through both L1s",
        transferred and transferred - began,
        "s",
        TRANSFER_WITHIN_S,
        why=f"MiB: {said}",
    )
    breaches = scene.breaches(began)
    why = "; ".join(one.what for one in breaches[:3])
    scene.wanted("moments at which something given did not fit", len(breaches), "", 0, why=why)
    lost = scene.lost_programs(began)
    scene.wanted("programs that lost their memory", len(lost), "", 0, why=", ".join(lost))


def test_a_burst_of_cpu_is_fed_from_an_idle_guest_of_another_l1(bed, report: Report):
    scene = Scene(bed, report, "b) CPU burst of one core, fed through two levels")
    scene.settle()
    bed.start_load(IDLE, "spin", "cpu", [(0, 900)])
    scene.wait_until_calm()
    time_of_rest = time.time()
    bed.stop_load(IDLE, "spin")
    before = {name: _quota(scene, name) for name in (IDLE, IDLE_L1, BUSY_L1, BUSY)}
    began = time.time()
    bed.start_load(BUSY, "burst", "cpu", [(0, 1000)])
    wanted = min(900.0, before[BUSY] + 400.0)
    served = _within(
        scene, lambda: time.time() if _quota(scene, BUSY) >= wanted else None, SERVED_WITHIN_S
    )
    watch = Watch(scene, began, served)
    first = first_quota_rise_at(watch.sights(BUSY), began)
    took = None if served is None else served - began
    scene.wanted("until the first CPU came", first and first - began, "s", 3.0)
    scene.wanted(f"until it may use {wanted:.0f} millicores", took, "s", WITHIN_S)
    used = [rate for at, rate in cpu_used(watch.sights(BUSY)) if at > began]
    most = max(used, default=0.0)
    scene.wanted("most that it then used", most, "millicores", why="of this slow machine")
    _within(scene, lambda: _quota(scene, IDLE) < before[IDLE] or None, TRANSFER_WITHIN_S)
    after = {name: _quota(scene, name) for name in before}
    said = ", ".join(f"{name} {before[name]:.0f} -> {after[name]:.0f}" for name in before)
    idle_fell = after[IDLE] < before[IDLE]
    scene.wanted("the idle guest gave some back", str(idle_fell), passed=idle_fell, why=said)
    over = _cpu_breaches(scene, time_of_rest)
    scene.wanted("moments at which quotas did not fit", len(over), "", 0, why="; ".join(over[:3]))
    burst = Burst(
        BUSY, "burst", (BUSY_L1, IDLE_L1), (IDLE,), began - 30, time.time(), resource="cpu"
    )
    marks = {"burst": began, "first grant": first, "served": served}
    plot_burst(bed.records, burst, marks, report.picture("burst-cpu.png"), scene.name)
    bed.stop_load(BUSY, "burst")


def _quota(scene: Scene, name: str) -> float:
    """Millicores that it may use, as its hypervisor has it."""
    sights = scene.bed.records.series(name, time.time() - 15.0)
    seen = [one for one in sights if one.cpu_s is not None]
    cpus = _vcpus(scene, name)
    each = seen[-1].cpu_millicores if seen else None
    return cpus * (1000.0 if each is None else each)


def _cpu_breaches(scene: Scene, since: float) -> list[str]:
    """Looks at which the quotas of L0's VMs were together above what it gives."""
    room = scene.layout.cpu_allocatable_millicores
    found = []
    names = [l1.name for l1 in scene.layout.l1s]
    series = [scene.bed.records.series(name, since) for name in names]
    for sights in zip(*series, strict=False):
        quotas = [
            _vcpus(scene, name) * (1000.0 if one.cpu_millicores is None else one.cpu_millicores)
            for name, one in zip(names, sights, strict=True)
        ]
        if sum(quotas) > room + 10:
            found.append(f"L0 gives {sum(quotas):.0f} of {room} millicores")
    return found


def _vcpus(scene: Scene, name: str) -> int:
    machine = scene.layout.find(name)
    return machine.vcpus if isinstance(machine, L1) else 1


def _within(
    scene: Scene, condition: Callable[[], float | bool | None], timeout_s: float
) -> float | None:
    """The first value that counts as true; None where none came in time."""
    try:
        return scene.bed.wait_for(condition, timeout_s, "it happens") or None
    except BedError:
        return None
