"""Every part of the stack is killed in turn. What the levels give must fit into what they have, and
afterwards everything is back: the tree, the plans, the record."""

import time

import pytest
from scenes import WHOLE_WITHIN_S, Scene
from testbed.report import Report

pytestmark = pytest.mark.full

SAFE_WITHIN_S = 30.0
WATCHED_S = 35.0  # for so long at least

KILLS = (
    "l0/agent",
    "l1a/agent",
    "l0/controller",
    "l0/nats",
    "l0/libvirtd",
    "l1a/libvirtd",
    "l1b",
)


@pytest.mark.parametrize("what", KILLS)
def test_what_is_killed_comes_back_and_memory_is_safe(bed, report: Report, what):
    scene = Scene(bed, report, f"kill -9 of {what}")
    scene.settle()
    before, gone = scene.status(), _gone_with(scene.layout, what)
    began = time.time()
    bed.kill(what)
    _await_absence(scene, what, began)
    if what.startswith("l1") and "/" not in what:
        bed.start(what)
    bed.wait_for(
        lambda: _is_back(scene, before, what), WHOLE_WITHIN_S, f"{what} is back", scene.lacking
    )
    back_s = time.time() - began
    mover = "l2b1" if what.startswith("l1b") else "l2a1"
    moved_s = scene.moves(mover)
    bed.wait_for(lambda: time.time() - began >= WATCHED_S, WATCHED_S, "all was watched")

    found = scene.breaches(began)
    last_s = max((one.at - began for one in found), default=0.0)
    why = "; ".join(sorted({one.what for one in found})[:3])
    scene.wanted("what each level gives fits, and no guest starves", last_s, "s", 30.0, why=why)
    scene.wanted("tree complete and cycles run again", back_s, "s", why=_restarts(bed))
    scene.wanted(f"a plan moves {mover} again, seen by its hypervisor", moved_s, "s")
    lost = scene.lost_programs(began, gone)
    scene.wanted("no guest lost memory that it used", len(lost), "guests", 0, why=", ".join(lost))
    damage = scene.audit_damage()
    scene.wanted("damages in the audit's chain", len(damage), "", 0, why="; ".join(damage))


def _gone_with(layout, what: str) -> tuple[str, ...]:
    """L2s that end with an L1."""
    found = [l1.guests for l1 in layout.l1s if l1.name == what]
    return tuple(guest.name for guests in found for guest in guests)


def _await_absence(scene: Scene, what: str, began: float) -> None:
    """A whole machine must be seen to be gone, or it would be taken for back at once."""
    if what not in {l1.name for l1 in scene.layout.l1s}:
        return
    scene.bed.wait_for(
        lambda: not scene.bed.records.series(what, max(began, time.time() - 2.0)),
        30.0,
        f"{what} is gone",
    )


def _is_back(scene: Scene, before, what: str) -> bool:
    status = scene.status()
    if status is None or scene.lacking():
        return False
    is_new = status.epoch > before.epoch
    if what == "l0/controller" and not is_new:
        return False
    if any(not _answers(scene, name) for name in _gone_with(scene.layout, what)):
        return False
    return status.cycles > (1 if is_new else before.cycles + 1)


def _answers(scene: Scene, l2: str) -> bool:
    return scene.bed.status()["machines"][l2]["clock_offset_s"] is not None


def _restarts(bed) -> str:
    return f"restarts on L0 so far: {len(bed.status()['restarts'])}"
