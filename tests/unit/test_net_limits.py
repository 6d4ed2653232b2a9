"""Network limits: an operator's word on its way to a VM, and away again."""

import asyncio
from dataclasses import replace

import pytest

from agent import guard
from agent.guard import GuardState, Refused
from agent.messages import net_limits_of
from agent.net_limits import NetLimiter
from agent.simulated import SimulatedHypervisor, SimulatedVm
from agent.steps import Header
from controller.core.state import Mode, Policy
from controller.ctl_types import parse_rate
from controller.leases import net_limits
from controller.net_rows import tell_idle_levers, tell_networks, why_not_limited
from controller.overrides import NetPin, Overrides, from_bytes, to_bytes
from controller.testing import Machine, host, make_snapshot
from controller.view import NodeInfo, View
from shared.clock import SECOND_NS, FakeClock
from shared.errors import HypervisorError
from shared.pb import admin_pb2, commands_pb2
from shared.resources import MIB, Resource
from shared.telemetry import IDLE, IDLE_SHRINKING


class Taps(SimulatedHypervisor):
    """Counts what is set; may refuse."""

    def __init__(self, clock):
        super().__init__(1, clock, (SimulatedVm("a"), SimulatedVm("b")))
        self.asked = []
        self.refuses = False
        self.looked = 0

    async def read_all(self):
        self.looked += 1
        return await super().read_all()

    async def set_net_limit(self, vm_id, bytes_per_s):
        self.asked.append(bytes_per_s)
        if self.refuses:
            raise HypervisorError("type user has no device")
        await super().set_net_limit(vm_id, bytes_per_s)


def test_what_is_wanted_is_set_once_and_lifted_when_it_is_not_any_more():
    async def scenario():
        clock = FakeClock()
        taps = Taps(clock)
        limiter, vm_id = NetLimiter(taps, clock), taps.vm_ids()["a"]
        await limiter.keep(None)
        await limiter.keep({vm_id: MIB})
        await limiter.keep({vm_id: MIB})
        assert taps.asked == [MIB]
        clock.advance(61 * SECOND_NS)
        await limiter.keep({vm_id: MIB})
        assert taps.asked == [MIB]  # it was looked at, and is in force
        taps.restart(vm_id)
        clock.advance(61 * SECOND_NS)
        await limiter.keep({vm_id: MIB})
        assert taps.asked == [MIB, MIB]
        await limiter.keep({})
        assert taps.asked == [MIB, MIB, None]
        assert all(vm.net_limit_bytes_per_s is None for vm in await taps.read_all())
        clock.advance(61 * SECOND_NS)
        await limiter.keep({})
        looked = taps.looked
        clock.advance(61 * SECOND_NS)
        await limiter.keep({})
        assert taps.looked == looked  # where nothing is limited, nobody looks

    asyncio.run(scenario())


def test_a_refusal_is_tried_again_in_a_minute_and_stops_nobody_else():
    async def scenario():
        clock = FakeClock()
        taps = Taps(clock)
        limiter, wanted = NetLimiter(taps, clock), dict.fromkeys(taps.vm_ids().values(), MIB)
        taps.refuses = True
        await limiter.keep(wanted)
        await limiter.keep(wanted)
        assert taps.asked == [MIB, MIB]
        assert limiter.why_none == "type user has no device"
        taps.refuses = False
        clock.advance(61 * SECOND_NS)
        await limiter.keep(wanted)
        assert all(vm.net_limit_bytes_per_s == MIB for vm in await taps.read_all())
        assert limiter.why_none == ""

    asyncio.run(scenario())


def test_a_restarted_agent_leaves_what_is_in_force_until_it_is_told():
    async def scenario():
        clock = FakeClock()
        taps = Taps(clock)
        vm_id = taps.vm_ids()["a"]
        await taps.set_net_limit(vm_id, MIB)
        limiter = NetLimiter(taps, clock)
        await limiter.keep(None)
        assert taps.asked == [MIB]
        await limiter.keep({})
        assert taps.asked == [MIB, None]

    asyncio.run(scenario())


