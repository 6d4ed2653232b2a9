"""Machines that change places or are doubled: migrations, and clones of VMs and of whole hosts."""

import asyncio
from random import Random

from loop_host import SimulatedHost
from loop_parts import OBEYING, limit_of
from loop_witness import Witness
from loop_world import CALM_AT_S, CYCLE_S, World

from controller.core.state import Hold
from shared.resources import Resource
from shared.telemetry import VmState

KNOWN_AFTER_S = 5 + CYCLE_S + 12  # a sample, a cycle, and commands that were under way
CLONE_KNOWN_AFTER_S = KNOWN_AFTER_S + 20 + 2 * CYCLE_S  # as the settings say, and two more looks


class MovesWitness(Witness):
    """Besides the others: whatever is at two places is held still there, and shown as that."""

    def __init__(self):
        super().__init__()
        self.still = {}  # vm_id -> when it must be known to be held still
        self.doubled = {}  # name of a host -> when it must be known that there are two of it

    def asked(self, hypervisor, vm_id, resource, amount):
        super().asked(hypervisor, vm_id, resource, amount)
        late = self.still.get(vm_id)
        if late is not None and OBEYING.get() is not None and _now() > late:
            self.blame("still", f"{self.hosts[hypervisor].name}: {vm_id} is at two places")

    def sent(self, reign, host, message):
        super().sent(reign, host, message)
        late = self.doubled.get(host.name)
        if late is not None and _now() > late:
            self.blame("still", f"{host.name}, of which there are two, is told something")

    def look(self, host):
        super().look(host)
        for vm_id, hold, counted_by in host.world.moving():
            self._look_at(host.world, vm_id, hold, counted_by)

    def _look_at(self, world, vm_id, hold, counted_by):
        """What operators see of it, once it must be known."""
        snapshot = world.reigns[-1].controller.view().snapshot if world.reigns else None
        if snapshot is None or vm_id not in snapshot.ids:
            return
        place = snapshot.ids.index(vm_id)
        shown = Hold(int(snapshot.hold[place]))
        self.counts[f"shown {shown.name}"] += 1
        if shown is not hold:
            self.blame("shown", f"{vm_id} as {shown.name}, it is {hold.name}")
        if counted_by is not None:
            at = snapshot.ids.index(counted_by.node_id)
            room = limit_of(counted_by.hypervisor.machines()[vm_id], Resource.MEMORY)
            if snapshot.overhead[at, Resource.MEMORY] < room:
                self.blame("I1", f"{counted_by.name} keeps no room for {vm_id}")


class MovesWorld(World):
    """In place of faults: one VM goes round the hosts, is copied, and hosts are copied."""

    watched_by = MovesWitness

    async def _break_things(self):
        random, self.known = Random(f"moves {self.seed}"), {}
        self.at = self.hosts[0]
        self.vm_id = self.at.ids["guest"]
        acts = [self._migrate, self._migrate, self._give_up, self._copy_vm, self._copy_host]
        loop = asyncio.get_running_loop()
        watching = self.task(self._watch_until(CALM_AT_S))
        while loop.time() < CALM_AT_S - 40 and not self.witness.broken:
            act = random.choice(acts)
            self.witness.counts[act.__name__] += 1
            await act(random)
            await asyncio.sleep(random.uniform(KNOWN_AFTER_S, 40))
        await watching

    def moving(self):
        """What must be known by now to be at two places, and who has to keep room for it."""
        for vm_id, (late, hold, counted_by) in getattr(self, "known", {}).items():
            if _now() > late:
                yield vm_id, hold, counted_by

    def _look_at_the_hungry(self):
        """They have had to share with a guest; that the loop goes on shows in the moves."""

    async def _migrate(self, random, *, gives_up=False):
        target = random.choice([host for host in self.hosts if host is not self.at])
        source, vm_id = self.at, self.vm_id
        self.witness.say(f"{vm_id} goes from {source.name} to {target.name}")
        source.hypervisor.states[vm_id] = VmState.MIGRATING
        target.hypervisor.states[vm_id] = VmState.PAUSED
        self._arrives(target)
        self._from_now(vm_id, KNOWN_AFTER_S, Hold.MIGRATING, target)
        await asyncio.sleep(random.uniform(5, 50))
        self._over(vm_id)
        del target.hypervisor.states[vm_id]
        del source.hypervisor.states[vm_id]
        leaves, self.at = (target, source) if gives_up else (source, target)
        leaves.hypervisor.vanish(vm_id)

    async def _give_up(self, random):
        await self._migrate(random, gives_up=True)

    async def _copy_vm(self, random):
        target = random.choice([host for host in self.hosts if host is not self.at])
        self.witness.say(f"{self.vm_id} runs on {target.name} as well")
        self._arrives(target)
        self._from_now(self.vm_id, CLONE_KNOWN_AFTER_S, Hold.CLONE, target)
        await asyncio.sleep(random.uniform(60, 90))
        self._over(self.vm_id)
        target.hypervisor.vanish(self.vm_id)

    async def _copy_host(self, random):
        """Another machine with the same identity; its state and its VMs are others."""
        one = random.choice(self.hosts)
        two = SimulatedHost(self, 9, self.folder)
        two.node_id = one.node_id
        (two.root / "sys/class/dmi/id/product_uuid").write_text(one.node_id)
        boot_id = f"99999999-2222-4333-8444-{random.randrange(10**12):012d}"
        (two.root / "proc/sys/kernel/random/boot_id").write_text(boot_id)
        self.witness.say(f"there are two of {one.name}")
        two.start()
        late = _now() + CLONE_KNOWN_AFTER_S
        self.witness.doubled = {one.name: late, two.name: late}
        self._from_now(one.node_id, CLONE_KNOWN_AFTER_S, Hold.CLONE, None)
        await asyncio.sleep(random.uniform(70, 100))
        self.witness.doubled = {}
        self._over(one.node_id)
        await two.kill()
        two.link.close()

    def _arrives(self, target):
        machine = self.at.hypervisor.machines()[self.vm_id]
        target.hypervisor.adopt(self.vm_id, machine)
        for host in (self.at, target):
            host.trouble()
            host.surprised_at_s = _now()

    def _from_now(self, machine_id, seconds, hold, counted_by):
        self.witness.still[machine_id] = _now() + seconds
        self.known[machine_id] = (_now() + seconds, hold, counted_by)

    def _over(self, machine_id):
        del self.witness.still[machine_id], self.known[machine_id]


def _now():
    return asyncio.get_running_loop().time()
