"""The admin service over real gRPC: what operators are told, and what becomes of what they ask."""

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import grpc
import numpy as np
import pytest

from controller.admin import AdminServer
from controller.bookkeeping import record_of
from controller.core.cycle import decide
from controller.core.state import Hold, Mode, Policy, Rejection, Snapshot
from controller.desk import OperatorDesk
from controller.events import WAITING_MAX, Broadcast, Happening
from controller.forecast.protocol import Said, Standing
from controller.gate import Approvals, Ask, gate
from controller.outcome import PlanOutcome, Result, StepOutcome
from controller.overrides import Freeze, ModeChange, Pin
from controller.recorder import Recorder
from controller.testing import Machine, host, machine_id, make_forecast, make_snapshot
from controller.view import REJECTED, VERIFIED, WAITING, Judged, NodeInfo, Part, Totals, View
from shared.clock import SECOND_NS, FakeClock
from shared.errors import DispatchError
from shared.pb import admin_pb2 as pb
from shared.pb.admin_pb2_grpc import AdminStub
from shared.resources import MIB
from shared.telemetry import NodeReadings, RoleUse
from shared.testing import FakeBus, until


def vm(name: str, limit_mib: int, parent: str = "h", **facts) -> Machine:
    rich = limit_mib >= 512
    given = {
        "limit": (1000, limit_mib * MIB, None),
        "maximum": (1000, 640 * MIB, None),
        "used": (100, 64 * MIB, None),
        "demand": (1000, (60 if rich else 300) * MIB, 0),
        "spread": 0.01,
        "memory_free": 480 * MIB if rich else 10 * MIB,
    }
    return Machine(name, parent, **{**given, **facts})


FLEET = [host("h", memory=768 * MIB), vm("rich", 640), vm("poor", 128)]


@dataclass
class Office:
    desk: OperatorDesk
    view: View
    broadcast: Broadcast
    clock: FakeClock
    stub: AdminStub
    bus: FakeBus
    carried: list[tuple[str, str]]

    async def fails(self, method, request) -> tuple[grpc.StatusCode, str]:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await method(request, timeout=5)
        return caught.value.code(), caught.value.details()


@asynccontextmanager
async def office(tmp_path, machines=None, change=None):
    """An admin server before the view of one decision, with a real desk behind it."""
    clock, bus, carried = FakeClock(), FakeBus(), []
    await bus.connect()
    broadcast, recorder = Broadcast(clock), Recorder(bus, clock, 64)
    assert await recorder.prepare(1)
    view = view_of(machines or FLEET)
    here: list[Office] = []

    async def carry_out(plan, by, begun):
        carried.append((plan.plan_id, by))
        if by == "unlucky":
            begun.set_exception(DispatchError("not carried out: I5: too late"))
        else:
            begun.set_result("on the way")

    def read() -> View:
        office = here[0]
        return replace(office.view, approvals=office.desk.approvals)

    desk = OperatorDesk(tmp_path, clock, recorder, broadcast, read, carry_out)
    desk.approvals = view.approvals
    server = AdminServer(desk, broadcast, clock, "1.2.3")
    port = await server.start("127.0.0.1:0")
    options = [("grpc.enable_http_proxy", 0)]
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options) as channel:
            here.append(Office(desk, view, broadcast, clock, AdminStub(channel), bus, carried))
            if change:
                here[0].view = change(here[0].view)
            yield here[0]
    finally:
        await server.close()
        await desk.close()


def view_of(machines) -> View:
    snapshot, forecast = make_snapshot(machines), make_forecast(machines)
    decision = decide(snapshot, forecast, Policy())
    [tree] = decision.trees
    plans = ()
    approvals = Approvals()
    gated = gate(tree, snapshot)
    if isinstance(gated, Ask):
        plans = (record_of(gated.plan, WAITING, snapshot),)
        approvals = approvals.ask(gated.plan, FakeClock().tick_ns(), 600 * SECOND_NS)
    elif isinstance(tree.verdict, Rejection):
        record = record_of(tree.verdict.plan, REJECTED, snapshot)
        plans = (replace(record, broken=tree.verdict.broken),)
    elif tree.verdict.plan.steps:
        plans = (record_of(tree.verdict.plan, VERIFIED, snapshot),)
    return View(
        policy=Policy(),
        cycle_interval_ns=10 * SECOND_NS,
        epoch=3,
        cycles=7,
        totals=Totals(telemetry_messages=5, dropped={"schema": 2}, rejections={"I3": 1}),
        parts=(Part("audit", False, "away"),),
        nodes=(NodeInfo(machine_id("h"), "h", "host", 0, {"io": "no cgroup"}),),
        snapshot=snapshot,
        forecast=forecast,
        decision=decision,
        plans=plans,
        approvals=approvals,
    )


