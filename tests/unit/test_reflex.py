"""What the reflex lends, to whom, how much, and how it takes it back."""

from dataclasses import replace
from itertools import pairwise

import pytest

from agent.admission import Readings
from agent.belief import Heard, Signals, VmSignals
from agent.leash import Bounds, Grant, Leash
from agent.loans import ReflexState, loans_of, settled
from agent.look import LADDER, Rules
from agent.reflex import needs_a_look, reflect
from agent.steps import Outcome, StepResult, with_limit
from shared.clock import SECOND_NS
from shared.guest_word import GuestWord
from shared.resources import MIB, Resource
from shared.telemetry import Loan, NodeReadings, VmSample, VmState

MEMORY, CPU = Resource.MEMORY, Resource.CPU
VM = VmSample(
    vm_id="a",
    name="a",
    memory_limit_bytes=256 * MIB,
    memory_maximum_bytes=1024 * MIB,
    memory_used_bytes=100 * MIB,
    memory_free_bytes=150 * MIB,
    memory_cache_bytes=0,
    memory_resident_bytes=250 * MIB,
    memory_stats_age_ns=SECOND_NS,
    cpu_limit_millicores=1000,
    cpu_maximum_millicores=4000,
    cpu_used_millicores=100,
)


class Rig:
    """One host, its plan, and a reflex whose moves take effect when `play` says so."""

    def __init__(self, *names, reserve_mib=512, reserve_cpu=2000, **vm):
        self.now = 1000 * SECOND_NS
        self.vms = {name: replace(VM, vm_id=name, name=name, **vm) for name in names or ("a",)}
        self.allocatable_mib = 4096
        self.leash = {}
        for name in self.vms:
            self.leash[name, MEMORY] = Leash(128 * MIB, 768 * MIB, 256 * MIB)
            self.leash[name, CPU] = Leash(500, 3000, 1000)
        self.reserve = {MEMORY: reserve_mib * MIB, CPU: reserve_cpu}
        self.fallback = {}
        self.lent = frozenset()
        self.number = 1
        self.state = ReflexState()
        self.signals = Signals()
        self.rules = Rules()

    @property
    def grant(self):
        return Grant(Bounds(self.leash, self.reserve), self.number, self.fallback, 1, self.lent)

    @property
    def readings(self):
        node = NodeReadings(
            memory_allocatable_bytes=self.allocatable_mib * MIB, cpu_allocatable_millicores=16_000
        )
        return Readings(node, self.vms, 30 * SECOND_NS, tick_ns=self.now)

    def ask(self, name="a", mib=0, millicores=0, throttled=None, ago_s=0):
        word = GuestWord("boot", 1, 1, mib * MIB, millicores)
        heard = Heard(word, self.now - int(ago_s * SECOND_NS))
        one = VmSignals(heard, throttled, self.now)
        self.signals = replace(self.signals, vms={**self.signals.vms, name: one})

    def hush(self):
        self.signals = Signals()

    def change(self, name="a", **fields):
        self.vms = {**self.vms, name: replace(self.vms[name], **fields)}

    def look(self, after_s=0.0):
        self.now += int(after_s * SECOND_NS)
        self.state, steps = reflect(
            self.state, self.grant, self.signals, self.readings, self.rules, self.now
        )
        return steps

    def play(self, after_s=0.0, touched=True):
        """A look whose moves all work at once; what was lent is touched by its VM."""
        steps = self.look(after_s)
        results = []
        for step in steps:
            before = self.vms[step.vm_id]
            grown = step.to_amount - step.from_amount
            vm = with_limit(before, step.resource, step.to_amount)
            if step.resource is MEMORY and touched and grown > 0:
                touched_bytes = before.memory_resident_bytes + grown
                # Figures of the size before do not count.
                vm = replace(vm, memory_resident_bytes=touched_bytes, memory_used_bytes=None)
            self.vms = {**self.vms, step.vm_id: vm}
            result = StepResult(0, Outcome.APPLIED, "", step.from_amount, step.to_amount)
            results.append(result)
            self.lent |= {step.lever}
        self.state = settled(self.state, steps, results, self.now)
        return [(s.vm_id, s.resource, s.from_amount, s.to_amount) for s in steps]

    def mib(self, name="a"):
        return self.vms[name].memory_limit_bytes // MIB


