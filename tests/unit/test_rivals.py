"""Which Hello is believed, and what two agents that take turns are known by."""

from random import Random

from agent.uplink import backoff_s
from controller.rivals import CLEARS_NS, Caller, Rivals
from shared.clock import SECOND_NS

NODE = "n"


class Door:
    """A node's agents say Hello here; `present` is the one whose stream is there."""

    def __init__(self):
        self.rivals = Rivals()
        self.present = None
        self.heard_s = 0.0

    def hello(self, boot_id, run_id, now_s):
        caller = Caller(NODE, boot_id, run_id)
        heard, now = round(self.heard_s * SECOND_NS), round(now_s * SECOND_NS)
        admitted = self.present is None or self.rivals.admits(caller, self.present, heard, now)
        if admitted:
            self.present, self.heard_s = caller, now_s
        return admitted

    def is_clone(self, now_s):
        now = round(now_s * SECOND_NS)
        assert self.rivals.clones(now) == ({NODE} if self.rivals.is_clone(NODE, now) else set())
        return self.rivals.is_clone(NODE, now)


def test_reconnections_restarts_and_reboots_are_let_in():
    door = Door()
    assert door.hello("boot", "run 1", 0)
    assert door.hello("boot", "run 1", 1)  # its stream broke, and nobody has noticed
    assert door.hello("boot", "run 2", 2)  # killed and started
    door.heard_s = 10
    assert door.hello("another boot", "run 3", 20)
    assert not door.is_clone(20)


def test_a_dead_process_s_hello_that_lay_about_changes_nothing():
    door = Door()
    door.hello("boot", "run 1", 0)
    door.hello("boot", "run 2", 1)
    assert not door.hello("boot", "run 1", 2)
    assert door.present.run_id == "run 2"
    assert not door.is_clone(2)


def dials(random, until_s):
    """When a refused agent dials again, as its uplink does."""
    now, attempt, found = 1.0, 0, []
    while now < until_s:
        found.append(now)
        attempt += 1
        now += backoff_s(attempt, random)
    return found


def test_two_machines_do_not_take_turns_and_are_known_as_a_clone():
    for boots in (("one", "two"), ("one", "one")):  # machines; agents of one machine
        door = Door()
        door.hello(boots[0], "run 1", 0)
        if boots[0] == boots[1]:
            door.hello(boots[1], "run 2", 0.5)  # a restart, as it seems; then the first comes back
        stays = door.present
        for now in dials(Random(1), 60):
            door.heard_s = now - 0.5  # the one that is there beats every second
            other = "run 2" if stays.run_id == "run 1" else "run 1"
            assert not door.hello(boots[1], other, now)
            assert door.present is stays
        assert door.is_clone(60)
        assert not door.is_clone(60 + CLEARS_NS / SECOND_NS)


def test_when_the_one_that_was_there_is_gone_the_other_comes_in_and_with_time_is_one():
    door = Door()
    door.hello("one", "run 1", 0)
    for now in dials(Random(1), 60):
        door.heard_s = now
        door.hello("two", "run 2", now)
    assert door.hello("two", "run 2", 70)  # nothing was heard for ten seconds
    assert door.is_clone(70)
    assert not door.is_clone(70 + CLEARS_NS / SECOND_NS)
    assert door.hello("two", "run 3", 300)
