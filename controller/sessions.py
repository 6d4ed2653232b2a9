"""The agents that have dialled in: one stream per node. The newest Hello wins, unless it is that of
a second machine of the same id (`controller.rivals`).

Knows who is there and what each said last; carries messages down and hands acknowledgements on.
What a command means is `dispatch`'s business.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import grpc
from grpc import aio

from controller.rivals import REFUSAL, Caller, Rivals
from shared.clock import Clock
from shared.errors import AgentUnreachable
from shared.pb import commands_pb2 as pb
from shared.pb import commands_pb2_grpc as rpc
from shared.subjects import is_machine_id

log = logging.getLogger(__name__)

MESSAGE_BYTES_MAX = 256 * 1024
AGENTS_MAX = 20_000  # twice the fleet that one controller is meant for
HELLO_TIMEOUT_S = 10.0
SEND_TIMEOUT_S = 5.0  # a stream that takes nothing for so long belongs to a stopped agent

# A paused peer is found by the HTTP/2 ping's own time limit; keepalive_timeout alone waited 40 s.
SERVER_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.keepalive_time_ms", 3000),
    ("grpc.http2.ping_timeout_ms", 2000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 1000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_concurrent_streams", 64),
    ("grpc.so_reuseport", 0),  # a second controller on this port must fail, not share it
)

Context = aio.ServicerContext[pb.AgentMessage, pb.ControllerMessage]


@dataclass(frozen=True, slots=True)
class Agent:
    """What a node's agent said last. `tick_ns` is its own clock, `heard_tick_ns` ours."""

    node_id: str
    name: str
    boot_id: str
    version: str
    connected: bool
    generation: int
    tick_ns: int
    heard_tick_ns: int
    epoch_highest: int
    run_id: str = ""  # of its process


class Sessions(rpc.CommandsServicer):
    """`on_ack(node_id, ack)` is called for each acknowledgement, `on_change(agent)` when an agent
    comes or goes; both on the event loop, and they must not block."""

    def __init__(
        self,
        clock: Clock,
        on_ack: Callable[[str, pb.Ack], None],
        on_change: Callable[[Agent], None],
    ) -> None:
        self._clock = clock
        self._on_ack = on_ack
        self._on_change = on_change
        self._agents: dict[str, Agent] = {}
        self._streams: dict[str, _Stream] = {}
        self._rivals = Rivals()

    @property
    def agents(self) -> Mapping[str, Agent]:
        """Every agent that was ever heard in this run, by node."""
        return MappingProxyType(self._agents)

    def clones(self) -> frozenset[str]:
        """Ids of nodes under which two agents connect: nobody knows which of them is meant."""
        return self._rivals.clones(self._clock.tick_ns())

    async def send(self, node_id: str, message: pb.ControllerMessage) -> None:
        """Hands the message to the node's stream; AgentUnreachable when nothing was written.

        A stream that breaks in the middle of it is ended; the agent may have the message or not.
        """
        stream = self._streams.get(node_id)
        if self._rivals.is_clone(node_id, self._clock.tick_ns()):
            raise AgentUnreachable(
                f"two agents connect as node {node_id}: neither is told anything"
            )
        if stream is None:
            raise AgentUnreachable(f"the agent of node {node_id} is not connected")
        if message.ByteSize() > MESSAGE_BYTES_MAX:
            size = message.ByteSize()
            raise AgentUnreachable(
                f"a command of {size} bytes for node {node_id}: {MESSAGE_BYTES_MAX} are allowed"
            )
        await stream.send(message)

    async def Connect(  # type: ignore[override]  # noqa: N802 - a name from the protocol; grpc.aio's read/write style, which the generated types do not know
        self, request_iterator: AsyncIterator[pb.AgentMessage], context: Context
    ) -> None:
        """One agent's stream, from its Hello to its end."""
        hello = await self._hello(request_iterator, context)
        node_id = hello.node_id
        older = self._streams.get(node_id)
        if older is not None and not self._admits(hello):
            await context.abort(grpc.StatusCode.ALREADY_EXISTS, REFUSAL)
        stream = _Stream(node_id, context)
        self._streams[node_id] = stream
        if older is not None:  # a reconnection that was quicker than we, or two agents of one node
            log.warning("older stream superseded", extra={"node": node_id})
            older.supersede()
        self._update(self._agent_of(hello))
        log.info("agent connected", extra={"node": node_id, "host": hello.node_name})
        try:
            await stream.listen(request_iterator, self._take)
        finally:
            # When a newer stream has taken over, this node is still there.
            if self._streams.get(node_id) is stream:
                del self._streams[node_id]
                self._update(replace(self._agents[node_id], connected=False))
                log.info("agent gone", extra={"node": node_id, "host": hello.node_name})

    async def _hello(self, messages: AsyncIterator[pb.AgentMessage], context: Context) -> pb.Hello:
        try:
            async with asyncio.timeout(HELLO_TIMEOUT_S):
                first = await anext(messages, None)
        except TimeoutError:
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "no Hello came")
        if first is None or first.WhichOneof("kind") != "hello":
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the first message is a Hello")
        if not is_machine_id(first.hello.node_id):
            await context.abort(
                grpc.StatusCode.INVALID_ARGUMENT,
                f"node_id {first.hello.node_id[:64]!r} is no lower-case UUID",
            )
        if first.hello.node_id not in self._agents and len(self._agents) >= AGENTS_MAX:
            await context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED, f"{AGENTS_MAX} agents are known already"
            )
        return first.hello

    def _admits(self, hello: pb.Hello) -> bool:
        """Whether it takes over from the stream that is there."""
        now, present = self._clock.tick_ns(), self._agents[hello.node_id]
        was_clone = self._rivals.is_clone(hello.node_id, now)
        admits = self._rivals.admits(
            Caller(hello.node_id, hello.boot_id, hello.run_id),
            Caller(present.node_id, present.boot_id, present.run_id),
            present.heard_tick_ns,
            now,
        )
        if not was_clone and self._rivals.is_clone(hello.node_id, now):
            extra = {"node": hello.node_id, "host": hello.node_name, "detail": REFUSAL}
            log.warning("two agents connect as one node, neither is told anything", extra=extra)
        return admits

    def _take(self, node_id: str, message: pb.AgentMessage) -> None:
        kind = message.WhichOneof("kind")
        if kind == "beat":
            self._heard(node_id, message.beat)
        elif kind == "ack":
            self._answered(node_id, message.ack)
            self._on_ack(node_id, message.ack)
        else:
            log.warning("message out of place", extra={"node": node_id, "kind": kind})

    def _heard(self, node_id: str, beat: pb.Beat) -> None:
        agent = self._agents[node_id]
        self._agents[node_id] = replace(
            agent,
            generation=max(agent.generation, beat.generation),
            tick_ns=beat.agent_tick_ns,
            heard_tick_ns=self._clock.tick_ns(),
            epoch_highest=max(agent.epoch_highest, beat.epoch_highest),
        )

    def _answered(self, node_id: str, ack: pb.Ack) -> None:
        """Counts the change, and takes no stamp from it: an answer that waited for a new stream
        may stem from an earlier boot of that machine, whose clock said something else."""
        agent = self._agents[node_id]
        generation = max(agent.generation, ack.generation)
        self._agents[node_id] = replace(agent, generation=generation)

    def _agent_of(self, hello: pb.Hello) -> Agent:
        return Agent(
            node_id=hello.node_id,
            name=hello.node_name or hello.node_id,
            boot_id=hello.boot_id,
            version=hello.version,
            connected=True,
            generation=hello.generation,
            tick_ns=hello.agent_tick_ns,
            heard_tick_ns=self._clock.tick_ns(),
            epoch_highest=hello.epoch_highest,
            run_id=hello.run_id,
        )

    def _update(self, agent: Agent) -> None:
        self._agents[agent.node_id] = agent
        self._on_change(agent)