def grows(steps):
    return [step[3] - step[2] for step in steps]


# ---- memory ----


def test_a_vm_that_asks_and_has_touched_what_it_has_is_lent_what_it_asks_for():
    rig = Rig()
    rig.ask(mib=40)
    assert rig.play() == [("a", MEMORY, 256 * MIB, 296 * MIB)]
    assert loans_of(rig.state, rig.grant.bounds) == (
        Loan("a", MEMORY, 256 * MIB, 296 * MIB, 296 * MIB),
    )
    assert rig.state.word == "lending"


@pytest.mark.parametrize(
    ("vm", "is_lent"),
    [
        ({}, True),
        ({"memory_resident_bytes": 150 * MIB}, False),  # it has not touched what it has
        ({"memory_resident_bytes": None}, False),
        ({"memory_resident_bytes": 150 * MIB, "memory_used_bytes": 230 * MIB}, True),  # no room
        ({"state": VmState.PAUSED}, False),
        ({"memory_limit_bytes": None}, False),
    ],
)
def test_a_word_makes_it_look_and_its_own_measure_decides(vm, is_lent):
    rig = Rig(**vm)
    rig.ask(mib=40)
    assert bool(rig.look()) is is_lent


def test_an_old_word_says_nothing():
    rig = Rig()
    rig.ask(mib=40, ago_s=5.1)
    assert rig.look() == ()


def test_a_vm_without_an_agent_is_lent_a_stride_when_its_figures_show_it_short():
    rig = Rig(memory_used_bytes=230 * MIB)
    assert grows(rig.play()) == [64 * MIB]
    large = Rig(memory_limit_bytes=512 * MIB, memory_used_bytes=500 * MIB)
    large.leash["a", MEMORY] = Leash(0, 1024 * MIB, 512 * MIB)
    assert grows(large.play()) == [128 * MIB]  # a quarter


def test_a_burst_is_followed_stride_by_stride_as_it_is_used():
    rig = Rig()
    lent = []
    for _ in range(10):
        rig.ask(mib=max(0, 456 - rig.mib()))
        lent += grows(rig.play(0.25))
    assert rig.mib() == 456
    assert lent == [64 * MIB, 80 * MIB, 56 * MIB]


def test_who_claims_without_touching_never_has_more_than_one_stride():
    rig = Rig()
    had = set()
    for _ in range(200):
        rig.ask(mib=100_000)
        rig.play(1, touched=False)
        had.add(rig.mib())
    assert had == {256, 320}


def test_a_liar_whose_loan_came_back_unused_waits_longer_every_time():
    rig = Rig()
    when = []
    for second in range(1200):
        rig.ask(mib=100)
        rig.change(memory_used_bytes=100 * MIB, memory_free_bytes=(rig.mib() - 100) * MIB)
        if any(grow > 0 for grow in grows(rig.play(1, touched=False))):
            when.append(second)
        rig.change(memory_resident_bytes=250 * MIB)
    pauses = [after - before for before, after in pairwise(when)]
    assert pauses == sorted(pauses)
    assert pauses[0] >= 60 and pauses[-1] >= 240


def test_nothing_is_lent_beyond_the_leash_the_reserve_the_room_or_the_way_back():
    for change, most in (
        (lambda rig: rig.leash.update({("a", MEMORY): Leash(0, 300 * MIB, 256 * MIB)}), 300),
        (lambda rig: rig.reserve.update({MEMORY: 50 * MIB}), 304),
        (lambda rig: setattr(rig, "allocatable_mib", 512 + 32), 288),
        (lambda rig: rig.fallback.update({("b", MEMORY): (4096 - 256 - 20) * MIB}), 276),
        (lambda rig: rig.leash.pop(("a", MEMORY)), 256),
    ):
        rig = Rig("a", "b")
        change(rig)
        for _ in range(20):
            rig.ask(mib=1000)
            rig.play(0.25)
        assert rig.mib() == most
        assert rig.mib("b") == 256


