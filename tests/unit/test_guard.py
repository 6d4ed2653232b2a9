"""Which commands the agent obeys, and what it does when no more of them come."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import guard
from agent.admission import Admitted, Readings, after
from agent.guard import Accepted, Duplicate, GuardState, Refused, judge
from agent.steps import Command, Header, Outcome, Step
from shared.clock import SECOND_NS
from shared.resources import MIB, Resource
from shared.telemetry import NodeReadings, VmSample, VmState

NOW_NS = 1000 * SECOND_NS
VM = VmSample(
    vm_id="a",
    name="a",
    state=VmState.RUNNING,
    memory_limit_bytes=512 * MIB,
    memory_maximum_bytes=1024 * MIB,
    memory_used_bytes=128 * MIB,
    memory_free_bytes=200 * MIB,
    memory_cache_bytes=100 * MIB,
    memory_stats_age_ns=SECOND_NS,
    cpu_limit_millicores=1000,
    cpu_maximum_millicores=2000,
    io_limit_bytes_per_s=10 * MIB,
)
NODE = NodeReadings(
    memory_allocatable_bytes=1024 * MIB,
    cpu_allocatable_millicores=4000,
    io_allocatable_bytes_per_s=100 * MIB,
)
READINGS = Readings(NODE, {"a": VM}, stats_age_ns_max=30 * SECOND_NS)
HEADER = Header(
    command_id="c1",
    plan_id="p1",
    epoch=5,
    sequence=1,
    based_on_generation=0,
    agent_tick_ns=NOW_NS - SECOND_NS,
    ttl_ms=10_000,
    lease_ms=60_000,
)
SHRINK = Step(0, "a", Resource.MEMORY, 512 * MIB, 400 * MIB)
GROW = Step(1, "a", Resource.MEMORY, 512 * MIB, 700 * MIB)


def command(*steps, fallback=(), **header):
    return Command(replace(HEADER, **header), steps, fallback)


@pytest.mark.parametrize(
    ("header", "invariant", "word"),
    [
        ({"epoch": 4}, "I7", "epoch"),
        ({"epoch": 5, "sequence": 7}, "I7", "sequence"),
        ({"epoch": 5, "sequence": 3}, "I7", "sequence"),
        ({"sequence": 8, "agent_tick_ns": NOW_NS - 11 * SECOND_NS}, "I6", "late"),
        ({"sequence": 8, "agent_tick_ns": NOW_NS + 1}, "I6", "future"),
        ({"sequence": 8, "based_on_generation": 8}, "I6", "generation"),
    ],
)
def test_commands_without_authority_are_refused(header, invariant, word):
    state = GuardState(epoch_highest=5, sequence_highest=7, generation=9)
    told = command(SHRINK, **{"based_on_generation": 9, **header})
    new, verdict = judge(told, state, NOW_NS, READINGS)
    assert isinstance(verdict, Refused)
    assert verdict.invariant == invariant
    assert word in verdict.detail
    assert (new.lease_until_tick_ns, new.fallback) == (None, {})


def test_an_accepted_command_brings_epoch_lease_and_fallback():
    told = command(SHRINK, fallback=(("a", Resource.MEMORY, 600 * MIB),))
    state, verdict = judge(told, GuardState(), NOW_NS, READINGS)
    assert isinstance(verdict, Accepted)
    assert verdict.steps == (Admitted(SHRINK),)
    assert (state.epoch_highest, state.sequence_highest) == (5, 1)
    assert state.lease_until_tick_ns == NOW_NS + 60 * SECOND_NS
    assert state.fallback == {("a", Resource.MEMORY): 600 * MIB}


def test_a_lever_without_a_fallback_goes_back_to_where_it_was():
    state, _ = judge(command(SHRINK), GuardState(), NOW_NS, READINGS)
    assert state.fallback == {("a", Resource.MEMORY): 512 * MIB}
    later = replace(READINGS, vms={"a": replace(VM, memory_limit_bytes=400 * MIB)})
    again = replace(SHRINK, from_amount=400 * MIB, to_amount=380 * MIB)
    state, _ = judge(command(again, command_id="c2", sequence=2), state, NOW_NS, later)
    assert state.fallback == {("a", Resource.MEMORY): 512 * MIB}


def test_a_lever_that_the_plan_has_no_word_on_stays_where_it_is():
    """It was pinned or frozen since; only a VM that cannot be read keeps what was said before."""
    memory = ("a", Resource.MEMORY)
    unread = ("b", Resource.MEMORY)
    state = GuardState(fallback={memory: 600 * MIB, ("a", Resource.CPU): 2000, unread: 300 * MIB})
    readings = replace(READINGS, vms={"a": VM, "b": VmSample(vm_id="b", name="b")})
    told = command(SHRINK, fallback=((*memory, 700 * MIB),))
    state, _ = judge(told, state, NOW_NS, readings)
    assert state.fallback == {memory: 700 * MIB, unread: 300 * MIB}


def test_a_dry_run_leaves_nothing_but_its_sequence():
    state, verdict = judge(command(SHRINK, dry_run=True), GuardState(), NOW_NS, READINGS)
    assert isinstance(verdict, Accepted)
    assert state == GuardState(epoch_highest=5, sequence_highest=1)


def test_a_repeated_command_gets_the_same_answer_again():
    state, verdict = judge(command(SHRINK), GuardState(), NOW_NS, READINGS)
    ack = guard.accepted_ack(verdict.command, (), 1, NOW_NS)
    state = guard.finished(state, ack)
    same, repeated = judge(command(SHRINK), state, NOW_NS, READINGS)
    assert repeated == Duplicate(ack)
    assert same == state


def test_answers_are_kept_only_for_the_newest_commands():
    state = GuardState()
    for number in range(guard.DONE_MAX + 5):
        header = replace(HEADER, command_id=f"c{number}")
        state = guard.finished(state, guard.refused_ack(header, Refused("I7", ""), 0, NOW_NS))
    assert len(state.done) == guard.DONE_MAX
    assert state.done_command_ids[-1] == f"c{guard.DONE_MAX + 4}"


def test_a_command_that_was_interrupted_is_answered_as_unknown_and_ends_old_plans():
    state, accepted = judge(command(SHRINK), GuardState(), NOW_NS, READINGS)
    state = replace(state, intent=guard.intent_of(accepted, state, NOW_NS))
    restarted = guard.interrupted(state)
    assert restarted.generation == state.generation + 1
    assert restarted.intent is None
    _, verdict = judge(command(SHRINK), restarted, NOW_NS, READINGS)
    assert isinstance(verdict, Duplicate)
    assert verdict.ack.results[0].outcome is Outcome.FAILED
    assert "unknown" in verdict.ack.results[0].detail
    assert guard.interrupted(restarted) == restarted


@given(st.integers(0, 4), st.integers(0, 2**40), st.integers(0, 2**40))
def test_a_lower_epoch_never_acts(epoch, sequence, tick_ns):
    state = GuardState(epoch_highest=5)
    told = command(SHRINK, epoch=epoch, sequence=sequence, agent_tick_ns=tick_ns)
    new, verdict = judge(told, state, NOW_NS, READINGS)
    assert isinstance(verdict, Refused)
    assert new == state
    assert guard.renew(told.header, state, NOW_NS)[0] == state


def test_a_renewal_extends_the_lease_and_does_not_overtake_a_waiting_command():
    state = GuardState(epoch_highest=5, sequence_highest=1, lease_until_tick_ns=NOW_NS + 1)
    state, refusal = guard.renew(replace(HEADER, sequence=3), state, NOW_NS)
    assert refusal is None
    assert state.lease_until_tick_ns == NOW_NS + 60 * SECOND_NS
    _, verdict = judge(command(SHRINK, sequence=2), state, NOW_NS, READINGS)
    assert isinstance(verdict, Accepted)


@pytest.mark.parametrize(
    "header", [{"epoch": 4}, {"sequence": 1}, {"agent_tick_ns": NOW_NS - 11 * SECOND_NS}]
)
def test_a_renewal_without_authority_does_not_count(header):
    state = GuardState(epoch_highest=5, sequence_highest=1, lease_until_tick_ns=NOW_NS + 1)
    new, refusal = guard.renew(replace(HEADER, **{"sequence": 2, **header}), state, NOW_NS)
    assert refusal is not None
    assert new == state


def test_a_renewal_of_a_new_leader_shuts_out_the_old_one():
    state = GuardState(epoch_highest=5, sequence_highest=9)
    state, _ = guard.renew(replace(HEADER, epoch=6), state, NOW_NS)
    _, verdict = judge(command(SHRINK, sequence=10), state, NOW_NS, READINGS)
    assert isinstance(verdict, Refused)
    _, verdict = judge(command(SHRINK, epoch=6), state, NOW_NS, READINGS)
    assert isinstance(verdict, Accepted)


def test_a_vm_that_is_gone_does_not_stop_the_others():
    gone = replace(SHRINK, index=7, vm_id="gone")
    _, verdict = judge(command(gone, SHRINK), GuardState(), NOW_NS, READINGS)
    assert [result.outcome for result in verdict.refusals] == [Outcome.GONE]
    assert [admitted.step for admitted in verdict.steps] == [SHRINK]


def test_after_a_refused_shrink_growing_takes_only_what_is_free():
    tight = replace(NODE, memory_allocatable_bytes=1074 * MIB)
    hungry = replace(VM, vm_id="b", memory_used_bytes=500 * MIB)
    readings = replace(READINGS, node=tight, vms={"a": VM, "b": hungry})
    shrink = replace(SHRINK, vm_id="b")
    _, verdict = judge(command(shrink, GROW), GuardState(), NOW_NS, readings)
    assert [result.invariant for result in verdict.refusals] == ["I3"]
    (grow,) = verdict.steps
    assert grow.step.to_amount == (512 + 48) * MIB  # 50 are free, in whole quanta of 4
    _, alone = judge(command(GROW), GuardState(), NOW_NS, readings)
    assert [result.invariant for result in alone.refusals] == ["I1"]


def test_the_walk_grows_in_strides_and_within_what_is_free():
    state = GuardState(
        lease_until_tick_ns=NOW_NS,
        fallback={("a", Resource.MEMORY): 1024 * MIB, ("a", Resource.CPU): 2000},
    )
    assert guard.has_lease_ended(state, NOW_NS)
    readings, rounds = READINGS, []
    while steps := guard.on_lease_end(state, readings):
        rounds.append([(s.resource.word, s.to_amount - s.from_amount) for s in steps])
        for step in steps:
            readings = after(readings, step)
    assert rounds[0] == [("cpu", 1000), ("memory", 128 * MIB)]
    assert readings.vms["a"].memory_limit_bytes == 1024 * MIB
    assert len(rounds) == 4


def test_vms_of_one_round_do_not_get_the_same_free_memory_twice():
    tight = replace(NODE, memory_allocatable_bytes=1124 * MIB)
    readings = replace(READINGS, node=tight, vms={"a": VM, "b": replace(VM, vm_id="b")})
    fallback = {("a", Resource.MEMORY): 1024 * MIB, ("b", Resource.MEMORY): 1024 * MIB}
    (step,) = guard.on_lease_end(GuardState(fallback=fallback), readings)
    assert (step.vm_id, step.to_amount) == ("a", 612 * MIB)


def test_without_readings_nothing_is_accepted_and_nobody_counts_as_gone():
    state, verdict = judge(command(SHRINK), GuardState(), NOW_NS, None)
    assert verdict == Refused("I6", "the hypervisor gives no readings")
    assert state.lease_until_tick_ns is None


def test_a_lease_that_never_began_never_ends():
    assert not guard.has_lease_ended(GuardState(), 2**62)
