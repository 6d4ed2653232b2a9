"""Which steps an agent carries out at the same time."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from agent.act import side_by_side
from agent.admission import Admitted
from agent.steps import Step
from shared.resources import Resource


def planned(index: int, vm_id: str, resource: Resource, shrinks: bool) -> Admitted:
    amounts = (200, 100) if shrinks else (100, 200)
    return Admitted(Step(index, vm_id, resource, *amounts, 0, 1000, 1000))


some_steps = st.lists(
    st.tuples(st.sampled_from("abc"), st.sampled_from(Resource), st.booleans()), max_size=12
).map(lambda rows: [planned(i, *row) for i, row in enumerate(rows)])


def test_balloons_shrink_together_though_each_vm_has_a_cpu_step_before():
    steps = [
        planned(2 * i + j, vm, resource, shrinks=True)
        for i, vm in enumerate("abcd")
        for j, resource in enumerate((Resource.CPU, Resource.MEMORY))
    ]
    groups = side_by_side(steps)
    assert [{e.step.resource for e in group} for group in groups] == [
        {Resource.CPU},
        {Resource.MEMORY},
    ]


@given(some_steps)
def test_groups_keep_all_steps_and_every_order_that_matters(steps):
    groups = side_by_side(steps)
    order = [each for group in groups for each in group]
    assert sorted(e.step.index for e in order) == list(range(len(steps)))
    place = {e.step.index: number for number, group in enumerate(groups) for e in group}
    for group in groups:
        vms = [e.step.vm_id for e in group]
        assert len(vms) == len(set(vms)), "one call at a time per VM"
        assert len({e.step.shrinks for e in group}) == 1
    for before, after in pairwise(steps):
        if before.step.shrinks != after.step.shrinks:
            assert place[before.step.index] < place[after.step.index]
    for one in steps:
        for other in steps:
            if one.step.vm_id == other.step.vm_id and one.step.index < other.step.index:
                assert place[one.step.index] < place[other.step.index]
