"""The agent as a whole: samples for ever, publishes, obeys where it is a host, and ends cleanly.

Nothing here waits for the network: without a bus and without a controller it samples on, and says
what is missing.
"""

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Coroutine
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from agent.discover import look, open_hypervisor
from agent.guest import Guest
from agent.hypervisor import Hypervisor, VmEvent, VmEventKind
from agent.identity import node_identity
from agent.metrics import AgentMetrics, Exposition
from agent.processes import ProcessWatch
from agent.publisher import Publisher
from agent.readiness import Readiness
from agent.sampler import PressureWatch, Sampler, Share
from agent.settings import AgentSettings
from agent.starting import Starts
from agent.steps import Facts
from agent.systemd import ServiceManager
from shared.bus import NatsBus
from shared.clock import SECOND_NS, Clock, SystemClock, to_next_s
from shared.errors import WireError
from shared.log import RateLimited
from shared.subjects import telemetry_subject
from shared.telemetry import NodeSample
from shared.wire import encode

if TYPE_CHECKING:
    from agent.host import Host

logger = logging.getLogger(__name__)

LOOK_NS = SECOND_NS
EARLY_S = 1.0  # at least between two samples
CLOSE_S = 2.0
RETURN_NS = 2 * SECOND_NS  # between two looks for a hypervisor that is away
# After these the controller should not wait for the next tick.
NEWS = frozenset(VmEventKind) - {
    VmEventKind.DEFINED,
    VmEventKind.RETUNED,  # by us, as a rule
    VmEventKind.HEARD_AGAIN,  # by a call of ours
}
# Without a sample for this long and three intervals the loop is stuck: every wait in it is bounded,
# and systemd's watchdog starts the agent anew.
STUCK_NS = 120 * SECOND_NS


async def run(
    settings: AgentSettings,
    root: Path = Path("/"),
    clock: Clock | None = None,
    stop: asyncio.Event | None = None,
    manager: ServiceManager | None = None,
) -> None:
    """Until `stop`, SIGTERM or SIGINT. ConfigError and ReadingError where it cannot even begin."""
    agent = Agent(settings, root, clock or SystemClock(), manager=manager)
    stop = stop or _on_signals()
    try:
        agent.open()
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(each) for each in agent.duties()]
            await stop.wait()
            for task in running:
                task.cancel()
    finally:
        await agent.close()


