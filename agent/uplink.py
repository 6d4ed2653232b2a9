"""The stream to the controller: the agent dials out, commands come back over it.

It lives beside sampling and never holds it up. A lost stream is dialled again, later and later;
answers wait for the next stream. Keepalive finds a dead peer within seconds, which gRPC's own
deadlines do not; that an old command is not obeyed is the guard's work, not this one's.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, Protocol

import grpc

from agent.leash import Bounds
from agent.messages import ack_message, command_of, net_limits_of, renewal_of
from agent.steps import Ack, Command, Fallback, Header
from shared.clock import SECOND_NS, Clock
from shared.log import RateLimited
from shared.pb import commands_pb2 as pb
from shared.pb.commands_pb2_grpc import CommandsStub

if TYPE_CHECKING:
    from shared.pb.commands_pb2_grpc import CommandsAsyncStub

logger = logging.getLogger(__name__)

# `ping_timeout_ms` is the one that finds a peer that is paused; `keepalive_timeout_ms` did not.
CHANNEL_OPTIONS = (
    ("grpc.keepalive_time_ms", 3000),
    ("grpc.http2.ping_timeout_ms", 1000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_receive_message_length", 256 * 1024),
    ("grpc.enable_retries", 0),
)
CONNECT_S = 5.0
BEAT_S = 1.0
BACKOFF_S_MIN = 0.25
BACKOFF_S_MAX = 15.0
WAITING_COMMANDS_MAX = 16
WAITING_ACKS_MAX = 64

Stream = grpc.aio.StreamStreamCall[pb.AgentMessage, pb.ControllerMessage]


class Orders(Protocol):
    """Who obeys (agent.steward.Steward)."""

    async def apply(self, command: Command) -> Ack: ...

    async def renew(self, header: Header, fallback: Fallback, bounds: Bounds) -> Ack | None: ...

    def limit_net(self, header: Header, limits: dict[str, int]) -> Ack | None: ...

    def refuse(self, header: Header, detail: str) -> Ack: ...


class Uplink:
    """`hello` makes the first message of every stream; its facts are in every beat as well."""

    def __init__(
        self,
        address: str,
        hello: Callable[[], pb.Hello],
        orders: Orders,
        clock: Clock,
        random: Random,
    ) -> None:
        self._address = address
        self._hello = hello
        self._orders = orders
        self._random = random
        self._said = RateLimited(logger, clock)
        self._clock = clock
        self._commands: asyncio.Queue[Command] = asyncio.Queue(WAITING_COMMANDS_MAX)
        self._unsent: deque[Ack] = deque(maxlen=WAITING_ACKS_MAX)
        self._something_to_send = asyncio.Event()
        self.connected = False

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._obey())
            tasks.create_task(self._stay_connected())

    async def _obey(self) -> None:
        """One command at a time, in the order in which they came."""
        while True:
            command = await self._commands.get()
            self._send(await self._orders.apply(command))

    async def _stay_connected(self) -> None:
        attempt = 0
        while True:
            began = self._clock.tick_ns()
            cause = await self._converse()
            lasted = self._clock.tick_ns() - began
            attempt = 0 if lasted > 2 * CONNECT_S * SECOND_NS else attempt + 1
            self._said.warning("stream", "no stream to the controller", cause=cause)
            await asyncio.sleep(backoff_s(attempt, self._random))

    async def _converse(self) -> str:
        """One stream from its beginning to its end; why it ended."""
        options = list(CHANNEL_OPTIONS)
        async with grpc.aio.insecure_channel(self._address, options=options) as channel:
            try:
                await asyncio.wait_for(channel.channel_ready(), CONNECT_S)
            except TimeoutError:
                return f"{self._address} does not answer"
            stub: CommandsAsyncStub = CommandsStub(channel)
            stream = stub.Connect()
            try:
                return await self._talk(stream)
            except grpc.aio.AioRpcError as error:
                return f"{error.code().name}: {error.details()}"
            finally:
                self.connected = False
                stream.cancel()

    async def _talk(self, stream: Stream) -> str:
        await stream.write(pb.AgentMessage(hello=self._hello()))
        self.connected = True
        logger.info("stream to the controller is open", extra={"address": self._address})
        speaking = asyncio.create_task(self._speak(stream))
        try:
            async for message in stream:
                await self._hear(message)
            return "the controller closed the stream"
        finally:
            speaking.cancel()
            await asyncio.gather(speaking, return_exceptions=True)

    async def _hear(self, message: pb.ControllerMessage) -> None:
        kind = message.WhichOneof("kind")
        try:
            if kind == "apply":
                self._take(command_of(message.apply))
            elif kind == "renew":
                refusal = await self._orders.renew(*renewal_of(message.renew))
                if refusal is not None:
                    self._send(refusal)
            elif kind == "net_limits":
                refusal = self._orders.limit_net(*net_limits_of(message.net_limits))
                if refusal is not None:
                    self._send(refusal)
        except ValueError as error:
            self._said.warning("command", "a command makes no sense", cause=str(error))

    def _take(self, command: Command) -> None:
        try:
            self._commands.put_nowait(command)
        except asyncio.QueueFull:
            detail = f"{WAITING_COMMANDS_MAX} commands are waiting already"
            self._send(self._orders.refuse(command.header, detail))

    def _send(self, ack: Ack) -> None:
        self._unsent.append(ack)
        self._something_to_send.set()

    async def _speak(self, stream: Stream) -> None:
        """Answers at once, and a beat every second; ends with the stream."""
        try:
            while True:
                while self._unsent:
                    ack = self._unsent[0]  # stays there until it is written
                    await stream.write(ack_message(ack))
                    if self._unsent and self._unsent[0] is ack:
                        self._unsent.popleft()
                await stream.write(pb.AgentMessage(beat=self._beat()))
                self._something_to_send.clear()
                await self._wait_for_more()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            return  # the stream is over, and whoever reads from it learns why

    async def _wait_for_more(self) -> None:
        try:
            await asyncio.wait_for(self._something_to_send.wait(), BEAT_S)
        except TimeoutError:
            return

    def _beat(self) -> pb.Beat:
        facts = self._hello()
        return pb.Beat(
            agent_tick_ns=facts.agent_tick_ns,
            generation=facts.generation,
            epoch_highest=facts.epoch_highest,
        )


def backoff_s(attempt: int, random: Random) -> float:
    """Half a second, one, two ... a quarter of a minute, each drawn from its upper half, so that
    a fleet does not come back all at once."""
    longest = min(BACKOFF_S_MAX, BACKOFF_S_MIN * (1 << min(attempt, 16)))
    return longest * (0.5 + random.random() / 2)
