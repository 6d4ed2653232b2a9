"""Bringing a bed up as a process of its own, and taking it down whatever state it is in."""

import asyncio
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from controller.up.machine import our_cgroups, remove_cgroups
from controller.up.owner import owner_of
from shared.errors import HrapaqError
from testbed.image import Image, build
from testbed.keeper import Keeper, stop_on_signals
from testbed.layout import Layout, Places, layout
from testbed.processes import find, virtual_machines
from testbed.service import Service

KEEPER_STARTS_S = 15.0
ASKED_S = 20.0  # how long a keeper may take to end in good order
GONE_S = 10.0
CGROUP_MARK = "hrapaq-bed"
PROGRAMS = ("nats-server", "libvirtd", "unshare", "sh")
KEEP = "keep"  # the hidden command that is the keeper


class TestbedError(HrapaqError):
    """What keeps a bed from coming up, or from ending."""

    __test__ = False  # pytest would take it for a test


def start_keeper(
    kind: str, cache: Path, places: Places, *, with_us: bool
) -> subprocess.Popen[bytes]:
    """Starts the process that keeps a bed of this kind. It outlives us unless `with_us`.

    TestbedError where a bed is up already.
    """
    take_down(places, only_leftovers=True)
    places.run.mkdir(mode=0o755, parents=True, exist_ok=True)
    log = places.run / "keeper.log"
    command: Sequence[str] = (
        sys.executable, str(Path(__file__).parent), KEEP, kind, str(cache)
    )  # fmt: skip
    if with_us:
        command = ("setpriv", "--pdeathsig", "KILL", "--", *command)
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    deadline = time.monotonic() + KEEPER_STARTS_S
    while not is_answering(places):
        if process.poll() is not None or time.monotonic() > deadline:
            raise TestbedError(f"the bed's keeper did not start:\n{log.read_text()[-2000:]}")
        time.sleep(0.05)
    return process


def keep(kind: str, cache: Path, places: Places) -> None:
    """The keeper itself; returns when it was asked to stop."""
    asyncio.run(_keep(layout(kind), build(cache, print), cache, places))


async def _keep(what: Layout, image: Image, cache: Path, places: Places) -> None:
    keeper = Keeper(what, image, cache, places, _say_with_time)
    stop_on_signals(keeper)
    with (places.run / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TestbedError("another bed runs on this machine") from None
        async with Service(keeper):
            await keeper.run()


def _say_with_time(text: str) -> None:
    sys.stdout.write(f"{time.strftime('%H:%M:%S')} {text}\n")
    sys.stdout.flush()


def take_down(places: Places, *, only_leftovers: bool = False) -> list[str]:
    """Ends whatever there is of a bed; in words, what could not be ended.

    TestbedError with `only_leftovers` where a bed is up and answers.
    """
    if is_answering(places):
        if only_leftovers:
            raise TestbedError("a bed is up on this machine already: take it down first")
        _ask_to_stop(places)
    owner = owner_of(_text(places.note))
    if owner is not None and owner.is_alive():
        os.kill(owner.pid, signal.SIGKILL)
    left = _wait_until_gone(places)
    shutil.rmtree(places.run / "libvirt", ignore_errors=True)
    for path in places.run.glob("*"):
        if path.is_socket() or path == places.note:
            path.unlink(missing_ok=True)
    return left


def _ask_to_stop(places: Places) -> None:
    owner, deadline = owner_of(_text(places.note)), time.monotonic() + ASKED_S
    with socket.socket(socket.AF_UNIX) as control:
        control.connect(str(places.control))
        control.sendall(b'{"do": "stop"}\n')
        while owner is not None and owner.is_alive() and time.monotonic() < deadline:
            time.sleep(0.05)


def _wait_until_gone(places: Places) -> list[str]:
    """What dies with the keeper needs a moment; what does not is ended here."""
    deadline, killed = time.monotonic() + GONE_S, False
    while True:
        left = {f"process {pid}": pid for pid in _processes(places)}
        groups = remove_cgroups(our_cgroups(mark=CGROUP_MARK)) if not left else []
        if not left and not groups:
            return []
        if time.monotonic() > deadline:
            if killed:
                return [*left, *(f"control group {group}" for group in groups)]
            for pid in left.values():
                os.kill(pid, signal.SIGKILL)
            deadline, killed = time.monotonic() + GONE_S, True
        time.sleep(0.1)


def _processes(places: Places) -> list[int]:
    """VMs of the bed, and programs that run from its directories; not who only looks at these."""
    uuids = {machine.uuid for machine in layout("full").machines}
    machines = [pid for uuid, pid in virtual_machines().items() if uuid in uuids]
    marks = (str(places.state), str(places.run))
    others = find(
        lambda words: (
            any(word.startswith(marks) for word in words[1:])
            and (Path(words[0]).name in PROGRAMS or "--config" in words)
        )
    )
    return sorted({*machines, *others} - {os.getpid()})


def is_answering(places: Places) -> bool:
    with socket.socket(socket.AF_UNIX) as control:
        return control.connect_ex(str(places.control)) == 0


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