def run(scenario, tmp_path, machines=None, change=None):
    async def whole():
        async with office(tmp_path, machines, change) as here:
            await scenario(here)

    asyncio.run(whole())


def test_status_nodes_and_vms_say_what_is_known_and_leave_out_what_is_not(tmp_path):
    async def scenario(here: Office):
        status = await here.stub.GetStatus(pb.StatusRequest(), timeout=5)
        assert (status.version, status.epoch, status.cycles) == ("1.2.3", 3, 7)
        assert dict(status.dropped) == {"schema": 2}
        assert not status.parts[0].healthy
        [node] = (await here.stub.ListNodes(pb.NodesRequest(), timeout=5)).nodes
        assert (node.name, node.parent_id, node.vms, node.connected) == ("h", "", 2, False)
        assert dict(node.levers) == {"io": "no cgroup"}
        assert node.age_ms == 1000
        _, memory, io = node.resources
        assert memory.capacity == 768 * MIB
        assert not io.HasField("capacity")
        rich, poor = (await here.stub.ListVms(pb.VmsRequest(), timeout=5)).vms
        assert (rich.name, rich.mode, rich.node_id) == ("rich", "enforce", machine_id("h"))
        assert rich.resources[1].used == 64 * MIB
        assert rich.resources[1].forecast_p50 == 60 * MIB
        assert rich.resources[1].planned < 640 * MIB
        assert not poor.resources[2].HasField("limit")
        other = await here.stub.ListVms(pb.VmsRequest(node_id="elsewhere"), timeout=5)
        assert list(other.vms) == []

    run(scenario, tmp_path)


def with_agents_inside(view: View) -> View:
    """The host says what its VMs wait for; one VM's own agent tells what runs there."""
    rich, poor = machine_id("rich"), machine_id("poor")
    readings = NodeReadings(load_milli=250, uptime_ns=90 * SECOND_NS, ready_ns=17 * SECOND_NS)
    roles = (RoleUse("session", 4, 0, MIB), RoleUse("web", 2, 150, None))
    outside = NodeInfo(
        machine_id("h"), "h", "host", 0, {}, vm_ids=(rich, poor), vm_delay_us_per_s=(80_000, -1)
    )
    within = NodeInfo(rich, "rich", "guest", 0, {}, readings, roles)
    return replace(view, nodes=(outside, within))


def test_what_agents_see_inside_is_told_and_who_waits_for_whom(tmp_path):
    async def scenario(here: Office):
        host_row, vm_node = (await here.stub.ListNodes(pb.NodesRequest(), timeout=5)).nodes
        assert not host_row.inside.HasField("load_milli")
        assert (vm_node.inside.load_milli, vm_node.inside.ready_ms) == (250, 17_000)
        assert [role.role for role in vm_node.inside.roles] == ["web", "session"], "busiest first"
        assert not vm_node.inside.roles[0].HasField("memory_resident_bytes")
        rich, poor = (await here.stub.ListVms(pb.VmsRequest(), timeout=5)).vms
        [wait] = rich.waits
        assert (wait.machine, wait.host, wait.millicores, wait.share_millicores) == (
            "rich", "h", 80, 80,
        )  # fmt: skip
        assert rich.short_node_id == machine_id("h")
        assert (list(poor.waits), poor.short_node_id) == ([], "")
        told = await here.stub.Explain(pb.ExplainRequest(vm="rich"), timeout=5)
        assert told.inside.roles[0].processes == 2
        assert told.vm.short_node_id == machine_id("h")
        told = await here.stub.Explain(pb.ExplainRequest(vm="poor"), timeout=5)
        assert not told.HasField("inside")

    run(scenario, tmp_path, change=with_agents_inside)


def test_what_a_silent_agent_said_last_is_not_shown_as_now(tmp_path):
    async def scenario(here: Office):
        told = await here.stub.Explain(pb.ExplainRequest(vm="rich"), timeout=5)
        assert not told.HasField("inside")
        assert (list(told.vm.waits), told.vm.short_node_id) == ([], "")

    def later(view: View) -> View:
        return replace(with_agents_inside(view), taken_tick_ns=3600 * SECOND_NS)

    run(scenario, tmp_path, change=later)


