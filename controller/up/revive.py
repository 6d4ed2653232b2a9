"""Starts demo guests again that ended by themselves: under their UUID, with a growing pause."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from controller.up.hypervisor import Hypervisor
from controller.up.report import Report
from controller.up.supervisor import Crashes
from shared.errors import HypervisorError

FIRST_DELAY_S = 0.5  # short: before the next plan shares its memory out to others


@dataclass(slots=True)
class Revival:
    """Five ends of one guest within a minute are no accident, but no reason to stop the others:
    it is started again when the minute is over."""

    hypervisor: Hypervisor
    report: Report
    say: Callable[[str], None]
    _crashes: dict[str, Crashes] = field(default_factory=dict)  # by UUID, as below
    _due_s: dict[str, float] = field(default_factory=dict)  # of those that are down; monotonic

    def has_ended(self, uuid: str) -> None:
        """To be called once for each end that was seen."""
        crashes = self._crashes.setdefault(uuid, Crashes(FIRST_DELAY_S))
        crashes.add(time.monotonic())
        self._due_s[uuid] = time.monotonic() + crashes.delay_s
        restart = {"name": self._name(uuid), "at_unix_ns": time.time_ns(), "ended": "unknown"}
        self.report.restarts.append(restart)
        text = f"{self._name(uuid)} has ended, and not by us"
        self._complain(f"{text}; it is started again in {crashes.delay_s:.1f} s")

    async def start_due(self) -> None:
        """Those whose pause is over; what does not start now is tried again later."""
        for uuid in [uuid for uuid, due in self._due_s.items() if due <= time.monotonic()]:
            try:
                await self.hypervisor.start_again(uuid)
            except HypervisorError as error:
                self._crashes[uuid].add(time.monotonic())
                self._due_s[uuid] = time.monotonic() + self._crashes[uuid].delay_s
                self._complain(f"{self._name(uuid)} could not be started again: {error}")
            else:
                del self._due_s[uuid]
                self.say(f"{self._name(uuid)} was started again")

    def _name(self, uuid: str) -> str:
        return self.report.guest_names.get(uuid, uuid)

    def _complain(self, text: str) -> None:
        self.report.error(text)
        self.say(text)
