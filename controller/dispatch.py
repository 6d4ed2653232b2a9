"""Carries audited plans out: phase by phase, each command under the agent's own latest word.

    port = await dispatcher.start(address)
    outcome = await dispatcher.apply(audited, snapshot, policy)

Within a phase each host gets one command and hosts work in parallel; the next phase begins when
all have answered. Grows get no more than what was confirmed (controller.ledger). A command that
nobody answers ends its plan: what it did is unknown, nothing is sent twice, and the next cycle
plans from what telemetry then shows.
"""

import asyncio
import logging
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import grpc
from grpc import aio

from controller.audit import AuditedPlan
from controller.core.state import Fallback, Lend, Policy, Snapshot, Step
from controller.events import Happening
from controller.outcome import PlanOutcome, Result
from controller.progress import (
    Progress,
    ack_text,
    apply_message,
    fallback_message,
    leash_messages,
    reserve_messages,
)
from controller.sessions import SERVER_OPTIONS, Agent, Sessions
from shared.clock import MILLISECOND_NS, SECOND_NS, Clock
from shared.errors import AckTimeout, AgentUnreachable, DispatchError
from shared.pb import commands_pb2 as pb
from shared.pb import commands_pb2_grpc as rpc

log = logging.getLogger(__name__)

ANSWERED_MAX = 4096  # finished commands that are remembered, to know a repeated answer
CLOSE_GRACE_S = 1.0
RETURN_WITHIN_S = 5.0  # for an agent that went away with a command: restarted, it needs about two


@dataclass(frozen=True, slots=True)
class Renewal:
    """The lease of one node's grants goes on; an empty fallback leaves the one in force, and
    the leashes with it."""

    node_id: str
    plan_id: str = ""
    fallback: tuple[Fallback, ...] = ()
    lend: tuple[Lend, ...] = ()