FULL = (1000, 640 * MIB, None)
STATES = [
    ({}, "shrinking"),
    ({"mode": Mode.OBSERVE}, "observe"),
    ({"hold": Hold.FROZEN}, "frozen"),
    ({"hold": Hold.CLONE, "mode": Mode.OBSERVE}, "clone"),
    ({"hold": Hold.MIGRATING}, "held: migrating"),
    ({"hold": Hold.UNMANAGED}, "held: the agent of its host is not connected"),
    ({"sample_age_ns": 3600 * SECOND_NS}, "stale"),
    ({"pin": (None, 640 * MIB, None)}, "pinned"),
    ({"demand": (1000, 560 * MIB, 0), "used": (100, 560 * MIB, None)}, "steady"),
    ({"mode": Mode.RECOMMEND}, "held: waiting for approval"),
    ({"hold": Hold.STARTING}, "held: starting"),
    ({"used": (100, 560 * MIB, None), "wanted": (None, 640 * MIB, None)}, "lent memory 640 MiB"),
    (
        {
            "demand": (1000, 560 * MIB, 0),
            "used": (100, 560 * MIB, None),
            "maximum": FULL,
            "wanted": (1500, 900 * MIB, None),
        },
        "asks for cpu 1.50 cores, memory 900 MiB",
    ),
]


@pytest.mark.parametrize(("facts", "state"), STATES, ids=[state for _, state in STATES])
def test_a_vm_has_one_word_for_its_state(tmp_path, facts, state):
    machines = [FLEET[0], vm("rich", 640, **facts)]

    async def scenario(here: Office):
        [row] = (await here.stub.ListVms(pb.VmsRequest(), timeout=5)).vms
        assert row.state == state

    run(scenario, tmp_path, machines)


def with_outcome(result: Result, detail: str):
    def change(view: View) -> View:
        [record] = view.plans
        steps = tuple(StepOutcome(step, result, detail) for step in record.plan.steps)
        outcome = PlanOutcome(record.plan.plan_id, 0, steps, 1, 1, "", 0)
        return replace(view, plans=(replace(record, outcome=outcome),))

    return change


def test_what_became_of_a_plan_is_shown_with_the_plan_and_the_vm(tmp_path):
    async def scenario(here: Office):
        plan = await here.stub.GetPlan(pb.PlanRequest(), timeout=5)
        assert plan.found
        assert plan.verdict == "verified"
        assert {step.outcome for step in plan.steps} == {"held: waiting for confirmed memory"}
        assert {step.vm_name for step in plan.steps} == {"rich", "poor"}
        assert all(step.why for step in plan.steps)
        rows = (await here.stub.ListVms(pb.VmsRequest(), timeout=5)).vms
        assert {row.state for row in rows} == {"held: waiting for confirmed memory"}
        again = await here.stub.GetPlan(pb.PlanRequest(plan_id=plan.plan_id), timeout=5)
        assert again == plan
        assert not (await here.stub.GetPlan(pb.PlanRequest(plan_id="none"), timeout=5)).found

    run(scenario, tmp_path, change=with_outcome(Result.HELD, "waiting for confirmed memory"))


def test_explain_shows_options_choice_price_and_what_stopped_more(tmp_path):
    full = [host("h", memory=450 * MIB), vm("a", 128), vm("b", 128)]

    async def scenario(here: Office):
        explained = await here.stub.Explain(pb.ExplainRequest(vm="a"), timeout=5)
        assert explained.found
        _, memory, io = explained.resources
        levels = [option.level for option in memory.options]
        assert levels == sorted(levels)
        assert memory.chosen == 200 * MIB  # two whole quanta each, as much as fits
        enough = [option.probability_enough for option in memory.options]
        assert enough == sorted(enough)
        assert enough[-1] > 0.9
        assert "would be worth" in memory.why
        assert "host is full (I1)" in memory.why
        assert "I6" in io.why
        assert memory.price_micro > 0
        assert "MiB short of what its violation budget asks for" in memory.why
        chosen, *others = sorted(memory.options, key=lambda option: option.level != memory.chosen)
        assert chosen.net_value >= max(option.net_value for option in others if option.allowed)
        assert "next best is" in memory.why
        held = next(amounts for amounts in explained.vm.resources if amounts.resource == "memory")
        assert held.short == 200 * MIB

    run(scenario, tmp_path, full)


