"""Telemetry from the bus into the fleet, on a thread, event loop and connection of its own.

A solver that holds the service's event loop for seconds must not lose telemetry: servers cut off
readers that fall behind. After every connection what the stream kept meanwhile is read first,
live messages wait until then. Snapshots are taken from any thread.
"""

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass, replace

from controller.claims import Trouble
from controller.core.state import Snapshot
from controller.fleet import Fleet
from controller.forecast.protocol import History
from controller.intake import Intake
from controller.overrides import Overrides
from controller.picture import NO_STREAMS, Streams
from controller.settings import ControllerSettings
from controller.table import Node
from controller.urgency import Urgency
from shared.bus import Bus, NatsBus
from shared.clock import SECOND_NS, Clock
from shared.errors import BusError, WireError
from shared.log import RateLimited
from shared.resources import MIB
from shared.subjects import TELEMETRY_ALL, TELEMETRY_STREAM, node_of

logger = logging.getLogger(__name__)

BusFactory = Callable[[Callable[[Exception], None]], Bus]
_WAITING_MAX = 65_536  # live messages that wait while the stream is read
_CATCH_UP_S = 600.0  # for reading what the stream kept
_TROUBLE_AGAIN_S = 600.0  # what is wrong with the tree stands in the status meanwhile
_LOOK_S = 0.5  # between two looks at the connection


@dataclass(frozen=True, slots=True)
class IngestStatus:
    alive: bool  # the thread runs
    connected: bool
    ready: bool  # what the stream kept was read once; before that histories are short
    detail: str
    messages: int  # taken in
    values: int  # readings that went into rings
    dropped: dict[str, int]  # by cause, see controller.intake.CAUSES
    lost: int  # by gaps in senders' sequences
    nodes: int
    contested: int
    circular: int
    troubles: tuple[Trouble, ...] = ()  # with the tree, as of the newest snapshot


