"""What holds for every host, every plan and every story of signals: no loan harms anybody else."""

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.admission import Admitted, Readings, admit
from agent.belief import Heard, Signals, VmSignals
from agent.leash import Bounds, Grant, Leash
from agent.loans import ReflexState, settled
from agent.look import CPU_STRIDE_MILLICORES, MOVE_AGAIN_NS, Rules
from agent.reflex import reflect
from agent.steps import QUANTUM, Outcome, StepResult, limit_of, with_limit
from shared.clock import SECOND_NS
from shared.guest_word import GuestWord
from shared.resources import MIB, Resource
from shared.telemetry import NodeReadings, VmSample, VmState

MEMORY, CPU = Resource.MEMORY, Resource.CPU
UNIT = {MEMORY: MIB, CPU: 1}
NAMES = "abc"


@st.composite
def hosts(draw):
    """VMs, and a plan that fits: limits and fallbacks with the reserve within what there is."""
    vms, leash, fallback, total = {}, {}, {}, {MEMORY: 0, CPU: 0}
    for name in NAMES[: draw(st.integers(1, 3))]:
        limit = {MEMORY: draw(st.integers(64, 600)) * MIB, CPU: draw(st.integers(100, 3000))}
        vms[name] = VmSample(
            name,
            name,
            state=draw(st.sampled_from([VmState.RUNNING] * 5 + [VmState.STARTING])),
            memory_limit_bytes=limit[MEMORY],
            memory_maximum_bytes=1024 * MIB,
            cpu_limit_millicores=limit[CPU],
            cpu_maximum_millicores=4000,
        )
        for resource in (MEMORY, CPU):
            plan = limit[resource]
            if draw(st.integers(0, 4)):
                low = draw(st.integers(0, plan // UNIT[resource])) * UNIT[resource]
                high = plan + draw(st.integers(0, 800)) * UNIT[resource]
                leash[name, resource] = Leash(low, high, plan)
            back = max(0, plan + draw(st.integers(-100, 100)) * UNIT[resource])
            fallback[name, resource] = back
            total[resource] += max(plan, back)
    reserve = {resource: draw(st.integers(0, 900)) * UNIT[resource] for resource in (MEMORY, CPU)}
    slack = {resource: draw(st.integers(0, 400)) * UNIT[resource] for resource in (MEMORY, CPU)}
    node = NodeReadings(
        memory_allocatable_bytes=total[MEMORY] + slack[MEMORY],
        cpu_allocatable_millicores=total[CPU] + slack[CPU],
    )
    grant = Grant(Bounds(leash, reserve), 1, fallback)
    return Readings(node, vms, 30 * SECOND_NS), grant


@st.composite
def figures(draw, vm):
    """What guest and host say of it next: whatever."""
    limit = vm.memory_limit_bytes
    used = draw(st.none() | st.integers(0, limit // MIB).map(lambda n: n * MIB))
    return replace(
        vm,
        memory_used_bytes=used,
        memory_free_bytes=None if used is None else limit - used,
        memory_cache_bytes=0,
        memory_resident_bytes=draw(st.none() | st.integers(0, 1200).map(lambda n: n * MIB)),
        memory_stats_age_ns=draw(st.sampled_from([None, 0, 0, 60 * SECOND_NS])),
        cpu_used_millicores=draw(st.none() | st.integers(0, 4000)),
    )


@st.composite
def signals(draw, now):
    vms = {}
    for name in NAMES:
        asked, cpu = draw(st.sampled_from([0, 10, 10**6])), draw(st.sampled_from([0, 10**6]))
        word = GuestWord("boot", 1, None, asked * MIB, cpu)
        heard = draw(st.sampled_from([None, Heard(word, now), Heard(word, now - 9 * SECOND_NS)]))
        throttled = draw(st.sampled_from([None, 0, 500_000]))
        vms[name] = VmSignals(heard, throttled, now)
    return Signals(vms, is_pressed=draw(st.sampled_from([False, False, True])))


def limits(readings, resource):
    return {name: limit_of(vm, resource, readings.node) for name, vm in readings.vms.items()}


class Story:
    """Looks one after the other; between them moves end, in part, late or not at all."""

    def __init__(self, readings, grant):
        self.readings, self.grant, self.state = readings, grant, ReflexState()
        self.now = 1000 * SECOND_NS
        self.under_way = []
        self.moved = {}  # lever -> tick of the last shrink

    def spoken_for(self):
        """As agent.ledger has it: what grows counts with where it goes."""
        readings = self.readings
        for step in self.under_way:
            if not step.shrinks:
                vm = with_limit(readings.vms[step.vm_id], step.resource, step.to_amount)
                readings = replace(readings, vms={**readings.vms, step.vm_id: vm})
        return readings

    def look(self, told):
        self.state, steps = reflect(
            self.state, self.grant, told, self.spoken_for(), Rules(), self.now
        )
        self.under_way += steps
        return steps

    def end(self, step, share):
        """A move ends as the executor would end it, with this share of the way gone."""
        self.under_way.remove(step)
        lever, resource = step.lever, step.resource
        before = limits(self.readings, resource)[step.vm_id]
        admitted = admit(step, replace(self.spoken_for(), quarantined={}), may_cut=True)
        reached = before
        if isinstance(admitted, Admitted):
            reached = before + int((admitted.step.to_amount - before) * share)
            vm = with_limit(self.readings.vms[step.vm_id], resource, reached)
            self.readings = replace(self.readings, vms={**self.readings.vms, step.vm_id: vm})
            if reached != before:
                self.grant = replace(self.grant, lent=self.grant.lent | {lever})
        result = StepResult(0, Outcome.PARTIAL, "", before, reached)
        self.state = settled(self.state, (step,), (result,), self.now)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_story_of_signals_harms_anybody(data):
    story = Story(*data.draw(hosts()))
    for _ in range(data.draw(st.integers(1, 12))):
        story.now += data.draw(st.sampled_from([1, 1, 4, 40])) * SECOND_NS // 4
        vms = {name: data.draw(figures(vm)) for name, vm in story.readings.vms.items()}
        story.readings = replace(story.readings, vms=vms, tick_ns=story.now)
        before = {step.lever for step in story.under_way}
        steps = story.look(data.draw(signals(story.now)))
        assert len({step.lever for step in steps}) == len(steps)
        for step in steps:
            assert step.lever not in before, "one that is on its way is left alone"
            check_leash_and_rate(step, story)
        check_room(story)
        for step in tuple(story.under_way):
            if data.draw(st.booleans()):
                story.end(step, data.draw(st.sampled_from([0.0, 0.5, 1.0])))
                check_room(story)


def check_leash_and_rate(step, story):
    leash = story.grant.bounds.leash[step.lever]
    assert leash.low_amount <= step.to_amount <= leash.high_amount
    change = step.to_amount - step.from_amount
    assert change != 0
    if step.resource is MEMORY:
        most = max(64 * MIB, step.from_amount // 4)
        assert abs(change) <= most or step.to_amount == leash.plan_amount
    elif story.readings.vms[step.vm_id].state is VmState.RUNNING and change > 0:
        assert change <= max(CPU_STRIDE_MILLICORES, step.from_amount // 2)
    if step.shrinks:
        assert story.readings.vms[step.vm_id].state is VmState.RUNNING
        last = story.moved.get(step.lever)
        assert last is None or story.now - last >= MOVE_AGAIN_NS
        story.moved[step.lever] = story.now


def check_room(story):
    """I1, I9 and the reserve, with all that is on its way."""
    readings, bounds = story.spoken_for(), story.grant.bounds
    for resource, allocatable in (
        (MEMORY, readings.node.memory_allocatable_bytes),
        (CPU, readings.node.cpu_allocatable_millicores),
    ):
        now = limits(readings, resource)
        assert sum(now.values()) <= allocatable
        back = story.grant.fallback
        assert sum(max(now[n], back.get((n, resource), 0)) for n in now) <= allocatable
        lent = sum(
            max(0, amount - bounds.leash[name, resource].plan_amount)
            for name, amount in now.items()
            if (name, resource) in bounds.leash
        )
        assert lent <= bounds.reserve[resource]
        for name, amount in now.items():
            leash = bounds.leash.get((name, resource))
            if leash is not None:  # a plan's own is never taken but in a squeeze, to the leash
                assert amount >= min(leash.low_amount, leash.plan_amount) - QUANTUM[resource]
