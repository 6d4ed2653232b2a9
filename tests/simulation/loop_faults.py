"""What befalls the simulated world, drawn from its seed."""

import asyncio
from contextlib import asynccontextmanager
from random import Random

from loop_host import seconds
from loop_parts import BROKEN_AFTER_S

from shared.errors import VmGone


class Faults:
    """`work` until it is cancelled, then `heal`."""

    def __init__(self, world):
        self.world = world
        self.random = Random(f"faults {world.seed}")
        self._under_way = []

    async def work(self):
        network, random = self.world.network, self.random
        network.drop = random.choice([0, 0.02, 0.1])
        network.double = random.choice([0, 0.1, 0.3])
        network.slow = random.choice([0, 0.05, 0.2])
        kinds = [
            self._kill_agent,
            self._kill_controller,
            self._pause_controller,
            self._coup,
            self._refuse_records,
            self._lose_answers,
            self._cut_off,
            self._freeze_vm,
            self._stale_vm,
            self._vanish_vm,
            self._restart_vm,
            self._set_clock,
            self._libvirt_away,
            self._fill_disk,
        ]
        likely = [kind for kind in kinds if random.random() < 0.6] or kinds
        if self.world.mutant == "loyal":  # late commands, and newer controllers
            network.slow = 0.4
            likely = [self._coup, self._kill_controller]
        elif self.world.mutant == "forgetful":  # commands that come twice, with moves in between
            network.double, network.slow = 0.9, 0.5
            likely = [self._restart_vm]
        while True:
            kind = random.choice(likely)
            self.world.witness.counts[kind.__name__] += 1
            self._under_way.append(self.world.task(kind()))
            await asyncio.sleep(random.expovariate(1 / 9))

    async def heal(self):
        """All is well again, at once."""
        world = self.world
        world.witness.say("all faults end")
        for task in self._under_way:
            task.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)
        network = world.network
        network.drop = network.double = network.slow = 0.0
        network.cut_off.clear()
        world.coup_at = None
        for reign in world.reigns[:-1]:
            await world.depose(reign)
        if not world.reigns:
            world.crown()
        for reign in world.reigns:
            reign.bus.refuses, reign.bus.loses_answers = False, 0.0
            if not reign.awake.is_set():
                reign.resume()
        for host in world.hosts:
            host.trouble()
            host.clock.wrong_by_ns = 0
            host.disk.full = host.hypervisor.away = False
            host.hypervisor.stale.clear()
            for machine in host.hypervisor.machines().values():
                machine.frozen = False
            if not host.alive:
                host.start()

    # ---- one each ----

    async def _kill_agent(self):
        host = self._host()
        if not host.alive:
            return
        await host.kill()
        await asyncio.sleep(self.random.choice([0.5, 3, 20, 50]))
        host.start()

    async def _kill_controller(self):
        world = self.world
        if not world.reigns:
            return
        await world.depose(world.reigns[-1])
        await asyncio.sleep(self.random.choice([0.5, 5, 30, 60]))
        if not world.reigns:
            world.crown()

    async def _pause_controller(self):
        world = self.world
        reign = world.reigns[-1] if world.reigns else None
        if reign is None or not reign.awake.is_set():
            return
        reign.pause()
        await asyncio.sleep(self.random.uniform(1, 20))
        if world.reigns[-1:] == [reign] and self.random.random() < 0.7:
            world.crown()
        await asyncio.sleep(self.random.uniform(1, 20))
        if reign in world.reigns:
            reign.resume()
            await asyncio.sleep(self.random.uniform(1, 20))
            if world.reigns[-1:] != [reign]:
                await world.depose(reign)

    async def _coup(self):
        self.world.coup_at = True

    async def _refuse_records(self):
        for reign in self.world.reigns:
            reign.bus.refuses = True
        await asyncio.sleep(self.random.uniform(2, 50))
        for reign in self.world.reigns:
            reign.bus.refuses = False

    async def _lose_answers(self):
        for reign in self.world.reigns:
            reign.bus.loses_answers = 0.5
        await asyncio.sleep(self.random.uniform(5, 40))
        for reign in self.world.reigns:
            reign.bus.loses_answers = 0.0

    async def _cut_off(self):
        host = self._host()
        self._say(f"{host.name} is cut off")
        self.world.network.cut_off.add(host.name)
        if host.link is not None:
            asyncio.get_running_loop().call_later(BROKEN_AFTER_S, host.link.close)
        await asyncio.sleep(self.random.choice([2, 15, 60]))
        self._say(f"{host.name} is back")
        self.world.network.cut_off.discard(host.name)

    async def _freeze_vm(self):
        async with self._some_vm("freezes") as (host, vm_id):
            host.hypervisor.freeze(vm_id)
            await self._troubled(host, self.random.uniform(1, 40))
            host.hypervisor.thaw(vm_id)

    async def _stale_vm(self):
        async with self._some_vm("is stale") as (host, vm_id):
            host.hypervisor.go_stale(vm_id)
            await asyncio.sleep(self.random.uniform(5, 60))
            host.hypervisor.stale.pop(vm_id, None)

    async def _vanish_vm(self):
        host = self._host()
        vm_id = host.ids[self.random.choice(["guest", "deaf", "observed"])]
        if vm_id in host.hypervisor.machines():
            self._say(f"a VM of {host.name} vanishes")
            host.hypervisor.vanish(vm_id)

    async def _restart_vm(self):
        """Started anew at full size, by somebody else: what they add is not ours to answer for."""
        host = self._host()
        vm_id = host.ids[self.random.choice(["hungry", "idle", "wavy", "guest"])]
        if vm_id in host.hypervisor.machines():
            self._say(f"{host.hypervisor.name_of(vm_id)} of {host.name} is started anew")
            host.hypervisor.restart(vm_id)
            host.trouble()
            host.surprised_at_s = asyncio.get_running_loop().time()

    async def _set_clock(self):
        host = self._host()
        by_s = self.random.choice([-7200, -200, -30, -3, 3, 30, 200, 7200])
        self._say(f"clock of {host.name} is set by {by_s} s")
        host.clock.wrong_by_ns = seconds(by_s)
        await asyncio.sleep(self.random.choice([5, 30, 100]))
        host.clock.wrong_by_ns = 0

    async def _libvirt_away(self):
        host = self._host()
        self._say(f"libvirt of {host.name} is away")
        host.hypervisor.away = True
        await self._troubled(host, self.random.uniform(1, 25))
        host.hypervisor.away = False

    async def _fill_disk(self):
        host = self._host()
        self._say(f"disk of {host.name} is full")
        host.disk.full = True
        await asyncio.sleep(self.random.uniform(5, 40))
        host.disk.full = False

    def _host(self):
        return self.random.choice(self.world.hosts)

    async def _troubled(self, host, seconds_long):
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds_long
        while loop.time() < end:
            host.trouble()
            await asyncio.sleep(min(5.0, end - loop.time()))
        host.trouble()

    @asynccontextmanager
    async def _some_vm(self, what):
        """A VM that something happens to; nothing more when it vanishes meanwhile."""
        host = self._host()
        name = self.random.choice(["hungry", "idle", "wavy", "guest", "pinned"])
        self._say(f"{name} of {host.name} {what}")
        try:
            yield host, host.ids[name]
        except VmGone:
            self._say(f"{name} of {host.name} is gone")

    def _say(self, text):
        self.world.witness.say(text)