def test_unmet_wants_are_told_and_asked_of_the_own_host():
    rig = Rig(reserve_mib=0)
    rig.ask(mib=100)
    assert rig.look() == ()
    assert loans_of(rig.state, rig.grant.bounds) == (
        Loan("a", MEMORY, 256 * MIB, 256 * MIB, 356 * MIB),
    )
    assert rig.state.climbs == {MEMORY: 100 * MIB, CPU: 0}
    assert rig.state.word == "unmet"
    rig.hush()
    rig.look(5)
    assert (rig.state.unmet, rig.state.climbs[MEMORY], rig.state.word) == ({}, 0, "normal")


def test_what_the_leash_forbids_is_told_but_not_asked_of_others():
    rig = Rig()
    rig.leash["a", MEMORY] = Leash(0, 256 * MIB, 256 * MIB)
    rig.ask(mib=100)
    rig.look()
    assert rig.state.unmet == {("a", MEMORY): 256 * MIB}
    assert rig.state.climbs[MEMORY] == 0


def test_what_its_own_host_lent_to_this_machine_may_be_lent_on():
    """The plan's reserve knew nothing of it."""
    rig = Rig(reserve_mib=0)
    rig.allocatable_mib = 256
    rig.ask(mib=60)
    assert rig.look() == ()
    rig.allocatable_mib += 64
    assert grows(rig.play(1)) == [60 * MIB]
    rig.number += 1  # a new plan has counted it
    rig.ask(mib=60)
    assert rig.play(1) == []


def test_a_loan_on_its_way_is_not_lent_twice():
    rig = Rig(reserve_mib=80)
    rig.ask(mib=64)
    assert len(rig.look()) == 1
    assert rig.look(0.25) == ()
    rig.vms["b"] = replace(VM, vm_id="b", name="b")
    rig.leash["b", MEMORY] = Leash(0, 768 * MIB, 256 * MIB)
    rig.ask("b", mib=64)
    (step,) = rig.look(0.25)
    assert (step.vm_id, step.to_amount - step.from_amount) == ("b", 16 * MIB)


def test_who_has_least_of_the_reserve_comes_first():
    rig = Rig("a", "b", reserve_mib=128)
    rig.ask("a", mib=64)
    rig.play()
    rig.ask("a", mib=64)
    rig.ask("b", mib=64)
    assert rig.play(1) == [("b", MEMORY, 256 * MIB, 320 * MIB)]


# ---- paying back ----


def lent_rig(**fields):
    rig = Rig(**fields)
    rig.ask(mib=64)
    rig.play()
    rig.hush()
    return rig


def test_a_loan_is_paid_back_when_it_was_not_needed_for_a_while():
    rig = lent_rig()
    rig.change(memory_used_bytes=100 * MIB)
    for _ in range(5):
        assert rig.play(5) == []
    assert rig.play(6) == [("a", MEMORY, 320 * MIB, 256 * MIB)]
    assert rig.play(5) == []
    assert (rig.state.lent, rig.state.word) == ({}, "normal")


@pytest.mark.parametrize(
    "vm",
    [
        {"memory_used_bytes": 200 * MIB},  # with the margin above what the plan gives
        {"memory_used_bytes": None},  # not known: memory is left alone
        {"state": VmState.PAUSED},
    ],
)
def test_a_loan_that_is_needed_stays(vm):
    rig = lent_rig()
    rig.change(**vm)
    assert [rig.play(5) for _ in range(20)] == [[]] * 20


