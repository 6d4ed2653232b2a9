"""JSON lines over a virtio-serial port: the way between a machine of the testbed and its host."""

import json
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PORT_NAME = "org.hrapaq.testbed"
POLL_S = 0.05
CHUNK_BYTES = 65536


def port_path() -> str:
    """Waits for the port; udev's links are not there in an L2."""
    while True:
        for entry in Path("/sys/class/virtio-ports").glob("*"):
            if (entry / "name").read_text().strip() == PORT_NAME:
                return f"/dev/{entry.name}"
        time.sleep(POLL_S)


class Port:
    """Lines in both directions; many threads may write."""

    def __init__(self, path: str) -> None:
        self._descriptor = os.open(path, os.O_RDWR)
        self._lock = threading.Lock()

    def send(self, message: dict[str, Any]) -> None:
        data = memoryview(json.dumps(message).encode() + b"\n")
        with self._lock:
            while data:
                data = data[os.write(self._descriptor, data) :]

    def lines(self) -> Iterator[dict[str, Any]]:
        """For ever: an end of file says only that nobody listens on the other side now."""
        rest = b""
        while True:
            chunk = os.read(self._descriptor, CHUNK_BYTES)
            if not chunk:
                rest = b""
                time.sleep(POLL_S)
                continue
            *whole, rest = (rest + chunk).split(b"\n")
            for line in whole:
                try:
                    yield json.loads(line)
                except ValueError:
                    continue  # the first half was sent before the other side connected


def run(command: str, timeout_s: float) -> dict[str, Any]:
    """A shell command's exit code and output; code None where it did not end in time."""
    try:
        done = subprocess.run(
            ["/bin/sh", "-c", command],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"code": None, "out": "", "err": f"not within {timeout_s:g} s"}
    return {"code": done.returncode, "out": done.stdout, "err": done.stderr}


def clock() -> dict[str, Any]:
    return {"unix_s": time.time(), "uptime_s": time.clock_gettime(time.CLOCK_BOOTTIME)}
