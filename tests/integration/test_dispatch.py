"""Dispatch against scripted agents over real gRPC: whatever they do, no step goes too far."""

import asyncio
import time
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace

import grpc
import pytest

from controller.audit import AuditTrail
from controller.core.state import Fallback, Lend, Mode, Plan, Policy, Snapshot, Step, VerifiedPlan
from controller.core.verify import verify
from controller.dispatch import RETURN_WITHIN_S, Dispatcher, Renewal
from controller.events import Happening
from controller.outcome import PlanOutcome, Result
from controller.scripted_agent import ScriptedAgent, obedient
from controller.testing import Machine, host, machine_id, make_snapshot
from shared.clock import SECOND_NS, FakeClock
from shared.errors import DispatchError
from shared.pb import commands_pb2 as pb
from shared.resources import GIB, MIB, Resource
from shared.testing import FakeBus, until

HOST = machine_id("h")
# Answers are waited for 0.2 s + 0.2 s per step: long on this machine, short for a test.
POLICY = Policy(step_deadline_ns=200_000_000, command_ttl_ns=200_000_000)


@dataclass
class Scene:
    """A dispatcher that listens, with the plan of a full host: v1 gives 100 MiB to v2."""

    dispatcher: Dispatcher
    port: int
    snapshot: Snapshot
    plan: VerifiedPlan
    told: list[Happening]
    clock: FakeClock
    agents: AsyncExitStack = field(default_factory=AsyncExitStack)

    async def agent(self, script=obedient, node="h", **facts) -> ScriptedAgent:
        agent = ScriptedAgent(self.port, machine_id(node), script, **facts)
        await self.agents.enter_async_context(agent)
        await until(lambda: self.connected(node))
        return agent

    def connected(self, node="h") -> bool:
        agent = self.dispatcher.agents().get(machine_id(node))
        return agent is not None and agent.connected

    async def apply(self, policy: Policy = POLICY) -> PlanOutcome:
        bus = FakeBus()
        await bus.connect()
        trail = AuditTrail(bus, self.clock, epoch=self.plan.plan.epoch)
        await trail.open()
        audited = await trail.intent(self.plan)
        return await self.dispatcher.apply(audited, self.snapshot, policy)


@asynccontextmanager
async def scene(machines=None, steps=None):
    machines = machines or [host("h", memory=512 * MIB), vm("v1"), vm("v2")]
    snapshot = make_snapshot(machines)
    plan = verified(snapshot, steps or (step(0, 0, 1, 256, 156), step(1, 1, 2, 256, 356)))
    told: list[Happening] = []
    clock = FakeClock()
    dispatcher = Dispatcher(clock, told.append)
    port = await dispatcher.start("127.0.0.1:0")
    here = Scene(dispatcher, port, snapshot, plan, told, clock)
    try:
        async with here.agents:
            yield here
    finally:
        await dispatcher.close()


def vm(name: str, limit_mib: int = 256, parent: str = "h", generation: int = 0) -> Machine:
    return Machine(
        name,
        parent,
        limit=(1000, limit_mib * MIB, None),
        maximum=(1000, GIB, None),
        used=(100, 32 * MIB, None),
        memory_free=200 * MIB,
        generation=generation,
    )


def step(index, phase, machine, before_mib, after_mib, node=0, snapshot_name=None) -> Step:
    name = snapshot_name or f"v{machine}"
    return Step(
        index, phase, machine, machine_id(name), node, Resource.MEMORY,
        before_mib * MIB, after_mib * MIB, 64 * MIB, GIB, "because",
    )  # fmt: skip


def verified(snapshot: Snapshot, steps: tuple[Step, ...]) -> VerifiedPlan:
    hosts = sorted({one.node for one in steps})
    plan = Plan(
        plan_id="p-1",
        root=0,
        epoch=1,
        cycle=1,
        steps=steps,
        fallback=tuple(
            Fallback(s.machine, s.vm_id, s.node, s.resource, min(s.from_amount, s.to_amount))
            for s in steps
        ),
        generations=tuple((node, int(snapshot.generation[node])) for node in hosts),
    )
    verdict = verify(plan, snapshot, POLICY, Mode.ENFORCE)
    assert isinstance(verdict, VerifiedPlan), verdict
    return verdict