def test_explain_says_whether_the_forecast_mattered(tmp_path):
    machines = [host("h"), vm("busy", 128, demand=(100, 300 * MIB, 0), used=(100, 64 * MIB, None))]

    async def scenario(here: Office):
        explained = await here.stub.Explain(pb.ExplainRequest(vm="busy"), timeout=5)
        cpu, memory, io = explained.resources
        # Present use and its margin ask for no more than what is there.
        assert memory.without_forecast == 128 * MIB
        assert memory.chosen > 300 * MIB
        assert memory.forecast_mattered.startswith("the forecast mattered: its present use of 64")
        assert cpu.without_forecast == cpu.chosen
        assert "made no difference" in cpu.forecast_mattered
        assert not io.HasField("without_forecast")

    run(scenario, tmp_path, machines)


def test_what_a_forecast_was_worth_stands_beside_it(tmp_path):
    def judge(view: View) -> View:
        shape = (len(view.snapshot.ids), 3)
        learnt = np.zeros(shape, dtype=np.bool_)
        learnt[1, 1] = True
        borrowed = np.zeros_like(learnt)
        borrowed[1, 0] = True
        novelty = np.full(shape, np.nan, dtype=np.float32)
        novelty[1, :2] = 0.5, 1.4
        archetype = np.where(np.isfinite(novelty), 7, -1).astype(np.int16)
        made_ns_ago = np.full(shape[0], 240 * SECOND_NS)
        said = Said(view.forecast, learnt, borrowed, made_ns_ago, novelty, archetype)
        skill, coverage = np.full(shape, np.nan), np.full(shape, np.nan)
        skill[1, 1], coverage[1, 1] = 0.5, 0.97
        forecast = replace(view.forecast, skill=skill, method="lstm+mixture")
        judged = Judged(
            said, Standing("lstm+mixture"), coverage, np.full(shape, 77), {"lstm+mixture": 1}
        )
        return replace(view, forecast=forecast, judged=judged)

    async def scenario(here: Office):
        rich, poor = (await here.stub.ListVms(pb.VmsRequest(), timeout=5)).vms
        assert rich.forecast_age_ms == 240_000
        cpu, memory, _ = rich.resources
        assert (memory.forecast_skill, memory.forecast_coverage) == (0.5, 0.97)
        assert (memory.forecast_method, memory.forecast_outcomes) == ("lstm+mixture", 77)
        assert cpu.forecast_method == "empirical+neighbours"
        assert poor.resources[0].forecast_method == "empirical"
        assert not cpu.HasField("forecast_skill")
        assert not poor.resources[1].HasField("forecast_coverage")
        assert (cpu.forecast_novelty, cpu.forecast_archetype) == (0.5, 7)
        assert not poor.resources[1].HasField("forecast_novelty")
        assert not poor.resources[1].HasField("forecast_archetype")
        explained = await here.stub.Explain(pb.ExplainRequest(vm="rich"), timeout=5)
        unlike = [each.forecast_unlike for each in explained.resources]
        assert unlike[0] == unlike[2] == ""
        assert unlike[1].startswith("unlike what the network was taught: novelty 1.40,")

    run(scenario, tmp_path, change=judge)


HELD_BY = [
    ({"mode": Mode.OBSERVE}, "its mode is observe (I8)"),
    ({"hold": Hold.FROZEN}, "frozen (I8)"),
    ({"lever": (True, False, True)}, "no lever for memory"),
    ({"stats_age_ns": 3600 * SECOND_NS}, "memory figures are stale"),
    ({"pin": (None, 640 * MIB, None)}, "pinned at 640 MiB (I8)"),
    ({"limit": (1000, None, None)}, "limit is not known (I6)"),
]


@pytest.mark.parametrize(("facts", "why"), HELD_BY, ids=[why for _, why in HELD_BY])
def test_explain_says_why_a_vm_is_left_alone(tmp_path, facts, why):
    async def scenario(here: Office):
        explained = await here.stub.Explain(pb.ExplainRequest(vm="rich"), timeout=5)
        assert why in explained.resources[1].why

    run(scenario, tmp_path, [FLEET[0], vm("rich", 640, **facts)])


