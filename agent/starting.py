"""Which VMs are starting: they run, and are not known to be ready. Pure: times are arguments.

A VM starts from the moment it begins to run, or boots anew by itself, until the agent in it says
that it is ready. Where none ever spoke, it counts as ready `quiet_ns` after its balloon's driver
gave the first figures of this start, because user space comes up after the driver does; and
`longest_ns` after its beginning whatever it does, so that no guest is held for ever by its silence
or its lies. Time that it stands still does not count. What came here by migration, or ran already
when this was made, is not starting.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from agent.hypervisor import VmEvent, VmEventKind, VmReading
from agent.settings import AgentSettings
from shared.telemetry import VmState
from shared.units import SECOND_NS

SPEAKERS_MAX = 4096  # VMs of which is remembered that an agent spoke in them; the oldest go first


@dataclass(slots=True)
class _Start:
    began_tick_ns: int
    figures_tick_ns: int | None = None  # since when its balloon gives figures of this start


class Starts:
    """What is known of the starts of one host's VMs."""

    def __init__(self, quiet_ns: int, longest_ns: int) -> None:
        self._quiet_ns = quiet_ns
        self._longest_ns = longest_ns
        self._starts: dict[str, _Start] = {}
        self._cpu_time_ns: dict[str, int] | None = None  # of the VMs last seen; None: none yet
        self._looked_tick_ns = 0  # when they were in
        self._arrived: set[str] = set()  # and not yet seen
        self._spoken: dict[str, str] = {}  # VM -> boot of its kernel that was last heard
        self._over: dict[str, str] = {}  # VM -> boot that is over: late words of it say nothing

    @classmethod
    def of_settings(cls, settings: AgentSettings) -> Self:
        quiet_ns = int(settings.start_quiet_s * SECOND_NS)
        return cls(quiet_ns, int(settings.start_max_s * SECOND_NS))

    def hear(self, event: VmEvent, tick_ns: int) -> None:
        """Events make it exact; without them a start shows in the next readings."""
        vm_id = event.vm_id
        if event.kind in (VmEventKind.STARTED, VmEventKind.REBOOTED):
            self._begin(vm_id, tick_ns)
            if self._cpu_time_ns is not None:
                self._cpu_time_ns.setdefault(vm_id, 0)
        elif event.kind in (VmEventKind.ARRIVED, VmEventKind.STOPPED, VmEventKind.LEFT):
            self._starts.pop(vm_id, None)
            self._arrived.discard(vm_id)
            if self._cpu_time_ns is not None:
                self._cpu_time_ns.pop(vm_id, None)  # of a run that is over
            if event.kind is VmEventKind.ARRIVED:
                self._arrived.add(vm_id)

    def note_ready(self, vm_id: str, boot_id: str, ready_ns: int | None) -> bool:
        """A word of the agent in the VM (shared.guest_word); whether it ended the VM's start.

        `ready_ns` None: it speaks, and is not ready yet; from then on only its word, or the
        longest time, ends the start.
        """
        if self._over.get(vm_id) == boot_id:
            return False
        self._spoken.pop(vm_id, None)
        self._spoken[vm_id] = boot_id
        while len(self._spoken) > SPEAKERS_MAX:
            oldest = next(iter(self._spoken))
            del self._spoken[oldest]
            self._over.pop(oldest, None)
        return ready_ns is not None and self._starts.pop(vm_id, None) is not None

    def look(
        self, readings: Iterable[VmReading], asked_tick_ns: int, tick_ns: int, unix_ns: int
    ) -> frozenset[str]:
        """The VMs that are starting, by readings of all VMs that there are, made just now.

        Readings that were asked for (`asked_tick_ns`) before the last ones were in are left out:
        two that overlap come in any order, and an older one would look like a counter that fell.
        """
        if asked_tick_ns < self._looked_tick_ns:
            return self.starting
        self._looked_tick_ns = tick_ns
        before, now = self._cpu_time_ns, {}
        for reading in readings:
            known = None if before is None else before.get(reading.vm_id)
            now[reading.vm_id] = (
                (known or 0) if reading.cpu_time_ns is None else reading.cpu_time_ns
            )
            if before is not None and self._is_new(reading, known):
                self._begin(reading.vm_id, tick_ns)
            self._follow(reading, tick_ns, unix_ns)
        self._cpu_time_ns = now
        self._arrived -= now.keys()
        for vm_id, start in list(self._starts.items()):
            if tick_ns - start.began_tick_ns >= self._longest_ns:
                del self._starts[vm_id]
        return self.starting

    @property
    def starting(self) -> frozenset[str]:
        return frozenset(self._starts)

    def _begin(self, vm_id: str, tick_ns: int) -> None:
        self._starts[vm_id] = _Start(tick_ns)
        self._arrived.discard(vm_id)
        if vm_id in self._spoken:
            self._over[vm_id] = self._spoken[vm_id]

    def _is_new(self, reading: VmReading, known_cpu_time_ns: int | None) -> bool:
        """Begun since the last look, without an event that said so."""
        if known_cpu_time_ns is None:
            return reading.vm_id not in self._arrived and reading.vm_id not in self._starts
        return reading.cpu_time_ns is not None and reading.cpu_time_ns < known_cpu_time_ns

    def _follow(self, reading: VmReading, tick_ns: int, unix_ns: int) -> None:
        start = self._starts.get(reading.vm_id)
        if start is None:
            return
        if reading.state is VmState.PAUSED:
            self._starts[reading.vm_id] = _Start(tick_ns)
            return
        if start.figures_tick_ns is None and _gives_figures(reading, start, tick_ns, unix_ns):
            start.figures_tick_ns = tick_ns
        if reading.vm_id in self._spoken or start.figures_tick_ns is None:
            return
        if tick_ns - start.figures_tick_ns >= self._quiet_ns:
            del self._starts[reading.vm_id]


def _gives_figures(reading: VmReading, start: _Start, tick_ns: int, unix_ns: int) -> bool:
    """Whether the balloon's figures are of this start: a VM that boots by itself keeps old ones."""
    if reading.memory_usable_bytes is None or not reading.memory_last_update_unix_s:
        return False
    age_ns = unix_ns - reading.memory_last_update_unix_s * SECOND_NS
    return tick_ns - age_ns >= start.began_tick_ns