class _Stream:
    """One stream: writes one after the other, each with a deadline; ends when superseded."""

    def __init__(self, node_id: str, context: Context) -> None:
        self._node_id = node_id
        self._context = context
        self._writing = asyncio.Lock()
        self._ended = asyncio.Event()
        self._why = "the stream was closed"

    async def listen(
        self,
        messages: AsyncIterator[pb.AgentMessage],
        take: Callable[[str, pb.AgentMessage], None],
    ) -> None:
        """Hands on what the agent says until its stream ends, or until it is superseded."""
        reading = asyncio.create_task(self._read(messages, take))
        ended = asyncio.create_task(self._ended.wait())
        try:
            await asyncio.wait({reading, ended}, return_when=asyncio.FIRST_COMPLETED)
            if self._ended.is_set():
                await self._context.abort(grpc.StatusCode.ABORTED, self._why)
        finally:
            self._ended.set()
            reading.cancel()
            ended.cancel()
            await asyncio.gather(reading, ended, return_exceptions=True)

    async def _read(
        self,
        messages: AsyncIterator[pb.AgentMessage],
        take: Callable[[str, pb.AgentMessage], None],
    ) -> None:
        async for message in messages:
            if self._ended.is_set():
                return
            take(self._node_id, message)

    async def send(self, message: pb.ControllerMessage) -> None:
        async with self._writing:
            if self._ended.is_set():
                raise AgentUnreachable(f"the stream of node {self._node_id} has ended")
            try:
                async with asyncio.timeout(SEND_TIMEOUT_S):
                    await self._context.write(message)
            except (TimeoutError, aio.BaseError) as error:
                cause = str(error) or "no room in time"
                log.warning("stream broken", extra={"node": self._node_id, "cause": cause})
                self._end("it takes no messages")

    def supersede(self) -> None:
        self._end("a newer stream of this node has taken over")

    def _end(self, why: str) -> None:
        self._why = why
        self._ended.set()
