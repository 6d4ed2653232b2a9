"""Counters become rates, and what is not known stays unknown."""

from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.hypervisor import VmReading
from agent.sample import (
    Allocatable,
    NodeCounters,
    RawNode,
    Resize,
    VmPressure,
    rate,
    resizes,
    to_sample,
)
from shared.clock import SECOND_NS
from shared.resources import MIB
from shared.telemetry import NodeReadings, VmSample, VmState

UNIX_S = 1_700_000_000
VM = VmReading(
    vm_id="a",
    name="alpha",
    state=VmState.RUNNING,
    cpu_count=2,
    cpu_time_ns=10 * SECOND_NS,
    cpu_delay_ns=SECOND_NS,
    cpu_quota_millicores=1500,
    memory_actual_bytes=512 * MIB,
    memory_maximum_bytes=1024 * MIB,
    memory_usable_bytes=384 * MIB,
    memory_unused_bytes=256 * MIB,
    memory_cache_bytes=128 * MIB,
    memory_resident_bytes=300 * MIB,
    memory_major_faults=100,
    memory_swap_in_bytes=MIB,
    memory_last_update_unix_s=UNIX_S - 3,
    io_bytes=100 * MIB,
    io_limit_bytes_per_s=50 * MIB,
)
BEFORE = RawNode(
    unix_ns=UNIX_S * SECOND_NS,
    tick_ns=100 * SECOND_NS,
    counters=NodeCounters(
        cpu_count=2,
        cpu_used_ns=0,
        cpu_steal_ns=0,
        io_bytes=0,
        memory_pressure_full_us=0,
        net_bytes=10 * MIB,
    ),
    vms=(VM,),
    pressures={"a": VmPressure(cpu_us=1000, memory_us=0, io_us=None)},
)
AFTER = RawNode(
    unix_ns=(UNIX_S + 10) * SECOND_NS,
    tick_ns=110 * SECOND_NS,
    counters=NodeCounters(
        memory_total_bytes=MIB,
        cpu_count=2,
        cpu_used_ns=15 * SECOND_NS,
        cpu_steal_ns=SECOND_NS,
        io_bytes=20 * MIB,
        cpu_pressure_us=7,
        memory_pressure_full_us=50_000,
        net_bytes=30 * MIB,
        load_milli=1500,
        uptime_ns=5 * SECOND_NS,
    ),
    vms=(
        replace(
            VM,
            cpu_time_ns=25 * SECOND_NS,
            cpu_delay_ns=3 * SECOND_NS,
            memory_major_faults=150,
            memory_swap_in_bytes=11 * MIB,
            memory_last_update_unix_s=UNIX_S + 7,
            io_bytes=150 * MIB,
        ),
    ),
    pressures={"a": VmPressure(cpu_us=21_000, memory_us=0, io_us=5)},
    resized={"a": Resize(512 * MIB, 40 * SECOND_NS)},
)


def test_rates_are_means_over_the_interval() -> None:
    rates = to_sample(BEFORE, AFTER)
    (vm,) = rates.vms
    assert rates.interval_ns == 10 * SECOND_NS
    assert (vm.cpu_used_millicores, vm.cpu_delay_us_per_s) == (1500, 200_000)
    assert (vm.memory_major_faults_per_s, vm.memory_swap_in_bytes_per_s) == (5, MIB)
    assert vm.io_used_bytes_per_s == 5 * MIB
    assert (vm.cpu_pressure_us_per_s, vm.memory_pressure_us_per_s) == (2000, 0)
    assert vm.io_pressure_us_per_s is None
    assert (rates.node.cpu_used_millicores, rates.node.cpu_steal_millicores) == (1500, 100)
    assert rates.node.io_used_bytes_per_s == 2 * MIB
    assert rates.node.cpu_pressure_us_per_s is None
    assert rates.node.memory_pressure_full_us_per_s == 5000
    assert rates.node.net_used_bytes_per_s == 2 * MIB


def test_what_a_node_has_at_the_moment_is_no_rate() -> None:
    node = to_sample(None, AFTER).node
    assert (node.load_milli, node.uptime_ns) == (1500, 5 * SECOND_NS)
    assert node.net_used_bytes_per_s is None


