"""Whatever agents do with commands, nothing is granted twice. One seed, one story.

A world of true limits is moved by random agents: they do a step whole, in part, late, not at all,
refuse it, or never answer although they did it. After every single change the true limits must
keep I1 at every host, and the way back must fit (I9).
"""

import random
from dataclasses import dataclass, replace

import pytest

from controller.core.cycle import decide
from controller.core.state import MISSING, Mode, Plan, Policy, Snapshot, Step, VerifiedPlan
from controller.ledger import Ledger
from controller.outcome import Result
from controller.progress import Progress
from controller.testing import (
    SMALL_POLICY,
    Machine,
    host,
    make_forecast,
    make_snapshot,
    random_fleet,
)
from shared.pb import commands_pb2 as pb
from shared.resources import GIB, MIB, Resource

SEEDS = range(120)


@dataclass
class World:
    """True limits, and agents with moods."""

    snapshot: Snapshot
    plan: Plan
    rng: random.Random

    def __post_init__(self):
        self.limit = self.snapshot.limit.copy()
        self.fallback = {(e.machine, e.resource): e.amount for e in self.plan.fallback}
        self.over_before = set(self.crowded())
        self.late: list[Step] = []

    def crowded(self):
        """Hosts and resources whose true limits do not fit (I1), or whose way back does not."""
        for host_index in range(len(self.snapshot.ids)):
            children = self.snapshot.children(host_index)
            for resource in Resource:
                limits = {child: int(self.limit[child, resource]) for child in children}
                if not limits or MISSING in limits.values():
                    continue
                amount = self.capacity(host_index, resource)
                overhead = int(self.snapshot.overhead[host_index, resource])
                reserve = int(self.snapshot.reserve[host_index, resource])
                back = sum(max(a, self.fallback.get((c, resource), 0)) for c, a in limits.items())
                if sum(limits.values()) + overhead + reserve > amount:
                    yield "I1", host_index, resource
                elif back > sum(limits.values()) and back + overhead > amount:
                    yield "I9", host_index, resource

    def capacity(self, index: int, resource: Resource) -> int:
        root = self.snapshot.parent[index] < 0
        table = self.snapshot.capacity if root else self.limit
        return int(table[index, resource])

    def move(self, step: Step, amount: int):
        self.limit[step.machine, step.resource] = amount
        new = set(self.crowded()) - self.over_before
        assert not new, f"{new} after {step.vm_id} {step.resource.word} -> {amount}"

    def answer(self, step: Step) -> pb.StepResult:
        """Does something or nothing, and says so as an agent would."""
        before = int(self.limit[step.machine, step.resource])
        part = (step.from_amount + step.to_amount) // 2
        mood = self.rng.choice(["applied", "applied", "applied", "partial", "late", "none", "no"])
        outcome, after = {
            "applied": (pb.OUTCOME_APPLIED, step.to_amount),
            "partial": (pb.OUTCOME_PARTIAL, part),
            "late": (pb.OUTCOME_FAILED, before),
            "none": (pb.OUTCOME_NO_EFFECT, before),
            "no": (pb.OUTCOME_REFUSED, before),
        }[mood]
        if mood in {"late", "none", "partial"}:
            self.late.append(step)  # the hypervisor has it, and may still do it
        self.move(step, after)
        return pb.StepResult(
            index=step.index, outcome=outcome, before_amount=before, after_amount=after
        )

    def surprise(self):
        """Some of what was asked for and did not happen happens now."""
        self.rng.shuffle(self.late)
        while self.late and self.rng.random() < 0.5:
            step = self.late.pop()
            self.move(step, step.to_amount)


@pytest.mark.parametrize("seed", SEEDS)
def test_no_story_of_acknowledgements_grants_anything_twice(seed):
    for verdict, snapshot in _plans(seed):
        outcome = _carry_out(seed, verdict, snapshot)
        assert len(outcome.steps) == len(verdict.plan.steps)


def test_without_the_ledger_the_same_stories_do_grant_twice():
    """The counterexample: what shows that the test above can fail."""
    broken = 0
    for seed in SEEDS:
        for verdict, snapshot in _plans(seed):
            try:
                _carry_out(seed, verdict, snapshot, ledger=Trusting)
            except AssertionError:
                broken += 1
    assert broken > 0


class Trusting(Ledger):
    """Believes that every command did what it asked for."""

    def admit(self, step: Step) -> tuple[Step | None, str]:
        return step, ""


def test_the_stories_move_much_and_hold_much():
    """The stories above are worth something: plans were nested, cut, held and stopped."""
    results = [one.result for seed in SEEDS for one in _outcomes(seed)]
    for result in (Result.APPLIED, Result.HELD, Result.PARTIAL, Result.UNKNOWN, Result.NOT_SENT):
        assert results.count(result) > 5, result


def _plans(seed: int):
    machines = _filled(random_fleet(seed, roots=1, vms=6, nested=2))
    snapshot = make_snapshot(machines)
    decision = decide(snapshot, make_forecast(machines), SMALL_POLICY)
    for tree in decision.trees:
        if isinstance(tree.verdict, VerifiedPlan):
            yield tree.verdict, snapshot