def test_a_plan_that_takes_a_loan_over_ends_it():
    rig = lent_rig()
    rig.leash["a", MEMORY] = Leash(128 * MIB, 768 * MIB, 320 * MIB)
    rig.number += 1
    assert [rig.play(5) for _ in range(20)] == [[]] * 20
    assert rig.state.lent == {}
    rig.ask(mib=64)  # and the next one counts from there
    assert grows(rig.play(1)) == [64 * MIB]
    assert loans_of(rig.state, rig.grant.bounds)[0].base_amount == 320 * MIB


def test_what_was_never_lent_is_not_paid_back():
    """A VM that is above its plan because a shrink fell short is the next plan's business."""
    rig = Rig(memory_limit_bytes=400 * MIB)
    assert [rig.play(5) for _ in range(20)] == [[]] * 20


def test_a_loan_from_before_a_restart_is_paid_back_all_the_same():
    rig = lent_rig()
    rig.state = ReflexState()
    rig.change(memory_used_bytes=100 * MIB)
    played = [step for _ in range(10) for step in rig.play(5)]
    assert played == [("a", MEMORY, 320 * MIB, 256 * MIB)]


def test_who_borrows_again_right_after_keeps_the_loan_for_longer():
    rig = lent_rig()
    pauses = []
    for _ in range(3):
        rig.change(memory_used_bytes=100 * MIB, memory_resident_bytes=320 * MIB)
        waited = 0
        while not rig.play(1):
            waited += 1
        pauses.append(waited)
        rig.look(1)
        rig.ask(mib=64)
        rig.change(memory_resident_bytes=256 * MIB)
        rig.play(1)
        rig.hush()
    assert pauses[0] >= 29 and pauses[1] >= 59 and pauses[2] >= 119


def test_a_payment_that_moves_nothing_is_not_tried_again_at_once():
    rig = lent_rig()
    rig.change(memory_used_bytes=100 * MIB)
    (step,) = rig.look(31)
    refusal = StepResult(0, Outcome.REFUSED, "I4: no free pages", step.from_amount, None)
    rig.state = settled(rig.state, (step,), (refusal,), rig.now)
    assert rig.look(5) == ()
    assert len(rig.look(6)) == 1


def test_a_loan_that_could_not_be_made_is_none():
    rig = Rig()
    rig.ask(mib=64)
    steps = rig.look()
    failure = StepResult(0, Outcome.FAILED, "libvirt said no", 256 * MIB, 256 * MIB)
    rig.state = settled(rig.state, steps, (failure,), rig.now)
    assert rig.state.lent == {}


# ---- CPU ----


def test_who_is_throttled_is_lent_cpu_again_and_again():
    rig = Rig()
    lent = []
    for _ in range(10):
        rig.now += SECOND_NS
        rig.ask(throttled=200_000 if rig.vms["a"].cpu_limit_millicores < 2000 else 0)
        lent += grows(rig.play())
    assert lent == [500, 750]


def test_cpu_is_lent_on_the_hosts_own_count_alone():
    rig = Rig()
    rig.ask(millicores=3000, throttled=0)
    assert rig.look() == ()
    rig.ask(millicores=3000, throttled=None)
    assert rig.look() == ()
    rig.ask(throttled=60_000)
    assert len(rig.look()) == 1


def test_the_next_stride_of_cpu_waits_for_a_count_from_after_the_last():
    rig = Rig()
    rig.ask(throttled=200_000)
    rig.play()
    since = rig.now
    rig.now += SECOND_NS
    rig.signals = Signals({"a": VmSignals(None, 200_000, since - 1)})
    assert rig.look() == ()


def test_cpu_goes_back_when_it_is_not_used():
    rig = Rig()
    rig.ask(throttled=200_000)
    rig.play()
    rig.change(cpu_used_millicores=900)
    rig.ask(throttled=0)
    assert [rig.play(5) for _ in range(10)] == [[]] * 10
    rig.change(cpu_used_millicores=800)
    played = [step for _ in range(8) for step in rig.play(5)]
    assert played == [("a", CPU, 1500, 1000)]


