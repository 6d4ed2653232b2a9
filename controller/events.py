"""What happens, told at once to whoever watches; slow watchers lose the oldest and hear so."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace

from shared.clock import Clock

WAITING_MAX = 256  # events that one watcher may be behind
WATCHERS_MAX = 64


@dataclass(frozen=True, slots=True)
class Happening:
    """`kind` is cycle, plan, command, ack, rejection, override or node."""

    kind: str
    text: str
    node_id: str = ""
    plan_id: str = ""
    at_unix_ns: int = 0  # set when it is told


@dataclass(eq=False, slots=True)
class _Watcher:
    waiting: deque[Happening] = field(default_factory=deque)
    dropped: int = 0
    news: asyncio.Event = field(default_factory=asyncio.Event)


class TooManyWatchers(Exception):  # noqa: N818 - an expected answer, read as one
    pass


class Broadcast:
    """One teller, many watchers; telling never waits. On one event loop."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._watchers: list[_Watcher] = []

    def tell(self, happening: Happening) -> None:
        stamped = replace(happening, at_unix_ns=self._clock.unix_ns())
        for watcher in self._watchers:
            if len(watcher.waiting) >= WAITING_MAX:
                watcher.waiting.popleft()
                watcher.dropped += 1
            watcher.waiting.append(stamped)
            watcher.news.set()

    async def watch(self) -> AsyncIterator[Happening]:
        """Everything from now on, without end; TooManyWatchers at once when nobody else fits."""
        if len(self._watchers) >= WATCHERS_MAX:
            raise TooManyWatchers(f"{WATCHERS_MAX} are watching already")
        watcher = _Watcher()
        self._watchers.append(watcher)
        try:
            while True:
                await watcher.news.wait()
                watcher.news.clear()
                if watcher.dropped:
                    text = f"{watcher.dropped} events were dropped: this watcher is too slow"
                    watcher.dropped = 0
                    yield Happening("dropped", text, at_unix_ns=self._clock.unix_ns())
                while watcher.waiting:
                    yield watcher.waiting.popleft()
        finally:
            self._watchers.remove(watcher)
