"""Makes sure that a libvirt answers: the machine's own where there is one, else one of ours.

Daemons that we start are our children: they log into the state directory and are stopped by us,
or by `aftermath` when we are killed. A libvirt that was there before is used and left alone.
"""

import contextlib
import importlib
import os
import pwd
import queue
import shutil
import socket
import stat
import struct
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from controller.up.aftermath import (
    KVM,
    OWNER_VARIABLE,
    Aftermath,
    Surroundings,
    end_orphans,
    is_elsewhere,
    marked_owner,
    share_kvm_with,
)
from controller.up.owner import Owner
from shared.errors import GuestsUnavailable, HypervisorError, HypervisorTimeout

T = TypeVar("T")

OPEN_DEADLINE_S = 10.0
START_DEADLINE_S = 30.0
STOP_DEADLINE_S = 10.0
INSTALL_HINT = "apt install libvirt-daemon-system qemu-system-x86"

# The user that Debian's and Ubuntu's system libvirt runs QEMU as.
QEMU_USER = "libvirt-qemu"
_READ_WRITE = 0o6
_PEER = struct.Struct("3i")  # process, user and group at the other end of a socket


class Libvirt:
    """`with Libvirt(state_dir, say) as libvirt:` then `libvirt.uri` answers."""

    def __init__(self, state_dir: Path, say: Callable[[str], None]) -> None:
        self.is_root = os.geteuid() == 0
        self.uri = "qemu:///system" if self.is_root else "qemu:///session"
        self._state_dir = state_dir
        self._say = say
        self._ours: dict[str, subprocess.Popen[bytes]] = {}
        self._aftermath: Aftermath | None = None  # there when a daemon is ours
        self._before = Surroundings.now()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> str:
        """Returns the URI. Raises GuestsUnavailable where libvirt is missing or does not start."""
        require_libvirt()
        self._state_dir.mkdir(parents=True, exist_ok=True)
        # One of them may still answer: it would not do so for long.
        if end_orphans():
            # Nobody knows any more whether the empty groups were there before; a libvirt that
            # misses them makes them again.
            Surroundings(kvm=None, cgroups=()).restore()
            self._before = Surroundings(self._before.kvm, Surroundings.now().cgroups)
            self._say("ended the libvirt of an earlier, killed run, and what ran under it")
        theirs = answers(self.uri)
        if self.is_root:
            self._share_kvm_with_guests()
        names = ["virtlogd"] if theirs else ["virtlogd", _first_program("libvirtd", "virtqemud")]
        for path in names:
            # A virtlogd without a libvirt, or a libvirt without its virtlogd, is completed.
            if path != "virtlogd" or not _accepts(self._socket("virtlogd-sock")):
                self._start_daemon(Path(path).name)
        self._wait_until_it_answers()
        whose = self._whose() if theirs else "started by us, stopped with us"
        self._say(f"libvirt answers at {self.uri}: {whose}")
        return self.uri

    def revive(self) -> list[str]:
        """Starts those of our processes again that have ended; returns their names."""
        dead = [name for name, process in self._ours.items() if process.poll() is not None]
        for name in dead:
            self._start_daemon(name)
        if dead:
            self._wait_until_it_answers()
        if self._aftermath is not None and not self._aftermath.is_alive():
            self._aftermath.call_off()
            self._prepare_aftermath()
            dead.append("aftermath")
        return dead

    def processes(self) -> dict[str, int]:
        """Process ids of the daemons that we started, by name; empty when we use another's."""
        return {name: process.pid for name, process in self._ours.items()}

    def stop(self) -> None:
        """Ends what we started, the last first. Guests must have been stopped before."""
        while self._ours:
            _, process = self._ours.popitem()
            process.terminate()
            try:
                process.wait(STOP_DEADLINE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._before.restore()
        if self._aftermath is not None:
            aftermath, self._aftermath = self._aftermath, None
            aftermath.call_off()

    def _start_daemon(self, name: str) -> None:
        program = _first_program(name)
        if self._aftermath is None:
            self._prepare_aftermath()
        with self._log(name).open("ab") as log:
            self._ours[name] = subprocess.Popen(
                [program],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, OWNER_VARIABLE: str(Owner.this_process())},
                # Ctrl-C in the terminal must not end it before its guests.
                start_new_session=True,
            )

    def _whose(self) -> str:
        sockets = map(self._socket, ("libvirt-sock", "virtqemud-sock"))
        owner = next(filter(None, map(owner_listening, sockets)), None)
        if owner is None:
            return "the machine's own"
        return f"started by another `hrapaq up`, process {owner.pid}, and stopped with it"

    def _prepare_aftermath(self) -> None:
        self._aftermath = Aftermath(self._before, self._log("aftermath"))

    def _wait_until_it_answers(self) -> None:
        until = time.monotonic() + START_DEADLINE_S
        while not (_accepts(self._socket("virtlogd-sock")) and answers(self.uri)):
            for name, process in self._ours.items():
                if process.poll() is not None:
                    raise GuestsUnavailable(
                        f"{name} ended at once (exit status {process.returncode}): "
                        f"{_last_line(self._log(name))} (all of it: {self._log(name)})"
                    )
            if time.monotonic() > until:
                raise GuestsUnavailable(
                    f"libvirt does not answer at {self.uri} after {START_DEADLINE_S:.0f} s; "
                    f"its log is {self._log('libvirtd')}"
                )
            time.sleep(0.05)

    def _share_kvm_with_guests(self) -> None:
        """Gives /dev/kvm to the group that udev would give it to, until `stop`.

        Without udev it may belong to root alone. libvirt then sees KVM as root and misses it as
        its QEMU user, and asks QEMU for its abilities anew at every look: 48 s for one guest
        instead of 0.3 s, with KVM or without.
        """
        try:
            status = KVM.stat()
            groups = os.getgrouplist(QEMU_USER, pwd.getpwnam(QEMU_USER).pw_gid)
        except (OSError, KeyError):
            return
        mode = stat.S_IMODE(status.st_mode)
        everyone = mode & _READ_WRITE == _READ_WRITE
        its_group = mode >> 3 & _READ_WRITE == _READ_WRITE and status.st_gid in groups
        if everyone or its_group:
            return
        with contextlib.suppress(OSError, KeyError):
            share_kvm_with("kvm")
            self._say("/dev/kvm is opened to group kvm while libvirt runs, as udev would do")

    def _log(self, name: str) -> Path:
        return self._state_dir / f"{name}.log"

    def _socket(self, name: str) -> Path:
        if self.is_root:
            return Path("/run/libvirt") / name
        runtime = os.environ.get("XDG_RUNTIME_DIR") or Path.home() / ".cache"
        return Path(runtime) / "libvirt" / name