def test_a_vm_that_starts_has_all_its_leash_allows_until_it_is_ready():
    rig = Rig(state=VmState.STARTING)
    assert rig.play() == [("a", CPU, 1000, 3000)]
    assert [rig.play(5) for _ in range(20)] == [[]] * 20
    rig.change(state=VmState.RUNNING)
    assert rig.play(1) == [("a", CPU, 3000, 1000)]


def test_without_the_setting_a_start_is_not_boosted():
    rig = Rig(state=VmState.STARTING)
    rig.rules = Rules(start_boost=False)
    assert rig.play() == []


# ---- the host lacks memory ----


def pressed_rig():
    rig = Rig("a", "b")
    rig.change("b", memory_free_bytes=100 * MIB, memory_used_bytes=150 * MIB)
    rig.signals = Signals(is_pressed=True)
    return rig


def test_under_pressure_free_pages_are_squeezed_out_most_free_first():
    rig = pressed_rig()
    assert rig.play() == [
        ("a", MEMORY, 256 * MIB, 192 * MIB),
        ("b", MEMORY, 256 * MIB, 216 * MIB),  # not below its working set and margin
    ]
    assert rig.state.word == "squeezing_free"
    assert rig.play(1) == []  # not at once again
    assert rig.play(2) == [("a", MEMORY, 192 * MIB, 164 * MIB)]
    assert rig.play(5) == []
    assert rig.state.word == "exhausted"


def test_a_squeeze_ends_at_the_leash():
    rig = pressed_rig()
    rig.leash["a", MEMORY] = Leash(240 * MIB, 768 * MIB, 256 * MIB)
    rig.leash.pop(("b", MEMORY))
    assert rig.play() == [("a", MEMORY, 256 * MIB, 240 * MIB)]


def test_under_pressure_no_memory_is_lent():
    rig = pressed_rig()
    rig.ask("a", mib=64)
    assert all(step[3] < step[2] and step[0] == "b" for step in rig.play())
    assert rig.state.unmet == {("a", MEMORY): 256 * MIB}


def test_what_was_squeezed_out_comes_back_after_the_pressure():
    rig = pressed_rig()
    rig.play()
    assert {loan.amount < loan.base_amount for loan in loans_of(rig.state, rig.grant.bounds)} == {
        True
    }
    rig.hush()
    assert [rig.play(5) for _ in range(5)] == [[]] * 5
    for _ in range(10):
        rig.play(5)
    assert (rig.mib("a"), rig.mib("b")) == (256, 256)
    assert rig.state.lent == {}


def test_a_squeezed_vm_that_needs_it_gets_it_back_at_once():
    rig = pressed_rig()
    rig.play()
    rig.hush()
    rig.change("a", memory_used_bytes=180 * MIB)
    assert rig.play(1) == [("a", MEMORY, 192 * MIB, 256 * MIB)]


# ---- when to look ----


def test_it_reads_all_vms_only_when_something_asks_for_it():
    rig = Rig("a", "b")
    rig.look()

    def wakes(signals=rig.signals, after_s=1, known=rig.vms):
        now = rig.now + int(after_s * SECOND_NS)
        return needs_a_look(rig.state, rig.grant, signals, known, now)

    assert not wakes()
    assert not wakes(after_s=3600)
    rig.ask(mib=1)
    assert wakes(rig.signals)
    assert not wakes(rig.signals, after_s=6)
    assert wakes(Signals({"b": VmSignals(None, 60_000, 0)}))
    assert wakes(Signals(is_pressed=True))
    assert wakes(known={"a": replace(VM, memory_used_bytes=250 * MIB)})
    assert wakes(known={"a": replace(VM, state=VmState.STARTING)})
    rig.ask(mib=64)
    rig.play()
    assert not wakes() and wakes(after_s=5)
    rig.number += 1
    assert wakes()


def test_every_state_has_its_name():
    assert len(set(LADDER)) == len(LADDER)