def test_amounts_are_carried_and_derived() -> None:
    (vm,) = to_sample(BEFORE, AFTER).vms
    assert (vm.memory_limit_bytes, vm.memory_maximum_bytes) == (512 * MIB, 1024 * MIB)
    assert vm.memory_used_bytes == 128 * MIB
    assert (vm.memory_free_bytes, vm.memory_cache_bytes) == (256 * MIB, 128 * MIB)
    assert vm.memory_stats_age_ns == 3 * SECOND_NS
    assert (vm.cpu_limit_millicores, vm.cpu_maximum_millicores) == (1500, 2000)
    assert vm.io_limit_bytes_per_s == 50 * MIB


def test_the_first_sample_has_amounts_and_no_rates() -> None:
    rates = to_sample(None, AFTER)
    assert rates.interval_ns == 0
    assert_no_rates(rates.vms[0])
    assert rates.vms[0].memory_limit_bytes == 512 * MIB
    assert rates.node.cpu_used_millicores is None
    assert rates.node.cpu_total_millicores == 2000


def test_a_restarted_vm_has_no_rates_at_all_even_where_a_counter_overtook() -> None:
    restarted = replace(AFTER.vms[0], cpu_time_ns=SECOND_NS)
    (vm,) = to_sample(BEFORE, replace(AFTER, vms=(restarted,))).vms
    assert_no_rates(vm)


def test_a_vm_seen_for_the_first_time_has_no_rates() -> None:
    assert_no_rates(to_sample(replace(BEFORE, vms=()), AFTER).vms[0])


def test_stale_or_missing_balloon_figures_are_unknown() -> None:
    for stamp, age_ns in [(UNIX_S - 60, 70 * SECOND_NS), (0, None), (None, None)]:
        vm = replace(AFTER.vms[0], memory_last_update_unix_s=stamp)
        (sample,) = to_sample(BEFORE, replace(AFTER, vms=(vm,))).vms
        assert sample.memory_stats_age_ns == age_ns
        assert sample.memory_used_bytes is None
        assert sample.memory_free_bytes is None
        assert sample.memory_cache_bytes is None
        assert sample.memory_limit_bytes == 512 * MIB


def test_a_stamp_from_the_future_is_fresh_only_within_the_slack() -> None:
    for ahead_s, age_ns in [(1, 0), (3600, None)]:
        vm = replace(AFTER.vms[0], memory_last_update_unix_s=UNIX_S + 10 + ahead_s)
        (sample,) = to_sample(BEFORE, replace(AFTER, vms=(vm,))).vms
        assert sample.memory_stats_age_ns == age_ns


def test_without_a_quota_the_vcpus_are_the_limit() -> None:
    for quota, limit in [(None, 2000), (9000, 2000)]:
        vm = replace(VM, cpu_quota_millicores=quota)
        assert to_sample(None, replace(AFTER, vms=(vm,))).vms[0].cpu_limit_millicores == limit


def test_what_the_operator_allows_is_carried() -> None:
    node = to_sample(None, AFTER, Allocatable(memory_bytes=5, cpu_millicores=None)).node
    assert (node.memory_allocatable_bytes, node.cpu_allocatable_millicores) == (5, None)


def assert_no_rates(vm: VmSample) -> None:
    for field in fields(vm):
        if "_per_s" in field.name and field.name != "io_limit_bytes_per_s":
            assert getattr(vm, field.name) is None, field.name
    assert vm.cpu_used_millicores is None


COUNTER = st.none() | st.integers(min_value=0, max_value=2**63 - 1)


def readings(vm_id: str) -> st.SearchStrategy[VmReading]:
    numbers = [f.name for f in fields(VmReading) if f.name not in ("vm_id", "name", "state")]
    return st.builds(
        VmReading,
        vm_id=st.just(vm_id),
        name=st.just(vm_id),
        state=st.sampled_from(VmState),
        **dict.fromkeys(numbers, COUNTER),
    )


