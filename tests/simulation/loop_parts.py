"""What the whole-loop simulation is made of: time, disks, hypervisors, streams and a bus that fail.

Real code stands on both ends of everything here; these parts only stand in for machines, wires and
the stream's server.
"""

import asyncio
from contextvars import ContextVar
from dataclasses import replace
from random import Random

from grpc import aio

from agent.guard import GuardState
from agent.hypervisor import VmEventKind
from agent.simulated import SimulatedHypervisor
from agent.state import Loaded, decode, encode
from agent.uplink import CONNECT_S, Uplink
from controller.core.chain import unpack
from shared.clock import SECOND_NS
from shared.errors import BusError, HypervisorUnavailable, VmGone
from shared.pb import commands_pb2 as pb
from shared.resources import Resource
from shared.subjects import AUDIT_STREAM
from shared.testing import FakeBus, VirtualTimeLoop

BOOT_ID = "11111111-2222-4333-8444-555555555555"
BROKEN_AFTER_S = 4.0  # both sides ping every three seconds and wait one for the answer

# The command (as it was sent) that the code now running obeys, and which run of it; or None.
OBEYING = ContextVar("OBEYING", default=None)


class WorldLoop(VirtualTimeLoop):
    """Threads do their work at once and in order: one seed, one story."""

    def run_in_executor(self, executor, func, *arguments):
        future = self.create_future()
        try:
            future.set_result(func(*arguments))
        except Exception as error:  # noqa: BLE001 - whoever awaits the thread gets it
            future.set_exception(error)
        return future


class WorldClock:
    """One machine's clock: ticks since its own boot, and a wall clock that may be set."""

    def __init__(self, booted_s_ago):
        self._loop = asyncio.get_running_loop()
        self._booted_ns_ago = booted_s_ago * SECOND_NS
        self.wrong_by_ns = 0

    def tick_ns(self):
        return self._booted_ns_ago + round(self._loop.time() * SECOND_NS)

    def unix_ns(self):
        return 1_700_000_000 * SECOND_NS + round(self._loop.time() * SECOND_NS) + self.wrong_by_ns


class Disk:
    """A state folder as bytes that outlive the process; may be full."""

    def __init__(self):
        self.data = encode(GuardState(), BOOT_ID)
        self.full = False

    def open(self):
        return Loaded(decode(self.data, BOOT_ID).state)

    async def save(self, state):
        await asyncio.sleep(0.005)
        if self.full:
            raise OSError(28, "no space left on device")
        self.data = encode(state, BOOT_ID)

    def close(self):
        pass


class WitnessedHypervisor(SimulatedHypervisor):
    """Slow, sometimes away, with guests whose figures stand still; tells the witness all."""

    def __init__(self, seed, clock, vms, witness):
        super().__init__(seed, clock, vms)
        self.random = Random(f"calls {seed}")
        self.away = False
        self.blind = False  # claims that guests use nothing: a mutant
        self.stale = {}  # vm_id -> the reading whose guest figures are given from now on
        self.states = {}  # vm_id -> the state that libvirt gives it
        self.told = {}  # vm_id -> (memory limit, memory used, cpu limit) as last read
        self._witness = witness

    def name_of(self, vm_id):
        return self._machines[vm_id].spec.name if vm_id in self._machines else vm_id[:8]

    def machines(self):
        """The truth, as of now."""
        self._catch_up()
        return self._machines

    async def read_all(self):
        await self._answer_slowly(0.05)
        return await super().read_all()

    async def read(self, vm_id):
        await self._answer_slowly(0.2)
        return await super().read(vm_id)

    async def set_limit(self, vm_id, resource, amount):
        self._witness.asked(self, vm_id, resource, amount)
        await self._answer_slowly(0.1)
        await super().set_limit(vm_id, resource, amount)
        self._witness.did(self, vm_id, resource, amount)

    async def _answer_slowly(self, seconds_max):
        await asyncio.sleep(self.random.random() * seconds_max)
        if self.away:
            raise HypervisorUnavailable("libvirt is away")

    def _reading(self, vm_id, machine):
        reading = super()._reading(vm_id, machine)
        old = self.stale.get(vm_id)
        if old is not None and not machine.frozen:
            reading = replace(
                reading,
                memory_usable_bytes=old.memory_usable_bytes,
                memory_unused_bytes=old.memory_unused_bytes,
                memory_cache_bytes=old.memory_cache_bytes,
                memory_last_update_unix_s=old.memory_last_update_unix_s,
            )
        if vm_id in self.states:
            reading = replace(reading, state=self.states[vm_id])
        self._note(reading)
        if self.blind and reading.memory_usable_bytes is not None:
            actual = reading.memory_actual_bytes
            return replace(reading, memory_usable_bytes=actual, memory_unused_bytes=actual)
        return reading

    def _note(self, reading):
        if reading.memory_actual_bytes is None:
            return
        usable = reading.memory_usable_bytes
        used = None if usable is None else reading.memory_actual_bytes - usable
        cpu = reading.cpu_quota_millicores or reading.cpu_count * 1000
        self.told[reading.vm_id] = (reading.memory_actual_bytes, used, cpu)

    def adopt(self, vm_id, machine):
        """A VM of another host's is here as well, or instead."""
        self.machines()[vm_id] = replace(machine, counters=dict(machine.counters))
        self._tell(vm_id, VmEventKind.STARTED)

    def go_stale(self, vm_id):
        if vm_id not in self._machines:
            raise VmGone(vm_id)
        self.stale[vm_id] = super()._reading(vm_id, self.machines()[vm_id])