def results(outcome: PlanOutcome) -> list[Result]:
    return [one.result for one in outcome.steps]


def test_a_whole_plan_is_carried_out_phase_by_phase_and_acknowledged():
    async def scenario():
        async with scene() as here:
            agent = await here.agent()
            outcome = await here.apply()
        assert results(outcome) == [Result.APPLIED, Result.APPLIED]
        assert (outcome.commands_sent, outcome.commands_acknowledged) == (2, 2)
        assert outcome.stopped == ""
        assert outcome.memory_changed_bytes == 200 * MIB
        assert [[s.index for s in apply.steps] for apply in agent.applies] == [[0], [1]]

    asyncio.run(scenario())


def test_the_header_says_all_that_an_agent_needs_to_refuse():
    async def scenario():
        async with scene() as here:
            agent = await here.agent()
            await here.apply()
        first, second = (apply.header for apply in agent.applies)
        assert first.command_id != second.command_id
        assert (first.epoch, first.plan_id) == (1, "p-1")
        assert second.sequence > first.sequence
        assert (first.based_on_generation, second.based_on_generation) == (0, 1)
        assert first.agent_tick_ns == agent.tick_ns
        assert first.ttl_ms == 200
        assert first.lease_ms == 60_000
        fallback = {entry.vm_id: entry.amount for entry in agent.applies[0].fallback}
        assert fallback == {machine_id("v1"): 156 * MIB, machine_id("v2"): 256 * MIB}

    asyncio.run(scenario())


def test_a_grow_gets_no_more_than_the_shrink_was_measured_to_free():
    async def half(agent, apply):
        outcome = pb.OUTCOME_PARTIAL if apply.steps[0].index == 0 else pb.OUTCOME_APPLIED
        after = {0: 206 * MIB} if outcome == pb.OUTCOME_PARTIAL else None
        return agent.ack(apply, {s.index: outcome for s in apply.steps}, after)

    async def scenario():
        async with scene() as here:
            agent = await here.agent(half)
            coarse = await here.apply()
            assert results(coarse) == [Result.PARTIAL, Result.HELD]
            assert "confirmed" in coarse.steps[1].detail
            assert len(agent.applies) == 1
        async with scene() as here:
            agent = await here.agent(half)
            fine = await here.apply(replace(POLICY, quantum=(50, 10 * MIB, MIB)))
            assert results(fine) == [Result.PARTIAL, Result.APPLIED]
            assert agent.applies[1].steps[0].to_amount == 306 * MIB

    asyncio.run(scenario())


def test_an_agent_that_dies_in_the_middle_ends_the_plan_and_nothing_is_sent_again():
    async def scenario():
        async with scene() as here:

            async def die(agent, apply):
                asyncio.get_running_loop().call_soon(agent._stream.cancel)

            first = await here.agent(die)
            sending = asyncio.create_task(here.apply())
            await until(lambda: first.applies)
            began = time.monotonic()
            second = await here.agent()  # back again as another process, with empty hands
            outcome = await sending
        assert time.monotonic() - began < 1, "it waited for a process that is gone"
        assert results(outcome) == [Result.UNKNOWN, Result.NOT_SENT]
        assert "unknown" in outcome.stopped
        assert second.applies == []

    asyncio.run(scenario())


