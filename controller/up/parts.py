"""The health of a run's parts, looked at each second, and libvirt's daemons kept alive."""

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from controller.up.hypervisor import Hypervisor
from controller.up.nats import http_get
from controller.up.report import Report
from controller.up.supervisor import Supervisor
from controller.up.view import PartHealth, View
from shared.errors import HrapaqError

EVERY_S = 1.0


@dataclass(slots=True)
class Parts:
    """`run` never ends by itself."""

    supervisor: Supervisor
    hypervisor: Hypervisor
    monitor_port: int  # of nats-server
    view: View
    report: Report
    say: Callable[[str], None]
    _ill: dict[str, bool] = field(default_factory=dict)  # parts that were well once

    async def run(self) -> None:
        while True:
            self.view.parts = [
                await self._nats(),
                self._controller(),
                self._agent(),
                self._guests(),
                *self._of_controller(),
            ]
            self._say_changes()
            await self._revive_libvirt()
            await asyncio.sleep(EVERY_S)

    def _say_changes(self) -> None:
        """A part that was well once and is not any more, and when it is again."""
        for part in self.view.parts:
            was_ill = self._ill.get(part.name)
            if was_ill is None and not part.healthy:
                continue  # it has not begun yet
            if was_ill is not None and was_ill == part.healthy:
                word = "is well again" if part.healthy else "is ill"
                self.say(f"{part.name} {word}: {part.detail}")
            self._ill[part.name] = not part.healthy

    async def _nats(self) -> PartHealth:
        reply = await http_get(self.monitor_port, "/varz")
        if reply is None:
            return PartHealth("nats", False, "does not answer")
        varz = json.loads(reply)
        detail = (
            f"{varz['in_msgs']} in, {varz['out_msgs']} out, {varz['connections']} connections, "
            f"{varz['slow_consumers']} slow"
        )
        return PartHealth("nats", True, detail)

    def _controller(self) -> PartHealth:
        status = self.view.status
        if self.supervisor.pid("controller") is None:
            return PartHealth("controller", False, "is being started again")
        if self.view.controller_silent or status is None:
            return PartHealth("controller", False, self.view.controller_silent or "starting")
        detail = f"epoch {status.epoch}, last cycle took {status.last_cycle_ms} ms"
        return PartHealth("controller", True, detail)

    def _agent(self) -> PartHealth:
        if self.supervisor.pid("agent") is None:
            return PartHealth("agent", False, "is being started again")
        connected = self.view.status is not None and self.view.status.agents_connected > 0
        return PartHealth("agent", connected, "connected" if connected else "not connected yet")

    def _guests(self) -> PartHealth:
        hypervisor = self.hypervisor
        if hypervisor.kind == "simulated":
            return PartHealth("guests", True, f"{len(self.view.actual_bytes)} simulated")
        expected, running = len(hypervisor.uuids), len(self.view.actual_bytes)
        return PartHealth("guests", running == expected, f"{running} of {expected} run")

    def _of_controller(self) -> list[PartHealth]:
        """What the controller says of its own parts."""
        parts = self.view.status.parts if self.view.status is not None else ()
        return [PartHealth(part.name, part.healthy, part.detail) for part in parts]

    async def _revive_libvirt(self) -> None:
        try:
            revived = await self.hypervisor.revive()
        except HrapaqError as error:
            self._complain(f"libvirt could not be started again: {error}")
            return
        for name in revived:
            self._complain(f"{name} ended; it was started again")
            restart = {"name": name, "at_unix_ns": time.time_ns(), "ended": "unknown"}
            self.report.restarts.append(restart)

    def _complain(self, text: str) -> None:
        self.report.error(text)
        self.say(text)
