"""After a killed `hrapaq up`: ends its guests and the libvirt daemons that it started.

A libvirtd that is asked to end while it ends guests of a dead client may hang for ever, and QEMUs
outlive their libvirtd. So each run with daemons of its own has a second process, this module run
as a script, which sleeps until the run is over and clears up unless the run did so itself. Should
both be killed, the next start does the same.
"""

import contextlib
import grp
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from controller.up.machine import our_cgroups, remove_cgroups
from controller.up.owner import Owner, owner_of

OWNER_VARIABLE = "HRAPAQ_UP_OWNER"  # in the environment of the daemons that we start
OWNER_NOTE = "owner"  # a file beside the kernel that a demo guest boots
FIRST_DAEMONS, LAST_DAEMONS = ("libvirtd", "virtqemud"), ("virtlogd",)
ASKED_S = 3.0  # how long a daemon may take to end when asked; it keeps nothing that we need
GONE_S = 5.0  # how long the kernel may take to end what was killed
DONE = b"done\n"
KVM = Path("/dev/kvm")


def main() -> None:
    """Reads the surroundings to restore, then DONE; the end of the input before it: it died."""
    first, rest = sys.stdin.buffer.readline(), sys.stdin.buffer.read()
    if rest == DONE:
        return
    owner = owner_of(os.environ[OWNER_VARIABLE])
    while owner is not None and owner.is_alive():  # its files are closed just before its end
        time.sleep(0.01)
    end_orphans()
    Surroundings.from_json(first.decode()).restore()


def end_orphans() -> bool:
    """Ends guests and daemons of dead runs; whether there were any."""
    guests, first, last = _guests(), _daemons(FIRST_DAEMONS), _daemons(LAST_DAEMONS)
    if not guests and not first and not last:
        return False
    _send(guests, signal.SIGKILL)
    _end(_guests, 0.0)
    _end(lambda: _daemons(FIRST_DAEMONS), ASKED_S)
    # libvirtd asks virtlogd when a guest ends, so that one goes last.
    _end(lambda: _daemons(LAST_DAEMONS), ASKED_S)
    deadline = time.monotonic() + GONE_S
    while remove_cgroups(our_cgroups()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return True


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a libvirt of ours changes on this machine, as it was before."""

    kvm: tuple[int, int] | None  # group and mode of /dev/kvm; None where there is none
    cgroups: tuple[str, ...]  # the groups that libvirt keeps its guests' groups in

    @classmethod
    def now(cls) -> Self:
        kvm = None
        with contextlib.suppress(OSError):
            status = KVM.stat()
            kvm = (status.st_gid, status.st_mode & 0o7777)
        return cls(kvm, tuple(sorted(map(str, _machine_cgroups()))))

    @classmethod
    def from_json(cls, text: str) -> Self:
        kvm, cgroups = json.loads(text)
        return cls(None if kvm is None else (kvm[0], kvm[1]), tuple(cgroups))

    def as_json(self) -> str:
        return json.dumps([self.kvm, self.cgroups])

    def restore(self) -> None:
        if self.kvm is not None and self.kvm != Surroundings.now().kvm:
            group, mode = self.kvm
            with contextlib.suppress(OSError):
                os.chown(KVM, -1, group)
                KVM.chmod(mode)
        for path in _machine_cgroups() - set(map(Path, self.cgroups)):
            with contextlib.suppress(OSError):  # it is in use: guests of another libvirt
                path.rmdir()


class Aftermath:
    """The process that clears up after us, should we be killed."""

    def __init__(self, before: Surroundings, log: Path) -> None:
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                (sys.executable, "-m", "controller.up.aftermath"),
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                env={**os.environ, OWNER_VARIABLE: str(Owner.this_process())},
                start_new_session=True,  # what ends our terminal's processes must not end it
            )
        self._tell(before.as_json().encode() + b"\n")

    @property
    def pid(self) -> int:
        return self._process.pid

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def call_off(self) -> None:
        """Everything was ended in good order."""
        self._tell(DONE)
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        self._process.wait()

    def _tell(self, text: bytes) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it was killed: `is_alive` says so
            self._process.stdin.write(text)
            self._process.stdin.flush()


def share_kvm_with(group_name: str) -> None:
    """Gives /dev/kvm to a group, as udev would do; OSError or KeyError where that is impossible."""
    group = grp.getgrnam(group_name).gr_gid
    os.chown(KVM, -1, group)
    KVM.chmod(KVM.stat().st_mode & 0o7777 | 0o060)


def _end(look: Callable[[], list[int]], asked_s: float) -> None:
    """Asks those that it finds to end, and ends them when they do not."""
    began = time.monotonic()
    if asked_s:
        _send(look(), signal.SIGTERM)
    while left := look():
        waited_s = time.monotonic() - began
        if waited_s >= asked_s + GONE_S:
            return  # stuck in the kernel: whoever looks for leftovers says so
        if waited_s >= asked_s:
            _send(left, signal.SIGKILL)
        time.sleep(0.02)


def _guests() -> list[int]:
    """QEMU processes of demo guests whose owner is dead."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError, ValueError):
            words = entry.read_bytes().decode(errors="replace").split("\0")
            if "qemu" not in words[0] or is_elsewhere(entry.parent):
                continue
            note = Path(words[words.index("-kernel") + 1]).parent / OWNER_NOTE
            if _is_dead(owner_of(note.read_text())):
                found.append(int(entry.parent.name))
    return found


def _daemons(names: tuple[str, ...]) -> list[int]:
    """Daemons that a dead owner started."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended, or is another user's
            if (entry / "comm").read_text().strip() not in names or is_elsewhere(entry):
                continue
            if _is_dead(marked_owner(entry)):
                found.append(int(entry.name))
    return found


def marked_owner(process: Path) -> Owner | None:
    """Who started a daemon, as its directory in /proc says; None where it was none of ours.

    OSError where it has ended or is another user's.
    """
    variables = (process / "environ").read_bytes().decode(errors="replace").split("\0")
    return owner_of(next((line for line in variables if line.startswith(OWNER_VARIABLE)), ""))


def is_elsewhere(process: Path) -> bool:
    """Whether a process, as its directory in /proc, lives in a container that counts on its own.

    What it calls its owner is a number there, and says nothing about the process of that number
    here. Where the kernel does not let us look, it is taken for one of ours.
    """
    try:
        return (process / "ns/pid").readlink() != Path("/proc/self/ns/pid").readlink()
    except OSError:
        return False


def _is_dead(owner: Owner | None) -> bool:
    return owner is not None and not owner.is_alive()


def _send(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def _machine_cgroups() -> set[Path]:
    """libvirt's own, where there is no systemd (v2, v1)."""
    mount = Path("/sys/fs/cgroup")
    return {*mount.glob("machine"), *mount.glob("*/machine")}


if __name__ == "__main__":
    main()