def require_libvirt() -> Any:  # noqa: ANN401 - libvirt-python ships no types
    """The libvirt module, its habit of printing every error to stderr switched off."""
    try:
        libvirt = importlib.import_module("libvirt")
    except ImportError as error:
        raise GuestsUnavailable(
            f"libvirt-python is not installed ({error}): `make run` as root sets everything up; "
            "or, as root, apt-get install libvirt-dev pkg-config gcc python3-dev, "
            "then deploy/setup.sh run"
        ) from None
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    return libvirt


def connect(uri: str, deadline_s: float = OPEN_DEADLINE_S) -> Any:  # noqa: ANN401 - as above
    """An open connection; raises HypervisorError, or HypervisorTimeout at the deadline."""
    libvirt = require_libvirt()
    # Never let the library start a daemon of its own: nobody would own and stop it.
    os.environ["LIBVIRT_AUTOSTART"] = "0"
    return guarded(lambda: libvirt.open(uri), deadline_s, f"opening {uri}")


def answers(uri: str) -> bool:
    try:
        connect(uri).close()
    except HypervisorError:
        return False
    return True


def guarded(call: Callable[[], T], deadline_s: float, what: str) -> T:
    """Runs a libvirt call that may block for ever in a thread, and waits no longer than this.

    A thread stuck in libvirt cannot be cancelled; it is a daemon thread and left behind.
    Raises HypervisorTimeout, or HypervisorError for what libvirt refused.
    """
    libvirt_error: type[Exception] = require_libvirt().libvirtError
    outcome: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue()

    def run() -> None:
        try:
            outcome.put((call(), None))
        except BaseException as error:  # noqa: BLE001 - raised again in the waiting thread
            outcome.put((None, error))

    threading.Thread(target=run, daemon=True, name="libvirt-call").start()
    try:
        value, error = outcome.get(timeout=deadline_s)
    except queue.Empty:
        raise HypervisorTimeout(f"{what}: no answer within {deadline_s:.0f} s") from None
    if isinstance(error, libvirt_error):
        raise HypervisorError(f"{what}: {error}") from error
    if error is not None:
        raise error
    return value  # type: ignore[return-value] # None only where T allows it


def owner_listening(path: Path) -> Owner | None:
    """Who started the daemon behind a socket, where a run of ours did; None for any other."""
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as probe, contextlib.suppress(OSError):
        probe.connect(str(path))
        peer = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
        process = Path("/proc") / str(_PEER.unpack(peer)[0])
        return None if is_elsewhere(process) else marked_owner(process)
    return None


def _first_program(*names: str) -> str:
    search = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))
    for name in names:
        path = shutil.which(name, path=search)
        if path is not None:
            return path
    raise GuestsUnavailable(f"{' or '.join(names)} is not installed: {INSTALL_HINT}")


def _accepts(path: Path) -> bool:
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as probe:
        return probe.connect_ex(str(path)) == 0


def _last_line(path: Path) -> str:
    lines = path.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"