class Agent:
    """`open`, run the `duties`, `close`. A hypervisor that is given is not looked for."""

    def __init__(
        self,
        settings: AgentSettings,
        root: Path,
        clock: Clock,
        hypervisor: Hypervisor | None = None,
        manager: ServiceManager | None = None,
    ) -> None:
        self._settings = settings
        self._root = root
        self._clock = clock
        self._manager = manager or ServiceManager()
        self._interval_ns = int(settings.sample_interval_s * SECOND_NS)
        self.identity = node_identity(root, settings.node_id)
        self._found = look(settings, root)
        self.metrics = AgentMetrics()
        self.hypervisor = hypervisor or open_hypervisor(settings, self._found, clock)
        self._sampler = Sampler(
            root,
            self.hypervisor,
            clock,
            Share.of_settings(settings),
            settings.sample_interval_s,
            Starts.of_settings(settings),
        )
        self._pressure = PressureWatch(root, clock)
        self._readiness = Readiness(root, clock, settings.ready_file)
        watch = ProcessWatch(root, os.getpid(), self._interval_ns // 2)
        self._processes = watch if settings.tell_roles else None
        self._said = RateLimited(logger, clock)
        self._bus = NatsBus(settings.bus_servers, f"agent {self.identity.name}", self._on_bus_error)
        self.publisher = Publisher(
            self._bus,
            telemetry_subject(self.identity.node_id),
            settings.buffer_messages,
            clock,
            self.metrics,
        )
        self.guest = self._guest(root)
        self.host: Host | None = None
        self._exposition: Exposition | None = None
        self._sequence = 0
        self._sampled_tick_ns = clock.tick_ns()
        self._soon = asyncio.Event()

    def open(self) -> None:
        if self.hypervisor is not None:
            from agent.host import Host  # noqa: PLC0415 - guests load no gRPC

            self.host = Host(
                self._settings,
                self.identity,
                self.hypervisor,
                self._sampler,
                self._clock,
                self.metrics,
                bus=self._bus,
                root=self._root,
            )
            self.host.open()
            self.hypervisor.listen(self._on_vm_event)
            self.host.lender.said = self.sample_soon
            # Until telemetry shows what a command did, no further plan can be made on it.
            self.host.steward.moved = self.sample_soon
            if self.guest is not None:
                self.host.lender.climb = self.guest.lack
        self._exposition = Exposition(self.metrics, self._settings.metrics_listen)
        if self.identity.said:
            logger.warning("identity", extra={"detail": self.identity.said})
        fields = {"role": self._found.role, "hypervisor": self._found.libvirt_uri or "none"}
        logger.info("agent starts", extra={**fields, "node_id": self.identity.node_id})

    @property
    def metrics_port(self) -> int | None:
        return None if self._exposition is None else self._exposition.port

    def duties(self) -> list[Coroutine[None, None, None]]:
        """What goes on side by side, each until it is cancelled."""
        duties = [
            self.publisher.run(),
            self._sample_for_ever(),
            self._look_every_second(),
            self._readiness.run(),
        ]
        if self.guest is not None:
            duties.append(self.guest.run())
        if self.host is not None:
            duties += [self.host.run(), self._look_for_the_hypervisor()]
        return duties

    async def close(self) -> None:
        """Within two seconds; what does not end by then is killed with the process."""
        self._manager.stopping()
        endings = [self._bus.close()]
        if self.host is not None:
            endings.append(self.host.close())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                await asyncio.gather(*endings)
        if self._exposition is not None:
            self._exposition.close()
        logger.info("agent ends")

    def sample_soon(self) -> None:
        """Something happened that the controller should hear of before the next tick; once a
        second at most."""
        self._soon.set()

    async def sample(self) -> NodeSample:
        """The next message. Its generation is the one before the readings: a change in between
        makes plans on them stale, instead of making old readings look new."""
        facts = Facts() if self.host is None else self.host.facts()
        rates = await self._sampler.sample()
        levers = {} if self.host is None else await self.host.levers()
        loans = () if self.host is None else self.host.loans({vm.vm_id for vm in rates.vms})
        self._sequence += 1
        return NodeSample(
            node_id=self.identity.node_id,
            name=self._settings.node_name or self.identity.name,
            role=self._found.role,
            boot_id=self.identity.boot_id,
            sequence=self._sequence,
            sampled_at_unix_ns=self._clock.unix_ns(),
            tick_ns=self._clock.tick_ns(),
            interval_ns=rates.interval_ns,
            generation=facts.generation,
            epoch_highest=facts.epoch_highest,
            simulated=self.hypervisor is not None and self.hypervisor.simulated,
            levers=levers,
            node=replace(rates.node, ready_ns=self._readiness.ready_ns),
            vms=rates.vms if self.host is None else self.host.with_idle_levers(rates.vms),
            roles=() if self._processes is None else self._processes.look(self._clock.tick_ns()),
            loans=loans,
        )

    async def _sample_for_ever(self) -> None:
        await self._bus.connect()
        due = self._clock.tick_ns()
        while True:
            self._soon.clear()
            await self._publish_one()
            self._manager.ready()
            now = self._sampled_tick_ns = self._clock.tick_ns()
            if now >= due:  # an early sample does not put off the next one in turn
                # A slow hypervisor is not asked the more for it.
                due = max(due + self._interval_ns, now)
            await self._until_due((due - now) / SECOND_NS)

    async def _until_due(self, seconds: float) -> None:
        """The next tick, or a call for a sample before it."""
        pause_s = min(EARLY_S, seconds)
        await asyncio.sleep(pause_s)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._soon.wait(), seconds - pause_s)

    async def _publish_one(self) -> None:
        errors = self._sampler.hypervisor_errors
        sample = await self.sample()
        self.metrics.sample(len(sample.vms))
        self.metrics.hypervisor_errors(self._sampler.hypervisor_errors - errors)
        for resource, peak in self._pressure.take().items():
            self.metrics.pressure_peak(resource, peak)
        try:
            self.publisher.offer(encode(sample))
        except WireError as error:
            self.metrics.dropped(error.cause)
            self._said.error("encode", "a sample cannot be sent", cause=str(error))

    async def _look_every_second(self) -> None:
        while True:
            self.look()
            await asyncio.sleep(to_next_s(self._clock.tick_ns(), LOOK_NS))

    async def _look_for_the_hypervisor(self) -> None:
        """While it is away it is looked for more often than samples are taken, and not told."""
        while True:
            await asyncio.sleep(to_next_s(self._clock.tick_ns(), RETURN_NS))
            if self._sampler.is_blind and await self._sampler.sees_again():
                self.sample_soon()

    def _on_vm_event(self, event: VmEvent) -> None:
        if event.kind in NEWS:
            self.sample_soon()

    def look(self) -> None:
        """What is done every second, between two samples."""
        self._pressure.look()
        if self._clock.tick_ns() - self._sampled_tick_ns < STUCK_NS + 3 * self._interval_ns:
            self._manager.alive()
        self.metrics.connected("bus", is_connected=self._bus.connected)
        if self.host is not None:
            self.host.count()

    def _guest(self, root: Path) -> Guest | None:
        """Only a machine that runs on another has somebody to tell."""
        if "guest" not in self._found.role or not self._settings.tell_need:
            return None
        identity, settings = self.identity, self._settings
        return Guest(
            root,
            identity.node_id,
            identity.boot_id,
            self._bus,
            self._readiness,
            self._clock,
            self.metrics,
            settings.sample_interval_s,
        )

    def _on_bus_error(self, error: Exception) -> None:
        self._said.warning("bus", "bus", cause=str(error) or type(error).__name__)


def _on_signals() -> asyncio.Event:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop
