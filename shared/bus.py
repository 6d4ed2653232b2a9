"""The bus: NATS through nats-py, with every wait bounded and every reconnection our own.

The client's own reconnection is switched off: against a stalled server it keeps sockets, its
`publish` swallows cancellation and its default pings notice after minutes. Here one task opens a
client, pings it, and throws it away as a whole when it does not answer; the next one gets
the same subscriptions and streams. Publishing never waits: `try_publish` hands the bytes to the
connection or says that it could not.
"""

import asyncio
import contextlib
import random
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import nats.errors
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js.api import DiscardPolicy, StorageType, StreamConfig

from shared.errors import BusError
from shared.nats_session import (
    NatsOptions,
    Session,
    StoredMessage,
    StreamReader,
    checked_url,
    end,
    start_of,
    without_secret,
)

__all__ = ["Bus", "BusCounters", "NatsBus", "NatsOptions", "StoredMessage"]

MessageCallback = Callable[[str, bytes], None]  # subject, data
ErrorCallback = Callable[[Exception], None]
_Interest = tuple[str, MessageCallback]


@dataclass(slots=True)
class BusCounters:
    """Since the start; only ever rise."""

    connections: int = 0  # made; the first one included
    errors: int = 0  # handed to the error callback
    published: int = 0  # handed to the connection
    refused: int = 0  # not handed over: no connection, or too much waits already
    dropped_slow: int = 0  # received, but the callback was too far behind


class Bus(Protocol):
    @property
    def connected(self) -> bool: ...

    @property
    def status_text(self) -> str:
        """For people: connected to what, or why not."""
        ...

    @property
    def counters(self) -> BusCounters: ...

    async def connect(self) -> None:
        """Begins to connect and goes on until `close`; a server that is not there is no error."""
        ...

    async def wait_connected(self, timeout_s: float) -> bool:
        """Whether there was a connection within the time."""
        ...

    async def try_publish(self, subject: str, data: bytes) -> bool:
        """Hands `data` to the connection, at most once; False when it could not. Never waits.

        BusError for what no retry would help: more than the server takes, a bad subject.
        """
        ...

    async def subscribe(self, subject: str, callback: MessageCallback) -> None:
        """Calls back for each message, from now on and after every reconnection.

        BusError where the connection is lost under it: the next one has the subscription.
        """
        ...

    async def unsubscribe(self, subject: str, callback: MessageCallback) -> None:
        """Ends what `subscribe` with the same arguments began; nothing when it did not."""
        ...

    async def ensure_stream(
        self,
        name: str,
        subjects: Sequence[str],
        *,
        max_age_s: float,
        max_bytes: int,
        duplicate_window_s: float = 120.0,
        append_only: bool = False,
    ) -> None:
        """Makes the stream as described, or changes it to that, now and at every connection.

        Oldest messages go first when `max_age_s` (0: no limit) or `max_bytes` is reached.
        `append_only`: no client can delete or purge. BusError when the server refuses.
        """
        ...

    async def publish_acknowledged(
        self, subject: str, data: bytes, message_id: str, timeout_s: float = 5.0
    ) -> int:
        """The sequence under which the stream stored it; the same id again is stored once.

        BusError when no stream said so in time: it may be stored or not, repeat with the same id.
        """
        ...

    def read_stream(
        self,
        stream: str,
        subject: str,
        *,
        start_sequence: int = 1,
        since_unix_ns: int | None = None,
        deadline_s: float = 60.0,
    ) -> AsyncGenerator[StoredMessage, None]:
        """What the stream holds of `subject` from there on, up to what was in it at the start.

        BusError when it cannot be read whole within `deadline_s`. Close it: `aclosing`.
        """
        ...

    async def close(self) -> None:
        """Sends what waits for at most a second; leaves no task and no socket behind."""
        ...


DEFAULT_OPTIONS = NatsOptions()


