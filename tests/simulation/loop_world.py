"""Hosts, controllers and what befalls them, from a seed; `Story.of(seed)` is one whole run.

warm up -> everything breaks, again and again -> all is well again: the loop must close
"""

import asyncio
from contextlib import suppress
from dataclasses import dataclass, replace
from random import Random

import numpy as np
from grpc import aio
from loop_faults import Faults
from loop_host import CALM_AT_S, DEMAND_BYTES, SimulatedHost, seconds
from loop_parts import ControllerEnd, Link, Network, TrailBus, WorldClock, WorldLoop
from loop_witness import LEASE_S, Witness
from msgspec import structs

from controller.audit import AuditedPlan
from controller.daemon import Daemon
from controller.ingest import Ingest
from controller.overrides import Freeze, Overrides, Pin
from controller.recorder import Recorder
from controller.service import Controller
from controller.settings import ControllerSettings, Shares, VmSettings
from shared.errors import HrapaqError
from shared.resources import MIB, Resource
from shared.testing import FakeBus

WARM_S = 40
CYCLE_S = 10.0
CYCLES_TO_CALM = 16  # within which all that is hungry must be fed
KEPT_S = 120  # of telemetry, for controllers that start


@dataclass(frozen=True)
class Story:
    """What happened, what must not have, and how much there was of everything."""

    seed: int
    lines: tuple[str, ...]
    broken: tuple[tuple[str, str], ...]
    counts: dict[str, int]

    @classmethod
    def of(cls, seed, folder, mutant="", *, chaos=True):
        with asyncio.Runner(loop_factory=WorldLoop) as runner:
            witness = runner.run(World.live(seed, folder, mutant, chaos=chaos))
        return cls(seed, tuple(witness.story), tuple(witness.broken), dict(witness.counts))

    def __str__(self):
        mark = max((i for i, line in enumerate(self.lines) if "BROKEN" in line), default=0)
        told = "\n".join(self.lines[max(0, mark - 60) : mark + 20])
        return f"seed {self.seed}: {self.broken[:3]}\n{told}"


class World:
    watched_by = Witness

    def __init__(self, seed, folder, mutant):
        self.seed = seed
        self.folder = folder
        self.mutant = mutant
        self.random = Random(f"world {seed}")
        self.witness = self.watched_by()
        self.network = Network(seed)
        self.shared_trail = FakeBus()
        self.stored = []  # (seconds, subject, data): telemetry that the stream keeps
        self.tasks = set()
        self.hosts = [SimulatedHost(self, i, folder) for i in range(self.random.choice([2, 3]))]
        self.reigns = []
        self.coup_at = None
        self.reigned = 0

    @classmethod
    async def live(cls, seed, folder, mutant, *, chaos):
        world = cls(seed, folder, mutant)
        for host in world.hosts:
            host.start()
        world.crown()
        try:
            await world._watch_until(WARM_S)
            if chaos:
                await world._break_things()
            await world._watch_until(CALM_AT_S + CYCLES_TO_CALM * CYCLE_S)
            world._look_at_the_hungry()
        finally:
            await world._end()
        return world.witness

    # ---- what parts ask of the world ----

    def task(self, coroutine):
        task = asyncio.create_task(self._guarded(coroutine))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        task.add_done_callback(lambda _: coroutine.close())  # where it was never begun
        return task

    async def _guarded(self, coroutine):
        """A crash of any part is told, not lost."""
        try:
            await coroutine
        except Exception as error:  # noqa: BLE001 - whatever it is, it is a bug
            self.witness.blame("crash", repr(getattr(error, "exceptions", error)))

    def dial(self, host):
        """A stream to the newest controller; None where there is none to be had."""
        reign = self.reigns[-1] if self.reigns else None
        if reign is None or not reign.awake.is_set() or host.name in self.network.cut_off:
            return None
        host.link = Link(self, host, reign)
        reign.serve(host.link)
        return host.link

    def publish(self, host, subject, data):
        now_s = asyncio.get_running_loop().time()
        self.stored = [one for one in self.stored if one[0] > now_s - KEPT_S]

        def deliver():
            self.stored.append((asyncio.get_running_loop().time(), subject, data))
            for reign in self.reigns:
                reign.hear(subject, data)

        self.network.carry(host.name, deliver)

    def intercepts(self, reign, message, deliver):
        """A coup: as a command leaves, its controller is killed and another one takes over; the
        command comes late, but not too late by its stamp."""
        if self.coup_at is None or message.WhichOneof("kind") != "apply":
            return False
        self.coup_at = None
        self.witness.say(f"coup against {reign.name}")
        asyncio.get_running_loop().call_later(self.random.uniform(2, 7), deliver)
        self.task(self._overthrow(reign))
        return True

    async def _overthrow(self, reign):
        await self.depose(reign)
        await asyncio.sleep(0.5)
        self.crown()

    def crown(self):
        """A new controller starts."""
        self.reigned += 1
        if self.reigned > 1:
            self.witness.counts["controllers"] += 1
        reign = Reign(self, self.reigned)
        self.reigns.append(reign)
        reign.start()
        return reign

    async def depose(self, reign):
        if reign in self.reigns:
            self.reigns.remove(reign)
            await reign.kill()

    # ---- time ----

    async def _watch_until(self, end_s):
        loop = asyncio.get_running_loop()
        while loop.time() < end_s and not self.witness.broken:
            await asyncio.sleep(min(1.0, end_s - loop.time()))
            for host in self.hosts:
                self.witness.look(host)

    async def _break_things(self):
        faults = Faults(self)
        working = self.task(faults.work())
        await self._watch_until(CALM_AT_S)
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
        await faults.heal()

    def _look_at_the_hungry(self):
        for host in self.hosts:
            machine = host.hypervisor.machines()[host.ids["hungry"]]
            if machine.limit_bytes < DEMAND_BYTES + 16 * MIB and not self.witness.broken:
                has = machine.limit_bytes // MIB
                self.witness.blame("liveness", f"{host.name}: the hungry VM has {has} MiB")

    async def _end(self):
        for task in tuple(self.tasks):
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