def test_a_lost_answer_that_comes_over_the_next_stream_counts_once():
    async def scenario():
        async with scene() as here:
            lost: list[pb.Ack] = []

            async def answer_into_the_void(agent, apply):
                lost.append(agent.ack(apply, {s.index: pb.OUTCOME_APPLIED for s in apply.steps}))
                asyncio.get_running_loop().call_soon(agent._stream.cancel)

            first = await here.agent(answer_into_the_void)
            patient = replace(POLICY, step_deadline_ns=5 * SECOND_NS)
            sending = asyncio.create_task(here.apply(patient))
            await until(lambda: lost)
            await until(lambda: not here.connected())
            second = await here.agent(
                generation=first.generation, epoch_highest=1, run_id=first.run_id
            )
            for _ in range(2):  # and it repeats itself
                await second.say(pb.AgentMessage(ack=lost[0]))
            outcome = await sending
        assert results(outcome) == [Result.APPLIED, Result.APPLIED]
        assert outcome.commands_acknowledged == 2
        assert [apply.steps[0].index for apply in second.applies] == [1]

    asyncio.run(scenario())


def test_an_agent_that_stays_away_holds_the_cycle_up_no_longer_than_it_may_need_to_return():
    async def scenario():
        async with scene() as here:

            async def die(agent, apply):
                asyncio.get_running_loop().call_soon(agent._stream.cancel)

            await here.agent(die)
            patient = replace(POLICY, step_deadline_ns=60 * SECOND_NS, lease_ns=90 * SECOND_NS)
            began = time.monotonic()
            outcome = await here.apply(patient)
        assert RETURN_WITHIN_S <= time.monotonic() - began < RETURN_WITHIN_S + 3
        assert results(outcome) == [Result.UNKNOWN, Result.NOT_SENT]

    asyncio.run(scenario())


def test_nothing_is_sent_when_the_agent_has_moved_on_since_the_snapshot():
    async def scenario():
        async with scene() as here:
            agent = await here.agent(generation=7)
            outcome = await here.apply()
        assert results(outcome) == [Result.NOT_SENT, Result.NOT_SENT]
        assert "generation 0" in outcome.stopped
        assert agent.applies == []

    asyncio.run(scenario())


def test_a_change_that_the_agent_makes_by_itself_between_two_phases_stops_the_plan():
    async def reflex(agent, apply):
        ack = agent.ack(apply, {s.index: pb.OUTCOME_APPLIED for s in apply.steps})
        agent.generation += 1  # a burst was lent to meanwhile
        await agent.beat()
        return ack

    async def scenario():
        async with scene() as here:
            agent = await here.agent(reflex)
            outcome = await here.apply()
        assert results(outcome) == [Result.APPLIED, Result.NOT_SENT]
        assert len(agent.applies) == 1

    asyncio.run(scenario())


def test_nothing_is_sent_to_an_agent_that_has_obeyed_a_newer_controller():
    async def scenario():
        async with scene() as here:
            agent = await here.agent(epoch_highest=9)
            outcome = await here.apply()
            assert here.dispatcher.epoch_of_others() == 9
            assert await here.dispatcher.renew([Renewal(HOST)], 1, POLICY) == 0
        assert "I7" in outcome.stopped
        assert agent.applies == agent.renewals == []

    asyncio.run(scenario())


def test_an_epoch_that_another_controller_has_used_is_not_used_again():
    """It began on another disk, so it counted from its own beginning."""

    async def scenario():
        async with scene() as here:
            epoch = here.plan.plan.epoch
            agent = await here.agent(epoch_highest=epoch)
            outcome = await here.apply()
            assert here.dispatcher.epoch_of_others() == epoch
            assert await here.dispatcher.renew([Renewal(HOST)], epoch, POLICY) == 0
        assert "I7" in outcome.stopped
        assert agent.applies == agent.renewals == []

    asyncio.run(scenario())


def test_an_epoch_that_an_agent_has_from_here_is_ours():
    async def scenario():
        async with scene() as here:
            agent = await here.agent()
            await here.apply()
            await agent.beat()
            await until(lambda: here.dispatcher.agents()[HOST].epoch_highest == 1)
            assert here.dispatcher.epoch_of_others() == 0

    asyncio.run(scenario())