def test_a_wrong_name_is_not_found_and_the_closest_one_is_named(tmp_path):
    async def scenario(here: Office):
        code, text = await here.fails(here.stub.Explain, pb.ExplainRequest(vm="ritch"))
        assert code is grpc.StatusCode.NOT_FOUND
        assert "did you mean 'rich'?" in text
        code, text = await here.fails(here.stub.Freeze, pb.FreezeRequest(vm=""))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        request = pb.ModeRequest(target="fleet", mode="enforced")
        code, text = await here.fails(here.stub.SetMode, request)
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert "did you mean 'enforce'?" in text
        code, text = await here.fails(here.stub.Approve, pb.ApproveRequest(plan_id="p"))
        assert code is grpc.StatusCode.NOT_FOUND
        assert "none waits" in text
        code, _ = await here.fails(here.stub.Pin, pb.PinRequest(vm="rich", resource="disk"))
        assert code is grpc.StatusCode.INVALID_ARGUMENT

    run(scenario, tmp_path)


def test_two_vms_of_one_name_must_be_told_apart_by_their_ids(tmp_path):
    async def scenario(here: Office):
        snapshot = here.view.snapshot
        code, text = await here.fails(here.stub.Freeze, pb.FreezeRequest(vm="twin"))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert snapshot.ids[1] in text
        assert snapshot.ids[2] in text
        request = pb.FreezeRequest(vm=snapshot.ids[2], by="eve")
        assert (await here.stub.Freeze(request, timeout=5)).done
        assert [one.vm_id for one in here.desk.overrides.freezes()] == [snapshot.ids[2]]

    def twins(view: View) -> View:
        return replace(view, snapshot=renamed(view.snapshot, ("h", "twin", "twin")))

    run(scenario, tmp_path, change=twins)


def renamed(snapshot: Snapshot, names: tuple[str, ...]) -> Snapshot:
    return replace(snapshot, names=names)


def test_a_pin_at_the_present_limit_with_an_end(tmp_path):
    async def scenario(here: Office):
        request = pb.PinRequest(vm="rich", resource="memory", ttl_seconds=60, by="eve")
        reply = await here.stub.Pin(request, timeout=5)
        assert reply.done
        assert "640 MiB for 60 s" in reply.detail
        [pin] = here.desk.overrides.pins()
        assert isinstance(pin, Pin)
        assert (pin.vm_id, pin.amount, pin.by) == (machine_id("rich"), 640 * MIB, "eve")
        here.clock.advance(61 * SECOND_NS)
        await here.desk.tidy()
        assert here.desk.overrides.items == ()

    run(scenario, tmp_path)


def test_a_pin_outside_of_the_bounds_is_refused_with_the_bounds(tmp_path):
    async def scenario(here: Office):
        for amount in (0, 1, 641 * MIB, -5):
            request = pb.PinRequest(vm="rich", resource="memory", amount=amount)
            code, text = await here.fails(here.stub.Pin, request)
            assert code is grpc.StatusCode.INVALID_ARGUMENT
            assert "64 MiB to 640 MiB" in text
        assert here.desk.overrides.items == ()

    run(scenario, tmp_path)


def test_what_was_said_can_be_taken_back(tmp_path):
    async def scenario(here: Office):
        freeze = pb.FreezeRequest(vm="rich", by="eve")
        release = pb.FreezeRequest(vm="rich", by="eve", release=True)
        assert not (await here.stub.Freeze(release, timeout=5)).done
        assert (await here.stub.Freeze(freeze, timeout=5)).done
        assert isinstance(here.desk.overrides.items[0], Freeze)
        assert (await here.stub.Freeze(release, timeout=5)).done
        assert here.desk.overrides.items == ()

    run(scenario, tmp_path)


def test_the_mode_of_a_hypervisor_vm_is_that_of_its_guests_too(tmp_path):
    nested = [host("h"), vm("l1", 512), vm("l2", 128, parent="l1")]

    async def scenario(here: Office):
        for target in ("fleet", "h", "l1", "l2"):
            request = pb.ModeRequest(target=target, mode="recommend", by="eve")
            assert (await here.stub.SetMode(request, timeout=5)).done
        said = [(one.scope, one.target) for one in here.desk.overrides.modes()]
        assert said == [
            ("fleet", ""),
            ("node", machine_id("h")),
            ("node", machine_id("l1")),
            ("vm", machine_id("l1")),
            ("vm", machine_id("l2")),
        ]
        assert all(isinstance(one, ModeChange) for one in here.desk.overrides.items)

    run(scenario, tmp_path, nested)


