"""Single steps against the agent's own readings, rule by rule."""

from dataclasses import replace

import pytest

from agent.admission import (
    Admitted,
    Readings,
    admit,
    headroom,
    may_newer_figures_help,
    room_for_the_way_back,
    working_floor_bytes,
)
from agent.hypervisor import MemoryBlocks
from agent.steps import Outcome, Step, StepResult
from shared.clock import SECOND_NS
from shared.resources import MIB, Resource
from shared.telemetry import NodeReadings, VmSample, VmState

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
SHRINK = Step(0, "a", Resource.MEMORY, 512 * MIB, 400 * MIB)
GROW = Step(1, "a", Resource.MEMORY, 512 * MIB, 700 * MIB)


def readings_with(**vm):
    return replace(READINGS, vms={"a": replace(VM, **vm)})


def refusal_of(step, readings=READINGS):
    result = admit(step, readings)
    assert isinstance(result, StepResult), result
    return result.outcome, result.invariant


@pytest.mark.parametrize(
    ("step", "vm", "invariant"),
    [
        (SHRINK, {"state": VmState.MIGRATING}, "I8"),
        (SHRINK, {"state": VmState.PAUSED}, "I8"),
        (SHRINK, {"state": VmState.STARTING}, "I8"),
        (replace(GROW, to_amount=600 * MIB), {"state": VmState.SHUT_DOWN}, "I8"),
        (replace(SHRINK, floor_amount=401 * MIB), {}, "I2"),
        (replace(GROW, ceiling_amount=699 * MIB), {}, "I2"),
        (GROW, {"memory_maximum_bytes": 699 * MIB}, "I2"),
        (replace(SHRINK, from_amount=517 * MIB), {}, "I6"),
        (SHRINK, {"memory_limit_bytes": None}, "I6"),
        (SHRINK, {"memory_stats_age_ns": None}, "I6"),
        (SHRINK, {"memory_stats_age_ns": 31 * SECOND_NS}, "I6"),
        (GROW, {"memory_stats_age_ns": 31 * SECOND_NS}, "I6"),
        (SHRINK, {"memory_used_bytes": None}, "I6"),
        (SHRINK, {"memory_free_bytes": None}, "I6"),
        (SHRINK, {"memory_used_bytes": 433 * MIB}, "I3"),
        (SHRINK, {"memory_swap_in_bytes_per_s": 1}, "I3"),
        (SHRINK, {"memory_major_faults_per_s": 101}, "I3"),
        (SHRINK, {"memory_free_bytes": 0, "memory_cache_bytes": 0}, "I4"),
        (replace(GROW, to_amount=1024 * MIB), {"memory_maximum_bytes": 2048 * MIB}, None),
    ],
)
def test_own_readings_decide(step, vm, invariant):
    if invariant is None:
        assert isinstance(admit(step, readings_with(**vm)), Admitted)
    else:
        assert refusal_of(step, readings_with(**vm)) == (Outcome.REFUSED, invariant)


def test_the_step_that_killed_a_guest_in_the_field_is_cut_to_its_floor():
    """A guest of 256 MiB with 91 MiB usable died at 120 MiB; its floor is 229 MiB."""
    readings = readings_with(
        memory_limit_bytes=256 * MIB, memory_used_bytes=165 * MIB, memory_free_bytes=91 * MIB
    )
    assert working_floor_bytes(readings.vms["a"]) == 229 * MIB
    step = Step(0, "a", Resource.MEMORY, 256 * MIB, 120 * MIB)
    admitted = admit(step, readings)
    assert isinstance(admitted, Admitted)
    assert admitted.step.to_amount == 232 * MIB  # in whole quanta of 4
    assert admitted.cut.startswith("I3")
    tighter = replace(readings.vms["a"], memory_used_bytes=177 * MIB)
    tight = replace(readings, vms={"a": tighter})  # 15 MiB above its floor: not worth a move
    assert refusal_of(step, tight) == (Outcome.REFUSED, "I3")


def test_a_shrink_is_cut_to_free_pages_and_five_percent_of_cache():
    readings = readings_with(memory_free_bytes=40 * MIB)
    admitted = admit(SHRINK, readings)
    assert isinstance(admitted, Admitted)
    taken = SHRINK.from_amount - admitted.step.to_amount
    assert taken == 64 * MIB  # 40 free + 25.6 of cache, in whole quanta of 4
    assert admitted.cut.startswith("I4")


def test_what_is_there_already_is_not_sent_again():
    step = replace(SHRINK, from_amount=600 * MIB, to_amount=510 * MIB)
    assert refusal_of(step) == (Outcome.UNCHANGED, "")


def test_levers_that_do_not_work_are_not_pulled():
    broken = replace(READINGS, levers={"memory": "no balloon"})
    assert refusal_of(SHRINK, broken) == (Outcome.REFUSED, "lever")
    quarantined = replace(READINGS, quarantined={SHRINK.lever: "had no effect"})
    assert refusal_of(SHRINK, quarantined) == (Outcome.REFUSED, "lever")
    assert isinstance(admit(Step(0, "a", Resource.CPU, 1000, 500), quarantined), Admitted)


def test_growing_needs_room_that_was_measured():
    full = replace(READINGS, vms={"a": VM, "b": replace(VM, vm_id="b")})
    assert headroom(full, Resource.MEMORY) == 0
    assert refusal_of(GROW, full) == (Outcome.REFUSED, "I1")
    unknown = replace(READINGS, node=NodeReadings())
    assert refusal_of(GROW, unknown) == (Outcome.REFUSED, "I1")


