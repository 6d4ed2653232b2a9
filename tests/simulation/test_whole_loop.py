"""The whole loop, faults and all, from a seed: eight promises that no story may break.

I1    the limits at a host never exceed what it has to give, or what was given out before
I3    memory is never asked below what is in use and a margin, as far as fresh figures told
I7    no command of a lower epoch has an effect, and an epoch belongs to one controller
I8    what is observed, frozen or pinned does not move
I10   nothing is sent whose intent the audit stream has not acknowledged
leash what an agent moves by itself under a lease has a leash; no loan breaks any of the others
lease after silence nothing shrinks, and what can grow back begins to, in time
once  a command has its effect at most once
and once all faults have ended, whoever needs memory gets it.

`SIMULATION_SEEDS=100-400 pytest tests/simulation/test_whole_loop.py -k story_breaks` tells other
stories; one that breaks a promise prints its seed and what happened.
"""

import logging
import os
from collections import Counter

import pytest
from loop_world import Story


def seeds():
    first, _, last = os.environ.get("SIMULATION_SEEDS", "0-29").partition("-")
    return range(int(first), int(last or first) + 1)


@pytest.fixture(autouse=True)
def quiet():
    """What goes wrong in these worlds is meant to: thousands of warnings say nothing."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


SEEN: Counter[str] = Counter()  # over all stories told in this run


@pytest.mark.parametrize("seed", seeds())
def test_no_story_breaks_a_promise(seed, tmp_path):
    story = Story.of(seed, tmp_path)
    SEEN.update(story.counts)
    assert not story.broken, story


def test_the_stories_are_worth_telling():
    """Every fault befell some world, much was sent, and much of it was rightly refused."""
    if not SEEN or "SIMULATION_SEEDS" in os.environ:
        pytest.skip("needs the stories of the test before")
    for what in FAULTS:
        assert SEEN[what] > 2, f"{what} in {dict(SEEN)}"
    assert SEEN["apply"] > 300
    assert SEEN["renew"] > 300
    assert SEEN["moves"] > 500
    assert SEEN["loans"] > 100
    assert SEEN["refused I6"] > 5
    assert SEEN["refused I7"] > 5


FAULTS = (
    "_kill_agent", "_kill_controller", "_pause_controller", "_coup", "_refuse_records",
    "_lose_answers", "_cut_off", "_freeze_vm", "_stale_vm", "_vanish_vm", "_restart_vm",
    "_set_clock", "_libvirt_away", "_fill_disk",
)  # fmt: skip


def test_one_seed_is_one_story(tmp_path):
    first, again = (Story.of(7, tmp_path / name) for name in ("first", "again"))
    assert first.lines == again.lines
    assert first.counts == again.counts
    assert first.lines != Story.of(8, tmp_path / "other").lines


def test_without_faults_the_loop_closes_too(tmp_path):
    story = Story.of(1, tmp_path, chaos=False)
    assert not story.broken, story
    assert story.counts["moves"] > 10


@pytest.mark.parametrize(
    ("mutant", "promise"),
    [
        ("boastful", "I1"),  # an agent that claims twice what its machine has
        ("blind", "I3"),  # an agent that takes every guest's memory for unused
        ("loyal", "I7"),  # a guard that ignores the epoch
        ("unbridled", "I8"),  # a controller that forgets pins, freezes and modes
        ("unrecorded", "I10"),  # a controller that dispatches without a record
        ("unleashed", "leash"),  # a reflex that lends to whom no plan lets it
        ("greedy", "lease"),  # an agent that shrinks a VM when the lease has ended
        ("lazy", "lease"),  # an agent that never walks back
        ("forgetful", "once"),  # a guard that does not know what it has done
        ("idle", "liveness"),  # a loop that does nothing breaks no other promise
    ],
)
def test_each_promise_can_be_broken(mutant, promise, tmp_path):
    """The counterexamples: what shows that the tests above can fail."""
    broken = set()
    for seed in range(40):
        story = Story.of(seed, tmp_path / str(seed), mutant)
        broken.update(kind for kind, _ in story.broken)
        if promise in broken:
            return
    pytest.fail(f"{mutant}: {promise} held in every story; broken were {broken}")


def test_agents_hold_where_the_planner_does_not(tmp_path):
    """A controller that sees everything double meets agents that count for themselves (I1)."""
    for seed in range(3):
        story = Story.of(seed, tmp_path / str(seed), "planner")
        assert "I1" not in {kind for kind, _ in story.broken}, story
        assert story.counts["step I1"] > 5, f"it never granted too much: {story}"