def test_a_change_is_in_force_and_kept_for_the_record_while_the_stream_is_away(tmp_path):
    async def scenario(here: Office):
        here.bus.online = False
        for name in ("rich", "poor"):
            assert (await here.stub.Freeze(pb.FreezeRequest(vm=name), timeout=5)).done
        assert len(here.desk.overrides.freezes()) == 2
        assert here.bus.streams["PAQ_AUDIT"] == []
        here.bus.online = True
        assert await here.desk._recorder.prepare(1)
        records = here.bus.streams["PAQ_AUDIT"]
        assert [record.subject for record in records] == ["paq.audit.override"] * 2

    run(scenario, tmp_path)


def waiting(tmp_path, scenario):
    run(scenario, tmp_path, [FLEET[0], vm("rich", 640, mode=Mode.RECOMMEND)])


def test_a_plan_that_waits_can_be_approved_once(tmp_path):
    async def scenario(here: Office):
        plan = await here.stub.GetPlan(pb.PlanRequest(), timeout=5)
        assert plan.verdict == "waiting for approval"
        request = pb.ApproveRequest(plan_id=plan.plan_id, by="eve")
        assert (await here.stub.Approve(request, timeout=5)).detail == "on the way"
        assert here.carried == [(plan.plan_id, "eve")]
        code, _ = await here.fails(here.stub.Approve, request)
        assert code is grpc.StatusCode.NOT_FOUND
        assert len(here.carried) == 1

    waiting(tmp_path, scenario)


def test_a_yes_that_comes_too_late_is_refused_with_the_reason(tmp_path):
    async def scenario(here: Office):
        [plan] = here.desk.approvals.open()
        request = pb.ApproveRequest(plan_id=plan.plan_id, by="unlucky")
        reply = await here.stub.Approve(request, timeout=5)
        assert not reply.done
        assert "I5: too late" in reply.detail

    waiting(tmp_path, scenario)


def test_a_plan_that_is_turned_down_waits_no_more_and_the_reason_is_recorded(tmp_path):
    async def scenario(here: Office):
        [plan] = here.desk.approvals.open()
        request = pb.RejectRequest(plan_id=plan.plan_id, by="eve", why="not today")
        assert (await here.stub.Reject(request, timeout=5)).done
        assert here.desk.approvals.open() == ()
        assert b"not today" in here.bus.streams["PAQ_AUDIT"][-1].data
        assert here.carried == []

    waiting(tmp_path, scenario)


def test_a_watcher_hears_what_happens_and_a_slow_one_hears_what_it_missed(tmp_path):
    async def scenario(here: Office):
        watching = here.stub.Watch(pb.WatchRequest())
        await until(lambda: here.broadcast._watchers)
        here.broadcast.tell(Happening("cycle", "one", "node", "plan"))
        event = await asyncio.wait_for(watching.read(), 5)
        assert (event.kind, event.text, event.node_id, event.plan_id) == (
            "cycle", "one", "node", "plan",
        )  # fmt: skip
        assert event.at_unix_ns == here.clock.unix_ns()
        for number in range(WAITING_MAX + 10):  # without a moment to read them
            here.broadcast.tell(Happening("ack", str(number)))
        dropped = await asyncio.wait_for(watching.read(), 5)
        assert (dropped.kind, dropped.text[:2]) == ("dropped", "10")
        assert (await asyncio.wait_for(watching.read(), 5)).text == "10"
        watching.cancel()
        await until(lambda: not here.broadcast._watchers)

    run(scenario, tmp_path)


def test_before_the_first_cycle_everything_is_empty_and_nothing_fails(tmp_path):
    async def scenario(here: Office):
        stub = here.stub
        assert (await stub.GetStatus(pb.StatusRequest(), timeout=5)).cycles == 0
        assert list((await stub.ListVms(pb.VmsRequest(), timeout=5)).vms) == []
        assert list((await stub.ListNodes(pb.NodesRequest(), timeout=5)).nodes) == []
        assert not (await stub.GetPlan(pb.PlanRequest(), timeout=5)).found
        code, _ = await here.fails(stub.Explain, pb.ExplainRequest(vm="rich"))
        assert code is grpc.StatusCode.NOT_FOUND

    empty = View(policy=Policy(), cycle_interval_ns=SECOND_NS)
    run(scenario, tmp_path, change=lambda _: empty)
