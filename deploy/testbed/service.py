"""What the keeper answers at its socket: one JSON line in, one out, any number of clients."""

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from typing import Any, Self

from shared.errors import HrapaqError
from testbed.hub import LINE_BYTES_MAX
from testbed.keeper import Keeper
from testbed.layout import L1

Answer = dict[str, Any]


class Service:
    """`async with Service(keeper):` answers until the block ends."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper
        self._orders: dict[str, Callable[..., Awaitable[Answer]]] = {
            "status": self._status,
            "ask": self._ask,
            "start": self._start,
            "domain": self._domain,
            "stop": self._stop,
        }

    async def __aenter__(self) -> Self:
        path = self._keeper.places.control
        path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._serve, path, limit=LINE_BYTES_MAX)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self._keeper.places.control.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.CancelledError):
            try:
                while line := await reader.readline():
                    answer = await self._answer(json.loads(line))
                    writer.write(json.dumps(answer).encode() + b"\n")
                    await writer.drain()
            finally:
                writer.close()

    async def _answer(self, message: dict[str, Any]) -> Answer:
        try:
            return await self._orders[message.pop("do")](**message)
        except (HrapaqError, LookupError, TypeError) as error:
            return {"error": str(error) or type(error).__name__}

    async def _status(self) -> Answer:
        return self._keeper.status()

    async def _ask(
        self, machine: str, order: str, words: dict[str, Any], timeout_s: float = 30.0
    ) -> Answer:
        """Hands an order on to a machine."""
        # The machine's own patience ends first, so that its answer says what went wrong.
        return await self._keeper.hub.ask(machine, order, words, timeout_s + 5.0)

    async def _start(self, machine: str, changes: Answer | None = None) -> Answer:
        """A machine that has ended; an L2 may be another than it was."""
        found = self._keeper.layout.find(machine)
        if isinstance(found, L1):
            await self._keeper.start_l1(found)
        else:
            await self._keeper.start_l2(self._keeper.layout.host_of(machine), machine, changes)
        return {}

    async def _domain(self, machine: str, call: str) -> Answer:
        """suspend, resume, destroy, reset: by the libvirt below the machine."""
        if isinstance(self._keeper.layout.find(machine), L1):
            await self._keeper.domain_call(machine, call)
            return {}
        host = self._keeper.layout.host_of(machine)
        return await self._keeper.hub.ask(host.name, "domain", {"name": machine, "call": call})

    async def _stop(self) -> Answer:
        self._keeper.stopping.set()
        return {}
