"""Reboots, late messages, snapshots taken back, and two machines that speak under one id."""

from dataclasses import dataclass, field, replace
from random import Random

import pytest
from fleet_reports import sample

from controller.boots import Boots
from shared.clock import SECOND_NS
from shared.errors import WireError
from shared.wire import decode, encode

INTERVAL_S = 10
BLOCK = decode(encode(sample()))


@dataclass
class Machine:
    """One boot of a machine; its clock began at `booted_s` of ours."""

    boot_id: str
    booted_s: float
    sequence: int = 0

    def says(self, now_s):
        self.sequence += 1
        tick_ns = round((now_s - self.booted_s) * SECOND_NS)
        return replace(BLOCK, boot_id=self.boot_id, sequence=self.sequence, tick_ns=tick_ns)


@dataclass
class Receiver:
    boots: Boots = field(default_factory=Boots)
    taken: list = field(default_factory=list)
    lost: int = 0

    def hears(self, block, at_s):
        """The cause of a refusal, or nothing."""
        try:
            self.lost += self.boots.take(block, round(at_s * SECOND_NS))
        except WireError as error:
            return error.cause
        self.taken.append(block.boot_id)
        return ""

    def is_clone(self):
        return self.boots.clone_tick_ns is not None


def test_a_reboot_is_no_clone_and_what_comes_late_of_the_old_boot_is_a_duplicate():
    here, old, new = Receiver(), Machine("old", 0), Machine("new", 195)
    for now in range(100, 200, INTERVAL_S):
        late = old.says(now)
        if now < 180:
            assert here.hears(late, now) == ""
    assert here.hears(new.says(200), 200) == ""
    assert here.hears(late, 204) == "duplicate"  # sampled before, on its way for 14 s
    for now in range(210, 900, INTERVAL_S):
        assert here.hears(new.says(now), now) == ""
    assert not here.is_clone()
    assert set(here.taken[-69:]) == {"new"}


def test_reboot_after_reboot_is_no_clone():
    here = Receiver()
    for number in range(20):
        machine = Machine(f"boot {number}", 40 * number)
        for now in (40 * number + 5, 40 * number + 15):
            assert here.hears(machine.says(now), now) == ""
    assert not here.is_clone()


def test_a_restarted_agent_is_no_clone():
    here, machine = Receiver(), Machine("boot", 0)
    for now in range(100, 2000, INTERVAL_S):
        if now % 50 == 0:
            machine.sequence = 0
        assert here.hears(machine.says(now), now) == ""
    assert not here.is_clone()


@pytest.mark.parametrize("age_s", [3, 5000])
@pytest.mark.parametrize("rebooted", [True, False])
def test_a_machine_taken_back_to_a_snapshot_is_heard_again_and_no_clone(age_s, rebooted):
    here, old, new = Receiver(), Machine("old", -9000), Machine("new", 105)
    for now in range(0, 110, INTERVAL_S):
        assert here.hears(old.says(now), now) == ""
    for now in range(110, 200, INTERVAL_S):
        assert here.hears((new if rebooted else old).says(now), now) == ""
    back = Machine("old", old.booted_s + 200 - 105 + age_s, old.sequence // 2)
    said = [here.hears(back.says(now), now) for now in range(205, 400, INTERVAL_S)]
    assert all(said[:3])
    assert not any(said[6:])
    assert not here.is_clone()


def test_two_machines_are_a_clone_and_one_of_them_is_believed_all_the_time():
    here, one, two = Receiver(), Machine("one", 0), Machine("two", 40)
    for now in range(100, 160, INTERVAL_S):
        here.hears(one.says(now), now)
        here.hears(two.says(now + 3), now + 3)
    assert here.is_clone()
    here.taken.clear()
    for now in range(160, 300, INTERVAL_S):
        assert here.hears(one.says(now), now) == "clone"
        here.hears(two.says(now + 3), now + 3)
    assert set(here.taken) == {"two"}
    newest = here.boots.clone_tick_ns
    for now in range(300, 900, INTERVAL_S):  # the one that was believed is gone
        here.hears(one.says(now), now)
    assert set(here.taken[-50:]) == {"one"}
    assert here.boots.clone_tick_ns == newest, "seen for the last time while both were there"


def test_three_machines_are_a_clone_too():
    here = Receiver()
    machines = [Machine(str(number), 7 * number) for number in range(3)]
    for now in range(100, 200, INTERVAL_S):
        for number, machine in enumerate(machines):
            here.hears(machine.says(now + number), now + number)
    assert here.is_clone()


def test_two_agents_on_one_machine_are_known_by_their_sequences():
    here, one, two = Receiver(), Machine("boot", 0, sequence=500), Machine("boot", 0, sequence=30)
    for now in range(100, 200, INTERVAL_S):
        here.hears(one.says(now), now)
        here.hears(two.says(now + 3), now + 3)
    assert here.is_clone()


def test_gaps_in_sequences_are_counted():
    here, machine = Receiver(), Machine("boot", 0)
    here.hears(machine.says(10), 10)
    machine.says(20)
    here.hears(machine.says(30), 30)
    assert here.lost == 1


@pytest.mark.parametrize("seed", range(40))
def test_whatever_the_network_does_one_machine_is_one(seed):
    """Messages of reboots and restarts, doubled, delayed by up to ten seconds and so reordered."""
    random = Random(seed)
    here, way, now = Receiver(), [], 100.0
    machine = Machine("boot 0", 0)
    while now < 3000:
        now += INTERVAL_S
        if random.random() < 0.05:
            machine.sequence = 0  # the agent starts anew
        if random.random() < 0.05:
            now += random.uniform(1, 60)
            machine = Machine(f"boot at {now}", now - random.uniform(0.5, 30))
        block = machine.says(now)
        for _ in range(random.choice([0, 1, 1, 1, 2])):
            delay_s = random.uniform(0.5, 10) if random.random() < 0.2 else 0.01
            way.append((now + delay_s, len(way), block))
    for at_s, _, block in sorted(way, key=lambda each: each[:2]):
        here.hears(block, at_s)
    assert not here.is_clone()


@pytest.mark.parametrize("seed", range(40))
def test_whatever_the_network_does_two_machines_are_two(seed):
    random = Random(seed)
    here, way = Receiver(), []
    for machine in (Machine("one", 0), Machine("two", random.uniform(-5000, 90))):
        at_s = 100 + random.uniform(0, INTERVAL_S)
        while at_s < 400:
            at_s += INTERVAL_S
            block = machine.says(at_s)
            for _ in range(random.choice([0, 1, 1, 1, 2])):
                delay_s = random.uniform(0.5, 10) if random.random() < 0.2 else 0.01
                way.append((at_s + delay_s, len(way), block))
    for at_s, _, block in sorted(way, key=lambda each: each[:2]):
        here.hears(block, at_s)
    assert here.is_clone()