class Dispatcher:
    """`tell` hears of every command, answer, coming and going; it must not block."""

    def __init__(self, clock: Clock, tell: Callable[[Happening], None]) -> None:
        self._clock = clock
        self._tell = tell
        self._sessions = Sessions(clock, self._on_ack, self._on_change)
        self._server: aio.Server | None = None
        self._sequence = 0
        self._spoken: dict[str, int] = {}  # node -> the epoch in which it was last sent something
        self._waiting: dict[str, _Waiting] = {}
        self._answered: OrderedDict[str, str] = OrderedDict()  # command -> node
        self._without_net_limits: dict[str, str] = {}  # node -> run that was told of none
        self._closing = False

    async def start(self, address: str, credentials: grpc.ServerCredentials | None = None) -> int:
        """Listens at `host:port` and returns the port; DispatchError when it cannot."""
        self._server = aio.server(options=SERVER_OPTIONS)
        rpc.add_CommandsServicer_to_server(self._sessions, self._server)
        try:
            if credentials is None:
                port = self._server.add_insecure_port(address)
            else:
                port = self._server.add_secure_port(address, credentials)
            await self._server.start()
        except RuntimeError as error:
            raise DispatchError(f"cannot listen for agents at {address}: {error}") from error
        return port

    async def close(self) -> None:
        """No further command leaves; the one being written is finished. Leases simply run out."""
        self._closing = True
        for waiting in self._waiting.values():
            if not waiting.answer.done():
                waiting.answer.set_exception(AckTimeout("the controller stopped before the answer"))
        if self._server is not None:
            await self._server.stop(CLOSE_GRACE_S)

    def agents(self) -> dict[str, Agent]:
        return dict(self._sessions.agents)

    def clones(self) -> frozenset[str]:
        """Ids of nodes under which two agents connect."""
        return self._sessions.clones()

    def epoch_of_others(self) -> int:
        """The highest epoch that an agent reports and did not get from here; 0: none."""
        agents = self._sessions.agents.values()
        return max((agent.epoch_highest for agent in agents if not self._is_ours(agent)), default=0)

    async def apply(self, audited: AuditedPlan, snapshot: Snapshot, policy: Policy) -> PlanOutcome:
        """Every step of the plan, as far as agents and measurements let it go. Does not raise:
        what went wrong stands in the outcome."""
        plan = audited.verified.plan
        progress = Progress(plan, snapshot, policy)
        for phase in sorted({step.phase for step in plan.steps}):
            batches = progress.begin(phase)
            await asyncio.gather(
                *(self._carry_out(progress, node, steps) for node, steps in batches)
            )
            if progress.stopped:
                extra = {"plan": plan.plan_id, "cause": progress.stopped}
                log.warning("plan stopped", extra=extra)
                break
        return progress.outcome()

    async def renew(self, renewals: Iterable[Renewal], epoch: int, policy: Policy) -> int:
        """Lets leases go on; returns how many agents were told. Nothing moves by it."""
        told = await asyncio.gather(*(self._renew(one, epoch, policy) for one in renewals))
        return sum(told)

    async def _renew(self, renewal: Renewal, epoch: int, policy: Policy) -> bool:
        agent = self._sessions.agents.get(renewal.node_id)
        if agent is None or not agent.connected or self._closing or self._is_over(agent, epoch):
            return False
        header = self._header(agent, renewal.plan_id, epoch, agent.generation, policy)
        self._remember(header.command_id, renewal.node_id)  # agents may answer renewals or not
        fallback = [fallback_message(entry) for entry in renewal.fallback]
        message = pb.ControllerMessage(
            renew=pb.Renew(
                header=header,
                fallback=fallback,
                leash=leash_messages(renewal.fallback),
                reserve=reserve_messages(renewal.lend),
            )
        )
        try:
            await self._sessions.send(renewal.node_id, message)
        except DispatchError as error:
            log.info("lease not renewed", extra={"cause": str(error)})
            return False
        return True

    async def limit_net(
        self, limits: Mapping[str, Mapping[str, int]], epoch: int, policy: Policy
    ) -> None:
        """What operators limit networks to, by node and VM: each time where there are some, once
        to each run of an agent where there are none."""
        for node_id, wanted in limits.items():
            agent = self._sessions.agents.get(node_id)
            if agent is None or not agent.connected or self._closing or self._is_over(agent, epoch):
                continue
            if not wanted and self._without_net_limits.get(node_id) == agent.run_id:
                continue
            header = self._header(agent, "", epoch, agent.generation, policy)
            self._remember(header.command_id, node_id)
            each = [pb.NetLimit(vm_id=vm_id, bytes_per_s=rate) for vm_id, rate in wanted.items()]
            told = pb.NetLimits(header=header, limits=each)
            try:
                await self._sessions.send(node_id, pb.ControllerMessage(net_limits=told))
            except DispatchError as error:
                log.info("network limits not told", extra={"cause": str(error)})
                continue
            self._without_net_limits[node_id] = "" if wanted else agent.run_id

    async def _carry_out(self, progress: Progress, node: int, steps: list[Step]) -> None:
        """One command to one host, and its answer into the progress."""
        node_id = progress.snapshot.ids[node]
        command_id = uuid.uuid4().hex
        try:
            generation = progress.generation(node)
            agent = self._present(node_id, generation, progress.plan.epoch, progress.policy)
            header = self._header(
                agent, progress.plan.plan_id, progress.plan.epoch, generation, progress.policy
            )
            header.command_id = command_id
            ack = await self._exchange(
                progress, node_id, apply_message(header, progress, node, steps)
            )
        except AckTimeout as error:
            progress.lost(command_id, steps, Result.UNKNOWN, str(error))
            self._tell(Happening("ack", str(error), node_id, progress.plan.plan_id))
        except DispatchError as error:
            progress.lost(command_id, steps, Result.NOT_SENT, str(error))
            self._tell(Happening("command", f"not sent: {error}", node_id, progress.plan.plan_id))
        else:
            progress.answered(node, steps, ack)

    def _present(self, node_id: str, generation: int, epoch: int, policy: Policy) -> Agent:
        """The agent, if it is there, as the plan knew it, and knows of no newer controller."""
        agent = self._sessions.agents.get(node_id)
        if self._closing:
            raise DispatchError("the controller is stopping")
        if agent is None or not agent.connected:
            raise AgentUnreachable(f"the agent of node {node_id} is not connected")
        silent_ns = self._clock.tick_ns() - agent.heard_tick_ns
        if silent_ns > policy.command_ttl_ns:
            raise AgentUnreachable(
                f"node {node_id} has said nothing for {silent_ns // SECOND_NS} s: it would refuse "
                "a command with so old a stamp"
            )
        if agent.generation != generation:
            raise DispatchError(
                f"planned on generation {generation}, the agent has moved on to {agent.generation}"
            )
        if self._is_over(agent, epoch):
            raise DispatchError(f"I7: the agent has obeyed epoch {agent.epoch_highest}")
        return agent

    def _is_ours(self, agent: Agent) -> bool:
        return self._spoken.get(agent.node_id) == agent.epoch_highest

    def _is_over(self, agent: Agent, epoch: int) -> bool:
        """Another controller has reached this epoch, or passed it: one that began on another disk
        counts from its own beginning."""
        ours = self._is_ours(agent)
        return agent.epoch_highest > epoch or (agent.epoch_highest == epoch and not ours)

    async def _exchange(
        self, progress: Progress, node_id: str, message: pb.ControllerMessage
    ) -> pb.Ack:
        """Sends, and waits for the answer, which may come over a later stream of the agent."""
        header = message.apply.header
        waiting = _Waiting(
            node_id,
            self._sessions.agents[node_id].run_id,
            asyncio.get_running_loop().create_future(),
        )
        self._waiting[header.command_id] = waiting
        steps = len(message.apply.steps)
        try:
            await self._sessions.send(node_id, message)
            progress.sent(self._clock.tick_ns())
            text = f"{steps} step{'s' if steps > 1 else ''} to {self._name(node_id)}"
            self._tell(Happening("command", text, node_id, header.plan_id))
            async with asyncio.timeout(progress.answer_within_s(steps)):
                return await waiting.answer
        except TimeoutError:
            raise AckTimeout(
                f"node {node_id} did not acknowledge its command; what it did is unknown"
            ) from None
        finally:
            del self._waiting[header.command_id]
            self._remember(header.command_id, node_id)

    def _header(
        self, agent: Agent, plan_id: str, epoch: int, generation: int, policy: Policy
    ) -> pb.Header:
        self._sequence += 1
        self._spoken[agent.node_id] = epoch
        return pb.Header(
            command_id=uuid.uuid4().hex,
            plan_id=plan_id,
            epoch=epoch,
            sequence=self._sequence,
            based_on_generation=generation,
            agent_tick_ns=agent.tick_ns,
            ttl_ms=policy.command_ttl_ns // MILLISECOND_NS,
            lease_ms=policy.lease_ns // MILLISECOND_NS,
        )

    def _on_ack(self, node_id: str, ack: pb.Ack) -> None:
        waiting = self._waiting.get(ack.command_id)
        if waiting is not None and waiting.node_id == node_id:
            if not waiting.answer.done():
                waiting.answer.set_result(ack)
                self._tell(Happening("ack", ack_text(ack), node_id, ack.plan_id))
            return
        if self._answered.get(ack.command_id) == node_id:
            if not ack.accepted:
                log.warning("refused", extra={"node": node_id, "cause": ack.refusal})
            return  # of a renewal, repeated, or after its time: telemetry shows what it did
        log.warning("answer to a command never sent", extra={"node": node_id})

    def _on_change(self, agent: Agent) -> None:
        word = "connected" if agent.connected else "gone"
        self._tell(Happening("node", f"agent of {agent.name} {word}", agent.node_id))
        for waiting in self._waiting.values():
            if waiting.node_id != agent.node_id:
                continue
            if not agent.connected:
                asyncio.get_running_loop().call_later(RETURN_WITHIN_S, self._give_up, waiting)
            elif agent.run_id != waiting.run_id:
                self._give_up(waiting)

    def _give_up(self, waiting: "_Waiting") -> None:
        """A process that is gone will not answer, and an agent that stays away must not hold up
        the cycle, and with it everybody's lease. One that came back itself may still answer."""
        agent = self._sessions.agents[waiting.node_id]
        if waiting.answer.done() or (agent.connected and agent.run_id == waiting.run_id):
            return
        waiting.answer.set_exception(
            AckTimeout(f"node {waiting.node_id} went away with its command; what it did is unknown")
        )

    def _remember(self, command_id: str, node_id: str) -> None:
        self._answered[command_id] = node_id
        while len(self._answered) > ANSWERED_MAX:
            self._answered.popitem(last=False)

    def _name(self, node_id: str) -> str:
        agent = self._sessions.agents.get(node_id)
        return node_id if agent is None else agent.name


@dataclass(frozen=True, slots=True)
class _Waiting:
    node_id: str
    run_id: str  # of the agent's process that was sent the command
    answer: asyncio.Future[pb.Ack]