def limit_of(machine, resource):
    if resource is Resource.MEMORY:
        return machine.limit_bytes
    return machine.cpu_quota_millicores or machine.spec.cpu_count * 1000


class Network:
    """Loses, doubles, delays and so reorders single messages, by seed; cuts hosts off."""

    def __init__(self, seed):
        self.random = Random(f"network {seed}")
        self.drop = self.double = self.slow = 0.0
        self.cut_off = set()  # names of hosts

    def carry(self, host_name, deliver):
        if host_name in self.cut_off or self.random.random() < self.drop:
            return
        for _ in range(2 if self.random.random() < self.double else 1):
            is_slow = self.random.random() < self.slow
            delay_s = self.random.uniform(0.5, 10.0) if is_slow else self.random.uniform(0, 0.05)
            asyncio.get_running_loop().call_later(delay_s, deliver)


class Link:
    """One stream between an agent and a controller; `up` and `down` end with None."""

    def __init__(self, world, host, reign):
        self.world = world
        self.host = host
        self.reign = reign
        self.up = asyncio.Queue()
        self.down = asyncio.Queue()
        self.open = True

    def close(self):
        if self.open:
            self.open = False
            self.up.put_nowait(None)
            self.down.put_nowait(None)


class AgentEnd:
    """What `Uplink._talk` needs of a stream."""

    def __init__(self, link):
        self._link = link
        self._is_first = True

    async def write(self, message):
        link, data = self._link, message.SerializeToString()
        if not link.open:
            raise asyncio.InvalidStateError
        if self._is_first:  # a stream of which the first message is lost is none
            self._is_first = False
            link.up.put_nowait(pb.AgentMessage.FromString(data))
            return

        def deliver():
            if link.open:
                link.up.put_nowait(pb.AgentMessage.FromString(data))

        link.world.network.carry(link.host.name, deliver)

    def __aiter__(self):
        return _until_none(self._link.down)

    def cancel(self):
        self._link.close()


class ControllerEnd:
    """What `Sessions.Connect` needs of a call's context."""

    def __init__(self, link):
        self._link = link

    def messages(self):
        return _until_none(self._link.up, self._link.reign.awake)

    async def write(self, message):
        link, data = self._link, message.SerializeToString()
        if not link.open:
            raise aio.UsageError("the stream is closed")
        link.world.witness.sent(link.reign, link.host, message)

        def deliver():
            """What a paused process had in its buffers comes late, on whatever stream is there."""
            target = link if link.open else link.host.link
            if not link.reign.awake.is_set():
                link.reign.stuck.append(deliver)
            elif target is not None and target.open:
                target.down.put_nowait(pb.ControllerMessage.FromString(data))

        if not link.world.intercepts(link.reign, message, deliver):
            link.world.network.carry(link.host.name, deliver)

    async def abort(self, code, why):
        self._link.close()
        raise aio.AbortError(why)


async def _until_none(queue, awake=None):
    while (message := await queue.get()) is not None:
        if awake is not None:
            await awake.wait()
        yield message


class LinkedUplink(Uplink):
    """The agent's uplink on a simulated stream in place of a gRPC channel."""

    def __init__(self, world, host, *arguments):
        super().__init__("controller:1", *arguments)
        self._world = world
        self._host = host

    async def _converse(self):
        link = self._world.dial(self._host)
        if link is None:
            await asyncio.sleep(CONNECT_S)
            return "nobody answers"
        try:
            return await self._talk(AgentEnd(link))
        finally:
            self.connected = False
            link.close()


class TrailBus(FakeBus):
    """One controller's connection to the audit stream that all of them share."""

    def __init__(self, seed, shared, awake):
        super().__init__()
        shared.streams.setdefault(AUDIT_STREAM, [])
        self.streams, self._ids = shared.streams, shared._ids
        self._arrived_ns, self._patterns = shared._arrived_ns, shared._patterns
        self._awake = awake
        self.random = Random(f"trail {seed}")
        self.refuses = False
        self.loses_answers = 0.0
        self.acknowledged = {}  # plan_id -> body of its intent

    async def publish_acknowledged(self, subject, data, message_id, timeout_s=5.0):
        await asyncio.sleep(self.random.random() * 0.05)
        if self.refuses:
            raise BusError("no responders")
        sequence = await super().publish_acknowledged(subject, data, message_id, timeout_s)
        await self._awake.wait()
        if self.random.random() < self.loses_answers:
            raise BusError("no answer in time")
        record = unpack(data)
        if record.kind == "intent":
            self.acknowledged[record.body["plan_id"]] = record.body
        return sequence
