"""The whole controller on a real nats-server and real gRPC: telemetry in, commands out, or not."""

import asyncio
import subprocess
import sys
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import grpc
import numpy as np
import pytest
from msgspec import structs

from controller.audit import read_audit
from controller.daemon import Daemon
from controller.replay import replay
from controller.scripted_agent import ScriptedAgent
from controller.settings import ControllerSettings
from shared.bus import NatsBus
from shared.clock import SECOND_NS, Clock, SystemClock
from shared.errors import ConfigError
from shared.pb import admin_pb2, admin_pb2_grpc
from shared.pb import commands_pb2 as pb
from shared.resources import MIB
from shared.subjects import telemetry_subject
from shared.telemetry import Loan, NodeReadings, NodeSample, VmSample
from shared.testing import NatsServer, VirtualTimeLoop, until
from shared.wire import encode

HOST = "00000000-0000-4000-8000-0000000000aa"
RICH = "00000000-0000-4000-8000-000000000001"
POOR = "00000000-0000-4000-8000-000000000002"


@dataclass
class Stage:
    """A host that is full: `rich` has far too much memory, `poor` far too little."""

    server: NatsServer
    daemon: Daemon
    bus: NatsBus
    limits: dict[str, int] = field(default_factory=lambda: {RICH: 640 * MIB, POOR: 128 * MIB})
    generation: int = 0
    sequence: int = 0
    loans: tuple[Loan, ...] = ()
    agents: AsyncExitStack = field(default_factory=AsyncExitStack)

    @property
    def controller(self):
        return self.daemon.controller

    async def agent(self, script=None, **facts) -> ScriptedAgent:
        agent = ScriptedAgent(
            self.daemon.ports["commands"], HOST, script or self.obey, beat_s=0.1, **facts
        )
        await self.agents.enter_async_context(agent)
        await until(lambda: HOST in self.controller.dispatcher.agents())
        return agent

    async def obey(self, agent, apply):
        """Does what it is told, and telemetry shows it."""
        for step in apply.steps:
            if step.resource == pb.RESOURCE_MEMORY:
                self.limits[step.vm_id] = step.to_amount
        ack = agent.ack(apply, {step.index: pb.OUTCOME_APPLIED for step in apply.steps})
        self.generation = agent.generation
        return ack

    async def report(self):
        """One message of telemetry, and it is taken in."""
        before = self.controller.ingest.status().messages
        self.sequence += 1
        assert await self.bus.try_publish(telemetry_subject(HOST), encode(self.sample()))
        await until(lambda: self.controller.ingest.status().messages > before)

    async def warm_up(self):
        """Reports until there is history enough for a forecast of every VM."""
        while True:
            await self.report()
            _, history = self.controller.ingest.observe(0, 0)
            mean = history.windows.mean(np.arange(1, 3), history.steps)
            if np.isfinite(mean[:, 1]).any(axis=-1).all():
                return
            await asyncio.sleep(0.1)

    def sample(self) -> NodeSample:
        clock = SystemClock()
        used = {RICH: 64 * MIB, POOR: 100 * MIB}
        return NodeSample(
            HOST, "h", "host", "boot", self.sequence, clock.unix_ns(), clock.tick_ns(), 100,
            generation=self.generation,
            loans=self.loans,
            levers={"cpu": "none here", "memory": "", "io": "none here"},
            node=NodeReadings(
                memory_allocatable_bytes=900 * MIB, cpu_allocatable_millicores=8000
            ),
            vms=tuple(
                VmSample(
                    vm_id, name,
                    memory_limit_bytes=limit,
                    memory_maximum_bytes=640 * MIB,
                    memory_used_bytes=used[vm_id],
                    memory_free_bytes=limit - used[vm_id] - 8 * MIB,
                    memory_cache_bytes=8 * MIB,
                    memory_stats_age_ns=0,
                    cpu_limit_millicores=1000,
                    cpu_maximum_millicores=1000,
                    cpu_used_millicores=100,
                )
                for (vm_id, limit), name in zip(self.limits.items(), ("rich", "poor"), strict=True)
            ),
        )  # fmt: skip

    async def cycle(self):
        await self.report()
        await self.controller.run_once()

    def admin(self) -> admin_pb2_grpc.AdminStub:
        options = [("grpc.enable_http_proxy", 0)]
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{self.daemon.ports['admin']}", options)
        self.agents.push_async_callback(channel.close)
        return admin_pb2_grpc.AdminStub(channel)

    async def records(self, kind: str):
        log = await read_audit(self.bus)
        return [record for record in log.records if record.kind == kind]


