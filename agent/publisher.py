"""Telemetry on its way to the bus: a bounded buffer that keeps the newest.

Sampling only ever adds to it. Whatever happens on the way, what is lost is counted.
"""

import asyncio
import logging
from collections import deque
from typing import Protocol

from shared.bus import Bus
from shared.clock import Clock
from shared.errors import BusError
from shared.log import RateLimited

logger = logging.getLogger(__name__)

RETRY_S = 0.5


class Watcher(Protocol):
    """Who counts (agent.metrics)."""

    def published(self) -> None: ...

    def dropped(self, cause: str) -> None: ...


class Publisher:
    def __init__(
        self, bus: Bus, subject: str, messages_max: int, clock: Clock, watcher: Watcher
    ) -> None:
        self._bus = bus
        self._subject = subject
        self._messages_max = messages_max
        self._watcher = watcher
        self._said = RateLimited(logger, clock)
        self._waiting: deque[bytes] = deque()
        self._more = asyncio.Event()
        self.published = 0
        self.dropped = 0

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def offer(self, message: bytes) -> None:
        """Never waits; the oldest message gives way when the buffer is full."""
        self._waiting.append(message)
        while len(self._waiting) > self._messages_max:
            self._waiting.popleft()
            self._drop("buffer_full", "the bus is away for too long, the oldest message is lost")
        self._more.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self._more.wait()
            self._more.clear()
            while not await self.flush():
                await asyncio.sleep(RETRY_S)
                if not self._bus.connected:
                    self._said.warning("bus", "telemetry waits", why=self._bus.status_text)

    async def flush(self) -> bool:
        """Hands over what waits, oldest first; False when something is left."""
        while self._waiting:
            message = self._waiting[0]
            try:
                if not await self._bus.try_publish(self._subject, message):
                    return False
            except BusError as error:
                self._drop("refused", str(error))
            else:
                self.published += 1
                self._watcher.published()
            if self._waiting and self._waiting[0] is message:
                self._waiting.popleft()
        return True

    def _drop(self, cause: str, detail: str) -> None:
        self.dropped += 1
        self._watcher.dropped(cause)
        self._said.warning(cause, "telemetry lost", detail=detail)
