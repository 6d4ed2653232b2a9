"""Records give back the very same inputs; digests change with everything that they speak of."""

from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.core import record
from controller.core.chain import AuditRecord, check, hash_of, unpack
from controller.core.cycle import decide
from controller.core.state import Decision, Policy, Rejection, Snapshot, TreeDecision
from controller.testing import SMALL_POLICY, make_forecast, make_snapshot, random_fleet
from shared.errors import WireError
from shared.wire import pack_record


def inputs(seed, roots=2, **shape):
    machines = random_fleet(seed, roots=roots, **shape)
    return make_snapshot(machines), make_forecast(machines), SMALL_POLICY


def same(one, other):
    for each in fields(one):
        left, right = getattr(one, each.name), getattr(other, each.name)
        if isinstance(left, np.ndarray):
            assert left.dtype == right.dtype, each.name
            np.testing.assert_array_equal(left, right, err_msg=each.name)
        else:
            assert left == right, each.name
            assert type(left) is type(right), each.name


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 3))
def test_inputs_come_back_exactly(seed, roots):
    given_ = inputs(seed, roots) if roots else (make_snapshot([]), make_forecast([]), Policy())
    for one, other in zip(given_, record.unpack_inputs(record.pack_inputs(*given_)), strict=True):
        same(one, other)


def test_large_inputs_are_compressed_and_come_back():
    given_ = inputs(1, roots=9, vms=9, nested=8)
    packed = record.pack_inputs(*given_)
    assert packed[:1] == b"\x01"
    assert len(packed) < len(pack_record(record.to_record(*given_))) / 2
    same(given_[0], record.unpack_inputs(packed)[0])


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 2000))
def test_bytes_of_strangers_are_refused_in_words(noise, cut):
    packed = record.pack_inputs(*inputs(3, roots=1, vms=1, nested=0))
    for data in (noise, packed[:cut], packed[:cut] + noise + packed[cut + len(noise) + 1 :]):
        try:
            snapshot, _, _ = record.unpack_inputs(data)
        except WireError:
            continue
        assert isinstance(snapshot, Snapshot)  # other figures, still inputs; nothing else comes


def test_a_tree_alone_is_decided_as_among_others():
    """What replay relies on: a record holds one tree, and its digests are those of the fleet."""
    for seed in range(12):
        snapshot, forecast, policy = inputs(seed, roots=3, vms=4)
        whole = decide(snapshot, forecast, policy)
        for root in snapshot.roots():
            few, its_forecast = record.tree(snapshot, forecast, root)
            alone = decide(few, its_forecast, policy)
            assert record.digests(alone, few, 0) == record.digests(whole, snapshot, root)
            assert few.ids[0] == snapshot.ids[root]


