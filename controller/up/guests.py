"""The demo guests of `hrapaq up`: four small real VMs under libvirt, each with a load of its own.

They are transient and bound to our connection, so that libvirt ends them when this process dies,
however it dies. What a run left behind all the same, the next one removes.
"""

import dataclasses
import os
import shutil
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

from controller.up.aftermath import OWNER_NOTE
from controller.up.guest_xml import MIB, Guest, domain_xml
from controller.up.image import GuestImage, Say
from controller.up.libvirtd import connect, guarded, require_libvirt
from controller.up.owner import Owner, owner_of
from controller.up.probe import Accelerator
from shared.errors import GuestsUnavailable, HypervisorError, HypervisorTimeout, VmGone

NAME_PREFIX = "hrapaq-demo-"
DIRECTORY_PREFIX = "hrapaq-demo-guests-"

READ_DEADLINE_S = 5.0
# libvirt's first guest after a change of QEMU or kernel waits for QEMU's abilities to be asked.
CREATE_DEADLINE_S = 120.0
DESTROY_DEADLINE_S = 20.0


def default_guests() -> list[Guest]:
    """The four of the demo; together about a quarter of a core under TCG.

    Each has a disk, however small: what has none cannot be limited, and has no share to give.
    """
    return [
        Guest(f"{NAME_PREFIX}memory", str(uuid4()), "memory", {"start_s": 10}, disk_mib=32),
        Guest(
            f"{NAME_PREFIX}cpu", str(uuid4()), "cpu", {"period_s": 60, "busy_s": 30}, disk_mib=16
        ),
        Guest(
            f"{NAME_PREFIX}disk",
            str(uuid4()),
            "disk",
            {"period_s": 60, "busy_s": 30, "disk_mib": 64},
            disk_mib=64,
        ),
        Guest(f"{NAME_PREFIX}idle", str(uuid4()), "idle", disk_mib=16),
    ]


@dataclass(frozen=True)
class GuestMemory:
    """One guest's memory as the hypervisor sees it; None where it did not say."""

    actual_bytes: int  # what the balloon leaves to the guest
    rss_bytes: int | None  # what its QEMU process holds on the host
    usable_bytes: int | None  # what the guest's kernel calls available
    updated_s: int | None  # Unix time of the guest's own figures (usable), not of actual and rss