def test_nothing_is_sent_to_an_agent_that_has_long_said_nothing():
    async def scenario():
        async with scene() as here:
            agent = await here.agent()
            here.clock.advance(POLICY.command_ttl_ns + 1)
            outcome = await here.apply()
            assert results(outcome) == [Result.NOT_SENT, Result.NOT_SENT]
            await agent.beat()
            await until(
                lambda: here.dispatcher.agents()[HOST].heard_tick_ns == here.clock.tick_ns()
            )
            assert results(await here.apply())[0] is Result.APPLIED

    asyncio.run(scenario())


def test_a_refused_command_stops_its_plan_and_says_why():
    async def refuse(agent, apply):
        return agent.refusal(apply, "I3: below the working set that I measure")

    async def scenario():
        async with scene() as here:
            agent = await here.agent(refuse)
            outcome = await here.apply()
        assert results(outcome) == [Result.REFUSED, Result.NOT_SENT]
        assert "working set" in outcome.steps[0].detail
        assert len(agent.applies) == 1

    asyncio.run(scenario())


def test_a_vm_that_is_gone_does_not_stop_the_others():
    async def gone(agent, apply):
        word = pb.OUTCOME_GONE if apply.steps[0].index == 0 else pb.OUTCOME_APPLIED
        return agent.ack(apply, {s.index: word for s in apply.steps}, {0: 0})

    async def scenario():
        async with scene() as here:
            await here.agent(gone)
            outcome = await here.apply()
        assert results(outcome) == [Result.GONE, Result.APPLIED]

    asyncio.run(scenario())


def test_nobody_there_is_said_and_nothing_waits():
    async def scenario():
        async with scene() as here:
            outcome = await here.apply()
        assert results(outcome) == [Result.NOT_SENT, Result.NOT_SENT]
        assert "not connected" in outcome.stopped
        assert outcome.first_sent_tick_ns is None

    asyncio.run(scenario())


def test_hosts_of_one_phase_work_side_by_side():
    machines = [
        host("h", memory=2 * GIB),
        vm("l1a", 600), vm("l1b", 600),
        vm("g1", 256, "l1a"), vm("g2", 256, "l1b"),
    ]  # fmt: skip
    steps = (
        step(0, 0, 3, 256, 156, node=1, snapshot_name="g1"),
        step(1, 0, 4, 256, 156, node=2, snapshot_name="g2"),
    )

    async def scenario():
        async with scene(machines, steps) as here:
            both = asyncio.Barrier(2)  # each answers only when the other one was asked as well

            async def together(agent, apply):
                await both.wait()
                return await obedient(agent, apply)

            await here.agent(together, "l1a")
            await here.agent(together, "l1b")
            outcome = await here.apply(replace(POLICY, step_deadline_ns=5 * SECOND_NS))
        assert results(outcome) == [Result.APPLIED, Result.APPLIED]

    asyncio.run(scenario())


def test_the_newest_hello_of_a_node_wins_and_the_older_stream_is_closed():
    async def scenario():
        async with scene() as here:
            older = await here.agent()
            newer = await here.agent()
            await asyncio.wait_for(older.ended.wait(), 5)
            assert older.ended_with is grpc.StatusCode.ABORTED
            outcome = await here.apply()
            assert here.connected()
        assert results(outcome) == [Result.APPLIED, Result.APPLIED]
        assert older.applies == []
        assert len(newer.applies) == 2

    asyncio.run(scenario())