RAW = st.builds(
    RawNode,
    unix_ns=st.integers(0, 2**63 - 1),
    tick_ns=st.integers(0, 2**63 - 1),
    counters=st.builds(
        NodeCounters, **dict.fromkeys((f.name for f in fields(NodeCounters)), COUNTER)
    ),
    vms=st.tuples(readings("a"), readings("b")) | st.tuples(readings("b")) | st.just(()),
    pressures=st.dictionaries(
        st.sampled_from("ab"), st.builds(VmPressure, COUNTER, COUNTER, COUNTER)
    ),
)


@given(st.none() | RAW, RAW)
def test_no_rate_is_negative_and_nothing_raises(previous: RawNode | None, current: RawNode) -> None:
    rates = to_sample(previous, current)
    values: list[NodeReadings | VmSample] = [rates.node, *rates.vms]
    for value in values:
        for field in fields(value):
            amount = getattr(value, field.name)
            assert not isinstance(amount, int) or amount >= 0, field.name


@given(st.none() | RAW, RAW)
def test_missing_never_becomes_a_number(previous: RawNode | None, current: RawNode) -> None:
    nothing = RawNode(
        current.unix_ns,
        current.tick_ns,
        vms=tuple(VmReading(vm.vm_id, vm.name, vm.state) for vm in current.vms),
    )
    rates = to_sample(previous, nothing)
    assert rates.node == NodeReadings()
    assert rates.vms == tuple(VmSample(vm.vm_id, vm.name, vm.state) for vm in current.vms)


@given(COUNTER, COUNTER, st.integers(-5, 10**12))
def test_a_rate_exists_just_when_it_can_be_known(
    before: int | None, now: int | None, interval_ns: int
) -> None:
    known = before is not None and now is not None and now >= before and interval_ns > 0
    assert (rate(before, now, interval_ns) is not None) == known


def test_figures_from_before_a_resize_do_not_count() -> None:
    """After a shrink, `actual - usable` of two moments would say that the guest holds nothing."""
    seen = {"a": Resize(512 * MIB, 108 * SECOND_NS)}
    early = replace(AFTER, resized=seen)
    (vm,) = to_sample(BEFORE, early).vms
    assert (vm.memory_used_bytes, vm.memory_free_bytes) == (None, None)
    assert vm.memory_limit_bytes == 512 * MIB
    stamped = replace(AFTER.vms[0], memory_last_update_unix_s=UNIX_S + 9)
    (vm,) = to_sample(BEFORE, replace(early, vms=(stamped,))).vms
    assert vm.memory_used_bytes == 128 * MIB


@pytest.mark.parametrize("set_by_s", [-7200, 7200])
def test_a_clock_that_was_set_does_not_put_figures_off(set_by_s: int) -> None:
    """The size was seen before the clock was set, the figures are stamped after it."""
    unix_s = UNIX_S + 10 + set_by_s
    stamped = replace(AFTER.vms[0], memory_last_update_unix_s=unix_s - 1)
    seen = {"a": Resize(512 * MIB, 108 * SECOND_NS)}
    now = replace(AFTER, unix_ns=unix_s * SECOND_NS, vms=(stamped,), resized=seen)
    (vm,) = to_sample(BEFORE, now).vms
    assert vm.memory_used_bytes == 128 * MIB


def test_more_usable_than_there_is_contradicts_itself() -> None:
    torn = replace(AFTER.vms[0], memory_usable_bytes=513 * MIB)
    (vm,) = to_sample(BEFORE, replace(AFTER, vms=(torn,))).vms
    assert vm.memory_used_bytes is None


def test_a_size_counts_from_when_it_was_first_seen() -> None:
    first = resizes({}, (VM,), 5)
    assert first == {"a": Resize(512 * MIB, 5)}, "a VM that is new counts as just resized"
    assert resizes(first, (VM,), 9) == first
    smaller = replace(VM, memory_actual_bytes=400 * MIB)
    assert resizes(first, (smaller,), 9) == {"a": Resize(400 * MIB, 9)}
    unread = replace(VM, memory_actual_bytes=None)
    assert resizes(first, (unread,), 9) == {}
