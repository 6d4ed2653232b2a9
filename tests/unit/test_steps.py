import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.steps import (
    QUANTUM,
    Outcome,
    Step,
    deadline_of,
    in_safe_order,
    is_unchanged,
    limit_of,
    matches,
    step_text,
    whole_quanta,
    with_limit,
)
from shared.pb import commands_pb2
from shared.resources import MIB, Resource
from shared.telemetry import NodeReadings, VmSample

amounts = st.integers(min_value=0, max_value=2**40)
steps = st.builds(
    Step, st.integers(0, 9), st.sampled_from("abc"), st.sampled_from(Resource), amounts, amounts
)


@given(st.lists(steps))
def test_the_safe_order_puts_shrinks_first_and_keeps_the_rest(plan):
    ordered = in_safe_order(plan)
    assert sorted(map(id, ordered)) == sorted(map(id, plan))
    kinds = [step.shrinks for step in ordered]
    assert kinds == sorted(kinds, reverse=True)
    for shrinks in (True, False):
        assert [s for s in ordered if s.shrinks is shrinks] == [
            s for s in plan if s.shrinks is shrinks
        ]


def test_outcomes_have_the_numbers_of_the_protocol():
    assert {o.name: o.value for o in Outcome} == {
        name.removeprefix("OUTCOME_"): value
        for name, value in commands_pb2.Outcome.items()
        if value
    }


@given(st.sampled_from(Resource), amounts)
def test_whole_quanta_round_down(resource, amount):
    rounded = whole_quanta(resource, amount)
    assert rounded % QUANTUM[resource] == 0
    assert 0 <= amount - rounded < QUANTUM[resource]
    assert whole_quanta(resource, -amount) == 0


def test_less_than_a_quantum_is_no_change():
    assert is_unchanged(Resource.MEMORY, 256 * MIB, 256 * MIB + 4 * MIB - 1)
    assert not is_unchanged(Resource.MEMORY, 256 * MIB, 260 * MIB)
    assert matches(Resource.MEMORY, 256 * MIB, 260 * MIB)
    assert not matches(Resource.MEMORY, 256 * MIB, 260 * MIB + 1)


def test_a_balloon_takes_free_pages_first_and_cache_after_them():
    vm = VmSample(
        "a",
        "a",
        memory_limit_bytes=100,
        memory_used_bytes=40,
        memory_free_bytes=20,
        memory_cache_bytes=30,
    )
    shrunk = with_limit(vm, Resource.MEMORY, 70)
    assert (shrunk.memory_free_bytes, shrunk.memory_cache_bytes) == (0, 20)
    assert shrunk.memory_used_bytes == 40
    grown = with_limit(vm, Resource.MEMORY, 130)
    assert (grown.memory_free_bytes, grown.memory_cache_bytes) == (50, 30)
    unknown = with_limit(VmSample("a", "a", memory_limit_bytes=100), Resource.MEMORY, 70)
    assert unknown.memory_free_bytes is None


def test_an_unlimited_disk_counts_as_all_that_the_node_has():
    node = NodeReadings(io_allocatable_bytes_per_s=1000)
    assert limit_of(VmSample("a", "a"), Resource.IO, node) == 1000
    assert limit_of(VmSample("a", "a", io_limit_bytes_per_s=10), Resource.IO, node) == 10
    assert limit_of(VmSample("a", "a"), Resource.IO, NodeReadings()) is None


@pytest.mark.parametrize(("asked", "used"), [(0, 10_000), (1_500, 1_500), (2**31, 60_000)])
def test_deadlines_have_a_default_and_an_end(asked, used):
    assert deadline_of(Step(0, "a", Resource.CPU, 0, 10, deadline_ms=asked)) == used


def test_a_step_reads_like_a_sentence():
    step = Step(0, "a", Resource.MEMORY, 256 * MIB, 192 * MIB)
    assert step_text(step) == "memory 256 MiB -> 192 MiB"
