"""A guest whose agent lies: absurd needs, garbage, words in others' names, as fast as it can."""

import time

import pytest
from scenes import GUEST_PYTHON, QUANTUM_MIB, Scene
from testbed.figures import least_and_most
from testbed.report import Report

pytestmark = pytest.mark.full

LIAR, NEIGHBOUR, ELSEWHERE = "l2a1", "l2a2", "l2b1"
LIES_FOR_S = 90
LIES_BEFORE_BURST_S = 25.0
STRIDE_SHARE = 0.25  # of its size: what a word alone can bring (agent.belief)
STRIDE_MIB_MIN = 64
BURST_BEYOND_MIB = 48
BURST_WITHIN_S = 30.0
LOSS_MIB_MAX = 64 + 2 * QUANTUM_MIB


def test_a_liar_gets_a_stride_at_most_and_harms_nobody(bed, report: Report):
    scene = Scene(bed, report, "hostile guest agent")
    scene.settle()
    before = {name: scene.actual(name) for name in scene.l2s}
    began = time.time()
    others = [bed.uuids[name] for name in (NEIGHBOUR, ELSEWHERE)]
    bus = "10.0.2.2:" + bed.status()["nats"].rpartition(":")[2]
    own = bed.uuids[LIAR]
    scene.run_inside(LIAR, "hostile", bus, LIES_FOR_S, own, *others, python=GUEST_PYTHON)
    bed.wait_for(
        lambda: time.time() >= began + LIES_BEFORE_BURST_S, LIES_FOR_S, "it has lied for a while"
    )
    _judge_the_liar(scene, before, began)
    _judge_a_burst(scene)
    said = scene.end_inside(LIAR, "hostile")
    assert "Error" not in said, said
    found = scene.breaches(began)
    why = "; ".join(sorted({one.what for one in found})[:3])
    scene.wanted("looks at which something did not fit", len(found), "", 0, why=why)
    lost = scene.lost_programs(began)
    scene.wanted("no guest lost memory that it used", len(lost), "guests", 0, why=", ".join(lost))
    assert not scene.lacking()


def _judge_the_liar(scene: Scene, before: dict[str, float], began: float) -> None:
    sights = scene.sights(began)
    stride = max(STRIDE_MIB_MIN, STRIDE_SHARE * before[LIAR]) + QUANTUM_MIB
    most = least_and_most(sights[LIAR], began)[1] - before[LIAR]
    scene.wanted("what a claim of 2^50 bytes brings its guest", most, "MiB", stride)
    for name in scene.l2s:
        if name != LIAR:
            loss = before[name] - least_and_most(sights[name], began)[0]
            scene.wanted(f"what it costs {name}, which is idle", loss, "MiB", LOSS_MIB_MAX)


def _judge_a_burst(scene: Scene) -> None:
    """Somebody with a true need, meanwhile, under the other L1."""
    wanted = scene.usable(ELSEWHERE) + BURST_BEYOND_MIB
    began = time.time()
    scene.bed.start_load(ELSEWHERE, "burst", "memory", [(0, wanted)])
    records = scene.bed.records
    try:
        met = scene.bed.wait_for(
            lambda: records.satisfied_at(ELSEWHERE, "burst", wanted - 2, began),
            3 * BURST_WITHIN_S,
            f"{ELSEWHERE} gets {wanted:.0f} MiB",
        )
        took: float | None = met - began
    finally:
        scene.bed.stop_load(ELSEWHERE, "burst")
    what = f"a true need of {BURST_BEYOND_MIB} MiB more elsewhere is met meanwhile"
    scene.wanted(what, took, "s", BURST_WITHIN_S)
