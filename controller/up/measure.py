"""Our own look at the demo guests, each second, whatever the agent says: their memory, and whether
they still run."""

import asyncio
import time
from collections.abc import Callable

from controller.up.hypervisor import Hypervisor
from controller.up.report import Report
from controller.up.revive import Revival
from controller.up.view import View
from shared.errors import HypervisorError

EVERY_S = 1.0
READY_WITHIN_S = 120.0


class Measurement:
    """`run` never ends by itself."""

    def __init__(
        self, hypervisor: Hypervisor, view: View, report: Report, say: Callable[[str], None]
    ) -> None:
        self._hypervisor = hypervisor
        self._view = view
        self._report = report
        self._say = say
        self._revival = Revival(hypervisor, report, say)
        self._ready = False
        self._began_s = time.monotonic()
        self._seen = set(hypervisor.uuids.values())
        self._silent = False

    async def run(self) -> None:
        while True:
            began = time.monotonic()
            if self._hypervisor.kind == "simulated":
                self._read_simulated()
            elif self._hypervisor.guests is not None:
                await self._read_real()
            await asyncio.sleep(max(0.1, EVERY_S - (time.monotonic() - began)))

    def _read_simulated(self) -> None:
        """From telemetry: nobody else knows them. The report calls it simulated."""
        sizes = {
            vm.vm_id: int(amounts.limit)
            for vm in self._view.vms
            if vm.simulated
            for amounts in vm.resources
            if amounts.resource == "memory" and amounts.HasField("limit")
        }
        names = {vm.vm_id: vm.name for vm in self._view.vms if vm.simulated}
        self._report.guest_names.update(names)
        self._view.guest_names.update(names)
        self._keep(sizes)

    async def _read_real(self) -> None:
        try:
            memory = await self._hypervisor.memory()
        except HypervisorError as error:
            if not self._silent:
                self._complain(f"our look at the guests got no answer: {error}")
            self._silent = True
            return
        self._silent = False
        sizes = {uuid: reading.actual_bytes for uuid, reading in memory.items()}
        self._view.actual_bytes = sizes
        if self._ready:
            self._keep(sizes)
        elif self._hypervisor.are_ready(memory):
            self._ready = True
            waited_s = time.monotonic() - self._began_s
            self._say(f"all demo guests are ready after {waited_s:.0f} s")
            self._keep(sizes)
        elif time.monotonic() - self._began_s > READY_WITHIN_S:
            self._ready = True  # what runs is measured all the same
            self._complain(f"not all demo guests were ready within {READY_WITHIN_S:.0f} s")
        for uuid in sorted(self._seen - set(sizes)):
            self._revival.has_ended(uuid)
        self._seen = set(sizes)
        await self._revival.start_due()

    def _keep(self, sizes: dict[str, int]) -> None:
        self._view.actual_bytes = sizes
        self._report.meter.read(sizes)
        self._view.moved_bytes = self._report.meter.moved_bytes

    def _complain(self, text: str) -> None:
        self._report.error(text)
        self._say(text)
