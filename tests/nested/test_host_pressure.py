"""A host runs short of memory through a program of its own: with the reflex and without it."""

import time

import pytest
from scenes import Scene
from testbed.figures import pressure, stalled_s
from testbed.layout import L1_OVERHEAD_MIB
from testbed.report import Report

pytestmark = pytest.mark.full

HOST = "l1a"
LEFT_MIB = 24
WATCHED_S = 60.0
RELIEVED_MIB = L1_OVERHEAD_MIB / 4  # what an agent takes for enough (memory_available_low_bytes)
stalls: dict[bool, float] = {}


@pytest.mark.parametrize("reflex", [False, True], ids=["without", "with"])
def test_a_host_under_pressure_is_relieved(bed, report: Report, reflex):
    scene = Scene(bed, report, f"host pressure {'with' if reflex else 'without'} reflex")
    scene.settle()
    with scene.agent_with(scene.layout.find(HOST), enable_reflex=str(reflex).lower()):
        scene.wait_until_calm()
        began = time.time()
        scene.run_inside(HOST, "hog", LEFT_MIB, 2 * WATCHED_S)
        try:
            bed.wait_for(lambda: time.time() >= began + WATCHED_S, 2 * WATCHED_S, "all was watched")
        finally:
            said = scene.end_inside(HOST, "hog")
    _judge(scene, began, reflex, said)
    scene.wait_until_calm()


def _judge(scene: Scene, began: float, reflex: bool, said: str) -> None:
    readings = [
        one for one in scene.bed.records.node_series(HOST, began) if one["at"] <= began + WATCHED_S
    ]
    least = min(one["MemAvailable_kib"] for one in readings) / 1024
    stalled = stalls[reflex] = stalled_s(readings, "memory")
    most = max((share for _, share in pressure(readings, "memory")), default=0.0)
    what = f"stalled for memory in {WATCHED_S:.0f} s (PSI some)"
    why = f"at most {most:.0f} % of the time, least available {least:.0f} MiB; {said}"
    scene.wanted(what, stalled, "s", why=why)
    scene.wanted(f"{RELIEVED_MIB:.0f} MiB available again after", _relieved_s(readings), "s")
    lost = scene.lost_programs(began)
    scene.wanted("no guest lost memory that it used", len(lost), "guests", 0, why=", ".join(lost))
    found = scene.breaches(began)
    why = "; ".join(sorted({one.what for one in found})[:3])
    scene.wanted("looks at which something did not fit", len(found), "", 0, why=why)
    if reflex and False in stalls:
        times = stalled / stalls[False] if stalls[False] else 1.0
        scene.wanted("stalled with the reflex, compared", times, "times", 1.0)


def _relieved_s(readings: list[dict]) -> float | None:
    """From the first lack to the last; None: it did not end, 0: there was none."""
    lacks = [one["MemAvailable_kib"] / 1024 < RELIEVED_MIB for one in readings]
    if not any(lacks):
        return 0.0
    if lacks[-1]:
        return None
    first, last = lacks.index(True), len(lacks) - 1 - lacks[::-1].index(True)
    return readings[last + 1]["at"] - readings[first]["at"]
