"""An agent that dials in over real gRPC and answers as a script says; for tests only."""

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Self

import grpc
from grpc import aio

from shared.pb import commands_pb2 as pb
from shared.pb.commands_pb2_grpc import CommandsStub

if TYPE_CHECKING:
    from shared.pb.commands_pb2_grpc import CommandsAsyncStub

Script = Callable[["ScriptedAgent", pb.Apply], Awaitable[pb.Ack | None]]
TICK_NS = 5_000_000_000  # its clock stands still unless told


async def obedient(agent: "ScriptedAgent", apply: pb.Apply) -> pb.Ack | None:
    """Does every step, at once and whole."""
    return agent.ack(apply, {step.index: pb.OUTCOME_APPLIED for step in apply.steps})


class ScriptedAgent:
    """`async with ScriptedAgent(port, node_id) as agent:` is connected when the body begins."""

    def __init__(
        self,
        port: int,
        node_id: str,
        script: Script = obedient,
        *,
        generation: int = 0,
        epoch_highest: int = 0,
        beat_s: float | None = None,
        run_id: str = "",
        boot_id: str = "boot",
    ) -> None:
        self.node_id = node_id
        self.run_id = run_id or uuid.uuid4().hex
        self.boot_id = boot_id
        self.script = script
        self.generation = generation
        self.epoch_highest = epoch_highest
        self.tick_ns = TICK_NS
        self.applies: list[pb.Apply] = []
        self.renewals: list[pb.Renew] = []
        self.net_limits: list[dict[str, int]] = []
        self.ended_with: grpc.StatusCode | None = None
        self.ended = asyncio.Event()
        self._beat_s = beat_s
        self._address = f"127.0.0.1:{port}"
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        options = [("grpc.enable_http_proxy", 0)]
        self._channel = aio.insecure_channel(self._address, options=options)
        stub: CommandsAsyncStub = CommandsStub(self._channel)
        self._stream = stub.Connect()
        await self._stream.write(pb.AgentMessage(hello=self.hello()))
        self._tasks.append(asyncio.create_task(self._obey()))
        if self._beat_s is not None:
            self._tasks.append(asyncio.create_task(self._keep_beating(self._beat_s)))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.die()

    async def die(self) -> None:
        """Gone without a word, in the middle of whatever it did."""
        self._stream.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._channel.close()

    def hello(self) -> pb.Hello:
        return pb.Hello(
            node_id=self.node_id,
            node_name=f"agent of {self.node_id[:8]}",
            boot_id=self.boot_id,
            version="test",
            epoch_highest=self.epoch_highest,
            agent_tick_ns=self.tick_ns,
            generation=self.generation,
            run_id=self.run_id,
        )

    async def beat(self) -> None:
        beat = pb.Beat(
            agent_tick_ns=self.tick_ns,
            generation=self.generation,
            epoch_highest=self.epoch_highest,
        )
        await self._stream.write(pb.AgentMessage(beat=beat))

    async def say(self, message: pb.AgentMessage) -> None:
        await self._stream.write(message)

    def ack(
        self,
        apply: pb.Apply,
        outcomes: Mapping[int, pb.Outcome],
        after: Mapping[int, int] | None = None,
    ) -> pb.Ack:
        """An answer with these outcomes; `after`: amounts measured, else what was asked for."""
        self.generation += 1
        self.epoch_highest = apply.header.epoch
        return pb.Ack(
            command_id=apply.header.command_id,
            plan_id=apply.header.plan_id,
            epoch=apply.header.epoch,
            generation=self.generation,
            agent_tick_ns=self.tick_ns,
            accepted=True,
            results=[
                pb.StepResult(
                    index=step.index,
                    outcome=outcomes[step.index],
                    before_amount=step.from_amount,
                    after_amount=(after or {}).get(step.index, step.to_amount),
                )
                for step in apply.steps
            ],
        )

    def refusal(self, apply: pb.Apply, why: str) -> pb.Ack:
        return pb.Ack(
            command_id=apply.header.command_id,
            plan_id=apply.header.plan_id,
            epoch=apply.header.epoch,
            generation=self.generation,
            agent_tick_ns=self.tick_ns,
            accepted=False,
            refusal=why,
        )

    async def _obey(self) -> None:
        try:
            async for message in self._stream:
                await self._hear(message)
            self.ended_with = await self._stream.code()
        except aio.AioRpcError as error:
            self.ended_with = error.code()
        self.ended.set()

    async def _hear(self, message: pb.ControllerMessage) -> None:
        kind = message.WhichOneof("kind")
        if kind == "renew":
            self.renewals.append(message.renew)
            return
        if kind == "net_limits":
            self.net_limits.append(
                {one.vm_id: one.bytes_per_s for one in message.net_limits.limits}
            )
            return
        self.applies.append(message.apply)
        ack = await self.script(self, message.apply)
        if ack is not None:
            await self.say(pb.AgentMessage(ack=ack))

    async def _keep_beating(self, beat_s: float) -> None:
        while True:
            await asyncio.sleep(beat_s)
            await self.beat()
