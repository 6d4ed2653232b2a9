"""VMs that migrate and machines that are doubled, in the whole loop, from a seed.

still  what is at two places is moved at neither by a command, and of two machines with one id
       neither is told anything
shown  operators see it as what it is
and I1 to once, as in test_whole_loop: among them, that no host's limits exceed what it has.
"""

import asyncio
import logging
from collections import Counter

import pytest
from loop_moves import MovesWorld
from loop_parts import WorldLoop

SEEN: Counter[str] = Counter()


@pytest.fixture(autouse=True)
def quiet():
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def told(seed, folder):
    with asyncio.Runner(loop_factory=WorldLoop) as runner:
        return runner.run(MovesWorld.live(seed, folder, "", chaos=True))


@pytest.mark.parametrize("seed", range(8))
def test_what_is_at_two_places_is_held_still_and_counted_at_both(seed, tmp_path):
    witness = told(seed, tmp_path)
    SEEN.update(witness.counts)
    assert not witness.broken, "\n".join([str(witness.broken), *witness.story[-60:]])
    assert witness.counts["moves"] > 5, "others go on"


def test_the_stories_are_worth_telling():
    if not SEEN:
        pytest.skip("needs the stories of the test before")
    for what in ("_migrate", "_give_up", "_copy_vm", "_copy_host"):
        assert SEEN[what] > 1, dict(SEEN)
    assert SEEN["shown MIGRATING"] > 10
    assert SEEN["shown CLONE"] > 10
