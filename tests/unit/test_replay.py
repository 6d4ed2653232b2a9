"""Recorded decisions come out the same again; what was changed, cut or is missing gets a name."""

import asyncio
from dataclasses import replace

import pytest

from controller.audit import PART_BYTES, AuditTrail, read_audit, to_export
from controller.core.chain import AuditRecord, check, in_parts, joined
from controller.core.cycle import decide
from controller.replay import replay
from controller.testing import SMALL_POLICY, make_forecast, make_snapshot, random_fleet
from shared.clock import FakeClock
from shared.errors import AuditError
from shared.resources import MIB
from shared.subjects import AUDIT_STREAM
from shared.testing import FakeBus


def recorded(cycles, policy=SMALL_POLICY, **shape):
    """The packed records of that many cycles of a fleet of two trees."""

    async def scenario():
        bus = FakeBus()
        await bus.connect()
        trail = AuditTrail(bus, FakeClock(), epoch=3)
        await trail.open()
        for cycle in range(cycles):
            machines = random_fleet(cycle, roots=2, **shape)
            snapshot = make_snapshot(machines, epoch=3, cycle=cycle)
            forecast = make_forecast(machines)
            decision = decide(snapshot, forecast, policy)
            for root in snapshot.roots():
                await trail.decision(snapshot, forecast, policy, decision, root)
            await trail.record("effect", cycle, {"moved": cycle})
        return [stored.data for stored in bus.streams[AUDIT_STREAM]]

    return asyncio.run(scenario())


def test_decisions_come_out_the_same():
    report = replay(check(recorded(5)))
    assert (report.decisions, report.differences, report.damage) == (10, (), ())
    assert report.agrees


def test_a_decision_over_several_records_is_put_together():
    packed = recorded(1, vms=9, nested=9)
    assert all(len(each) < PART_BYTES + 8192 for each in packed)
    one = check(packed).records[0]
    parts = in_parts(one.body, 1000)
    assert len(parts) > 10
    cut = tuple(replace(one, index=i, body=part) for i, part in enumerate(parts))
    assert [each.body for each in joined((one, *cut, one))] == [one.body] * 3
    log = replace(check([]), records=cut)
    assert replay(log).agrees
    headless = replay(replace(log, records=cut[1:]))
    assert headless.differences[0].what[0].endswith(f"part 1 of {len(parts)} stands alone")
    assert not headless.agrees


def test_a_large_intent_or_effect_is_cut_and_whole_again():
    async def scenario():
        bus = FakeBus()
        await bus.connect()
        trail = AuditTrail(bus, FakeClock(), epoch=1)
        await trail.open()
        body = {"steps": [{"index": i, "why": "x" * 100} for i in range(5000)]}
        await trail.record("intent", 1, body)
        await trail.record("ack", 1, {"after": True})
        stored = [each.data for each in bus.streams[AUDIT_STREAM]]
        assert len(stored) > 3 and max(map(len, stored)) < 256 * 1024
        log = await read_audit(bus)
        assert log.damage == ()
        assert [each.body for each in joined(log.records)] == [body, {"after": True}]

    asyncio.run(scenario())


def test_what_was_decided_otherwise_is_named():
    log = check(recorded(2))
    first = log.records[0]
    other = {**first.body["digests"], "bins": "0" * 64}
    tampered = replace(first, body={**first.body, "digests": other})
    report = replay(replace(log, records=(tampered, *log.records[1:])))
    assert len(report.differences) == 1
    found = report.differences[0]
    assert (found.cycle, found.root, found.what) == (0, first.body["root"], ("bins",))
    assert not report.agrees


def test_other_inputs_make_another_decision():
    """The comparison can fail: the same digests with the inputs of another policy."""
    one = check(recorded(2)).records
    two = check(recorded(2, replace(SMALL_POLICY, quantum=(100, 16 * MIB, MIB)))).records
    mixed = [
        replace(record, body={**record.body, "inputs": other.body["inputs"]})
        for record, other in zip(one, two, strict=True)
        if record.kind == "decision"
    ]
    report = replay(replace(check([]), records=tuple(mixed)))
    assert {part for each in report.differences for part in each.what} >= {"bins"}


def test_damage_of_the_log_is_reported():
    packed = recorded(3)
    report = replay(check([*packed[:2], *packed[3:]]))
    assert report.decisions == 6
    assert len(report.damage) == 1
    assert not report.agrees


def test_inputs_that_cannot_be_read_are_a_difference():
    log = check(recorded(1))
    broken = replace(log.records[0], body={**log.records[0].body, "inputs": b"\x01junk"})
    report = replay(replace(log, records=(broken, *log.records[1:])))
    assert "cannot be recomputed" in report.differences[0].what[0]


def test_nothing_to_replay_is_an_error(tmp_path):
    path = tmp_path / "audit.bin"
    path.write_bytes(to_export([AuditRecord("ack", 1, 0, 1, 1, bytes(32), {}).pack()]))
    log = asyncio.run(read_audit(path))
    with pytest.raises(AuditError, match="nothing to replay in the file: 1 records, no decision"):
        replay(log, "the file")