def settings(tmp_path, url: str, mode: str, **said) -> ControllerSettings:
    base = ControllerSettings(
        bus_servers=(url,),
        commands_listen="127.0.0.1:0",
        admin_listen="127.0.0.1:0",
        metrics_listen="127.0.0.1:0",
        state_directory=tmp_path / "state",
        mode=mode,
        cycle_interval_s=1.0,
        grid_step_s=1,
        window_steps=8,
        horizon_s=1,
        memory_floor_mib=64,
        audit_stream_mib_max=64,
        telemetry_stream_mib_max=64,
    )
    policy = structs.replace(base.policy, memory_quantum_mib=8)
    return structs.replace(base, policy=policy, **said)


@asynccontextmanager
async def stage(tmp_path, mode: str, clock: Clock, said):
    """All parts run, cycles only when told."""
    with NatsServer(tmp_path) as server:
        daemon = Daemon(settings(tmp_path, server.url, mode, **said), clock, "test")
        bus = NatsBus([server.url], "test", lambda _: None)
        await bus.connect()
        here = Stage(server, daemon, bus)
        try:
            await daemon._start()
            assert await bus.wait_connected(10)
            assert await daemon.controller.bus.wait_connected(10)
            assert await asyncio.to_thread(daemon.controller.ingest.wait_ready, 10)
            async with here.agents:
                yield here
        finally:
            await daemon._close()
            await bus.close()


def run(scenario, tmp_path, mode: str, clock: Clock | None = None, **said):
    async def whole():
        async with stage(tmp_path, mode, clock or SystemClock(), said) as here:
            await scenario(here)

    asyncio.run(whole())


def test_telemetry_becomes_a_plan_that_is_audited_carried_out_and_accounted_for(tmp_path):
    async def scenario(here: Stage):
        agent = await here.agent()
        await here.warm_up()
        await here.cycle()
        assert here.limits[RICH] < 640 * MIB
        assert here.limits[POOR] > 128 * MIB
        assert sum(here.limits.values()) <= 900 * MIB
        totals = here.controller.view().totals
        assert totals.plans_verified == 1
        assert totals.commands_sent == totals.commands_acknowledged == len(agent.applies) == 2
        assert totals.memory_changed_bytes > 0
        assert totals.latency_sample_to_command_ns > 0
        assert [r.kind for r in (await read_audit(here.bus)).records] == [
            "decision", "intent", "ack",
        ]  # fmt: skip

    run(scenario, tmp_path, "enforce")


def test_the_next_cycles_find_their_own_change_in_telemetry_and_come_to_rest(tmp_path):
    async def scenario(here: Stage):
        agent = await here.agent()
        await here.warm_up()
        for _ in range(12):
            await here.cycle()
        sent = len(agent.applies)
        await here.cycle()
        assert len(agent.applies) == sent
        assert all(apply.header.epoch == here.controller.epoch for apply in agent.applies)
        assert agent.renewals, "an agent without a command keeps its lease"

    run(scenario, tmp_path, "enforce")


def test_recorded_decisions_can_be_recomputed(tmp_path):
    async def scenario(here: Stage):
        await here.agent()
        await here.warm_up()
        for _ in range(3):
            await here.cycle()
        report = replay(await read_audit(here.bus))
        assert report.decisions == 3
        assert report.agrees, report

    run(scenario, tmp_path, "enforce")


class MinuteClock(SystemClock):
    """Its ticks pass when told, so that ten minutes of history take no ten minutes."""

    def __init__(self):
        self.now_ns = 10_000 * 60 * SECOND_NS

    def tick_ns(self):
        return self.now_ns


TEN_MINUTES = {"grid_step_s": 60, "window_steps": 120, "horizon_s": 600}


async def twenty_minutes(here: Stage, clock: MinuteClock):
    for _ in range(20):
        clock.now_ns += 60 * SECOND_NS
        await here.cycle()
    here.daemon._refresh(here.controller.ingest.status(), here.controller.ingest.nodes())


