"""Who watches the whole loop: eight promises, held against what the simulated machines really are.

Nothing here asks agents or controllers what they believe, but for one thing: where an agent would
walk back to, which nobody else knows.
"""

import asyncio
from collections import Counter, defaultdict

from loop_parts import OBEYING, limit_of

from agent.guard import grant_of
from agent.steps import QUANTUM
from shared.resources import MIB, Resource, amount_text

LEASE_S = 30
SLACK_S = 5  # within which the way back must have begun
MARGIN_BYTES = 64 * MIB
UNDER_WAY_S = 12  # moves that were begun before somebody else started a VM
MOVED = (Resource.CPU, Resource.MEMORY)


class Witness:
    """`broken` holds what was seen against a promise: (promise, words)."""

    def __init__(self):
        self.story = []
        self.broken = []
        self.counts = Counter()
        self.hosts = {}  # by hypervisor
        self._runs = defaultdict(set)  # command id -> runs that had an effect
        self._reign_of = {}  # (host, epoch) -> reign
        self.reign_of_command = {}  # command id -> name of the controller that sent it

    def say(self, text):
        self.story.append(f"{asyncio.get_running_loop().time():8.3f} {text}")

    def blame(self, promise, text):
        self.say(f"BROKEN {promise}: {text}")
        self.broken.append((promise, text))

    # ---- at the moment of each call ----

    def asked(self, hypervisor, vm_id, resource, amount):
        """A limit is about to be asked for."""
        host = self.hosts[hypervisor]
        told = hypervisor.told.get(vm_id)
        if told is None:
            self.blame("I6", f"{host.name}: a VM was moved that was never read")
            return
        limit, used, cpu = told
        before = limit if resource is Resource.MEMORY else cpu
        name = f"{host.name} {hypervisor.name_of(vm_id)} {resource.word}"
        text = f"{name} {amount_text(resource, before)} -> {amount_text(resource, amount)}"
        self.say(text)
        if (vm_id, resource) in host.immovable:
            self.blame("I8", text)
        if amount == before:
            return  # a target that was not reached is taken back: nothing moves
        if amount < before:
            self._shrinks(host, resource, amount, used, text)
        self._under(host, (vm_id, resource), text)

    def _shrinks(self, host, resource, amount, used, text):
        if resource is Resource.MEMORY and (used is None or amount < used + MARGIN_BYTES):
            self.blame("I3", f"{text}, in use {amount_text(resource, used)}")
        silent_s = host.silent_s()
        if silent_s is not None and silent_s > LEASE_S + SLACK_S:
            self.blame("lease", f"{text} after {silent_s:.0f} s of silence")

    def _under(self, host, lever, text):
        command = OBEYING.get()
        if command is None:
            self._alone(host, lever, text)
            return
        header, reign = command
        if header.epoch < host.epoch_obeyed:
            self.blame("I7", f"{text} of epoch {header.epoch}, {host.epoch_obeyed} was obeyed")
        host.epoch_obeyed = max(host.epoch_obeyed, header.epoch)
        if self._reign_of.setdefault((host.name, header.epoch), reign) != reign:
            self.blame("I7", f"{text}: two controllers speak in epoch {header.epoch}")

    def _alone(self, host, lever, text):
        """Without a command: the reflex, by its leash, or the walk back, when there is no lease."""
        grant = grant_of(host.parts.steward.state, host.clock.tick_ns())
        if grant is not None and lever not in grant.bounds.leash:
            self.blame("leash", f"{text} without a leash")

    def did(self, hypervisor, vm_id, resource, amount):
        """The hypervisor has said yes."""
        host = self.hosts[hypervisor]
        host.moved_at_s = asyncio.get_running_loop().time()
        self.counts["moves"] += 1
        lent = (vm_id, resource) in host.lent()
        self.counts["loans"] += lent and OBEYING.get() is None
        if host.run is not None and OBEYING.get() is not None:
            header, _ = OBEYING.get()
            self._runs[header.command_id].add(host.run)
            if len(self._runs[header.command_id]) > 1:
                self.blame("once", f"{host.name}: a command had its effect twice")

    def sent(self, reign, host, message):
        """A controller writes to a stream."""
        kind = message.WhichOneof("kind")
        self.counts[kind] += 1
        if kind != "apply":
            return
        header = message.apply.header
        self.say(f"{reign.name} sends {len(message.apply.steps)} steps to {host.name}, "
                 f"plan {header.plan_id}")  # fmt: skip
        self.reign_of_command[header.command_id] = reign.name
        intent = reign.bus.acknowledged.get(header.plan_id)
        if intent is None:
            self.blame("I10", f"plan {header.plan_id} has no record")
            return
        meant = {step["index"]: step for step in intent["steps"]}
        for step in message.apply.steps:
            one = meant.get(step.index)
            if one is None or not _is_within(step, one):
                self.blame("I10", f"plan {header.plan_id}: step {step.index} is not on record")

    # ---- every second ----

    def look(self, host):
        machines = host.hypervisor.machines()
        for resource in MOVED:
            total = host.total(resource)
            if asyncio.get_running_loop().time() - host.surprised_at_s < UNDER_WAY_S:
                host.allowed[resource] = max(host.allowed[resource], host.promised(resource))
            if total > host.allowed[resource]:
                amounts = (
                    amount_text(resource, total),
                    amount_text(resource, host.allowed[resource]),
                )
                self.blame("I1", f"{host.name} {resource.word}: {amounts[0]} of {amounts[1]}")
            if total <= host.allocatable[resource]:
                host.allowed[resource] = host.allocatable[resource]
        for (vm_id, resource), amount in host.immovable.items():
            if vm_id in machines and limit_of(machines[vm_id], resource) != amount:
                self.blame("I8", f"{host.name} {machines[vm_id].spec.name} {resource.word} moved")
        self._look_for_the_way_back(host, machines)

    def _look_for_the_way_back(self, host, machines):
        """After a lease's end something grows within seconds, where something can."""
        now = asyncio.get_running_loop().time()
        silent_s = host.silent_s()
        excused = (
            not host.alive
            or silent_s is None
            or silent_s <= LEASE_S
            or host.running is not None
            or now - host.troubled_at_s < 16
            or now - host.moved_at_s < 12
            or not _could_grow(host, machines)
        )
        if excused:
            host.idle_since_s = now
        elif now - host.idle_since_s > SLACK_S:
            self.blame("lease", f"{host.name}: {silent_s:.0f} s of silence and nothing grows back")


