"""Figures out of what a bed's witness saw: when memory came, how much pressure there was, and
whether what each level gives fits into what it has. Pure."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from testbed.domains import TRANSLATION_CACHE_MIB
from testbed.layout import L1, L1_OVERHEAD_MIB, VM_OVERHEAD_MIB, Layout
from testbed.records import Sight

TOLERANCE_MIB = 4.0  # a balloon ends up beside what it was asked for by less
AGE_S_MAX = 6.0  # of a sight that still says how things are


def first_rise_at(sights: Sequence[Sight], since: float, least_mib: float = 1.0) -> float | None:
    """When a balloon was first seen to leave its VM this much more than at `since`."""
    before = actual_at(sights, since)
    for sight in sights:
        if sight.at > since and sight.actual_mib is not None:
            if before is None:
                before = sight.actual_mib
            if sight.actual_mib >= before + least_mib:
                return sight.at
    return None


def first_quota_rise_at(sights: Sequence[Sight], since: float) -> float | None:
    """When a VM was first seen to have a higher CPU quota than at `since`; no limit is highest."""
    before = next((_quota(sight) for sight in reversed(sights) if sight.at <= since), None)
    for sight in sights:
        if sight.at > since:
            if before is not None and _quota(sight) > before:
                return sight.at
            before = _quota(sight) if before is None else before
    return None


def actual_at(sights: Sequence[Sight], at: float) -> float | None:
    """MiB that the balloon left, as last seen by then."""
    seen = [one.actual_mib for one in sights if one.at <= at and one.actual_mib is not None]
    return seen[-1] if seen else None


def least_and_most(
    sights: Iterable[Sight], since: float, until: float = float("inf")
) -> tuple[float, float]:
    """MiB that the balloon left; LookupError where nobody saw it."""
    seen = [
        one.actual_mib for one in sights if since <= one.at <= until and one.actual_mib is not None
    ]
    if not seen:
        raise LookupError("nobody looked at this VM in that time")
    return min(seen), max(seen)


def cpu_used(sights: Sequence[Sight]) -> list[tuple[float, float]]:
    """(Unix seconds, millicores) between each two looks."""
    known = [(one.at, one.cpu_s) for one in sights if one.cpu_s is not None]
    return [
        (later, 1000 * max(0.0, used - before) / (later - earlier))
        for (earlier, before), (later, used) in pairwise(known)
        if later > earlier
    ]


def pressure(readings: Sequence[Mapping[str, Any]], resource: str) -> list[tuple[float, float]]:
    """(Unix seconds, share of the time in percent) that some task waited: PSI of a node."""
    key = f"psi_{resource}_total_us"
    known = [(one["at"], one[key]) for one in readings if key in one]
    return [
        (later, max(0.0, total - before) / (later - earlier) / 1e4)
        for (earlier, before), (later, total) in pairwise(known)
        if later > earlier
    ]


def stalled_s(readings: Sequence[Mapping[str, Any]], resource: str) -> float:
    """Seconds for which some task waited in all of these readings; LookupError without any."""
    key = f"psi_{resource}_total_us"
    totals = [one[key] for one in readings if key in one]
    if not totals:
        raise LookupError(f"no {resource} pressure was read")
    return float(totals[-1] - totals[0]) / 1e6


@dataclass(frozen=True, slots=True)
class Breach:
    """A moment at which something was not safe."""

    at: float  # Unix seconds
    what: str


def breaches(layout: Layout, sights: Mapping[str, Sequence[Sight]]) -> list[Breach]:
    """When what a level gave did not fit into what it had, as the hypervisors say; by time.

    At every look: L0's L1s with what QEMU needs fit into what L0 gives, by balloon and by resident
    memory; the L2s of each L1 with its overhead fit into its balloon; and each guest has some of
    its own left.
    """
    found = [*_root_breaches(layout, sights)]
    for l1 in layout.l1s:
        found += _l1_breaches(l1, sights)
        for guest in l1.guests:
            found += _starved(guest.name, sights.get(guest.name, ()))
    return sorted(found, key=lambda one: one.at)


def _root_breaches(layout: Layout, sights: Mapping[str, Sequence[Sight]]) -> Iterator[Breach]:
    room = float(layout.memory_allocatable_mib)
    names = [l1.name for l1 in layout.l1s]
    for at, row in _moments({name: sights.get(name, ()) for name in names}):
        actual = sum(one.actual_mib or 0.0 for one in row.values())
        given = actual + VM_OVERHEAD_MIB * len(row)
        if given > room + TOLERANCE_MIB:
            yield Breach(at, f"L0 gives {given:.0f} MiB of {room:.0f}")
        # An emulator keeps what it has translated beside its guest's memory.
        resident = sum(
            max(0.0, (one.rss_mib or 0.0) - TRANSLATION_CACHE_MIB) for one in row.values()
        )
        if resident > room + TOLERANCE_MIB:
            yield Breach(at, f"L1s use {resident:.0f} MiB of L0's {room:.0f}")


def _l1_breaches(l1: L1, sights: Mapping[str, Sequence[Sight]]) -> Iterator[Breach]:
    series = {name: sights.get(name, ()) for name in (l1.name, *(one.name for one in l1.guests))}
    for at, row in _moments(series):
        own = row.pop(l1.name, None)
        if own is None or own.actual_mib is None:
            continue
        needs = [(one.actual_mib or 0.0) + VM_OVERHEAD_MIB for one in row.values()]
        given = L1_OVERHEAD_MIB + sum(needs)
        if given > own.actual_mib + TOLERANCE_MIB:
            yield Breach(at, f"{l1.name} gives {given:.0f} MiB of {own.actual_mib:.0f}")
        resident = sum(one.rss_mib or 0.0 for one in row.values())
        if resident > own.actual_mib + TOLERANCE_MIB - L1_OVERHEAD_MIB:
            yield Breach(at, f"L2s of {l1.name} use {resident:.0f} MiB of {own.actual_mib:.0f}")


def _starved(name: str, sights: Sequence[Sight]) -> Iterator[Breach]:
    """A balloon that takes from the working set leaves nothing that could be used."""
    for sight in sights:
        if sight.usable_mib is not None and sight.usable_mib < TOLERANCE_MIB:
            yield Breach(sight.at, f"{name} has {sight.usable_mib:.1f} MiB left to use")


def _moments(
    series: Mapping[str, Sequence[Sight]],
) -> Iterator[tuple[float, dict[str, Sight]]]:
    """What is known of all at each look at any of them; a VM of which nothing was seen for a while
    is not there."""
    looks = sorted(
        ((sight.at, name, sight) for name, each in series.items() for sight in each),
        key=lambda look: look[0],
    )
    known: dict[str, Sight] = {}
    for at, name, sight in looks:
        known[name] = sight
        yield (
            at,
            {
                one: last
                for one, last in known.items()
                if at - last.at <= AGE_S_MAX and last.actual_mib is not None
            },
        )


def _quota(sight: Sight) -> float:
    return float("inf") if sight.cpu_millicores is None else sight.cpu_millicores