def test_the_loop_forecasts_with_the_network_and_says_how_well(tmp_path):
    clock = MinuteClock()

    async def scenario(here: Stage):
        await here.agent()
        await twenty_minutes(here, clock)
        admin = here.admin()
        status = await admin.GetStatus(admin_pb2.StatusRequest(), timeout=5)
        [part] = [part for part in status.parts if part.name == "forecast"]
        assert part.healthy
        assert part.detail == "lstm+mixture, 10 min ahead"
        rich, _ = (await admin.ListVms(admin_pb2.VmsRequest(), timeout=5)).vms
        cpu, memory, io = rich.resources
        assert [one.forecast_method for one in (cpu, memory)] == ["lstm+mixture"] * 2
        assert not io.forecast_method
        assert memory.forecast_outcomes == 2  # of the first and the sixth minute
        assert not memory.HasField("forecast_coverage")
        assert memory.forecast_p50 == pytest.approx(64 * MIB, rel=0.1)
        explained = await admin.Explain(admin_pb2.ExplainRequest(vm=POOR), timeout=5)
        assert "present use of 100 MiB alone" in explained.resources[1].forecast_mattered
        report = replay(await read_audit(here.bus))
        assert report.decisions == 20
        assert report.agrees, report

    run(scenario, tmp_path, "enforce", clock, **TEN_MINUTES)


def test_with_damaged_weights_the_loop_goes_on_and_says_so(tmp_path, caplog):
    damaged = tmp_path / "network.safetensors"
    damaged.write_bytes(b"no weights")
    clock = MinuteClock()

    async def scenario(here: Stage):
        agent = await here.agent()
        await twenty_minutes(here, clock)
        admin = here.admin()
        status = await admin.GetStatus(admin_pb2.StatusRequest(), timeout=5)
        [part] = [part for part in status.parts if part.name == "forecast"]
        assert not part.healthy
        assert "mixture (no network: its file cannot be used), 10 min ahead" in part.detail
        assert str(damaged) in part.detail
        rich, _ = (await admin.ListVms(admin_pb2.VmsRequest(), timeout=5)).vms
        assert rich.resources[1].forecast_method.startswith("mixture (no network")
        assert agent.applies  # memory moves all the same
        assert here.limits[POOR] > 128 * MIB

    run(scenario, tmp_path, "enforce", clock, network=damaged, **TEN_MINUTES)
    told = [line for line in caplog.records if line.message == "forecasts without the network"]
    assert len(told) == 1


def test_in_observe_nothing_is_ever_sent(tmp_path):
    async def scenario(here: Stage):
        agent = await here.agent()
        await here.warm_up()
        for _ in range(3):
            await here.cycle()
        assert agent.applies == []
        assert agent.renewals == []
        # The counterexample: the same stage sends as soon as the mode allows it.
        reply = await here.admin().SetMode(
            admin_pb2.ModeRequest(target="fleet", mode="enforce", by="test"), timeout=5
        )
        assert reply.done
        await here.cycle()
        assert agent.applies
        assert agent.renewals == []  # one sent earlier would have come before

    run(scenario, tmp_path, "observe")


def test_what_is_recommended_is_carried_out_when_somebody_says_so(tmp_path):
    async def scenario(here: Stage):
        agent = await here.agent()
        await here.warm_up()
        await here.cycle()
        assert agent.applies == []
        admin = here.admin()
        plan = await admin.GetPlan(admin_pb2.PlanRequest(), timeout=5)
        assert plan.verdict == "waiting for approval"
        await here.cycle()  # the same wish waits under its first name
        request = admin_pb2.ApproveRequest(plan_id=plan.plan_id, by="alice")
        reply = await admin.Approve(request, timeout=5)
        assert reply.done, reply.detail
        await until(lambda: here.controller.view().totals.steps_applied == 2)
        assert here.limits[RICH] < 640 * MIB
        [approved] = [r for r in await here.records("override") if r.body["what"] == "approve"]
        assert approved.body["by"] == "alice"
        assert len(await here.records("intent")) == 1

    run(scenario, tmp_path, "recommend")