def test_of_two_machines_with_one_id_the_one_that_is_there_stays_and_neither_is_told_anything():
    async def scenario():
        async with scene() as here:
            there = await here.agent(boot_id="one")
            for _ in range(4):  # the clone dials, again and again
                here.clock.advance(2 * SECOND_NS)
                await there.beat()
                now = here.clock.tick_ns()
                agent = here.dispatcher.agents
                await until(lambda: agent()[HOST].heard_tick_ns == now)  # noqa: B023 - awaited here
                assert not here.dispatcher.clones()
                async with ScriptedAgent(here.port, HOST, boot_id="two") as clone:
                    await asyncio.wait_for(clone.ended.wait(), 5)
                assert clone.ended_with is grpc.StatusCode.ALREADY_EXISTS
            assert here.dispatcher.clones() == {HOST}
            assert not there.ended.is_set()
            outcome = await here.apply()
            assert await here.dispatcher.renew([Renewal(HOST)], 1, POLICY) == 0
            here.clock.advance(300 * SECOND_NS)
            assert not here.dispatcher.clones()
            assert await here.dispatcher.renew([Renewal(HOST)], 1, POLICY) == 1
        assert results(outcome) == [Result.NOT_SENT, Result.NOT_SENT]
        assert there.applies == []

    asyncio.run(scenario())


def test_an_answer_to_a_command_of_another_node_is_dropped():
    async def scenario():
        async with scene() as here:
            asked: list[pb.Apply] = []

            async def silent(agent, apply):
                asked.append(apply)

            await here.agent(silent)
            liar = await here.agent(node="liar")
            sending = asyncio.create_task(here.apply())
            await until(lambda: asked)
            ack = liar.ack(asked[0], {0: pb.OUTCOME_APPLIED})
            await liar.say(pb.AgentMessage(ack=ack))
            outcome = await sending
        assert results(outcome) == [Result.UNKNOWN, Result.NOT_SENT]

    asyncio.run(scenario())


def test_a_stream_that_does_not_begin_with_a_proper_hello_is_refused():
    async def scenario():
        async with scene() as here:
            async with ScriptedAgent(here.port, "../etc") as agent:
                await asyncio.wait_for(agent.ended.wait(), 5)
            assert agent.ended_with is grpc.StatusCode.INVALID_ARGUMENT
            assert here.dispatcher.agents() == {}

    asyncio.run(scenario())


def test_a_renewal_carries_lease_and_fallback_and_moves_nothing():
    async def scenario():
        async with scene() as here:
            agent = await here.agent()
            ends = (300 * MIB, 100 * MIB, 400 * MIB)
            fallback = (
                Fallback(1, machine_id("v1"), 0, Resource.MEMORY, 200 * MIB, *ends),
                Fallback(2, machine_id("v2"), 0, Resource.MEMORY, 200 * MIB, 300 * MIB),
            )
            lend = (Lend(0, Resource.MEMORY, 64 * MIB),)
            told = await here.dispatcher.renew([Renewal(HOST, "p", fallback, lend)], 1, POLICY)
            assert told == 1
            await until(lambda: agent.renewals)
        assert agent.applies == []
        assert agent.renewals[0].header.lease_ms == 60_000
        assert agent.renewals[0].fallback[0].amount == 200 * MIB
        (leash,) = agent.renewals[0].leash
        assert leash.vm_id == machine_id("v1")
        assert (leash.plan_amount, leash.low_amount, leash.high_amount) == ends
        assert [one.amount for one in agent.renewals[0].reserve] == [64 * MIB]

    asyncio.run(scenario())


def test_a_controller_that_stops_leaves_no_command_half_sent_and_waits_for_no_answer():
    async def scenario():
        async with scene() as here:

            async def silent(agent, apply):
                pass

            agent = await here.agent(silent)
            patient = replace(POLICY, step_deadline_ns=600 * SECOND_NS)
            sending = asyncio.create_task(here.apply(patient))
            await until(lambda: agent.applies)
            await here.dispatcher.close()
            outcome = await asyncio.wait_for(sending, 5)
            assert results(outcome) == [Result.UNKNOWN, Result.NOT_SENT]
            assert results(await here.apply()) == [Result.NOT_SENT, Result.NOT_SENT]

    asyncio.run(scenario())


def test_a_port_that_is_taken_is_said():
    async def scenario():
        async with scene() as here:
            second = Dispatcher(FakeClock(), lambda _: None)
            with pytest.raises(DispatchError, match=str(here.port)):
                await second.start(f"127.0.0.1:{here.port}")
            await second.close()

    asyncio.run(scenario())
