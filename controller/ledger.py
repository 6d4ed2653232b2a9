"""What is surely in force, and what may be, while a plan is carried out. Pure; DESIGN I1, I5, I9.

For every limit there is a lowest and a highest amount that may be in force at this moment. A
command that was sent widens the span to its target, an acknowledgement narrows it to what was
measured, and one that never came leaves it wide. Capacity counts by the lowest, use of it by the
highest: so nothing is granted twice, whatever became of the commands.
"""

from dataclasses import replace

from controller.core.plan import cut_grow
from controller.core.state import MISSING, Plan, Policy, Snapshot, Step
from controller.outcome import Result
from shared.resources import Resource, amount_text

Key = tuple[int, Resource]


class Ledger:
    def __init__(self, plan: Plan, snapshot: Snapshot, policy: Policy) -> None:
        self._snapshot = snapshot
        self._quantum = policy.quantum
        self._fallback = {(e.machine, e.resource): e.amount for e in plan.fallback}
        self._lowest: dict[Key, int] = {}
        self._highest: dict[Key, int] = {}

    def admit(self, step: Step) -> tuple[Step | None, str]:
        """The step, cut where less was confirmed than it counts on; None and why when held.

        An admitted step counts as sent.
        """
        now = self._lower(step.machine, step.resource), self._upper(step.machine, step.resource)
        if now != (step.from_amount, step.from_amount):
            return None, "an earlier step of this VM is not confirmed"
        if step.shrinks:
            admitted, why = self._shrink(step)
        else:
            admitted, why = self._grow(step)
        if admitted is not None:
            self._sent(admitted)
        return admitted, why

    def settle(self, step: Step, result: Result, after_amount: int | None) -> None:
        """What an acknowledgement says of a step that was admitted; UNKNOWN and FAILED say only
        that anything between before and after may be in force."""
        key = (step.machine, step.resource)
        if result is Result.GONE:
            self._lowest[key] = self._highest[key] = 0
        elif result in {Result.REFUSED, Result.NOT_SENT, Result.DRY_RUN}:
            amount = step.from_amount if after_amount is None else after_amount
            self._lowest[key] = self._highest[key] = amount
        elif result not in {Result.UNKNOWN, Result.FAILED} and after_amount is not None:
            # A balloon that stopped half-way may still move on to its target.
            self._lowest[key] = min(after_amount, step.to_amount)
            self._highest[key] = max(after_amount, step.to_amount)

    def _sent(self, step: Step) -> None:
        key = (step.machine, step.resource)
        self._lowest[key] = min(step.from_amount, step.to_amount)
        self._highest[key] = max(step.from_amount, step.to_amount)

    def _shrink(self, step: Step) -> tuple[Step | None, str]:
        """A VM with guests shrinks only as far as its guests surely leave it."""
        children = self._snapshot.children(step.machine)
        if not children:
            return step, ""
        held = self._held(step.machine, step.resource)
        if held is None:
            return None, f"a {step.resource.word} limit of its guests is not known"
        if max(held) <= step.to_amount:
            return step, ""
        quantum = self._quantum[step.resource]
        lowest = step.from_amount - (step.from_amount - max(held)) // quantum * quantum
        if lowest >= step.from_amount:
            missing = amount_text(step.resource, max(held) - step.to_amount)
            return None, f"waiting for its guests to give back {missing}"
        why = f"{step.why}; cut to what its guests gave back"
        return replace(step, to_amount=lowest, why=why), ""

    def _grow(self, step: Step) -> tuple[Step | None, str]:
        room = self._room(step)
        if room is None:
            return None, "what its host has left cannot be computed"
        cut = cut_grow(step, room, self._quantum[step.resource])
        if cut is None:
            word = f"{step.resource.word} to come free"
            return None, f"waiting for confirmed {word}: {amount_text(step.resource, room)} left"
        if cut is not step:
            cut = replace(cut, why=f"{step.why}; cut to what was confirmed free")
        return cut, ""

    def _room(self, step: Step) -> int | None:
        """What the step's host can surely still give it; None when that cannot be told."""
        held = self._held(step.node, step.resource)
        capacity = self._capacity(step.node, step.resource)
        if held is None or capacity is None:
            return None
        in_force, with_way_back = held
        # Growing up to its own fallback takes nothing from the way back; more than it does.
        fallback = self._fallback.get((step.machine, step.resource), 0)
        to_fallback = max(fallback - step.from_amount, 0)
        spare = capacity - with_way_back
        return max(min(capacity - in_force, spare + to_fallback if spare >= 0 else 0), 0)

    def _held(self, host: int, resource: Resource) -> tuple[int, int] | None:
        """The most that `host` may owe: limits with overhead and reserve (I1); and the larger of
        limits and fallbacks with the overhead (I9). None when a limit is not known."""
        overhead = int(self._snapshot.overhead[host, resource])
        in_force = overhead + int(self._snapshot.reserve[host, resource])
        with_way_back = overhead
        for child in self._snapshot.children(host):
            highest = self._upper(child, resource)
            if highest == MISSING:
                return None
            in_force += highest
            with_way_back += max(highest, self._fallback.get((child, resource), 0))
        return in_force, with_way_back

    def _capacity(self, host: int, resource: Resource) -> int | None:
        if self._snapshot.parent[host] < 0:
            amount = int(self._snapshot.capacity[host, resource])
        else:
            amount = self._lower(host, resource)
        return None if amount == MISSING else amount

    def _lower(self, machine: int, resource: Resource) -> int:
        limit = int(self._snapshot.limit[machine, resource])
        return self._lowest.get((machine, resource), limit)

    def _upper(self, machine: int, resource: Resource) -> int:
        limit = int(self._snapshot.limit[machine, resource])
        return self._highest.get((machine, resource), limit)