def _could_grow(host, machines):
    """Whether a lever is below its fallback by a quantum, with as much free for it."""
    quarantined = host.parts._executor.quarantined()
    frozen_too = {
        resource: sum(_most(machine, resource) for machine in machines.values())
        for resource in MOVED
    }
    for (vm_id, resource), target in host.parts.steward.state.fallback.items():
        machine = machines.get(vm_id)
        if machine is None or machine.frozen or (vm_id, resource) in quarantined:
            continue
        limit = limit_of(machine, resource)
        full = (
            machine.spec.memory_maximum_bytes
            if resource is Resource.MEMORY
            else machine.spec.cpu_count * 1000
        )
        least = QUANTUM[resource]
        free = host.allocatable[resource] - frozen_too[resource]
        if limit + least <= min(target, full) and free >= least:
            return True
    return False


def _most(machine, resource):
    """As an agent must count: a VM that does not answer has all that it could have."""
    if not machine.frozen:
        return limit_of(machine, resource)
    if resource is Resource.MEMORY:
        return machine.spec.memory_maximum_bytes
    return machine.spec.cpu_count * 1000


def _is_within(step, meant):
    """A sent step is the one on record, or less of it."""
    low, high = sorted((meant["from_amount"], meant["to_amount"]))
    same = (step.vm_id, step.resource - 1) == (meant["vm_id"], Resource[meant["resource"].upper()])
    return same and low <= step.to_amount <= high
