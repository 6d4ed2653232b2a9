"""The host role: a hypervisor, a guard with a memory, and a stream to the controller.

Only imported by agents that have this role: a guest loads neither gRPC nor anything of libvirt.
"""

import asyncio
import logging
from collections.abc import Collection
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from random import Random
from uuid import uuid4

from agent.act import Executor, Pause
from agent.admission import Readings
from agent.found import FoundStore
from agent.hypervisor import NET_WORD, CountsThrottling, Hypervisor
from agent.identity import Identity
from agent.lending import Lender, Pressure
from agent.look import Rules
from agent.metrics import AgentMetrics
from agent.net_limits import NetLimiter
from agent.sampler import Sampler
from agent.settings import AgentSettings
from agent.state import StateStore
from agent.steps import Facts
from agent.steward import Steward
from agent.throttle import VmThrottle
from agent.uplink import Uplink
from agent.words import GuestWords
from shared.bus import Bus
from shared.clock import SECOND_NS, Clock
from shared.errors import ConfigError
from shared.guest_word import GuestWord
from shared.pb import commands_pb2 as pb
from shared.resources import Resource
from shared.telemetry import Loan, VmSample, VmState

logger = logging.getLogger(__name__)

LEASE_LOOK_S = 1.0
FOLLOW_S = 1.0
WALK_ROUNDS_MAX = 200  # of `restore`: a terabyte in strides of a quarter of a VM's limit is 40