class Reign:
    """One run of the controller program, with its connections."""

    def __init__(self, world, number):
        self.world = world
        self.name = f"c{number}"
        self.clock = WorldClock(1000 * number)
        self.awake = asyncio.Event()
        self.awake.set()
        self.stuck = []  # deliveries that were in its buffers when it was paused
        self.unheard = []  # telemetry that came meanwhile
        self.links = []
        self.tasks = []
        folder = world.folder / ("state" if world.random.random() < 0.7 else self.name)
        settings = settings_of(world, folder)
        self.bus = TrailBus(f"{world.seed} {number}", world.shared_trail, self.awake)
        self.daemon = Daemon(settings, self.clock, "simulated")
        self.controller = self.daemon.controller = Controller(settings, self.clock, self.bus)
        if world.mutant == "planner":
            self.controller.ingest = SeesDouble(settings, self.clock)
        if world.mutant == "unrecorded":
            self.controller.recorder = Unrecorded(self.bus, self.clock, 64)

    def start(self):
        controller, world = self.controller, self.world
        controller.adopt_epoch()
        world.witness.say(f"{self.name} starts in epoch {controller.epoch}")
        if world.mutant != "unbridled":
            controller.desk.overrides = overrides_of(world)
        now_s = asyncio.get_running_loop().time()
        for at_s, subject, data in world.stored:
            stored_at = self.clock.unix_ns() - round(seconds(now_s - at_s))
            controller.ingest._take_stored(subject, data, stored_at)
        self.bus.online = True
        self.daemon._one_cycle = self._one_cycle
        self.tasks.append(world.task(self.daemon._cycle_until(asyncio.Event())))

    def serve(self, link):
        """An agent has dialled."""
        self.links.append(link)
        end = ControllerEnd(link)
        sessions = self.controller.dispatcher._sessions
        self.tasks.append(self.world.task(_served(sessions.Connect(end.messages(), end))))

    def hear(self, subject, data):
        if self.awake.is_set():
            self.controller.ingest._on_message(subject, data)
        else:
            self.unheard.append((subject, data))

    def pause(self):
        self.world.witness.say(f"{self.name} is paused")
        self.awake.clear()
        for link in self.links:
            asyncio.get_running_loop().call_later(4.0, link.close)

    def resume(self):
        self.world.witness.say(f"{self.name} wakes up")
        self.awake.set()
        unheard, self.unheard = self.unheard, []
        for subject, data in unheard:
            self.hear(subject, data)
        stuck, self.stuck = self.stuck, []
        for deliver in stuck:
            deliver()

    async def kill(self):
        self.world.witness.say(f"{self.name} is killed")
        self.awake.set()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        for link in self.links:
            link.close()

    async def _one_cycle(self, run):
        with suppress(HrapaqError):
            await run()
        self.world.witness.counts["cycles"] += 1


class Unrecorded(Recorder):
    """A mutant: sends first and records never."""

    async def intent(self, plan):
        return AuditedPlan(plan, "", 0)


class SeesDouble(Ingest):
    """A mutant: plans and verifies with twice of what every machine has to give."""

    def observe(self, *arguments, **named):
        snapshot, history = super().observe(*arguments, **named)
        capacity = snapshot.capacity
        return replace(snapshot, capacity=np.where(capacity < 0, capacity, 2 * capacity)), history


async def _served(connecting):
    with suppress(aio.AbortError):
        await connecting


def settings_of(world, folder):
    observed = {host.ids["observed"]: VmSettings(mode="observe") for host in world.hosts}
    base = ControllerSettings(
        state_directory=folder,
        mode="observe" if world.mutant == "idle" else "enforce",
        cycle_interval_s=CYCLE_S,
        grid_step_s=5,
        window_steps=24,
        horizon_s=30,
        lease_s=LEASE_S,
        command_ttl_s=8,
        node_expiry_s=90,
        clone_after_s=20,
        memory_floor_mib=64,
        vm_overhead_mib=2,
        reserve_share=Shares(cpu=0.02, memory=0.02, io=0),
        vms={} if world.mutant == "unbridled" else observed,
    )
    assert not base.problems(), base.problems()
    return structs.replace(base, policy=structs.replace(base.policy, memory_quantum_mib=8))


def overrides_of(world):
    items = []
    for host in world.hosts:
        pinned = host.ids["pinned"]
        items.append(Pin(pinned, Resource.MEMORY, host.immovable[pinned, Resource.MEMORY]))
        items.append(Freeze(host.ids["frozen"]))
    return Overrides(tuple(items))