def test_a_yes_to_a_plan_that_no_longer_fits_moves_nothing_and_says_why(tmp_path):
    async def scenario(here: Stage):
        agent = await here.agent()
        await here.warm_up()
        await here.cycle()
        [plan] = here.controller.view().approvals.open()
        here.limits[RICH] -= 16 * MIB  # moved by somebody else meanwhile
        await here.report()
        request = admin_pb2.ApproveRequest(plan_id=plan.plan_id, by="alice")
        reply = await here.admin().Approve(request, timeout=5)
        assert not reply.done
        assert "I5" in reply.detail
        assert agent.applies == []

    run(scenario, tmp_path, "recommend")


def test_without_the_audit_stream_nothing_is_sent_and_it_is_said(tmp_path):
    async def scenario(here: Stage):
        agent = await here.agent()
        await here.warm_up()
        here.server.kill()
        await until(lambda: not here.controller.bus.connected)
        await here.controller.run_once()
        [record] = here.controller.view().plans  # there was a plan, and it was verified
        assert record.verdict.startswith("held: I10")
        assert agent.applies == []
        assert agent.renewals == []
        here.server.start()
        await until(lambda: here.controller.bus.connected and here.bus.connected)
        await until(lambda: here.controller.ingest.status().connected)
        await here.cycle()
        assert agent.applies, "the same plan goes out as soon as it can be recorded"
        assert agent.renewals == []  # one sent earlier would have come before

    run(scenario, tmp_path, "enforce")


def test_a_stream_that_goes_away_between_decision_and_intent_stops_the_plan(tmp_path):
    async def scenario(here: Stage):
        agent = await here.agent()
        await here.warm_up()
        await here.controller.run_once()
        sent = len(agent.applies)
        here.limits[RICH], here.limits[POOR] = 640 * MIB, 128 * MIB  # all is to do again
        await here.report()
        decide = here.controller.recorder.decision

        async def decide_and_lose_the_stream(*inputs):
            written = await decide(*inputs)
            here.server.kill()
            return written

        here.controller.recorder.decision = decide_and_lose_the_stream
        await here.controller.run_once()
        assert here.controller.view().plans[-1].verdict.startswith("held: I10")
        assert len(agent.applies) == sent

    run(scenario, tmp_path, "enforce")


def test_the_epoch_rises_with_every_start_and_above_what_agents_have_obeyed(tmp_path):
    async def scenario(here: Stage):
        controller = here.controller
        controller.adopt_epoch()
        first = controller.epoch
        await here.agent(epoch_highest=41)
        controller.adopt_epoch()
        assert controller.epoch == 42 > first
        controller.adopt_epoch()
        assert controller.epoch == 42, "nobody has obeyed a higher one"
        again = Daemon(here.daemon._settings, SystemClock(), "test").controller
        again.adopt_epoch()
        assert again.epoch == 43

    run(scenario, tmp_path, "enforce")


def test_an_agent_that_comes_late_with_a_higher_epoch_is_commanded_above_it(tmp_path):
    async def scenario(here: Stage):
        await here.warm_up()
        await here.cycle()
        assert here.controller.epoch < 99
        agent = await here.agent(epoch_highest=99)
        await here.cycle()
        assert {apply.header.epoch for apply in agent.applies} == {100}

    run(scenario, tmp_path, "enforce")


def test_a_freeze_holds_survives_a_restart_and_is_on_the_record(tmp_path):
    async def scenario(here: Stage):
        agent = await here.agent()
        await here.warm_up()
        await here.cycle()
        agent.applies.clear()
        here.limits[RICH], here.limits[POOR] = 640 * MIB, 128 * MIB
        freeze = admin_pb2.FreezeRequest(vm="rich", by="bob")
        assert (await here.admin().Freeze(freeze, timeout=5)).done
        await here.cycle()
        assert all(step.vm_id != RICH for apply in agent.applies for step in apply.steps)
        rows = (await here.admin().ListVms(admin_pb2.VmsRequest(), timeout=5)).vms
        assert {row.name: row.state for row in rows}["rich"] == "frozen"
        again = Daemon(here.daemon._settings, SystemClock(), "test").controller
        again.desk.load()
        assert [one.vm_id for one in again.desk.overrides.freezes()] == [RICH]
        [record] = await here.records("override")
        assert (record.body["what"], record.body["by"]) == ("freeze", "bob")

    run(scenario, tmp_path, "enforce")