class Host:
    """One hypervisor's agent. `open` before `run`; `close` afterwards, whatever happened."""

    def __init__(
        self,
        settings: AgentSettings,
        identity: Identity,
        hypervisor: Hypervisor,
        sampler: Sampler,
        clock: Clock,
        metrics: AgentMetrics,
        pause: Pause = asyncio.sleep,
        *,
        bus: Bus | None = None,
        root: Path = Path("/"),
    ) -> None:
        """`bus` None: guests are not heard; `root` is where /proc and /sys are read."""
        self._settings = settings
        self._run_id = uuid4().hex
        self._identity = identity
        self._hypervisor = hypervisor
        self._sampler = sampler
        self._clock = clock
        self._metrics = metrics
        self._executor = Executor(hypervisor, clock, sampler.sample_of, pause)
        self._store = StateStore(settings.state_directory, identity.boot_id)
        self._found = FoundStore(settings.state_directory, clock)
        self._limiter = NetLimiter(hypervisor, clock)
        self._uplink: Uplink | None = None
        self._root = root
        self._words = None if bus is None else GuestWords(bus, clock, metrics, self._on_word)
        self.steward: Steward
        self.lender: Lender

    def open(self, *, lease_is_over: bool = False) -> None:
        """Takes the state folder; ConfigError when it cannot be had. `lease_is_over`: whatever
        the lease says, the way back begins now."""
        loaded = self._store.open()
        if loaded.said:
            logger.warning("state", extra={"detail": loaded.said})
        has_moved_before = loaded.state.generation > 0 or bool(loaded.state.lent)
        self._open_records(has_moved_before=has_moved_before)
        state = replace(loaded.state, lease_until_tick_ns=0) if lease_is_over else loaded.state
        self.steward = Steward(
            state, self._store, self._executor, self._readings, self._clock, self._metrics
        )
        self.lender = self._lender()

    def _open_records(self, *, has_moved_before: bool) -> None:
        """From here on nothing of a VM is changed before it is on record as it was found."""
        try:
            said = self._found.open(has_moved_before=has_moved_before)
        except OSError as error:
            self._store.close()
            raise ConfigError(f"{self._found.path} cannot be read: {error}") from None
        if said:
            logger.warning("records", extra={"detail": said})
        self._hypervisor.record(self._found)

    async def run(self) -> None:
        """Until cancelled: obeys the controller, and finds the way back when it falls silent."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watch_the_lease())
            tasks.create_task(self._limit_networks())
            if self._settings.enable_reflex:
                tasks.create_task(self.lender.run())
            tasks.create_task(self._follow_guests())
            if self._settings.controller_address:
                # Seeded by the node: a fleet spreads out, one agent repeats itself.
                self._uplink = Uplink(
                    self._settings.controller_address,
                    self._hello,
                    self.steward,
                    self._clock,
                    Random(self._identity.node_id),  # noqa: S311 - spreads load, no secret
                )
                tasks.create_task(self._uplink.run())

    def facts(self) -> Facts:
        return self.steward.facts()

    def with_idle_levers(self, vms: tuple[VmSample, ...]) -> tuple[VmSample, ...]:
        return self._executor.with_idle_levers(vms)

    def loans(self, vm_ids: Collection[str]) -> tuple[Loan, ...]:
        """What telemetry tells of these VMs."""
        return tuple(loan for loan in self.lender.loans() if loan.vm_id in vm_ids)

    async def levers(self) -> dict[str, str]:
        """As the hypervisor says, less what had no effect on any running VM."""
        levers = dict(await self._sampler.levers())
        quarantined = self._executor.dead()
        running = [vm.vm_id for vm in self._sampler.known.values() if vm.state is VmState.RUNNING]
        self._executor.forget_all_but(self._sampler.known)
        for resource in Resource:
            whys = [quarantined.get((vm_id, resource)) for vm_id in running]
            if whys and all(whys):
                levers[resource.word] = levers.get(resource.word) or f"on all VMs {whys[0]}"
        levers[NET_WORD] = levers.get(NET_WORD, "") or self._limiter.why_none
        return levers

    def count(self) -> None:
        """The gauges of this role."""
        facts = self.facts()
        self._metrics.lease(facts.lease)
        self._metrics.generation(facts.generation)
        connected = self._uplink is not None and self._uplink.connected
        self._metrics.connected("controller", is_connected=connected)

    async def restore(self) -> int:
        """Walks back until nothing moves any more; how many changes were made."""
        moved = 0
        for _ in range(WALK_ROUNDS_MAX):
            in_round = await self.steward.walk()
            if in_round == 0:
                break
            moved += in_round
        return moved

    async def close(self) -> None:
        await self._hypervisor.close()
        self._store.close()

    async def _watch_the_lease(self) -> None:
        while True:
            await self.steward.walk()
            await asyncio.sleep(LEASE_LOOK_S)

    async def _limit_networks(self) -> None:
        while True:
            await self._limiter.keep(self.steward.net_limits)
            await asyncio.sleep(LEASE_LOOK_S)

    def _lender(self) -> Lender:
        settings, hypervisor = self._settings, self._hypervisor
        counts = hypervisor if isinstance(hypervisor, CountsThrottling) else VmThrottle(self._root)
        rules = Rules(int(settings.pay_back_after_s * SECOND_NS), settings.start_boost)
        return Lender(
            self.steward,
            self._executor,
            lambda: self._sampler.known,
            self._readings,
            lambda: {} if self._words is None else self._words.newest,
            counts,
            Pressure(self._root, settings.available_low_bytes),
            rules,
            self._clock,
            self._metrics,
        )

    def _on_word(self, vm_id: str, word: GuestWord, asks_for_more: bool) -> None:
        is_ready = self._sampler.starts.note_ready(vm_id, word.boot_id, word.ready_ns)
        if asks_for_more or is_ready:
            self.lender.call()

    async def _follow_guests(self) -> None:
        while self._words is not None:
            await self._words.follow(self._sampler.known.keys())
            await asyncio.sleep(FOLLOW_S)

    async def _readings(self) -> Readings:
        readings = await self._sampler.readings()
        return self._executor.judging(readings)

    def _hello(self) -> pb.Hello:
        facts = self.facts()
        return pb.Hello(
            node_id=self._identity.node_id,
            node_name=self._settings.node_name or self._identity.name,
            boot_id=self._identity.boot_id,
            version=version("hrapaq"),
            epoch_highest=facts.epoch_highest,
            agent_tick_ns=self._clock.tick_ns(),
            generation=facts.generation,
            run_id=self._run_id,
        )