def changed(value):
    """`value` made different, whatever kind of value it is."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, str):
        return value + "x"
    if isinstance(value, float):
        return value + 1.0
    if isinstance(value, int):
        return type(value)((int(value) + 1) % 3) if type(value) is not int else value + 1
    raise AssertionError(f"{type(value)} is not known here")


def decided_with_steps():
    for seed in range(100):
        snapshot, forecast, policy = inputs(seed, roots=1)
        decision = decide(snapshot, forecast, policy)
        plan = decision.trees[0].verdict.plan
        if plan.steps and plan.fallback:
            return snapshot, decision
    raise AssertionError("no fleet with a plan among them")


def test_the_digest_changes_with_every_field_of_a_step_fallback_and_plan():
    snapshot, decision = decided_with_steps()
    verdict = decision.trees[0].verdict
    plan = verdict.plan
    before = record.digest(decision, snapshot)
    others = []
    for place, name in ((plan.steps, "steps"), (plan.fallback, "fallback")):
        for each in fields(place[0]):
            if each.name in {"machine", "node"}:
                other = len(snapshot.ids) - 1 - getattr(place[0], each.name)
            else:
                other = changed(getattr(place[0], each.name))
            item = replace(place[0], **{each.name: other})
            others.append(replace(plan, **{name: (item, *place[1:])}))
    others += [
        replace(plan, **{name: changed(getattr(plan, name))}) for name in ("plan_id", "cycle")
    ]
    others.append(replace(plan, steps=plan.steps[:-1]))
    others.append(replace(plan, generations=((0, 99),)))
    for other in others:
        tree = TreeDecision(0, replace(verdict, plan=other), decision.trees[0].advice)
        assert record.digest(replace(decision, trees=(tree,)), snapshot) != before, other
    rejected = TreeDecision(0, Rejection(plan, ()), decision.trees[0].advice)
    assert record.digest(replace(decision, trees=(rejected,)), snapshot) != before


@pytest.mark.parametrize(
    ("part", "name"),
    [("bins", n) for n in ("level", "probability", "needed", "lowest", "count")]
    + [("allocation", n) for n in ("level", "value", "total", "price")],
)
def test_the_digest_changes_with_bins_and_allocation(part, name):
    snapshot, decision = decided_with_steps()
    before = record.digests(decision, snapshot, 0)
    value = getattr(getattr(decision, part), name).copy()
    busy = decision.bins.count > 0
    place = tuple(np.argwhere(busy)[0]) if value.ndim > 1 and len(value) == len(busy) else (0,)
    if name == "price":
        value[0, 0] = 123.5
    else:
        value[place] += 1
    other: Decision = replace(decision, **{part: replace(getattr(decision, part), **{name: value})})
    after = record.digests(other, snapshot, 0)
    assert after[part] != before[part]
    assert after["verdict"] == before["verdict"]


# ---- the chain ----


def chain_of(count, epoch=1, previous=bytes(32)):
    packed = []
    for index in range(count):
        packed.append(AuditRecord("ack", epoch, index, 7, 123, previous, {"n": index}).pack())
        previous = hash_of(packed[-1])
    return packed


def test_a_whole_chain_over_two_epochs_is_sound():
    first = chain_of(4)
    second = chain_of(3, epoch=2, previous=hash_of(first[2]))
    log = check([*first, *second])  # the older controller wrote one more before it gave up
    assert (log.damage, log.beginning, len(log.records)) == ((), True, 7)
    assert log.records[5].body == {"n": 1}
    assert check([*first[:3], second[0], first[3], *second[1:]]).damage == ()


def test_a_record_sent_twice_counts_once():
    packed = chain_of(3)
    log = check([packed[0], packed[1], packed[1], packed[2]])
    assert (log.damage, len(log.records)) == ((), 3)


def test_a_log_whose_beginning_is_gone_says_so_and_is_no_damage():
    log = check(chain_of(5)[2:])
    assert (log.damage, log.beginning) == ((), False)


def test_a_missing_record_is_named():
    packed = chain_of(6)
    damage = check([*packed[:2], *packed[4:]]).damage
    assert damage == ("record 1-4 follows 1-1: 2 records between them are missing",)
    first, second = chain_of(2), chain_of(2, epoch=2, previous=hash_of(b"never there"))
    assert check([*first, *second]).damage == ("record 2-0 follows one that is not there",)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 3), st.data())
def test_any_single_change_shows(which, data):
    packed = chain_of(5)
    at = data.draw(st.integers(0, len(packed[which]) - 1))
    flipped = bytearray(packed[which])
    flipped[at] ^= 1 << data.draw(st.integers(0, 7))
    packed[which] = bytes(flipped)
    log = check(packed)
    assert log.damage


def test_an_exchange_shows():
    packed = chain_of(5)
    assert check([packed[0], packed[2], packed[1], *packed[3:]]).damage


def test_unpack_refuses_what_is_no_record():
    packed = chain_of(1)[0]
    assert unpack(packed).record_id == "1-0"
    for data in (b"", b"\x80", packed[:-1], packed.replace(b"epoch", b"epoxy")):
        with pytest.raises(WireError):
            unpack(data)
