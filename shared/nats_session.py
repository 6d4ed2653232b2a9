"""One NATS connection, from its first attempt to its end, and reading a stream through it."""

import asyncio
import contextlib
import ssl
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlparse

import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy, StreamConfig
from nats.js.client import JetStreamContext

from shared.clock import SECOND_NS
from shared.errors import BusError


class StoredMessage(NamedTuple):
    sequence: int  # of the stream, rising, from 1
    subject: str
    data: bytes
    stored_at_unix_ns: int  # by the server's wall clock


Answer = TypeVar("Answer")

# What Bus.ensure_stream says of a stream; everything else is the server's own.
_DESCRIBED = (
    "subjects",
    "max_age",
    "max_bytes",
    "discard",
    "storage",
    "duplicate_window",
    "deny_delete",
    "deny_purge",
)


@dataclass(frozen=True, slots=True)
class NatsOptions:
    connect_timeout_s: float = 2.0
    ping_interval_s: float = 2.0  # a stalled server is noticed after this and the next together
    ping_timeout_s: float = 2.0
    backoff_first_s: float = 0.1
    backoff_max_s: float = 5.0
    pending_bytes: int = 8 * 1024 * 1024  # that wait for a slow server; more is refused
    receive_messages: int = 65_536  # that wait for a slow callback; more is dropped and counted
    receive_bytes: int = 64 * 1024 * 1024
    tls: ssl.SSLContext | None = None
    nkey_seed_path: Path | None = None


