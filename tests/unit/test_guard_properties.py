"""What holds for every plan, every host and every shortfall."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent import guard
from agent.admission import Admitted, Readings, admit, after
from agent.guard import Accepted, Duplicate, GuardState, judge
from agent.steps import QUANTUM, Command, Header, Step, in_safe_order
from shared.clock import SECOND_NS
from shared.resources import MIB, Resource
from shared.telemetry import NodeReadings, VmSample, VmState

NOW_NS = 1000 * SECOND_NS
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


def command(*steps, fallback=(), **header):
    return Command(replace(HEADER, **header), steps, fallback)


mib = st.integers(0, 400).map(lambda n: n * MIB)
maybe_mib = st.none() | mib


@st.composite
def worlds(draw):
    vms = {}
    for vm_id in draw(st.sets(st.sampled_from("abcd"), min_size=1)):
        limit = draw(st.integers(16, 400)) * MIB
        vms[vm_id] = VmSample(
            vm_id,
            vm_id,
            state=draw(st.sampled_from([VmState.RUNNING] * 4 + [VmState.PAUSED])),
            memory_limit_bytes=limit,
            memory_maximum_bytes=max(limit, draw(mib)),
            memory_used_bytes=draw(maybe_mib),
            memory_free_bytes=draw(maybe_mib),
            memory_cache_bytes=draw(maybe_mib),
            memory_stats_age_ns=draw(st.sampled_from([None, 0, SECOND_NS, 60 * SECOND_NS])),
            cpu_limit_millicores=draw(st.integers(100, 4000)),
            cpu_maximum_millicores=4000,
        )
    node = NodeReadings(
        memory_allocatable_bytes=draw(st.none() | st.integers(0, 1600).map(lambda n: n * MIB)),
        cpu_allocatable_millicores=draw(st.integers(0, 8000)),
    )
    return Readings(node, vms, stats_age_ns_max=30 * SECOND_NS)


@st.composite
def plans(draw, readings):
    """Steps that mostly start from what is in force, as a controller's do."""
    steps = []
    for index in range(draw(st.integers(0, 6))):
        vm_id = draw(st.sampled_from("abcde"))
        resource = draw(st.sampled_from([Resource.MEMORY, Resource.MEMORY, Resource.CPU]))
        unit = MIB if resource is Resource.MEMORY else 10
        limit = _limit(readings, vm_id, resource) or 0
        start = draw(st.sampled_from([limit, limit, limit, limit + 100 * unit]))
        target = draw(st.integers(0, 450)) * unit
        steps.append(Step(index, vm_id, resource, start, target, 0, 2**40))
    return tuple(steps)


def _limit(readings, vm_id, resource):
    vm = readings.vms.get(vm_id)
    if vm is None:
        return None
    return vm.memory_limit_bytes if resource is Resource.MEMORY else vm.cpu_limit_millicores


def _totals(readings):
    return {
        resource: sum(_limit(readings, vm_id, resource) for vm_id in readings.vms)
        for resource in (Resource.CPU, Resource.MEMORY)
    }


def _bounds(readings):
    totals = _totals(readings)
    return {
        Resource.CPU: max(totals[Resource.CPU], readings.node.cpu_allocatable_millicores or 0),
        Resource.MEMORY: max(totals[Resource.MEMORY], readings.node.memory_allocatable_bytes or 0),
    }


def _assert_within(readings, bounds):
    totals = _totals(readings)
    assert all(totals[resource] <= bounds[resource] for resource in bounds)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_accepted_sequence_breaks_capacity_or_a_floor_at_any_prefix(data):
    readings = data.draw(worlds())
    bounds = _bounds(readings)
    told = command(*data.draw(plans(readings)))
    _, verdict = judge(told, GuardState(), NOW_NS, readings)
    assert isinstance(verdict, Accepted)
    indexes = [a.step.index for a in verdict.steps] + [r.index for r in verdict.refusals]
    assert sorted(indexes) == [step.index for step in told.steps]
    for admitted in verdict.steps:
        _assert_allowed(admitted.step, readings)
        readings = after(readings, admitted.step)
        _assert_within(readings, bounds)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_capacity_holds_when_effects_fall_short(data):
    """What the executor does: every step is admitted again on what was really measured."""
    readings = data.draw(worlds())
    bounds = _bounds(readings)
    told = command(*data.draw(plans(readings)))
    _, verdict = judge(told, GuardState(), NOW_NS, readings)
    fell_short = False
    for planned in verdict.steps:
        admitted = admit(planned.step, readings, may_cut=fell_short)
        if not isinstance(admitted, Admitted):
            fell_short = True
            continue
        step = admitted.step
        _assert_allowed(step, readings)
        share = data.draw(st.sampled_from([0, 1, 2, 4])) / 4
        limit = _limit(readings, step.vm_id, step.resource)
        reached = limit + int((step.to_amount - limit) * share)
        fell_short |= reached != step.to_amount
        readings = after(readings, replace(step, to_amount=reached))
        _assert_within(readings, bounds)


def _assert_allowed(step, readings):
    vm = readings.vms[step.vm_id]
    assert vm.state is VmState.RUNNING
    limit = _limit(readings, step.vm_id, step.resource)
    if step.resource is Resource.MEMORY:
        assert vm.memory_stats_age_ns is not None
        assert vm.memory_stats_age_ns <= readings.stats_age_ns_max
        if step.to_amount < limit:
            margin = max(64 * MIB, limit // 20)
            assert step.to_amount >= vm.memory_used_bytes + margin
            taken_cache = limit - step.to_amount - vm.memory_free_bytes
            assert taken_cache <= limit // 20
            assert taken_cache <= (vm.memory_cache_bytes or 0)


@settings(deadline=None)
@given(st.data())
def test_no_command_acts_twice(data):
    readings = data.draw(worlds())
    told = command(*data.draw(plans(readings)))
    state, verdict = judge(told, GuardState(), NOW_NS, readings)
    ack = guard.accepted_ack(told, verdict.refusals, state.generation, NOW_NS)
    state = guard.finished(state, ack)
    again = replace(told.header, sequence=data.draw(st.integers(0, 9)), epoch=9)
    assert judge(replace(told, header=again), state, NOW_NS, readings) == (state, Duplicate(ack))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_after_the_lease_nothing_shrinks_and_capacity_holds(data):
    readings = data.draw(worlds())
    bounds = _bounds(readings)
    targets = st.dictionaries(
        st.tuples(st.sampled_from("abcde"), st.sampled_from([Resource.CPU, Resource.MEMORY])),
        st.integers(0, 400).map(lambda n: n * MIB),
    )
    state = GuardState(lease_until_tick_ns=NOW_NS, fallback=data.draw(targets))
    for _ in range(40):
        steps = guard.on_lease_end(state, readings)
        if not steps:
            break
        for step in steps:
            limit = _limit(readings, step.vm_id, step.resource)
            assert step.to_amount >= limit + QUANTUM[step.resource]
            assert step.to_amount <= max(limit, state.fallback[step.lever])
            readings = after(readings, step)
            _assert_within(readings, bounds)
    else:
        pytest.fail("the walk does not end")


@given(st.data())
def test_executed_order_is_the_safe_order(data):
    readings = data.draw(worlds())
    told = command(*data.draw(plans(readings)))
    _, verdict = judge(told, GuardState(), NOW_NS, readings)
    places = {step.index: place for place, step in enumerate(in_safe_order(told.steps))}
    order = [places[admitted.step.index] for admitted in verdict.steps]
    assert order == sorted(order)
