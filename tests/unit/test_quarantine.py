"""How long a lever that does nothing is left alone, and what for."""

from agent.quarantine import QUARANTINE_NS, QUARANTINE_NS_MAX, Quarantine
from shared.clock import SECOND_NS
from shared.resources import Resource
from shared.telemetry import IDLE, IDLE_SHRINKING

LEVER = ("a", Resource.MEMORY)


def pause_of(quarantine, now):
    """After one more failure at `now`."""
    quarantine.failed(LEVER, now, shrinking=True)
    pause = 0
    while LEVER in quarantine.at(now + pause):
        pause += 60 * SECOND_NS
    return pause


def test_it_is_left_alone_twice_as_long_each_time_up_to_a_bound():
    quarantine, now, pauses = Quarantine(), 0, []
    for _ in range(7):
        pauses.append(pause_of(quarantine, now))
        now += pauses[-1]
    assert pauses[:3] == [QUARANTINE_NS, 2 * QUARANTINE_NS, 4 * QUARANTINE_NS]
    assert pauses[-2:] == [QUARANTINE_NS_MAX, QUARANTINE_NS_MAX]


def test_once_it_worked_it_begins_with_the_shortest_again():
    quarantine = Quarantine()
    pause_of(quarantine, 0)
    quarantine.worked(LEVER)
    assert not quarantine.at(0)
    assert pause_of(quarantine, 0) == QUARANTINE_NS


def test_who_gives_nothing_up_may_still_be_given_some():
    quarantine = Quarantine()
    quarantine.failed(LEVER, 0, shrinking=True)
    assert LEVER in quarantine.at(0) and LEVER in quarantine.growable()
    quarantine.failed(LEVER, 0, shrinking=False)
    assert LEVER not in quarantine.growable()
    quarantine.failed(LEVER, 0, shrinking=True)
    assert LEVER not in quarantine.growable()


def test_a_vm_that_begins_anew_or_is_gone_is_forgotten():
    quarantine = Quarantine()
    other = ("b", Resource.CPU)
    for lever in (LEVER, other):
        quarantine.failed(lever, 0, shrinking=False)
    quarantine.forget("a")
    assert set(quarantine.at(0)) == {other}
    quarantine.keep_only(["a"])
    assert not quarantine.at(0)


def test_telemetry_tells_what_does_nothing_and_what_only_does_not_shrink():
    quarantine = Quarantine()
    quarantine.failed(LEVER, 0, shrinking=True)
    quarantine.failed(("a", Resource.IO), 0, shrinking=False)
    quarantine.failed(("b", Resource.CPU), 0, shrinking=False)
    assert quarantine.bits(0) == {
        "a": IDLE_SHRINKING << Resource.MEMORY | IDLE << Resource.IO,
        "b": IDLE << Resource.CPU,
    }
    assert quarantine.bits(QUARANTINE_NS) == {}