def test_a_word_from_the_past_is_not_heard():
    header = Header("c", "", 5, 3, 0, 10 * SECOND_NS, 10_000, 60_000)
    state = GuardState(epoch_highest=5, sequence_highest=2)
    assert guard.objection(header, state, 12 * SECOND_NS) is None
    for old, now in (
        (replace(header, epoch=4), 12),
        (replace(header, sequence=2), 12),
        (header, 21),
        (header, 9),
    ):
        assert isinstance(guard.objection(old, state, now * SECOND_NS), Refused)


def test_a_limit_of_nothing_is_no_limit():
    limits = [commands_pb2.NetLimit(vm_id="a", bytes_per_s=0)]
    with pytest.raises(ValueError, match="cut a VM off"):
        net_limits_of(commands_pb2.NetLimits(limits=limits))


POLICY = Policy()
MACHINES = [
    host("host"),
    Machine("web", parent="host", mode=Mode.ENFORCE),
    Machine("db", parent="host", mode=Mode.RECOMMEND),
]


def test_limits_go_where_the_mode_lets_them():
    snapshot = make_snapshot(MACHINES)
    node_id, web, db = snapshot.ids
    pins = Overrides((NetPin(web, MIB), NetPin(db, MIB), NetPin("gone", MIB)))
    policy = POLICY
    assert net_limits(snapshot, pins, snapshot.roots(), policy) == {node_id: {web: MIB}}
    assert net_limits(snapshot, Overrides(), snapshot.roots(), policy) == {node_id: {}}


def test_a_pin_of_the_network_survives_a_restart_beside_the_others():
    pins = Overrides((NetPin("a", MIB, by="ann", expires_tick_ns=100),))
    assert from_bytes(to_bytes(pins, 10, 10), 10, 10) == pins
    assert not pins.pins() and pins.net_pins()
    assert not pins.without(("pin", "a", "net")).items


def test_rows_show_what_passed_and_the_limit():
    snapshot = make_snapshot(MACHINES)
    node_id, web, db = snapshot.ids
    node = NodeInfo(
        node_id=node_id,
        name="host",
        role="host",
        received_tick_ns=0,
        levers={"net": ""},
        vm_ids=(web, db),
        vm_net_used_bytes_per_s=(5 * MIB, -1),
        vm_net_limit_bytes_per_s=(-1, -1),
    )
    view = View(policy=POLICY, cycle_interval_ns=1, nodes=(node,), snapshot=snapshot)
    rows = [admin_pb2.VmRow(vm_id=web), admin_pb2.VmRow(vm_id=db)]
    tell_networks(rows, view)
    assert (rows[0].net.used, rows[0].net.HasField("limit")) == (5 * MIB, False)
    assert not rows[1].HasField("net")
    assert why_not_limited(view, snapshot, 1) == ""
    assert "recommend" in why_not_limited(view, snapshot, 2)
    without = replace(view, nodes=(replace(node, levers={"net": "no tap"}),))
    assert "no tap" in why_not_limited(without, snapshot, 1)


def test_rows_name_levers_that_do_nothing_where_nothing_else_is_said():
    node = NodeInfo(
        node_id="h",
        name="host",
        role="host",
        received_tick_ns=0,
        levers={},
        vm_ids=("a", "b", "c"),
        vm_idle_levers=(IDLE_SHRINKING << Resource.MEMORY | IDLE << Resource.CPU, 1, -1),
    )
    view = View(policy=POLICY, cycle_interval_ns=1, nodes=(node,))
    states = {"a": "short: memory 8 MiB", "b": "growing", "c": "steady"}
    rows = [admin_pb2.VmRow(vm_id=vm_id, state=state) for vm_id, state in states.items()]
    tell_idle_levers(rows, view)
    assert [row.state for row in rows] == ["no effect: cpu, memory", "growing", "steady"]


@pytest.mark.parametrize(("text", "amount"), [("10MiB/s", 10 * MIB), ("512k", 512 * 1024)])
def test_rates_as_people_type_them(text, amount):
    assert parse_rate(text) == amount


@pytest.mark.parametrize("text", ["fast", "3 cores", "-1MiB/s"])
def test_what_is_no_rate(text):
    with pytest.raises(ValueError, match="10MiB/s"):
        parse_rate(text)
