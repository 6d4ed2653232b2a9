"""The audit trail on a real NATS server: acknowledged first, whole after restarts and kills."""

import asyncio
from contextlib import asynccontextmanager

import pytest
from click.testing import CliRunner

from controller.audit import AuditTrail, export_audit, read_audit
from controller.core.chain import check
from controller.core.cycle import decide
from controller.core.state import VerifiedPlan
from controller.ctl import cli
from controller.replay import replay
from controller.testing import SMALL_POLICY, make_forecast, make_snapshot, random_fleet
from shared.bus import NatsBus
from shared.clock import SystemClock
from shared.errors import AuditError, BusError
from shared.testing import NatsServer, until


@pytest.fixture
def server():
    with NatsServer() as running:
        yield running


@asynccontextmanager
async def connected(server):
    bus = NatsBus([server.url], "controller", lambda error: None)
    await bus.connect()
    try:
        assert await bus.wait_connected(10)
        yield bus
    finally:
        await bus.close()


async def opened(bus, epoch, **said):
    trail = AuditTrail(bus, SystemClock(), epoch, **said)
    await trail.open()
    return trail


def verified():
    for seed in range(100):
        machines = random_fleet(seed)
        decision = decide(make_snapshot(machines), make_forecast(machines), SMALL_POLICY)
        verdict = decision.trees[0].verdict
        if isinstance(verdict, VerifiedPlan) and verdict.plan.steps:
            return verdict
    raise AssertionError("no fleet with a plan among them")


def test_an_intent_is_on_the_record_before_it_is_a_plan_to_send(server):
    async def scenario():
        async with connected(server) as bus:
            trail = await opened(bus, 1)
            audited = await trail.intent(verified())
            assert audited.verified == verified()
            log = await read_audit(bus)
            assert [record.kind for record in log.records] == ["intent"]
            assert log.records[0].record_id == audited.record_id
            assert audited.stream_sequence == 1
            assert log.records[0].body["plan_id"] == verified().plan.plan_id
            assert len(log.records[0].body["steps"]) == len(verified().plan.steps)

    asyncio.run(scenario())


def test_without_the_server_there_is_no_audited_plan(server):
    async def scenario():
        async with connected(server) as bus:
            trail = await opened(bus, 1, timeout_s=0.5)
            await trail.record("ack", 1, {"n": 1})
            server.kill()
            await until(lambda: not bus.connected)
            with pytest.raises(AuditError, match="intent record 1-1 is not acknowledged"):
                await trail.intent(verified())
            server.start()
            assert await bus.wait_connected(10)
            audited = await trail.intent(verified())
            log = await read_audit(bus)
            # The one that nobody acknowledged was sent again first: the chain has no hole.
            assert [record.record_id for record in log.records] == ["1-0", "1-1", "1-2"]
            assert (log.damage, audited.record_id) == ((), "1-2")

    asyncio.run(scenario())


def test_a_trail_opened_again_goes_on_from_its_own_last_record(server):
    async def scenario():
        async with connected(server) as bus:
            first = await opened(bus, 1)
            await first.record("ack", 1, {})
            second = await opened(bus, 2)
            await second.record("ack", 1, {})
            await first.open()  # as after a loss of the bus
            await first.record("ack", 2, {})
            log = await read_audit(bus)
            assert (log.damage, len(log.records)) == ((), 3)

    asyncio.run(scenario())


def test_a_later_controller_goes_on_from_the_newest_record(server, tmp_path):
    async def scenario():
        async with connected(server) as bus:
            first = await opened(bus, 1)
            await first.record("override", 1, {"by": "somebody"})
            second = await opened(bus, 2)
            await first.record("ack", 1, {})  # the first one does not know yet
            await second.record("ack", 2, {})
            log = await read_audit(bus)
            assert (log.damage, log.beginning) == ((), True)
            assert [record.record_id for record in log.records] == ["1-0", "1-1", "2-0"]
            path = tmp_path / "audit.bin"
            assert await export_audit(bus, path) == 3
            assert await read_audit(path) == log
            path.write_bytes(path.read_bytes()[:-5])
            assert "cannot be read" in (await read_audit(path)).damage[0]

    asyncio.run(scenario())


def test_recorded_decisions_replay_from_the_stream(server):
    async def scenario():
        machines = random_fleet(5, roots=2, vms=9, nested=9)
        snapshot, forecast = make_snapshot(machines), make_forecast(machines)
        decision = decide(snapshot, forecast, SMALL_POLICY)
        async with connected(server) as bus:
            trail = await opened(bus, 1)
            for root in snapshot.roots():
                await trail.decision(snapshot, forecast, SMALL_POLICY, decision, root)
            report = replay(await read_audit(bus))
        assert (report.decisions, report.agrees) == (2, True)

    asyncio.run(scenario())


def test_kills_while_writing_leave_a_whole_chain(server):
    async def scenario():
        written = []
        async with connected(server) as bus:
            trail = await opened(bus, 1, timeout_s=1.0, attempts=1)

            async def write():
                while len(written) < 300:
                    try:
                        written.append((await trail.record("effect", 1, {})).record_id)
                    except AuditError:
                        await asyncio.sleep(0.01)  # lets the bus notice

            writing = asyncio.create_task(write())
            for goal in (60, 120, 180):
                await until(lambda goal=goal: len(written) >= goal or writing.done(), 20)
                server.kill()
                server.start()
            await asyncio.wait_for(writing, 30)
            log = await read_audit(bus)
        assert log.damage == ()
        assert set(written) <= {record.record_id for record in log.records}

    asyncio.run(scenario())


def test_a_source_that_is_no_audit_is_refused(server, tmp_path):
    async def scenario():
        async with connected(server) as bus:
            with pytest.raises(AuditError, match="cannot be read"):
                await read_audit(bus)
            await bus.close()
            with pytest.raises(AuditError, match="cannot be opened"):
                await opened(bus, 1)
            with pytest.raises(BusError):
                await bus.publish_acknowledged("paq.audit.ack", b"", "1")
        other = tmp_path / "other.bin"
        other.write_bytes(b"something else")
        with pytest.raises(AuditError, match="no exported audit log"):
            await read_audit(other)
        with pytest.raises(AuditError, match="No such file"):
            await read_audit(tmp_path / "nowhere")
        assert check([]).records == ()

    asyncio.run(scenario())


def test_the_command_shows_records_in_a_narrow_terminal_and_says_where_it_cannot_write(
    server, tmp_path
):
    async def scenario():
        async with connected(server) as bus:
            await (await opened(bus, 1)).intent(verified())

    asyncio.run(scenario())

    def audit(*words):
        run = CliRunner(env={"COLUMNS": "60"})
        return run.invoke(cli, ["audit", "--nats", server.url, *words])

    shown = audit()
    assert shown.exit_code == 0, shown.output
    _date, _time, record_id, _cycle, kind, *_what = shown.output.splitlines()[1].split()
    assert kind == "intent" and record_id.startswith("1-")
    target = tmp_path / "missing" / "file"
    refused = audit("--export", str(target))
    assert refused.exit_code == 1
    assert f"{target}: cannot be written: No such file" in refused.output
    assert audit("--export", str(tmp_path / "file")).exit_code == 0
