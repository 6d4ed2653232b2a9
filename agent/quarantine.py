"""Levers that lately did nothing: left alone for a while, longer each time, and tried again. Pure.

Time is an argument, on the agent's tick. A shrink that the guest does not follow says nothing of
growing: who refuses to give memory up may still be given some.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from shared.clock import SECOND_NS
from shared.resources import Resource
from shared.telemetry import IDLE, IDLE_SHRINKING

QUARANTINE_NS = 600 * SECOND_NS  # the first time; twice as long after each that follows it
QUARANTINE_NS_MAX = 7200 * SECOND_NS  # two hours: a driver that was loaded since is found

Lever = tuple[str, Resource]


@dataclass(frozen=True, slots=True)
class _Entry:
    until_tick_ns: int
    pause_ns: int
    may_grow: bool  # growing has not been seen to fail


class Quarantine:
    def __init__(self) -> None:
        self._entries: dict[Lever, _Entry] = {}

    def failed(self, lever: Lever, now_tick_ns: int, *, shrinking: bool) -> None:
        """It was told, and nothing moved."""
        before = self._entries.get(lever)
        pause_ns = QUARANTINE_NS if before is None else min(2 * before.pause_ns, QUARANTINE_NS_MAX)
        may_grow = shrinking and (before is None or before.may_grow)
        self._entries[lever] = _Entry(now_tick_ns + pause_ns, pause_ns, may_grow)

    def worked(self, lever: Lever) -> None:
        self._entries.pop(lever, None)

    def at(self, now_tick_ns: int) -> Mapping[Lever, str]:
        """Those that are left alone now, and why."""
        return {
            lever: f"it had no effect lately; left alone for {entry.pause_ns // SECOND_NS} s"
            for lever, entry in self._entries.items()
            if entry.until_tick_ns > now_tick_ns
        }

    def growable(self) -> frozenset[Lever]:
        """Those among them that may grow all the same."""
        return frozenset(lever for lever, entry in self._entries.items() if entry.may_grow)

    def bits(self, now_tick_ns: int) -> dict[str, int]:
        """For telemetry (shared.telemetry.IDLE): by VM, those that have any."""
        growable = self.growable()
        found: dict[str, int] = {}
        for vm_id, resource in self.at(now_tick_ns):
            kind = IDLE_SHRINKING if (vm_id, resource) in growable else IDLE
            found[vm_id] = found.get(vm_id, 0) | kind << resource
        return found

    def forget(self, vm_id: str) -> None:
        """The VM begins anew: perhaps with a driver that it had not before."""
        self._entries = {k: v for k, v in self._entries.items() if k[0] != vm_id}

    def keep_only(self, vm_ids: Iterable[str]) -> None:
        there = set(vm_ids)
        self._entries = {k: v for k, v in self._entries.items() if k[0] in there}