def test_an_empty_fleet_is_no_error(tmp_path):
    async def scenario(here: Stage):
        await here.controller.run_once()
        assert here.controller.view().cycles == 1
        assert here.controller.recorder.healthy

    run(scenario, tmp_path, "enforce")


def test_metrics_tell_of_cycles_commands_and_moved_memory(tmp_path):
    async def scenario(here: Stage):
        await here.agent()
        await here.warm_up()
        await here.cycle()
        port = here.daemon.ports["metrics"]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /metrics HTTP/1.0\r\n\r\n")
        text = (await reader.read()).decode()
        writer.close()
        await writer.wait_closed()
        lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if line[:6] == "hrapaq")
        assert float(lines["hrapaq_controller_cycles_total"]) == 1
        assert float(lines["hrapaq_controller_commands_total"]) == 2
        assert float(lines['hrapaq_controller_steps_total{outcome="applied"}']) == 2
        assert float(lines["hrapaq_controller_memory_changed_bytes_total"]) > 0
        assert 'hrapaq_controller_cycle_step_seconds_count{step="decide"}' in lines
        assert float(lines["hrapaq_controller_sample_to_command_seconds_count"]) == 1

    run(scenario, tmp_path, "enforce")


def test_a_daemon_cycles_by_itself_and_stops_when_told_with_an_answer_outstanding(tmp_path):
    async def scenario():
        with NatsServer(tmp_path) as server:
            daemon = Daemon(settings(tmp_path, server.url, "enforce"), SystemClock(), "test")
            bus = NatsBus([server.url], "test", lambda _: None)
            await bus.connect()
            stop = asyncio.Event()
            running = asyncio.create_task(daemon.run(stop))
            await asyncio.wait_for(daemon.started.wait(), 10)
            here = Stage(server, daemon, bus)
            assert await bus.wait_connected(10)
            async with here.agents:

                async def silent(agent, apply):
                    pass

                agent = await here.agent(silent)
                await here.warm_up()
                while not agent.applies:
                    await here.report()
                    await asyncio.sleep(0.1)
                stop.set()
                await asyncio.wait_for(running, 15)
            [step, *_] = daemon.controller.view().plans[-1].outcome.steps
            assert step.result.value == "unknown"
            assert daemon.controller.view().cycles >= 1
            await bus.close()

    asyncio.run(scenario())


def test_a_loan_is_followed_by_a_plan_at_once_and_the_next_cycle_keeps_its_time(tmp_path):
    """The cycle is five minutes away: what an agent lent, or lacked, cannot wait for it."""

    async def scenario():
        with NatsServer(tmp_path) as server:
            said = settings(tmp_path, server.url, "enforce", cycle_interval_s=300.0)
            daemon = Daemon(said, SystemClock(), "test")
            bus = NatsBus([server.url], "test", lambda _: None)
            await bus.connect()
            stop = asyncio.Event()
            running = asyncio.create_task(daemon.run(stop))
            await asyncio.wait_for(daemon.started.wait(), 10)
            here = Stage(server, daemon, bus, limits={RICH: 400 * MIB, POOR: 200 * MIB})
            assert await bus.wait_connected(10)
            async with here.agents:
                await here.warm_up()
                agent = await here.agent()
                await until(lambda: daemon.controller.view().cycles == 1)
                (renewal,) = agent.renewals[:1] or agent.applies[:1]
                leashes = {leash.vm_id: leash for leash in renewal.leash}
                assert leashes[POOR].high_amount == 640 * MIB
                assert [one.amount for one in renewal.reserve] != []
                asked = here.limits[POOR] + 200 * MIB
                here.loans = (Loan(POOR, 1, here.limits[POOR], here.limits[POOR], asked),)
                await here.report()
                await until(lambda: here.limits[POOR] >= asked)
                here.loans = ()
            stop.set()
            await asyncio.wait_for(running, 15)
            assert daemon.controller.view().cycles == 1, "that was none of the regular ones"
            kinds = [record.kind for record in (await read_audit(bus)).records]
            assert kinds.count("decision") >= 2, "what is decided early is on the record too"
            await bus.close()

    asyncio.run(scenario())


class LoopClock:
    """Ticks with the loop that runs, so that a whole day is over in a moment."""

    def tick_ns(self):
        return round(asyncio.get_running_loop().time() * SECOND_NS)

    unix_ns = tick_ns


