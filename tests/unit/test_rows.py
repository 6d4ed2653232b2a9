"""What operators read of a VM's state."""

import pytest

from controller.core.state import Hold, Mode, Policy
from controller.rows import state_word
from controller.testing import Machine, host, make_snapshot
from controller.view import View
from shared.clock import SECOND_NS

VIEW = View(policy=Policy(stats_age_ns_max=30 * SECOND_NS), cycle_interval_ns=SECOND_NS)


def word_of(**vm):
    snapshot = make_snapshot([host("h"), Machine("a", "h", **vm)])
    return state_word(VIEW, snapshot, 1)


def test_a_vm_that_nothing_happens_to_is_steady():
    assert word_of() == "steady"
    assert word_of(stats_age_ns=30 * SECOND_NS) == "steady"


@pytest.mark.parametrize("age_ns", [None, 31 * SECOND_NS])
def test_a_vm_whose_memory_nobody_can_judge_is_not_called_steady(age_ns):
    assert word_of(stats_age_ns=age_ns).startswith("held: the guest's memory figures")


def test_where_memory_is_not_moved_at_all_it_is_no_news():
    assert word_of(stats_age_ns=None, lever=(True, False, True)) == "steady"


@pytest.mark.parametrize(
    ("vm", "word"),
    [
        ({"hold": Hold.STARTING}, "held: starting"),
        ({"hold": Hold.FROZEN}, "frozen"),
        ({"mode": Mode.OBSERVE}, "observe"),
        ({"sample_age_ns": None}, "stale"),
    ],
)
def test_stronger_reasons_come_first(vm, word):
    assert word_of(stats_age_ns=None, **vm) == word