def test_a_vm_that_could_not_be_read_counts_with_all_it_could_have():
    frozen = VmSample("b", "b", memory_maximum_bytes=300 * MIB)
    readings = replace(READINGS, vms={"a": VM, "b": frozen})
    assert headroom(readings, Resource.MEMORY) == 212 * MIB
    nothing = replace(READINGS, vms={"a": VM, "b": VmSample("b", "b")})
    assert headroom(nothing, Resource.MEMORY) is None


def test_the_way_back_grows_without_statistics_and_never_shrinks():
    silent = readings_with(memory_stats_age_ns=None)
    assert isinstance(admit(GROW, silent, way_back=True), Admitted)
    refusal = admit(SHRINK, READINGS, way_back=True)
    assert isinstance(refusal, StepResult)
    assert refusal.invariant == "I9"


def in_blocks(mib: int, fixed_mib: int = 128) -> Readings:
    return replace(READINGS, blocks={"a": MemoryBlocks(mib * MIB, fixed_mib * MIB)})


@pytest.mark.parametrize(
    ("step", "block_mib", "to_mib"),
    [(SHRINK, 64, 448), (GROW, 128, 640), (SHRINK, 2, 400), (GROW, 188, 700)],
)
def test_memory_in_blocks_moves_by_the_whole_ones_of_the_change(step, block_mib, to_mib):
    admitted = admit(step, in_blocks(block_mib))
    assert isinstance(admitted, Admitted)
    assert admitted.step.to_amount == to_mib * MIB
    assert bool(admitted.cut) == (admitted.step.to_amount != step.to_amount)


@pytest.mark.parametrize("step", [SHRINK, GROW])
def test_less_than_a_block_changes_nothing(step):
    result = admit(step, in_blocks(256))
    assert isinstance(result, StepResult)
    assert (result.outcome, result.after_amount) == (Outcome.UNCHANGED, 512 * MIB)


def test_what_lies_below_the_blocks_is_not_taken():
    admitted = admit(SHRINK, in_blocks(2, fixed_mib=460))
    assert isinstance(admitted, Admitted) and admitted.step.to_amount == 460 * MIB
    assert "blocks" in admitted.cut
    at_its_least = admit(SHRINK, in_blocks(2, fixed_mib=512))
    assert isinstance(at_its_least, StepResult)
    assert at_its_least.outcome is Outcome.UNCHANGED


def test_a_starting_vm_may_grow_and_its_limit_counts():
    readings = readings_with(state=VmState.STARTING)
    grow = replace(GROW, to_amount=600 * MIB)
    assert admit(grow, readings) == Admitted(grow)
    assert headroom(readings, Resource.MEMORY) == 512 * MIB


def test_a_vm_that_starts_may_grow_and_is_never_shrunk():
    starting = readings_with(state=VmState.STARTING)
    assert isinstance(admit(GROW, starting), Admitted)
    assert refusal_of(SHRINK, starting) == (Outcome.REFUSED, "I8")


@pytest.mark.parametrize(
    ("vm", "may_help"),
    [
        ({}, False),  # nothing stands in its way
        ({"memory_free_bytes": 8 * MIB}, True),
        ({"memory_used_bytes": 480 * MIB}, True),
        ({"memory_used_bytes": None, "memory_free_bytes": None}, True),  # of another balloon size
        ({"memory_free_bytes": 8 * MIB, "memory_stats_age_ns": 0}, False),  # newer there are none
        ({"memory_free_bytes": 8 * MIB, "memory_stats_age_ns": None}, False),
        ({"memory_free_bytes": 8 * MIB, "memory_stats_age_ns": 31 * SECOND_NS}, False),
        ({"memory_swap_in_bytes_per_s": 1}, False),
        ({"state": VmState.PAUSED}, False),
    ],
)
def test_a_shrink_may_wait_for_what_the_guest_says_next(vm, may_help):
    now = 100 * SECOND_NS
    readings = replace(readings_with(**vm), tick_ns=now)
    assert may_newer_figures_help(SHRINK, readings, now) is may_help
    assert not may_newer_figures_help(GROW, readings, now)


def test_a_grow_whose_way_was_gone_in_part_goes_on_from_there():
    """The reflex was there first; what the plan gives is what counts."""
    begun = replace(GROW, from_amount=400 * MIB)
    assert isinstance(admit(begun, READINGS), Admitted)
    beyond = replace(GROW, from_amount=300 * MIB, to_amount=400 * MIB)
    assert refusal_of(beyond) == (Outcome.UNCHANGED, "")
    assert refusal_of(replace(GROW, from_amount=600 * MIB)) == (Outcome.REFUSED, "I6")


def test_the_way_back_leaves_room_for_every_fallback():
    both = replace(READINGS, vms={"a": VM, "b": replace(VM, vm_id="b")})
    fallback = {("a", Resource.MEMORY): 400 * MIB, ("b", Resource.MEMORY): 500 * MIB}
    assert room_for_the_way_back(both, fallback, Resource.MEMORY) == 0
    small = {**both.vms, "b": replace(VM, vm_id="b", memory_limit_bytes=300 * MIB)}
    assert room_for_the_way_back(replace(both, vms=small), fallback, Resource.MEMORY) == 12 * MIB
    unknown = {"a": VM, "b": VmSample("b", "b")}
    assert room_for_the_way_back(replace(both, vms=unknown), {}, Resource.MEMORY) is None
