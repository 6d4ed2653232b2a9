"""What a plan lets the agent do by itself: how far, for which limits, with how much. Pure.

A lever without a leash is not moved by the agent alone. Leashes and reserve come with commands and
renewals, hold until others come, and die with the lease or when a newer epoch speaks.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from shared.resources import Resource

Lever = tuple[str, Resource]  # vm id and resource


@dataclass(frozen=True, slots=True)
class Leash:
    """Of one lever; units by resource. Loans count from `plan_amount` and go back to it."""

    low_amount: int
    high_amount: int
    plan_amount: int  # what the plan gives this limit once its steps are done


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one message brings; empty: those in force stay."""

    leash: Mapping[Lever, Leash] = field(default_factory=dict)
    reserve: Mapping[Resource, int] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.leash or self.reserve)


NO_BOUNDS = Bounds()


@dataclass(frozen=True, slots=True)
class Grant:
    """All that the reflex may go by while the lease holds."""

    bounds: Bounds
    number: int  # rises with every plan's bounds
    fallback: Mapping[Lever, int] = field(default_factory=dict)
    epoch: int = 0
    lent: frozenset[Lever] = frozenset()  # moved by the reflex itself, perhaps before a restart


def without(bounds: Bounds, levers: frozenset[Lever]) -> Bounds:
    """For levers that a plan moves without a word on how far the agent may go from there."""
    leash = {lever: one for lever, one in bounds.leash.items() if lever not in levers}
    return Bounds(leash, bounds.reserve)
