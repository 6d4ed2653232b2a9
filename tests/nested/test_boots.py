"""A new guest boots while its host is tight: how long until it is ready, with and without boost."""

import time
from statistics import median

import pytest
from scenes import WHOLE_WITHIN_S, Scene
from testbed.report import Report

pytestmark = pytest.mark.full

NEW, NEIGHBOUR = "l2a2", "l2a1"
SMALL_MILLICORES = 250  # that it is defined with
BOOTS = 3
times: dict[bool, float] = {}


@pytest.mark.parametrize("boost", [False, True], ids=["plain", "boosted"])
def test_a_new_guest_boots_on_a_tight_host(bed, report: Report, boost):
    scene = Scene(bed, report, f"boot on a tight host, {'with' if boost else 'no'} boost")
    scene.settle()
    l1 = scene.layout.host_of(NEW)
    with scene.agent_with(l1, start_boost=str(boost).lower()):
        bed.start_load(NEIGHBOUR, "busy", "cpu", [(0, 1000)])
        try:
            took = [_boot_s(scene) for _ in range(BOOTS)]
        finally:
            bed.stop_load(NEIGHBOUR, "busy")
    each = ", ".join(f"{one:.1f}" for one in took)
    scene.wanted(f"median time to ready of {BOOTS} boots", median(took), "s", why=each)
    times[boost] = median(took)
    if boost and False in times:
        times_as_long = times[True] / times[False]
        scene.wanted("no slower than without the boost", times_as_long, "times", 1.1)
    scene.wait_until_whole()


def _boot_s(scene: Scene) -> float:
    bed = scene.bed
    bed.domain(NEW, "destroy")
    bed.wait_for(lambda: _is_forgotten(scene), WHOLE_WITHIN_S, f"the controller forgets {NEW}")
    began = time.time()
    bed.start(NEW, cpu_millicores=SMALL_MILLICORES)
    heard: float = bed.wait_for(
        lambda: bed.status()["machines"][NEW]["heard"], WHOLE_WITHIN_S, f"{NEW} is up"
    )
    scene.keep(NEW)
    return heard - began


def _is_forgotten(scene: Scene) -> bool:
    """Its host says that it is gone, so the next is a new one to everybody."""
    return scene.status() is not None and NEW not in scene.vms()