class NatsBus:
    """`Bus` on real NATS servers: `nats://host:port` or `tls://host:port`, one of them at a time.

    `on_error` gets whatever the client meets, connection attempts included: limit its rate.
    """

    def __init__(
        self,
        servers: Sequence[str],
        name: str,
        on_error: ErrorCallback,
        options: NatsOptions = DEFAULT_OPTIONS,
    ) -> None:
        self._servers = [checked_url(server) for server in servers]
        if not self._servers:
            raise BusError("no NATS server is named")
        self._name = name
        self._on_error = on_error
        self._options = options
        self.counters = BusCounters()
        # In the order of subscribing, with the connection on which each was begun last.
        self._subscriptions: dict[_Interest, tuple[Session, Subscription] | None] = {}
        self._subscribing = asyncio.Lock()
        self._streams: dict[str, StreamConfig] = {}
        self._session: Session | None = None
        self._connected = asyncio.Event()
        self._why_not = "not started"
        self._last_error: Exception | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._closing = False

    @property
    def connected(self) -> bool:
        return self._session is not None and self._session.client.is_connected

    @property
    def status_text(self) -> str:
        if self._session is not None and self._session.client.is_connected:
            return f"connected to {self._session.server}"
        return f"not connected: {self._why_not}"

    async def connect(self) -> None:
        assert self._keeper is None, "connect once"
        self._why_not = f"trying {', '.join(without_secret(url) for url in self._servers)}"
        self._keeper = asyncio.create_task(self._keep_connected(), name=f"bus {self._name}")

    async def wait_connected(self, timeout_s: float) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while not self.connected:  # a connection may be lost before this task wakes
                    self._connected.clear()
                    await self._connected.wait()
        return self.connected

    async def try_publish(self, subject: str, data: bytes) -> bool:
        session = self._session
        if session is None or not session.has_room(len(data), self._options.pending_bytes):
            self.counters.refused += 1
            return False
        try:
            await session.client.publish(subject, data)
        except nats.errors.MaxPayloadError:
            limit = session.client.max_payload
            raise BusError(f"{len(data)} bytes for {subject}: the server takes {limit}") from None
        except nats.errors.BadSubjectError:
            raise BusError(f"{subject!r} is no subject") from None
        except (nats.errors.Error, OSError) as error:
            self._report(error)
            self.counters.refused += 1
            return False
        self.counters.published += 1
        return True

    async def subscribe(self, subject: str, callback: MessageCallback) -> None:
        self._subscriptions.setdefault((subject, callback), None)
        if self._session is not None:
            session = self._session
            try:
                await self._start_subscriptions(session)
            except (nats.errors.Error, OSError) as error:  # the next connection has it
                raise BusError(f"{subject} is not heard yet: {error}") from None
            await session.ask("subscribe", session.client.flush(), 5.0)  # the server knows of it

    async def unsubscribe(self, subject: str, callback: MessageCallback) -> None:
        begun = self._subscriptions.pop((subject, callback), None)
        if begun is not None:
            with contextlib.suppress(
                nats.errors.Error, OSError
            ):  # with its connection it is gone anyway
                await begun[1].unsubscribe()

    async def ensure_stream(
        self,
        name: str,
        subjects: Sequence[str],
        *,
        max_age_s: float,
        max_bytes: int,
        duplicate_window_s: float = 120.0,
        append_only: bool = False,
    ) -> None:
        self._streams[name] = StreamConfig(
            name=name,
            subjects=list(subjects),
            max_age=max_age_s,
            max_bytes=max_bytes,
            discard=DiscardPolicy.OLD,
            storage=StorageType.FILE,
            duplicate_window=min(duplicate_window_s, max_age_s or duplicate_window_s),
            deny_delete=append_only,
            deny_purge=append_only,
        )
        if self._session is not None:
            await self._session.make_stream(self._streams[name])

    async def publish_acknowledged(
        self, subject: str, data: bytes, message_id: str, timeout_s: float = 5.0
    ) -> int:
        session = self._required()
        if not session.has_room(len(data), self._options.pending_bytes):
            raise BusError(f"{subject}: too much waits for the server already")
        headers = {"Nats-Msg-Id": message_id}
        publishing = session.stream_api.publish(subject, data, timeout=timeout_s, headers=headers)
        acknowledgement = await session.ask(f"publish to {subject}", publishing, timeout_s)
        self.counters.published += 1
        return int(acknowledgement.seq)

    async def read_stream(
        self,
        stream: str,
        subject: str,
        *,
        start_sequence: int = 1,
        since_unix_ns: int | None = None,
        deadline_s: float = 60.0,
    ) -> AsyncGenerator[StoredMessage, None]:
        session = self._required()
        reader = StreamReader(session, stream, subject, deadline_s)
        try:
            await reader.open(start_of(start_sequence, since_unix_ns))
            while batch := await reader.next_batch():
                for message in batch:
                    yield message
        finally:
            await reader.close()

    async def close(self) -> None:
        self._closing = True
        if self._session is not None:
            with contextlib.suppress(BusError):
                await self._session.ask("flush", self._session.client.flush(timeout=1), 1.0)
        if self._keeper is not None:
            await end(self._keeper, patience_s=0.5)
        self._why_not = "closed"

    # ---- the task that keeps a connection ----

    async def _keep_connected(self) -> None:
        backoff_s = self._options.backoff_first_s
        while not self._closing:  # a cancellation may be swallowed by the client
            try:
                if await self._hold_one_session():
                    backoff_s = self._options.backoff_first_s
            except Exception as error:  # noqa: BLE001 - outermost loop: no surprise may end it
                self._report(error)
                self._why_not = f"{type(error).__name__}: {error}"
            # A thousand agents that lost the same server must not return at the same moment.
            await asyncio.sleep(backoff_s * random.uniform(0.5, 1.0))  # noqa: S311 - no secret
            backoff_s = min(2 * backoff_s, self._options.backoff_max_s)

    async def _hold_one_session(self) -> bool:
        """Opens a connection and stays until it is lost; False when there was none."""
        session = Session()
        try:
            if not await self._open(session):
                return False
            self._session = session
            self._connected.set()
            self.counters.connections += 1
            self._why_not = f"lost {session.server}"
            self._why_not = await self._watch(session)
            return True
        finally:
            self._session = None
            self._connected.clear()
            for error in await session.discard():
                self._report(error)

    async def _open(self, session: Session) -> bool:
        try:
            await session.connect(self._servers, self._name, self._on_client_error, self._options)
            await self._start_subscriptions(session)
        except (nats.errors.Error, OSError, ValueError) as error:
            # "No servers available" hides why they were not.
            known = self._last_error if isinstance(error, nats.errors.NoServersError) else error
            self._why_not = str(known) or type(known).__name__
            return False
        for config in self._streams.values():
            try:
                await session.make_stream(config)
            except BusError as error:
                self._report(error)
        return True

    async def _watch(self, session: Session) -> str:
        """Returns why the connection is lost, once it is."""
        options = self._options
        while True:
            await asyncio.wait({session.lost}, timeout=options.ping_interval_s)
            if session.lost.done() or not session.client.is_connected:
                return f"{session.server} closed the connection"
            timeout_s = options.ping_timeout_s
            try:
                await session.ask("ping", session.client.rtt(timeout=60), timeout_s)
            except BusError:
                return f"{session.server} does not answer"

    async def _start_subscriptions(self, session: Session) -> None:
        """Those that this connection has not; they may come and go meanwhile."""
        async with self._subscribing:
            while missing := [k for k, v in self._subscriptions.items() if not _is_on(v, session)]:
                subscription = await self._start_subscription(session, *missing[0])
                if missing[0] in self._subscriptions:
                    self._subscriptions[missing[0]] = (session, subscription)
                else:
                    await subscription.unsubscribe()

    async def _start_subscription(
        self, session: Session, subject: str, callback: MessageCallback
    ) -> Subscription:
        async def deliver(message: Msg) -> None:
            callback(message.subject, message.data)

        return await session.client.subscribe(
            subject,
            cb=deliver,
            pending_msgs_limit=self._options.receive_messages,
            pending_bytes_limit=self._options.receive_bytes,
        )

    def _required(self) -> Session:
        if self._session is None or not self._session.client.is_connected:
            raise BusError(self.status_text)
        return self._session

    async def _on_client_error(self, error: Exception) -> None:
        if isinstance(error, nats.errors.SlowConsumerError):
            self.counters.dropped_slow += 1
        self._report(error)

    def _report(self, error: Exception) -> None:
        self.counters.errors += 1
        self._last_error = error
        self._on_error(error)


def _is_on(begun: tuple[Session, Subscription] | None, session: Session) -> bool:
    return begun is not None and begun[0] is session
