"""Guests whose memory cannot be moved as planned: without a balloon driver, paused, or with one
that stops to listen. They are shown, never counted as given, and the others go on."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from scenes import MOVED_WITHIN_S, NEAR_MIB, WHOLE_WITHIN_S, Scene
from testbed.figures import least_and_most
from testbed.report import Report

pytestmark = pytest.mark.full

ODD, ELSEWHERE = "l2a2", "l2b1"
SHOWN_WITHIN_S = 60.0
WATCHED_S = 30.0
SHOWN = ("held", "no effect")
UNBIND = (
    "driver=/sys/bus/virtio/drivers/virtio_balloon; "
    "for one in $driver/virtio*; do echo ${one##*/} >$driver/unbind; done"
)


def test_a_guest_without_a_balloon_driver_is_shown_and_stays_as_it_is(bed, report: Report):
    scene = Scene(bed, report, "guest without balloon driver")
    scene.settle()
    with another(scene, ODD, balloon=False):
        began = time.time()
        _judge_shown(scene, began)
        given = scene.vm(ODD)
        limit = next(one.limit for one in given.resources if one.resource == "memory") / 2**20
        # Whatever was asked of it, it has what it was started with, and so much is counted.
        least = scene.layout.find(ODD).memory_mib
        scene.wanted("counted as its full size", limit, "MiB", least, passed=limit == least)
        _judge_others(scene, began)


def test_a_paused_guest_is_shown_and_stays_as_it_is(bed, report: Report):
    scene = Scene(bed, report, "paused guest")
    scene.settle()
    before, began = scene.actual(ODD), time.time()
    bed.domain(ODD, "suspend")
    try:
        _judge_shown(scene, began)
        _judge_others(scene, began)
        least, most = least_and_most(bed.records.series(ODD, began), began)
        moved = max(before - least, most - before)
        scene.wanted("what was moved of it", moved, "MiB", NEAR_MIB)
    finally:
        bed.domain(ODD, "resume")
    scene.wait_until_whole()
    scene.wanted("a plan moves it again once it runs", scene.moves(ODD), "s", MOVED_WITHIN_S)


def test_a_guest_that_ignores_its_balloon_is_shown_and_not_counted(bed, report: Report):
    """Its driver goes away while it runs: it takes back all its memory and listens no more."""
    scene = Scene(bed, report, "guest that ignores its balloon")
    scene.settle()
    with another(scene, ODD):
        scene.settle()
        began = time.time()
        bed.check(ODD, UNBIND)
        said = scene.pin(ODD, scene.actual(ODD) - 32)
        assert said is not None and said.done, said
        try:
            _judge_shown(scene, began)
            _judge_others(scene, began)
        finally:
            scene.release(ODD)


def _judge_shown(scene: Scene, began: float) -> None:
    def shown() -> str:
        row = scene.vm(ODD)
        word = row.state if row else ""
        return word if word.startswith(SHOWN) and word != "held: starting" else ""

    word = scene.bed.wait_for(
        shown, 2 * SHOWN_WITHIN_S, f"{ODD} is shown as held", lambda: scene.said_of(ODD)
    )
    took = time.time() - began
    scene.wanted("shown with the reason", took, "s", SHOWN_WITHIN_S, why=word)


def _judge_others(scene: Scene, began: float) -> None:
    for name in ("l2a1", ELSEWHERE):
        took = scene.moves(name)
        scene.wanted(f"a plan moves {name} meanwhile", took, "s", MOVED_WITHIN_S)
    scene.bed.wait_for(lambda: time.time() >= began + WATCHED_S, WATCHED_S, "all was watched")
    lost = scene.lost_programs(began, (ODD,))
    scene.wanted("no other lost memory that it used", len(lost), "guests", 0, why=", ".join(lost))
    found = scene.breaches(began)
    last_s = max((one.at - began for one in found), default=0.0)
    why = "; ".join(sorted({one.what for one in found})[:3])
    scene.wanted("what each level gives fits again after", last_s, "s", WATCHED_S, why=why)


@contextmanager
def another(scene: Scene, name: str, **changes: object) -> Iterator[None]:
    """A new VM in place of this one; afterwards one as it was."""
    _replace(scene, name, **changes)
    try:
        yield
    finally:
        _replace(scene, name)
        scene.wait_until_whole()


def _replace(scene: Scene, name: str, **changes: object) -> None:
    scene.bed.domain(name, "destroy")
    scene.bed.start(name, **changes)
    scene.bed.wait_for(
        lambda: scene.bed.status()["machines"][name]["clock_offset_s"] is not None,
        WHOLE_WITHIN_S,
        f"{name} is up",
    )
    scene.keep(name)