@dataclass
class DemoGuests:
    """Known by name and UUID before they run: a configuration may name them first."""

    uri: str
    image: GuestImage
    accelerator: Accelerator
    state_dir: Path
    guests: Sequence[Guest] = field(default_factory=default_guests)
    _connection: Any = None
    _directory: Path | None = None
    _sizes: dict[str, int] = field(default_factory=dict)  # by UUID, bytes; those of boots left out
    _booting: set[str] = field(default_factory=set)

    @property
    def uuids(self) -> dict[str, str]:
        """UUID by name."""
        return {guest.name: guest.uuid for guest in self.guests}

    def console(self, guest: Guest) -> Path:
        """Where the guest's serial console is written."""
        assert self._directory is not None, "the guests were not started"
        return self._directory / f"{guest.name}.console"

    def start(self, say: Say) -> None:
        """Boots all of them. Raises GuestsUnavailable, with nothing left running."""
        removed = remove_leftovers(self.uri)
        if removed:
            say(f"removed the guests of an earlier run: {', '.join(removed)}")
        try:
            self._directory = make_directory(self.state_dir, self.image)
            for guest in self.guests:
                began = time.monotonic()
                self._create(guest)
                say(f"{guest.name} starts ({time.monotonic() - began:.1f} s)")
        except HypervisorError as error:
            self.stop()
            raise GuestsUnavailable(f"libvirt did not start a demo guest: {error}") from error
        except BaseException:
            self.stop()
            raise

    def wait_until_ready(self, deadline_s: float) -> float:
        """Waits until each balloon answers and has come down to its starting size.

        Returns the seconds waited. Raises GuestsUnavailable, with the guest's last words.
        """
        began = time.monotonic()
        waiting = list(self.guests)
        while waiting:
            waiting = [guest for guest in waiting if not self._is_ready(guest)]
            if waiting and time.monotonic() - began > deadline_s:
                words = [f"{guest.name} ({self._last_words(guest)})" for guest in waiting]
                raise GuestsUnavailable(
                    f"not ready after {deadline_s:.0f} s, their consoles' last line in brackets: "
                    + ", ".join(words)
                )
            if waiting:
                time.sleep(0.25)
        return time.monotonic() - began

    def memory(self) -> dict[str, GuestMemory]:
        """By UUID, each guest that runs, read from the hypervisor now.

        Raises HypervisorError or HypervisorTimeout where libvirt does not answer.
        """
        readings = {guest.uuid: self._read(guest) for guest in self.guests}
        found = {uuid: reading for uuid, reading in readings.items() if reading is not None}
        for guest in self.guests:
            if guest.uuid in found:
                self._note_size(guest, found[guest.uuid].actual_bytes)
        return found

    def actual_bytes(self) -> dict[str, int]:
        """By UUID, what each guest that runs was left by its balloon."""
        return {uuid: reading.actual_bytes for uuid, reading in self.memory().items()}

    def start_again(self, uuid: str) -> None:
        """Boots a guest that has ended, with the memory that it had last: others have the rest.

        Raises HypervisorError or HypervisorTimeout where libvirt does not do it now.
        """
        guest = next(guest for guest in self.guests if guest.uuid == uuid)
        if self._read(guest) is None:
            size = self._sizes.get(uuid, guest.current_mib * MIB)
            self._create(dataclasses.replace(guest, current_mib=size // MIB))

    def _note_size(self, guest: Guest, actual_bytes: int) -> None:
        """A guest that boots has all of its memory until its balloon's driver works."""
        last = self._sizes.get(guest.uuid, guest.current_mib * MIB)
        if guest.uuid in self._booting and actual_bytes > last:
            return
        self._booting.discard(guest.uuid)
        self._sizes[guest.uuid] = actual_bytes

    def stop(self) -> None:
        """Ends every guest of ours and removes their files; may be called at any time, twice."""
        _end_guests(self.uri, self.uuids)
        if self._connection is not None:
            connection, self._connection = self._connection, None
            _quietly(lambda: guarded(connection.close, READ_DEADLINE_S, "closing"))
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None

    def _create(self, guest: Guest) -> None:
        assert self._directory is not None
        disk = None
        if guest.disk_mib:
            disk = self._directory / f"{guest.name}.raw"
            with disk.open("ab") as file:  # one that starts again finds what it wrote
                file.truncate(guest.disk_mib * MIB)
        text = domain_xml(
            guest,
            accelerator=self.accelerator,
            directory=self._directory,
            console=self.console(guest),
            disk=disk,
            direct=disk is not None and _opens_direct(disk),
        )
        flag = require_libvirt().VIR_DOMAIN_START_AUTODESTROY
        connection = self._connected()
        self._booting.add(guest.uuid)
        guarded(
            lambda: connection.createXML(text, flag), CREATE_DEADLINE_S, f"creating {guest.name}"
        )

    def _connected(self) -> Any:  # noqa: ANN401 - libvirt-python ships no types
        """The connection that the guests are bound to, opened again where libvirt restarted.

        A live one is never dropped: libvirt would end the guests with it. (isAlive() does not see
        a dead one without libvirt's event loop, so it is asked something.)
        """
        connection = self._connection
        if connection is not None:
            try:
                guarded(connection.getLibVersion, READ_DEADLINE_S, "asking libvirt")
            except HypervisorTimeout:
                raise
            except HypervisorError:
                self._connection = None
        if self._connection is None:
            self._connection = connect(self.uri)
        return self._connection

    def _is_ready(self, guest: Guest) -> bool:
        reading = self._read(guest)
        if reading is None:
            raise GuestsUnavailable(f"{guest.name} ended by itself: {self._last_words(guest)}")
        # The guest's own figures lag by up to a period: those from before the balloon came down
        # would call more memory usable than it still has.
        size = guest.current_mib * MIB
        usable = reading.usable_bytes
        return reading.actual_bytes <= size and usable is not None and usable <= size

    def _read(self, guest: Guest) -> GuestMemory | None:
        connection = self._connected()
        try:
            stats = guarded(
                lambda: _on_domain(connection, guest.uuid, lambda domain: domain.memoryStats()),
                READ_DEADLINE_S,
                f"reading the memory of {guest.name}",
            )
        except VmGone:
            return None
        kib = {name: value * 1024 for name, value in stats.items()}
        return GuestMemory(
            kib["actual"], kib.get("rss"), kib.get("usable"), stats.get("last_update") or None
        )

    def _last_words(self, guest: Guest) -> str:
        try:
            lines = self.console(guest).read_text(errors="replace").split("\n")
        except OSError as error:
            return f"no console: {error.strerror}"
        return next((line.strip() for line in reversed(lines) if line.strip()), "nothing")


def remove_leftovers(uri: str) -> list[str]:
    """Ends demo guests whose `hrapaq up` is dead, and removes their files; returns their names.

    Raises GuestsUnavailable when they belong to one that runs: two demos cannot share the names.
    """
    connection = connect(uri)
    leftovers = guarded(lambda: _demo_guests(connection), READ_DEADLINE_S, "listing domains")
    connection.close()
    for leftover in leftovers:
        if leftover.owner is not None and leftover.owner.is_alive():
            raise GuestsUnavailable(
                f"{leftover.name} belongs to a `hrapaq up` that runs as process "
                f"{leftover.owner.pid}: stop that one first"
            )
    _end_guests(uri, {leftover.name: leftover.uuid for leftover in leftovers})
    for leftover in leftovers:
        if leftover.directory.name.startswith(DIRECTORY_PREFIX):
            shutil.rmtree(leftover.directory, ignore_errors=True)
    return sorted(leftover.name for leftover in leftovers)


@dataclass(frozen=True)
class _Leftover:
    name: str
    uuid: str
    owner: Owner | None
    directory: Path


def _demo_guests(connection: Any) -> list[_Leftover]:  # noqa: ANN401 - as above
    found = []
    for domain in connection.listAllDomains():
        if not domain.name().startswith(NAME_PREFIX):
            continue
        try:
            root = ET.fromstring(domain.XMLDesc())  # noqa: S314 - libvirt's own answer
        except require_libvirt().libvirtError:
            continue  # libvirt is ending it right now, because its owner died
        owner = owner_of(root.findtext("description") or "")
        directory = Path(root.findtext("os/kernel") or "/").parent
        found.append(_Leftover(domain.name(), domain.UUIDString(), owner, directory))
    return found


def _end_guests(uri: str, uuids: Mapping[str, str]) -> None:
    """Through libvirt, all at once; by signal where libvirt is gone or does not manage it."""
    if not uuids:
        return

    def destroy(name: str) -> None:
        connection = connect(uri)
        _quietly(
            lambda: guarded(
                lambda: _on_domain(connection, uuids[name], lambda domain: domain.destroy()),
                DESTROY_DEADLINE_S,
                f"ending {name}",
            )
        )
        connection.close()

    with ThreadPoolExecutor(max_workers=len(uuids)) as pool:
        list(pool.map(lambda name: _quietly(lambda: destroy(name)), uuids))
    for pid in _qemu_processes(set(uuids.values())):
        _quietly(lambda pid=pid: os.kill(pid, 9))  # type: ignore[misc]


def _on_domain(connection: Any, uuid: str, call: Callable[[Any], Any]) -> Any:  # noqa: ANN401
    """Raises VmGone where there is no such domain (any more)."""
    libvirt = require_libvirt()
    try:
        return call(connection.lookupByUUIDString(uuid))
    except libvirt.libvirtError as error:
        # A domain that stops during the call answers "not running" instead of "no domain".
        gone = (libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_OPERATION_INVALID)
        if error.get_error_code() in gone:
            raise VmGone(uuid) from error
        raise


def _quietly(call: Callable[[], object]) -> None:
    """What ends guests goes on to the next one: the last step looks at what is really left."""
    try:
        call()
    except (HypervisorError, VmGone, ProcessLookupError):
        return


def _qemu_processes(uuids: set[str]) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            arguments = entry.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if "qemu" in arguments[0] and uuids.intersection(arguments):
            found.append(int(entry.parent.name))
    return found


def make_directory(state_dir: Path, image: GuestImage) -> Path:
    """A new directory with copies of the image, which QEMU's own user can reach.

    Copies, because libvirt hands the files over to that user while guests run. It lies below the
    state directory where that user gets that far, else in /var/tmp (on disk, unlike /tmp or /run).
    """
    state_dir.mkdir(parents=True, exist_ok=True)
    resolved = state_dir.resolve()
    reachable = os.geteuid() != 0 or all(
        path.stat().st_mode & 0o001 for path in (resolved, *resolved.parents)
    )
    parent = resolved if reachable else Path("/var/tmp")  # noqa: S108 - mkdtemp makes it safe
    _sweep(parent)
    directory = Path(tempfile.mkdtemp(prefix=DIRECTORY_PREFIX, dir=parent))
    directory.chmod(0o755)
    (directory / OWNER_NOTE).write_text(str(Owner.this_process()))
    for source, name in ((image.kernel, "kernel"), (image.initrd, "initrd")):
        shutil.copyfile(source, directory / name)
        (directory / name).chmod(0o644)
    return directory


def _sweep(parent: Path) -> None:
    """Removes the directories of runs that were killed; libvirt has ended their guests."""
    for note in parent.glob(f"{DIRECTORY_PREFIX}*/{OWNER_NOTE}"):
        owner = owner_of(note.read_text())
        if owner is None or not owner.is_alive():
            shutil.rmtree(note.parent, ignore_errors=True)


def _opens_direct(path: Path) -> bool:
    """False on a file system without direct I/O, where QEMU would refuse cache='none'."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_DIRECT))
    except OSError:
        return False
    return True
