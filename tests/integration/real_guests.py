"""Small real guests with definitions of their own, that tests start, change and end."""

import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

from controller.up.guest_xml import Guest, domain_xml
from controller.up.guests import _qemu_processes, make_directory
from controller.up.image import GuestImage
from controller.up.libvirtd import connect

T = TypeVar("T")
DEADLINE_S = 90.0


@dataclass
class RealGuest:
    """A persistent domain of libvirt; its files lie in `directory`."""

    uri: str
    guest: Guest
    directory: Path

    @property
    def vm_id(self) -> str:
        return self.guest.uuid

    @property
    def pids(self) -> list[int]:
        """Of its QEMU; empty where it does not run."""
        return _qemu_processes({self.vm_id})

    def xml(self, *changes: tuple[str, str]) -> str:
        """The definition, with (pattern, replacement) applied to its text."""
        disk = self.directory / f"{self.guest.name}.raw"
        with disk.open("ab") as file:
            file.truncate(self.guest.disk_mib << 20)
        text = domain_xml(
            self.guest,
            accelerator="tcg",
            directory=self.directory,
            console=self.directory / f"{self.guest.name}.console",
            disk=disk if self.guest.disk_mib else None,
            direct=False,
        )
        for pattern, replacement in changes:
            text, count = re.subn(pattern, replacement, text)
            assert count, f"{pattern} is not in the definition"
        return text

    def define(self, *changes: tuple[str, str]) -> None:
        with self.connected() as connection:
            connection.defineXML(self.xml(*changes))

    def start(self) -> None:
        self.call("create")

    def call(self, method: str, *arguments: object) -> Any:
        """A method of libvirt's domain, as another program would call it."""
        with self.connected() as connection:
            return getattr(connection.lookupByUUIDString(self.vm_id), method)(*arguments)

    @contextmanager
    def connected(self) -> Iterator[Any]:
        connection: Any = connect(self.uri)
        try:
            yield connection
        finally:
            connection.close()

    def console(self) -> str:
        """Everything that the guest said so far."""
        return (self.directory / f"{self.guest.name}.console").read_text(errors="replace")

    def remove(self) -> None:
        for method in ("destroy", "undefine"):
            with suppress(Exception):
                self.call(method)
        for pid in self.pids:
            with suppress(ProcessLookupError):
                os.kill(pid, 9)


@contextmanager
def real_guest(uri: str, image: GuestImage, state: Path, **fields: Any) -> Iterator[RealGuest]:
    """Defined and not yet started; gone afterwards."""
    directory = make_directory(state, image)
    fields = {"load": "idle", "disk_mib": 16, "maximum_mib": 256, "current_mib": 256, **fields}
    guest = RealGuest(uri, Guest(f"test-{uuid4().hex[:8]}", str(uuid4()), **fields), directory)
    try:
        guest.define()
        yield guest
    finally:
        guest.remove()
        shutil.rmtree(directory, ignore_errors=True)


def wait_for(condition: Callable[[], T], what: str, within_s: float = DEADLINE_S) -> T:
    until = time.monotonic() + within_s
    while not (value := condition()):
        assert time.monotonic() < until, f"not within {within_s} s: {what}"
        time.sleep(0.1)
    return value
