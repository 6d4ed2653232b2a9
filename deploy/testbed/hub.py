"""The lines to all machines: questions with answers, what they report, and what time they have."""

import asyncio
import contextlib
import itertools
import json
import time
from collections.abc import Callable
from typing import Any

from shared.errors import HrapaqError
from testbed.layout import L1, Layout, Places

Message = dict[str, Any]

LINE_BYTES_MAX = 8 << 20
RETRY_S = 0.2
CLOCK_EVERY_S = 10.0
CLOCK_KEPT = 6  # measurements; the quickest of them counts


class MachineError(HrapaqError):
    """A machine refused an order, or did not answer."""


class Hub:
    """`on_event(machine, message)`: every line that is no answer, its `at` on L0's clock."""

    def __init__(
        self, layout: Layout, places: Places, on_event: Callable[[str, Message], None]
    ) -> None:
        self._layout = layout
        self._places = places
        self._on_event = on_event
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Message]] = {}
        self._writers: dict[str, asyncio.StreamWriter] = {}
        self._clocks: dict[str, list[tuple[float, float]]] = {}  # (round trip, offset), newest last
        self.last_heard_s: dict[str, float] = {}  # monotonic

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for l1 in self._layout.l1s:
                tasks.create_task(self._follow(l1))
            for machine in self._layout.machines:
                tasks.create_task(self._keep_time(machine.name))

    async def ask(
        self, machine: str, order: str, words: Message | None = None, timeout_s: float = 30.0
    ) -> Message:
        """The answer; MachineError where there is none or it says that it was refused."""
        writer, number = self._writer_to(machine), next(self._numbers)
        message: Message = {"id": number, "do": order, "with": words or {}}
        if machine not in self._writers:
            message["to"] = machine
        waiting: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._waiting[number] = waiting
        try:
            writer.write(json.dumps(message).encode() + b"\n")
            async with asyncio.timeout(timeout_s):
                await writer.drain()
                answer = await waiting
        except (OSError, TimeoutError) as error:
            raise MachineError(f"{machine}: no answer to {order} ({error!r})") from None
        finally:
            del self._waiting[number]
        if "error" in answer:
            raise MachineError(f"{machine}: {order}: {answer['error']}")
        return answer

    def offset_s(self, machine: str) -> float | None:
        """What to add to a time of the machine's clock to have L0's; None before it is known."""
        measured = self._clocks.get(machine)
        return min(measured)[1] if measured else None

    async def measure_clock(self, machine: str) -> None:
        asked = time.time()
        answer = await self.ask(machine, "clock", timeout_s=5.0)
        now = time.time()
        kept = self._clocks.setdefault(machine, [])
        kept.append((now - asked, (asked + now) / 2 - answer["unix_s"]))
        del kept[:-CLOCK_KEPT]

    def forget(self, machine: str) -> None:
        """It boots anew: with another clock."""
        self._clocks.pop(machine, None)
        self.last_heard_s.pop(machine, None)

    def _writer_to(self, machine: str) -> asyncio.StreamWriter:
        name = machine
        if name not in {l1.name for l1 in self._layout.l1s}:
            name = self._layout.host_of(machine).name
        if name not in self._writers:
            raise MachineError(f"{machine} cannot be reached: {name} does not run")
        return self._writers[name]

    async def _follow(self, l1: L1) -> None:
        """Connects whenever there is somebody to connect to."""
        while True:
            with contextlib.suppress(OSError, ValueError):
                reader, writer = await asyncio.open_unix_connection(
                    self._places.port(l1.name), limit=LINE_BYTES_MAX
                )
                self._writers[l1.name] = writer
                try:
                    while line := await reader.readline():
                        self._take(l1.name, line)
                finally:
                    del self._writers[l1.name]
                    writer.close()
            await asyncio.sleep(RETRY_S)

    def _take(self, l1: str, line: bytes) -> None:
        try:
            message: Message = json.loads(line)
        except ValueError:
            return  # the end of a line whose beginning went to nobody
        machine = message.pop("from", l1)
        self.last_heard_s[machine] = time.monotonic()
        if "id" in message:
            waiting = self._waiting.get(message["id"])
            if waiting is not None and not waiting.done():
                waiting.set_result(message)
            return
        if "at" in message:
            message["at_machine"] = message["at"]
            message["at"] += self.offset_s(machine) or 0.0
        self._on_event(machine, message)

    async def _keep_time(self, machine: str) -> None:
        while True:
            with contextlib.suppress(MachineError):
                await self.measure_clock(machine)
            await asyncio.sleep(CLOCK_EVERY_S if machine in self._clocks else 1.0)
