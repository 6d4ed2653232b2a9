"""Runs in an L1: takes orders from L0, hands those for L2s on, and watches the L2s as a witness.

Knows nothing of our agent and shares nothing with it: its libvirt connection is its own.
"""

import contextlib
import json
import socket
import threading
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import libvirt
from testbed.inside.port import PORT_NAME, Port, clock, port_path, run

URI = "qemu:///system"
SAMPLE_S = 1.0
RETRY_S = 0.3
STATS = (
    libvirt.VIR_DOMAIN_STATS_STATE
    | libvirt.VIR_DOMAIN_STATS_CPU_TOTAL
    | libvirt.VIR_DOMAIN_STATS_BALLOON
)


def main() -> None:
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    relay = Relay(Port(port_path()))
    threading.Thread(target=relay.watch, daemon=True).start()
    relay.port.send({"event": "hello", **clock()})
    for message in relay.port.lines():
        threading.Thread(target=relay.obey, args=(message,), daemon=True).start()


class Relay:
    def __init__(self, port: Port) -> None:
        self.port = port
        self._guests: dict[str, Guest] = {}
        self._lock = threading.Lock()

    def obey(self, message: dict[str, Any]) -> None:
        name = message.get("to")
        if name:
            self._guest(name).send({**message, "to": ""})
            return
        try:
            answer = getattr(self, f"do_{message['do']}")(**message.get("with", {}))
        except (libvirt.libvirtError, OSError, KeyError, AttributeError, TypeError) as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        self.port.send({"id": message["id"], **(answer or {})})

    # --- orders ----------------------------------------------------------------------------------

    def do_clock(self) -> dict[str, Any]:
        return clock()

    def do_exec(self, command: str, timeout_s: float = 60.0) -> dict[str, Any]:
        return run(command, timeout_s)

    def do_write(self, files: dict[str, str]) -> dict[str, Any]:
        """Files by path; which of them were not so before."""
        changed = []
        for name, text in files.items():
            path = Path(name)
            if not path.exists() or path.read_text() != text:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
                changed.append(name)
        return {"changed": changed}

    def do_create(self, name: str, xml: str, scratch_mib: int) -> dict[str, Any]:
        """Starts an L2 unless it runs; libvirt forgets it when it ends."""
        created = False
        scratch = Path(f"/var/lib/libvirt/images/{name}.raw")
        with scratch.open("ab") as file:
            file.truncate(scratch_mib << 20)
        with connection() as libvirtd:
            try:
                libvirtd.lookupByName(name)
            except libvirt.libvirtError:
                libvirtd.createXML(xml, 0)
                created = True
        self._guest(name)
        return {"created": created}

    def do_domain(self, name: str, call: str) -> None:
        """suspend, resume, destroy, reset of an L2."""
        with connection() as libvirtd:
            getattr(libvirtd.lookupByName(name), call)()

    def _guest(self, name: str) -> "Guest":
        with self._lock:
            if name not in self._guests:
                self._guests[name] = Guest(name, self.port)
            return self._guests[name]

    # --- witness ---------------------------------------------------------------------------------

    def watch(self) -> None:
        """For ever: what libvirt says of the L2s and the kernel of this machine, once a second."""
        while True:
            began = time.monotonic()
            sample: dict[str, Any] = {"event": "sample", "node": node_readings()}
            try:
                with connection() as libvirtd:
                    sample["at"] = time.time()
                    sample["vms"] = vm_readings(libvirtd)
            except libvirt.libvirtError as error:
                sample["at"], sample["error"] = time.time(), str(error)
            self.port.send(sample)
            time.sleep(max(0.1, SAMPLE_S - (time.monotonic() - began)))


class Guest:
    """The line to one L2, opened again whenever it breaks; what comes is passed on with a name."""

    def __init__(self, name: str, port: Port) -> None:
        self._name = name
        self._port = port
        self._socket: socket.socket | None = None
        threading.Thread(target=self._read, daemon=True).start()

    def send(self, message: dict[str, Any]) -> None:
        line, deadline = json.dumps(message).encode() + b"\n", time.monotonic() + 10
        while time.monotonic() < deadline:
            try:
                if self._socket is not None:
                    self._socket.sendall(line)
                    return
            except OSError:
                self._socket = None
            time.sleep(0.1)
        self._port.send({"id": message["id"], "error": f"{self._name} cannot be reached"})

    def _read(self) -> None:
        while True:
            try:
                with self._connected() as stream:
                    for line in stream:
                        with contextlib.suppress(ValueError):
                            self._port.send({"from": self._name, **json.loads(line)})
            except (OSError, libvirt.libvirtError, LookupError):
                pass
            self._socket = None
            time.sleep(RETRY_S)

    def _connected(self) -> BinaryIO:
        opened = socket.socket(socket.AF_UNIX)
        opened.connect(channel_path(self._name))
        self._socket = opened
        return opened.makefile("rb")


def channel_path(name: str) -> str:
    """Where libvirt put the socket of an L2's port; LookupError where there is none."""
    with connection() as libvirtd:
        root = ET.fromstring(libvirtd.lookupByName(name).XMLDesc())  # noqa: S314 - libvirt's own
    for channel in root.iter("channel"):
        source = channel.find("source")
        if channel.find(f"target[@name='{PORT_NAME}']") is not None and source is not None:
            return source.attrib["path"]
    raise LookupError(name)


_connections = threading.local()


@contextlib.contextmanager
def connection() -> Iterator[Any]:
    """One per thread, opened again after an error."""
    opened = getattr(_connections, "opened", None)
    if opened is None:
        opened = _connections.opened = libvirt.open(URI)
    try:
        yield opened
    except libvirt.libvirtError:
        if not opened.isAlive() or "client socket is closed" in str(
            libvirt.virGetLastErrorMessage()
        ):
            _connections.opened = None
        raise


def vm_readings(libvirtd: "libvirt.virConnect") -> dict[str, Any]:
    found = {}
    for domain, stats in libvirtd.getAllDomainStats(STATS):
        parameters = domain.schedulerParameters()
        found[domain.name()] = {
            "actual_kib": stats.get("balloon.current"),
            "maximum_kib": stats.get("balloon.maximum"),
            "rss_kib": stats.get("balloon.rss"),
            "usable_kib": stats.get("balloon.usable"),
            "unused_kib": stats.get("balloon.unused"),
            "updated_s": stats.get("balloon.last-update"),
            "cpu_ns": stats.get("cpu.time"),
            "state": stats.get("state.state"),
            "vcpu_quota_us": parameters.get("vcpu_quota"),
            "vcpu_period_us": parameters.get("vcpu_period"),
        }
    return found


def node_readings() -> dict[str, Any]:
    wanted = ("MemTotal", "MemFree", "MemAvailable", "Cached")
    found: dict[str, Any] = {}
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, value, *_ = line.split()
        if name[:-1] in wanted:
            found[f"{name[:-1]}_kib"] = int(value)
    for resource in ("cpu", "memory", "io"):
        with contextlib.suppress(OSError):
            some = Path(f"/proc/pressure/{resource}").read_text().splitlines()[0]
            found[f"psi_{resource}_total_us"] = int(some.rpartition("total=")[2])
    return found


if __name__ == "__main__":
    main()
