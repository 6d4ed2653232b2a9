"""Looks at the L1s once a second, through a libvirt connection of its own and through /proc.

Knows nothing of our agents and their telemetry: this is what tests judge these by.
"""

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from controller.up.libvirtd import connect, guarded, require_libvirt
from shared.errors import HypervisorError
from testbed.layout import Layout, Places
from testbed.processes import resident_kib, virtual_machines

SAMPLE_S = 0.5
CALL_DEADLINE_S = 2.0


class Record:
    """A file of JSON lines, one reading each; from any thread."""

    def __init__(self, path: Path) -> None:
        self._file: IO[str] = path.open("a", buffering=1)
        self._lock = threading.Lock()

    def add(self, **reading: object) -> None:
        with self._lock:
            self._file.write(json.dumps(reading) + "\n")

    def close(self) -> None:
        self._file.close()


class Witness:
    """A thread; `stop` ends it."""

    def __init__(self, layout: Layout, places: Places, record: Record) -> None:
        self._uri = places.libvirt_uri
        self._names = {l1.uuid: l1.name for l1 in layout.l1s}
        self._record = record
        self._connection: Any = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="witness", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join(2 * CALL_DEADLINE_S)

    def _run(self) -> None:
        while not self._ended.is_set():
            began = time.monotonic()
            resident = self._resident_kib()
            try:
                readings = guarded(self._readings, CALL_DEADLINE_S, "the witness's look")
            except HypervisorError:
                self._connection, readings = None, {}  # libvirt is being tortured: /proc is there
            at = time.time()
            for uuid, name in self._names.items():
                if uuid in readings or uuid in resident:
                    reading = readings.get(uuid, {})
                    more = {"resident_kib": resident.get(uuid)}
                    self._record.add(at=at, by="l0", vm=name, **reading, **more)
            self._ended.wait(max(0.05, SAMPLE_S - (time.monotonic() - began)))

    def _resident_kib(self) -> dict[str, int]:
        """Of the L1s' QEMU processes, the emulator's own memory included."""
        pids = virtual_machines()
        sizes = {uuid: resident_kib(pids[uuid]) for uuid in self._names if uuid in pids}
        return {uuid: size for uuid, size in sizes.items() if size is not None}

    def _readings(self) -> dict[str, dict[str, Any]]:
        if self._connection is None:
            self._connection = connect(self._uri)
        libvirt = require_libvirt()
        wanted = (
            libvirt.VIR_DOMAIN_STATS_STATE
            | libvirt.VIR_DOMAIN_STATS_CPU_TOTAL
            | libvirt.VIR_DOMAIN_STATS_BALLOON
        )
        found = {}
        for domain, stats in self._connection.getAllDomainStats(wanted):
            try:
                parameters = domain.schedulerParameters()
            except libvirt.libvirtError:
                parameters = {}  # no such control group on this machine
            found[domain.UUIDString()] = reading_of(stats.get, parameters.get)
        return found


def reading_of(stats: Callable[[str], Any], parameters: Callable[[str], Any]) -> dict[str, Any]:
    """As an L1's own witness names them (inside/relay.py)."""
    return {
        "actual_kib": stats("balloon.current"),
        "maximum_kib": stats("balloon.maximum"),
        "rss_kib": stats("balloon.rss"),
        "usable_kib": stats("balloon.usable"),
        "unused_kib": stats("balloon.unused"),
        "updated_s": stats("balloon.last-update"),
        "cpu_ns": stats("cpu.time"),
        "state": stats("state.state"),
        "vcpu_quota_us": parameters("vcpu_quota"),
        "vcpu_period_us": parameters("vcpu_period"),
    }


def take_sample(record: Record, l1: str, message: dict[str, Any]) -> None:
    """What an L1's own witness sent, its times on L0's clock already."""
    at = message["at"]
    record.add(at=at, by=l1, node=l1, **message["node"])
    for name, reading in message.get("vms", {}).items():
        record.add(at=at, by=l1, vm=name, **reading)