def test_a_cycle_that_takes_too_long_leaves_out_others_and_never_overlaps(tmp_path):
    begun: list[float] = []

    async def scenario():
        daemon = Daemon(settings(tmp_path, "nats://127.0.0.1:1", "observe"), LoopClock(), "test")
        now = asyncio.get_running_loop().time
        stop = asyncio.Event()

        async def cycle():
            begun.append(now())
            await asyncio.sleep(2.5 if len(begun) == 2 else 0.9)
            assert now() - begun[-1] >= 0.9, "two cycles at a time"
            if len(begun) == 5:
                stop.set()

        daemon.controller.run_once = cycle
        await daemon._cycle_forever(stop)

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(scenario())
    # The second takes 2.5 s: two are left out, and the grid has not moved.
    assert [round(at - begun[0], 3) for at in begun] == [0, 1, 4, 5, 6]


def test_a_bug_in_one_cycle_does_not_end_the_controller_and_is_shown(tmp_path):
    async def scenario():
        daemon = Daemon(settings(tmp_path, "nats://127.0.0.1:1", "observe"), LoopClock(), "test")
        stop = asyncio.Event()
        begun: list[str] = []

        async def cycle():
            begun.append(daemon._trouble)
            if len(begun) == 3:
                stop.set()
            if len(begun) == 1:
                raise ValueError("a bug")

        daemon.controller.run_once = cycle
        await daemon._cycle_forever(stop)
        assert begun == ["", "ValueError: a bug", ""]

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(scenario())


def program(*arguments: str, before: str = "pass") -> subprocess.CompletedProcess[str]:
    code = f"import sys; {before}; sys.argv[1:] = {list(arguments)!r}"
    code += "; from controller.__main__ import main; main()"
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


def test_check_config_names_the_line_and_the_closest_key(tmp_path):
    file = tmp_path / "controller.toml"
    file.write_text('mode = "observe"\ncycle_intervall_s = 5.0\n')
    done = program("check-config", "--config", str(file))
    assert done.returncode == 1
    assert f"{file}:2" in done.stderr
    assert "cycle_interval_s" in done.stderr
    file.write_text('[controller]\nmode = "observe"\n[agent]\nrole = "host"\n')
    assert program("check-config", "--config", str(file)).returncode == 0


def test_without_the_controllers_libraries_one_line_says_what_to_install():
    done = program("check-config", before="sys.modules['numpy'] = None")
    assert done.returncode == 1
    assert done.stderr.strip() == (
        "hrapaq-controller: numpy is not installed: in HRA-PAQ's directory, "
        f"{sys.executable} -m pip install '.[controller]'"
    )


def test_a_state_directory_that_cannot_be_written_stops_the_start(tmp_path):
    async def scenario():
        (tmp_path / "state").write_text("a file, no directory")
        daemon = Daemon(settings(tmp_path, "nats://127.0.0.1:1", "observe"), SystemClock(), "test")
        with pytest.raises(ConfigError, match="state_directory"):
            await daemon.run(asyncio.Event())

    asyncio.run(scenario())


def test_a_network_pin_goes_to_the_host_and_its_release_too(tmp_path):
    async def scenario(here: Stage):
        agent = await here.agent()
        await here.warm_up()
        await here.cycle()
        assert agent.net_limits == [{}]  # once: there are none
        pin = admin_pb2.PinRequest(vm="rich", resource="net", amount=10 * MIB, by="bob")
        changed = await here.admin().Pin(pin, timeout=5)
        assert changed.done and "10 MiB/s" in changed.detail
        await here.cycle()
        assert agent.net_limits[1:] == [{RICH: 10 * MIB}]
        [record] = await here.records("override")
        assert record.body["what"] == "pin" and record.body["amount"] == 10 * MIB
        assert record.body["resource"] == "net"
        release = admin_pb2.PinRequest(vm="rich", resource="net", release=True, by="bob")
        assert (await here.admin().Pin(release, timeout=5)).done
        await here.cycle()
        await here.cycle()
        assert agent.net_limits[2:] == [{}]
        for amount in (None, 100):
            asked = admin_pb2.PinRequest(vm="rich", resource="net", amount=amount, by="bob")
            with pytest.raises(grpc.aio.AioRpcError, match="each way"):
                await here.admin().Pin(asked, timeout=5)

    run(scenario, tmp_path, "enforce")