class Ingest:
    """`start`, then `observe` and `status` from any thread, then `stop`."""

    def __init__(
        self, settings: ControllerSettings, clock: Clock, make_bus: BusFactory | None = None
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._fleet = Fleet(settings)
        self._intake = Intake(settings)
        self._lock = threading.Lock()  # around the fleet and the intake
        self._make_bus = make_bus or self._nats_bus
        self._bus: Bus | None = None
        self._waiting: deque[tuple[str, bytes, int, int]] | None = None
        self._newest_unix_ns = 0  # when the newest message was received
        self._log = RateLimited(logger, clock)
        self._log_topology = RateLimited(logger, clock, _TROUBLE_AGAIN_S)
        self._ready = threading.Event()
        self._urgency = Urgency()
        self._when_urgent: Callable[[], None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._main, name="ingest", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_s: float = 10.0) -> None:
        """Returns when connection and thread are gone."""
        if self._thread.ident is None:
            return
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            logger.error("the ingest thread did not stop", extra={"timeout_s": timeout_s})

    def wait_ready(self, timeout_s: float) -> bool:
        """Whether the stream was read within the time; not when the bus is not there."""
        return self._ready.wait(timeout_s)

    def when_urgent(self, callback: Callable[[], None]) -> None:
        """Called on the ingest thread whenever `take_urgent` has something new."""
        self._when_urgent = callback

    def take_urgent(self) -> frozenset[str]:
        """Nodes whose agents lent, or had too little to lend, since the last call."""
        with self._lock:
            return self._urgency.take()

    def observe(
        self,
        epoch: int,
        cycle: int,
        overrides: Overrides = Overrides(),  # noqa: B008 - frozen
        streams: Streams = NO_STREAMS,
    ) -> tuple[Snapshot, History]:
        """The fleet now and its history, in one order. The snapshot is a copy, nothing changes it
        later; windows of the history are read from here as they are needed, at most two steps
        later and before the next call."""
        with self._lock:
            tick_ns = self._clock.tick_ns()
            for node_id, seen_tick_ns in self._intake.clones.items():
                self._fleet.note_clone(node_id, seen_tick_ns)
            snapshot = self._fleet.snapshot(
                tick_ns=tick_ns,
                unix_ns=self._clock.unix_ns(),
                epoch=epoch,
                cycle=cycle,
                overrides=overrides,
                streams=streams,
            )
            for trouble in self._fleet.troubles:
                key = trouble.kind, trouble.machine_id
                self._log_topology.warning(key, trouble.text, kind=key[0], todo=trouble.advice)
            return snapshot, self._fleet.history(snapshot, tick_ns, self._lock)

    def nodes(self) -> tuple[Node, ...]:
        """Every node that reports, guest agents included, as of now."""
        with self._lock:
            return tuple(replace(node) for node in self._fleet.nodes())

    def epoch_highest(self) -> int:
        """The highest epoch that any agent says it has obeyed."""
        with self._lock:
            return self._fleet.epoch_highest()

    def status(self) -> IngestStatus:
        bus = self._bus
        with self._lock:
            counters = self._fleet.counters
            return IngestStatus(
                alive=self._thread.is_alive(),
                connected=bus is not None and bus.connected,
                ready=self._ready.is_set(),
                detail="not started" if bus is None else bus.status_text,
                messages=counters.blocks,
                values=counters.values,
                dropped=dict(self._intake.dropped),
                lost=self._intake.lost,
                nodes=len(self._fleet.table.nodes),
                contested=counters.contested,
                circular=counters.circular,
                troubles=self._fleet.troubles,
            )

    # ---- on the thread ----

    def _main(self) -> None:
        asyncio.run(self._run())

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        bus = self._bus = self._make_bus(self._on_error)
        try:
            await self._keep_ingesting(bus)
        finally:
            await bus.close()

    async def _keep_ingesting(self, bus: Bus) -> None:
        await bus.ensure_stream(
            TELEMETRY_STREAM,
            [TELEMETRY_ALL],
            max_age_s=self._settings.replay_window_s,
            max_bytes=self._settings.telemetry_stream_mib_max * MIB,
        )
        await bus.subscribe(TELEMETRY_ALL, self._on_message)
        self._hold_live()
        await bus.connect()
        caught_up_with = 0  # connections
        while not self._stop.is_set():
            if not bus.connected:
                self._hold_live()
                self._log.warning("bus", "no telemetry arrives", detail=bus.status_text)
                await bus.wait_connected(_LOOK_S)
            elif bus.counters.connections != caught_up_with:
                caught_up_with = bus.counters.connections
                await self._catch_up(bus)
            else:
                await self._rest()

    async def _rest(self) -> None:
        stopping = asyncio.ensure_future(self._stop.wait())
        await asyncio.wait({stopping}, timeout=_LOOK_S)
        stopping.cancel()

    async def _catch_up(self, bus: Bus) -> None:
        """First what the stream kept since the newest message, then what came live meanwhile."""
        self._hold_live()
        window_ns = round(self._settings.replay_window_s * SECOND_NS)
        since_ns = max(self._clock.unix_ns() - window_ns, self._newest_unix_ns)
        reading = bus.read_stream(
            TELEMETRY_STREAM, TELEMETRY_ALL, since_unix_ns=since_ns, deadline_s=_CATCH_UP_S
        )
        try:
            async with aclosing(reading):
                async for stored in reading:
                    if self._stop.is_set():
                        return
                    self._take_stored(stored.subject, stored.data, stored.stored_at_unix_ns)
        except BusError as error:
            self._log.warning("stream", "earlier telemetry is not read", detail=str(error))
        waiting, self._waiting = self._waiting, None
        for subject, data, tick_ns, unix_ns in waiting or ():
            self._take(subject, data, tick_ns, unix_ns, again=True)
        self._ready.set()

    def _hold_live(self) -> None:
        """From now on live messages wait, the newest ones if they are too many."""
        if self._waiting is None:
            self._waiting = deque(maxlen=_WAITING_MAX)

    def _on_message(self, subject: str, data: bytes) -> None:
        tick_ns, unix_ns = self._clock.tick_ns(), self._clock.unix_ns()
        if self._waiting is not None:
            self._waiting.append((subject, data, tick_ns, unix_ns))
        else:
            self._take(subject, data, tick_ns, unix_ns)

    def _take_stored(self, subject: str, data: bytes, stored_at_unix_ns: int) -> None:
        """As if received when the server stored it, its wall clock taken for ours."""
        age_ns = max(0, self._clock.unix_ns() - stored_at_unix_ns)
        tick_ns = self._clock.tick_ns() - age_ns
        self._take(subject, data, tick_ns, stored_at_unix_ns, again=True)

    def _take(
        self, subject: str, data: bytes, tick_ns: int, unix_ns: int, *, again: bool = False
    ) -> None:
        """Takes one message in, or counts why not. `again`: it may be here already, by right."""
        with self._lock:
            try:
                block = self._intake.check(subject, data, tick_ns, unix_ns)
                self._fleet.apply(block, tick_ns, unix_ns)
                self._newest_unix_ns = max(self._newest_unix_ns, unix_ns)
                urgent = not again and self._urgency.hear(block.node_id, block.loans, tick_ns)
            except WireError as error:
                if again and error.cause == "duplicate":
                    return
                self._intake.dropped[error.cause] += 1
                self._log.warning(
                    node_of(subject) or "no node",
                    "telemetry dropped",
                    subject=subject[:100],
                    cause=error.cause,
                    detail=str(error),
                )
                return
        if urgent and self._when_urgent is not None:
            self._when_urgent()

    def _nats_bus(self, on_error: Callable[[Exception], None]) -> Bus:
        return NatsBus(self._settings.bus_servers, "controller-ingest", on_error)

    def _on_error(self, error: Exception) -> None:
        self._log.warning("client", "bus error", detail=f"{type(error).__name__}: {error}")
