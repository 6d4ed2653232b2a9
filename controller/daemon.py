"""The controller's life: start, a cycle per interval, stop.

Cycles begin on a grid of the clock and never overlap; one that runs over its time leaves out those
that it covered, and says so. A stop lets the command being written go out whole, waits for no
answer, and leaves the rest to the leases.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from controller.admin import AdminServer
from controller.ingest import IngestStatus
from controller.metrics import Exposition, expose
from controller.panel import (
    agents_part,
    audit_part,
    cycle_part,
    forecast_part,
    node_info,
    telemetry_part,
    topology_part,
)
from controller.service import Controller
from controller.settings import ControllerSettings
from controller.table import Node
from shared.clock import SECOND_NS, Clock
from shared.errors import ConfigError, HrapaqError

log = logging.getLogger(__name__)

REFRESH_S = 1.0  # of what changes between cycles
LOOK_S = 0.05  # between two looks at who has said Hello
STOP_WITHIN_S = 20.0  # for the cycle under way: its waits for answers end at once


class Daemon:
    """`run` is all there is to call. After `started`, `ports` names where it listens."""

    def __init__(self, settings: ControllerSettings, clock: Clock, version: str) -> None:
        self._settings = settings
        self._clock = clock
        self._interval_ns = round(settings.cycle_interval_s * SECOND_NS)
        self.controller = Controller(settings, clock)
        self._admin = AdminServer(self.controller.desk, self.controller.broadcast, clock, version)
        self._exposition: Exposition | None = None
        self._trouble = ""  # of the last cycle
        self.ports: dict[str, int] = {}
        self.started = asyncio.Event()
        self._urgent = asyncio.Event()  # some agent cannot wait for the next cycle

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop`. HrapaqError when it cannot start; then nothing of it is left."""
        refreshing: asyncio.Task[None] | None = None
        try:
            await self._start()
            refreshing = asyncio.create_task(self._refresh_forever(), name="refresh")
            await self._cycle_until(stop)
        finally:
            if refreshing is not None:
                refreshing.cancel()
                await asyncio.gather(refreshing, return_exceptions=True)
            await self._close()

    async def _start(self) -> None:
        controller, settings = self.controller, self._settings
        controller.adopt_epoch()  # an unusable state directory shows here, not minutes later
        controller.desk.load()
        controller.ingest.start()
        await controller.bus.connect()
        self.ports["commands"] = await controller.dispatcher.start(settings.commands_listen)
        self.ports["admin"] = await self._admin.start(settings.admin_listen)
        if settings.metrics_listen:
            self._exposition = _expose(controller, settings.metrics_listen)
            self.ports["metrics"] = self._exposition.port
        log.info("controller listens", extra=dict(self.ports))
        self.started.set()

    async def _close(self) -> None:
        controller = self.controller
        await controller.dispatcher.close()
        await controller.desk.close()
        await self._admin.close()
        await controller.bus.close()
        await asyncio.to_thread(controller.ingest.stop)
        if self._exposition is not None:
            await asyncio.to_thread(self._exposition.close)

    # ---- cycles ----

    async def _cycle_until(self, stop: asyncio.Event) -> None:
        await self._wait_for_agents(stop)
        if stop.is_set():
            return
        self.controller.adopt_epoch()
        cycling = asyncio.create_task(self._cycle_forever(stop), name="cycles")
        stopping = asyncio.create_task(stop.wait(), name="stop")
        try:
            await asyncio.wait({cycling, stopping}, return_when=asyncio.FIRST_COMPLETED)
            self._urgent.set()  # whoever waits for it looks up
            await self.controller.dispatcher.close()  # the cycle under way need not wait any more
            await asyncio.wait({cycling}, timeout=STOP_WITHIN_S)
        finally:
            stopping.cancel()
            cycling.cancel()
            await asyncio.gather(cycling, stopping, return_exceptions=True)

    async def _wait_for_agents(self, stop: asyncio.Event) -> None:
        """Until every host that reports has its agent here, so that the first epoch lies above
        all that they have obeyed; at most one cycle."""
        deadline = self._clock.tick_ns() + self._interval_ns
        while not stop.is_set() and self._clock.tick_ns() < deadline:
            agents = self.controller.dispatcher.agents()
            nodes = await asyncio.to_thread(self.controller.ingest.nodes)
            hosts = {node.node_id for node in nodes if node.hosts}
            if agents and hosts <= agents.keys():
                return
            await _wait(stop, LOOK_S)

    async def _cycle_forever(self, stop: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()

        def wake() -> None:
            loop.call_soon_threadsafe(self._urgent.set)

        self.controller.ingest.when_urgent(wake)
        next_ns = self._clock.tick_ns()
        while not stop.is_set():
            self._urgent.clear()  # this one sees it all
            await self._one_cycle(self.controller.run_once)
            next_ns += self._interval_ns
            late_ns = self._clock.tick_ns() - next_ns
            if late_ns > 0:
                missed = late_ns // self._interval_ns + 1
                next_ns += missed * self._interval_ns
                self._say_late(late_ns + self._interval_ns, missed)
            await self._until(stop, next_ns)

    async def _until(self, stop: asyncio.Event, next_ns: int) -> None:
        """Waits for the next cycle's time, with cycles out of turn where agents need them."""
        spacing_s = self._settings.early_cycle_s
        while not stop.is_set() and (left_ns := next_ns - self._clock.tick_ns()) > 0:
            if not await _wait(self._urgent, left_ns / SECOND_NS) or stop.is_set():
                return
            self._urgent.clear()
            if spacing_s:
                await self._one_cycle(self.controller.run_early)
            left_s = (next_ns - self._clock.tick_ns()) / SECOND_NS
            await _wait(stop, min(spacing_s or left_s, left_s))

    async def _one_cycle(self, run: Callable[[], Awaitable[None]]) -> None:
        try:
            await run()
        except HrapaqError as error:
            self._failed(str(error))
            log.exception("cycle failed")
        except Exception as error:  # BLE001's one case - outermost loop: operators still need us
            self._failed(f"{type(error).__name__}: {error}")
            log.exception("cycle failed, this is a bug")
        else:
            self._trouble = ""

    def _failed(self, why: str) -> None:
        self._trouble = why
        self.controller.books.metrics.cycle_failed()

    def _say_late(self, took_ns: int, missed: int) -> None:
        self.controller.books.metrics.cycle_skipped(missed)
        seconds = took_ns / SECOND_NS
        self._trouble = self._trouble or f"took {seconds:.1f} s, {missed} cycles were left out"
        log.warning("cycle too long", extra={"took_s": seconds, "left_out": missed})

    # ---- what changes between cycles ----

    async def _refresh_forever(self) -> None:
        ingest = self.controller.ingest
        while True:
            status = await asyncio.to_thread(ingest.status)
            nodes = await asyncio.to_thread(ingest.nodes)
            self._refresh(status, nodes)
            await asyncio.sleep(REFRESH_S)

    def _refresh(self, status: IngestStatus, nodes: tuple[Node, ...]) -> None:
        controller = self.controller
        agents = controller.dispatcher.agents()
        view = controller.view()
        if view.epoch:  # counters belong to an epoch; before the first cycle there are none
            controller.books.telemetry(status.messages, status.dropped)
        controller.books.metrics.agents(sum(agent.connected for agent in agents.values()))
        audit = audit_part(
            healthy=controller.recorder.healthy,
            bus=controller.bus.status_text,
            detail=controller.recorder.detail,
        )
        cycle = cycle_part(cycles=view.cycles, trouble=self._trouble, waiting=not view.epoch)
        controller.publish(
            agents=agents,
            nodes=tuple(node_info(node) for node in nodes),
            parts=(
                telemetry_part(status),
                topology_part(status.troubles),
                audit,
                agents_part(agents),
                forecast_part(controller.standing, self._settings.horizon_s, view.judged),
                cycle,
            ),
        )


def split_address(address: str) -> tuple[str, int]:
    """host and port of `host:port`; ConfigError for anything else."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65_535:  # noqa: PLR2004 - TCP's
        raise ConfigError(f"{address!r} is no HOST:PORT, such as 127.0.0.1:9555")
    return host.strip("[]"), int(port)


def _expose(controller: Controller, listen: str) -> Exposition:
    host, port = split_address(listen)
    try:
        return expose(controller.books.metrics, host, port)
    except OSError as error:
        text = f"metrics_listen = {listen}: cannot listen there: {error.strerror}"
        raise ConfigError(text) from error


async def _wait(event: asyncio.Event, seconds: float) -> bool:
    """Whether it happened within the time."""
    try:
        async with asyncio.timeout(seconds):
            return await event.wait()
    except TimeoutError:
        return False