class Session:
    """One client from its first attempt to its end; never used again after it was lost."""

    def __init__(self) -> None:
        self.client = Client()
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.stream_api: JetStreamContext = self.client.jetstream()

    @property
    def server(self) -> str:
        url = self.client.connected_url
        return without_secret(url.geturl()) if url else "the server"

    def has_room(self, size: int, limit: int) -> bool:
        return self.client.is_connected and self.client.pending_data_size + size <= limit

    async def on_closed(self) -> None:
        if not self.lost.done():
            self.lost.set_result(None)

    async def connect(
        self,
        servers: Sequence[str],
        name: str,
        on_error: Callable[[Exception], Awaitable[None]],
        options: NatsOptions,
    ) -> None:
        """One attempt at each server; what nats-py, the socket or TLS raises when none answers."""
        seed = options.nkey_seed_path
        await self.client.connect(
            servers=list(servers),
            name=name,
            error_cb=on_error,
            closed_cb=self.on_closed,
            disconnected_cb=self.on_closed,
            allow_reconnect=False,
            max_reconnect_attempts=1,
            reconnect_time_wait=0,
            connect_timeout=options.connect_timeout_s,  # type: ignore[arg-type]  # any number
            ping_interval=3600,  # pinged by the bus
            pending_size=4 * options.pending_bytes,  # never reached, so never a blocking flush
            flush_timeout=1.0,
            tls=options.tls,
            nkeys_seed=str(seed) if seed else None,
        )

    async def make_stream(self, config: StreamConfig) -> None:
        """Creates it, or changes the one of that name; BusError when the server refuses.

        A stream that is as described is left alone: the server reserves the size of a stream
        that is made or changed once more, and refuses both when its store has no room for that.
        """
        assert config.name is not None, "a stream without a name"
        what, timeout_s = f"stream {config.name}", 5.0
        try:
            there = await self.ask(what, self.stream_api.stream_info(config.name), timeout_s)
        except BusError as error:
            if not isinstance(error.__cause__, nats.js.errors.NotFoundError):
                raise
            await self.ask(what, self.stream_api.add_stream(config), timeout_s)
            return
        if any(getattr(there.config, name) != getattr(config, name) for name in _DESCRIBED):
            await self.ask(what, self.stream_api.update_stream(config), timeout_s)

    async def ask(self, what: str, work: Coroutine[Any, Any, Answer], timeout_s: float) -> Answer:
        """The answer; BusError when it fails, takes too long, or the connection is lost.

        Not wait_for: the client swallows cancellation, which would wait on.
        """
        task = asyncio.ensure_future(work)
        try:
            both: set[asyncio.Future[Any]] = {task, self.lost}
            await asyncio.wait(both, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                lost = self.lost.done()
                why = "the connection was lost" if lost else f"no answer within {timeout_s:g} s"
                raise BusError(f"{what}: {why}")
            return task.result()
        except (nats.errors.Error, OSError) as error:
            raise BusError(f"{what}: {str(error) or type(error).__name__}") from error
        finally:
            await end(task)

    async def discard(self) -> list[Exception]:
        """Ends everything of the client, whatever state it is in; what its tasks died of.

        Reaches inside, because the client's own close waits for a stalled server to take
        what is still unsent, and stops half-way when the connection breaks meanwhile.
        """
        client = self.client
        tasks = [client._reading_task, client._flusher_task, client._ping_interval_task]  # noqa: SLF001
        tasks += [sub._wait_for_msgs_task for sub in client._subs.values()]  # noqa: SLF001
        client._pending.clear()  # noqa: SLF001
        client._pending_data_size = 0  # noqa: SLF001
        writer = getattr(client._transport, "_io_writer", None)  # noqa: SLF001
        if writer is not None:
            writer.transport.abort()
        closing = asyncio.ensure_future(client.close())
        await asyncio.wait({closing}, timeout=1.0)
        found = [await end(task) for task in (closing, *tasks) if task is not None]
        return [error for error in found if error is not None]


async def end(task: asyncio.Future[Any], patience_s: float = 0.1) -> Exception | None:
    """Cancels until the task is over, for it may swallow a cancellation; what it died of."""
    for _ in range(20):
        if task.done():
            break
        task.cancel()
        await asyncio.wait({task}, timeout=patience_s)
    if not task.done() or task.cancelled():
        return None
    error = task.exception()
    return error if isinstance(error, Exception) else None


# ---- reading what a stream holds ----

_BATCH_MESSAGES = 100
_CONSUMER_IDLE_S = 30.0  # after which the server forgets a reader that vanished


class StreamReader:
    """A short-lived pull consumer; notices when it was not given everything in order."""

    def __init__(self, session: Session, stream: str, subject: str, deadline_s: float) -> None:
        self._session = session
        self._stream = stream
        self._subject = subject
        self._loop = asyncio.get_running_loop()
        self._deadline = self._loop.time() + deadline_s
        self._subscription: JetStreamContext.PullSubscription | None = None
        self._last_sequence = 0
        self._delivered = 0
        self._pending = 0

    async def open(self, start: dict[str, Any]) -> None:
        api = self._session.stream_api
        info = await self._ask(api.stream_info(self._stream))
        self._last_sequence = info.state.last_seq
        config = ConsumerConfig(
            ack_policy=AckPolicy.NONE,
            inactive_threshold=_CONSUMER_IDLE_S,
            mem_storage=True,
            **start,
        )
        subscribing = api.pull_subscribe(self._subject, stream=self._stream, config=config)
        self._subscription = await self._ask(subscribing)
        await self._count_pending()

    async def next_batch(self) -> list[StoredMessage]:
        """The next messages, up to the end that was seen when opening; empty after it."""
        assert self._subscription is not None
        while self._pending > 0:
            count = min(_BATCH_MESSAGES, self._pending)
            timeout_s = min(5.0, self._left_s())
            try:
                got = await self._ask(self._subscription.fetch(count, timeout=timeout_s))
            except BusError as error:
                if not isinstance(error.__cause__, TimeoutError):
                    raise
                await self._count_pending()  # the rest may have grown too old meanwhile
                continue
            return [stored for stored in map(self._checked, got) if self._is_wanted(stored)]
        return []

    async def close(self) -> None:
        if self._subscription is not None and not self._session.lost.done():
            with contextlib.suppress(BusError):
                await self._session.ask("unsubscribe", self._subscription.unsubscribe(), 1.0)

    def _checked(self, message: Msg) -> StoredMessage:
        metadata = message.metadata
        self._delivered += 1
        if metadata.sequence.consumer != self._delivered:
            raise BusError(f"stream {self._stream}: messages were lost on the way, read it again")
        self._pending = metadata.num_pending
        stored_at_unix_ns = int(metadata.timestamp.timestamp() * SECOND_NS)
        sequence = metadata.sequence.stream
        return StoredMessage(sequence, message.subject, message.data, stored_at_unix_ns)

    def _is_wanted(self, stored: StoredMessage) -> bool:
        if stored.sequence >= self._last_sequence:
            self._pending = 0
        return stored.sequence <= self._last_sequence

    async def _count_pending(self) -> None:
        assert self._subscription is not None
        info = await self._ask(self._subscription.consumer_info())
        self._pending = info.num_pending or 0

    def _left_s(self) -> float:
        left_s = self._deadline - self._loop.time()
        if left_s <= 0:
            raise BusError(f"stream {self._stream}: not read to its end in time")
        return left_s

    async def _ask(self, work: Coroutine[Any, Any, Answer]) -> Answer:
        try:
            left_s = self._left_s()
        except BusError:
            work.close()
            raise
        return await self._session.ask(f"stream {self._stream}", work, left_s)


def start_of(start_sequence: int, since_unix_ns: int | None) -> dict[str, Any]:
    if since_unix_ns is not None:
        since = datetime.fromtimestamp(since_unix_ns / SECOND_NS, UTC)
        return {"deliver_policy": DeliverPolicy.BY_START_TIME, "opt_start_time": since}
    return {"deliver_policy": DeliverPolicy.BY_START_SEQUENCE, "opt_start_seq": start_sequence}


def without_secret(url: str) -> str:
    """A URL may carry a token before its @; no log and no screen shows it."""
    scheme, mark, rest = url.partition("://")
    return f"{scheme}{mark}{rest.rpartition('@')[2]}"


def checked_url(url: str) -> str:
    try:
        parsed = urlparse(url)
        usable = parsed.scheme in {"nats", "tls"} and bool(parsed.hostname) and parsed.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise BusError(f"{without_secret(url)!r} is no server: nats://host:port is needed")
    return url