def _filled(machines: list[Machine]) -> list[Machine]:
    """The same fleet on a host that is given out to the last byte, so that grows need shrinks."""
    children = [m.limit for m in machines if m.parent == machines[0].name]
    if any(memory is None for _, memory, _ in children):
        return machines
    cpu, memory = (sum(limit[r] or 0 for limit in children) for r in (0, 1))
    return [replace(machines[0], capacity=(cpu, memory, None)), *machines[1:]]


def _outcomes(seed: int):
    for verdict, snapshot in _plans(seed):
        yield from _carry_out(seed, verdict, snapshot).steps


def _carry_out(seed: int, verdict: VerifiedPlan, snapshot: Snapshot, ledger: type[Ledger] = Ledger):
    rng = random.Random(seed)
    world = World(snapshot, verdict.plan, rng)
    progress = Progress(verdict.plan, snapshot, SMALL_POLICY)
    progress.ledger = ledger(verdict.plan, snapshot, SMALL_POLICY)
    for phase in sorted({step.phase for step in verdict.plan.steps}):
        batches = progress.begin(phase)
        rng.shuffle(batches)
        for node, steps in batches:
            fate = rng.random()
            if fate < 0.06:
                for step in steps:  # done or not, nobody hears of it
                    world.late.append(step)
                progress.lost("lost", steps, Result.UNKNOWN, "no answer")
            elif fate < 0.1:
                progress.lost("lost", steps, Result.NOT_SENT, "not connected")
            else:
                results = [world.answer(step) for step in steps]
                progress.answered(node, steps, pb.Ack(accepted=True, results=results))
            world.surprise()
        if progress.stopped:
            break
    while world.late:
        world.surprise()
    return progress.outcome()


def test_a_hypervisor_vm_does_not_shrink_below_what_its_guests_still_hold():
    snapshot, plan = _nested_shrink()
    progress = Progress(plan, snapshot, Policy())
    [(node, [guest_step])] = progress.begin(0)
    result = pb.StepResult(index=0, outcome=pb.OUTCOME_REFUSED, after_amount=256 * MIB)
    progress.answered(node, [guest_step], pb.Ack(accepted=True, results=[result]))
    assert progress.begin(1) == []
    held = progress.outcome().steps[1]
    assert held.result is Result.HELD
    assert "guests to give back" in held.detail


def test_a_hypervisor_vm_shrinks_when_its_guests_have():
    snapshot, plan = _nested_shrink()
    progress = Progress(plan, snapshot, Policy())
    [(node, [guest_step])] = progress.begin(0)
    result = pb.StepResult(index=0, outcome=pb.OUTCOME_APPLIED, after_amount=156 * MIB)
    progress.answered(node, [guest_step], pb.Ack(accepted=True, results=[result]))
    assert [steps[0].index for _, steps in progress.begin(1)] == [1]


def test_a_grow_is_cut_to_what_a_partial_shrink_really_freed():
    snapshot = make_snapshot([host("h", memory=512 * MIB), _vm("a", 256), _vm("b", 256)])
    steps = (_step(0, 0, 1, 256, 56), _step(1, 1, 2, 256, 456))
    ledger = Ledger(_plan(steps), snapshot, Policy())
    shrink, _ = ledger.admit(steps[0])
    assert shrink is not None
    ledger.settle(shrink, Result.PARTIAL, 106 * MIB)
    grow, _ = ledger.admit(steps[1])
    assert grow is not None
    assert grow.to_amount == (256 + 100) * MIB  # 150 MiB came free: one whole quantum of 100
    assert "cut" in grow.why


def test_a_grow_waits_when_the_shrink_that_feeds_it_is_unknown():
    snapshot = make_snapshot([host("h", memory=512 * MIB), _vm("a", 256), _vm("b", 256)])
    steps = (_step(0, 0, 1, 256, 56), _step(1, 1, 2, 256, 456))
    ledger = Ledger(_plan(steps), snapshot, Policy())
    assert ledger.admit(steps[0])[0] is not None
    ledger.settle(steps[0], Result.UNKNOWN, None)
    grow, why = ledger.admit(steps[1])
    assert grow is None
    assert "waiting for confirmed memory" in why


def _vm(name: str, limit_mib: int, parent: str = "h", mode: Mode = Mode.ENFORCE) -> Machine:
    limits = (1000, limit_mib * MIB, None)
    return Machine(name, parent, limit=limits, maximum=(1000, GIB, None), mode=mode)


def _step(index: int, phase: int, machine: int, before: int, after: int, node: int = 0) -> Step:
    return Step(
        index, phase, machine, f"vm {machine}", node, Resource.MEMORY, before * MIB, after * MIB,
        0, GIB, "because",
    )  # fmt: skip


def _plan(steps: tuple[Step, ...]) -> Plan:
    return Plan("p", 0, 1, 1, steps, (), ((0, 0), (1, 0)))


def _nested_shrink():
    machines = [host("h"), _vm("l1", 300), _vm("l2", 256, parent="l1")]
    steps = (_step(0, 0, 2, 256, 156, node=1), _step(1, 1, 1, 300, 200))
    return make_snapshot(machines), _plan(steps)
