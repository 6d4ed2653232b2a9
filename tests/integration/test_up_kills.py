"""`hrapaq up` with real guests, each of its processes killed in turn.

What the parts say of themselves is not believed here: the hypervisor is the witness, looked at over
a connection of our own.
"""

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest
from running_up import Run, processes_with, running, until

from controller.up.aftermath import OWNER_NOTE
from controller.up.guests import NAME_PREFIX
from controller.up.image import Places, default_cache, prepare_image
from controller.up.libvirtd import Libvirt, connect, guarded, require_libvirt
from controller.up.nats import port_is_free
from controller.up.owner import owner_of
from controller.up.probe import require_qemu
from shared.errors import GuestsUnavailable, HypervisorError
from shared.resources import MIB, Resource

REAL = ("--guests", "libvirt", "--cycle", "3")
GUESTS = {f"{NAME_PREFIX}{load}" for load in ("memory", "cpu", "disk", "idle")}
IDLE, VICTIM = f"{NAME_PREFIX}idle", f"{NAME_PREFIX}disk"
URI = "qemu:///system"
DAEMONS = ("libvirtd", "virtlogd")
OVERHEAD_BYTES = 32 * MIB  # of each guest, as the controller counts it
BALLOON_BYTES = 2 * MIB  # what a balloon may end up beside what it was asked for
GONE_WITHIN_S = 10.0
SLOW_S = 150.0  # waits end when the state is there; this is for busy machines


@pytest.fixture(scope="module", autouse=True)
def _libvirt_works(tmp_path_factory: pytest.TempPathFactory) -> None:
    if os.geteuid() != 0:
        pytest.skip("not root: guests have no control groups, and libvirt is the session's")
    libvirt = Libvirt(tmp_path_factory.mktemp("libvirt"), print)
    try:
        require_qemu()
        prepare_image(Places(default_cache()), print)
        libvirt.start()
        if not libvirt.processes():
            pytest.skip("libvirt is the machine's own here: it is not ours to kill")
    except GuestsUnavailable as reason:
        pytest.skip(str(reason))
    finally:
        libvirt.stop()


class Witness(threading.Thread):
    """Looks at the guests' balloons four times a second, as long as anybody answers."""

    def __init__(self) -> None:
        super().__init__(name="witness")
        self.looks: list[tuple[float, dict[str, int]]] = []  # monotonic seconds, bytes by name
        self._over = threading.Event()
        self.start()

    def run(self) -> None:
        connection: Any = None
        while not self._over.wait(0.25):
            try:
                connection = connection or connect(URI, 5.0)
                now = time.monotonic()
                self.looks.append((now, guarded(partial(sizes, connection), 5.0, "looking")))
            except HypervisorError:
                connection = None
        if connection is not None:
            connection.close()

    def end(self) -> None:
        self._over.set()
        self.join()

    def now(self) -> dict[str, int]:
        """What is seen from now on, once; empty while the hypervisor does not answer."""
        asked = time.monotonic()
        while time.monotonic() < asked + 1.0:
            if self.looks and self.looks[-1][0] >= asked:
                return self.looks[-1][1]
            time.sleep(0.05)
        return {}

    def since(self, tick_s: float) -> list[dict[str, int]]:
        return [sizes for at, sizes in self.looks if at >= tick_s]


def sizes(connection: Any) -> dict[str, int]:
    found = {}
    for domain in connection.listAllDomains():
        with suppress(require_libvirt().libvirtError, KeyError):  # it ends under our eyes
            found[domain.name()] = domain.memoryStats()["actual"] * 1024
    return {name: size for name, size in found.items() if name in GUESTS}


class Scene:
    """One run, its witness, and what is asked of both after each kill."""

    def __init__(self, run: Run, witness: Witness) -> None:
        self.run = run
        self.witness = witness
        self.floors: dict[str, int] = {}
        self.pool_bytes = 0
        self._pins_bytes = [208 * MIB, 176 * MIB]

    def is_set(self) -> bool:
        """All guests are there at the sizes that they start with."""
        if "all demo guests are ready" not in self.run.output():
            return False
        self.floors = {vm["name"]: amount["floor"] for vm, amount in self._memory()}
        settings = (self.run.state / "agent.toml").read_text()
        line = next(row for row in settings.splitlines() if row.startswith("memory_alloc"))
        self.pool_bytes = int(line.partition("=")[2])
        return self.floors.keys() >= GUESTS

    def _memory(self) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        return [
            (vm, amount)
            for vm in self.run.vms()
            for amount in vm["resources"]
            if amount["resource"] == "memory"
        ]

    def wait(self, condition: Callable[[], object], what: str) -> None:
        until(condition, self.run, what, SLOW_S)

    def kill(self, pid: int) -> None:
        os.kill(pid, signal.SIGKILL)

    def says(self, text: str) -> None:
        self.wait(lambda: text in self.run.output(), f"it says {text!r}")

    def telemetry_flows(self) -> None:
        before = until(lambda: self.run.status() or {}, self.run, "an answer", SLOW_S)

        def flows() -> bool:
            now = self.run.status()
            return (
                now is not None
                and now["agents_connected"] == 1
                and (now["epoch"], now["telemetry_messages"])
                > (before["epoch"], before["telemetry_messages"])
            )

        self.wait(flows, "telemetry flows")

    def moves_memory(self) -> None:
        """The whole loop: an operator's pin becomes a plan, a command, and a size that is seen."""
        wanted = self._pins_bytes[0]
        self._pins_bytes.reverse()
        pin = ("pin", IDLE, "memory", f"{wanted // MIB}MiB")
        self.wait(lambda: self.run.ask(*pin).returncode == 0, "the pin is taken")
        self.wait(
            lambda: abs(self.witness.now().get(IDLE, 0) - wanted) <= BALLOON_BYTES,
            f"{IDLE} has {wanted // MIB} MiB",
        )

    def is_consistent(self) -> bool:
        now = self.witness.now()
        return now.keys() == GUESTS and not self.complaints(now)

    def complaints(self, now: dict[str, int]) -> list[str]:
        held = sum(now.values()) + len(now) * OVERHEAD_BYTES
        found = [
            f"{name} has {size} bytes, its floor is {self.floors[name]}"
            for name, size in now.items()
            if size < self.floors[name] - BALLOON_BYTES
        ]
        if held > self.pool_bytes + BALLOON_BYTES:
            found.append(f"{now} with overhead are {held} of {self.pool_bytes} bytes")
        return found

    def all_is_well(self, since_tick_s: float | None = None) -> None:
        """Telemetry, a loop that closes, and sizes that add up, now and (unless a guest just
        booted, with all of its memory until its balloon works) at each look since then."""
        self.telemetry_flows()
        self.moves_memory()
        self.wait(self.is_consistent, "sizes that add up")
        for look in self.witness.since(since_tick_s or time.monotonic()):
            assert not self.complaints(look)


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    witness = Witness()
    try:
        with running(tmp_path, *REAL) as run:
            yield Scene(run, witness)
    finally:
        witness.end()


def test_each_process_may_be_killed_and_silence_gives_memory_back(scene: Scene) -> None:
    groups_before = machine_groups()
    run = scene.run
    scene.wait(scene.is_set, "four guests are ready")
    began = time.monotonic()
    scene.all_is_well(began)
    for name in ("agent", "controller", "nats"):
        scene.kill(run.children()[name])
        scene.says(f"{name} ended (killed by SIGKILL)")
        scene.says(f"{name} runs again")
        scene.all_is_well(began)
    kill_the_worker(scene)
    scene.all_is_well(began)
    for name in ("libvirtd", "aftermath"):
        scene.kill(daemon(run, name))
        scene.says(f"{name} ended; it was started again")
        scene.all_is_well(began)
    silence_gives_memory_back(scene)
    scene.all_is_well(began)
    kill_a_guest(scene)
    scene.all_is_well()

    consoles = {path.name: path.read_text(errors="replace") for path in console_files(run)}
    assert consoles.keys() == {f"{name}.console" for name in GUESTS}
    assert not [name for name, text in consoles.items() if "Out of memory" in text]
    ours = [*run.children().values(), *pids_of_guests(run)]
    ours += [daemon(run, name) for name in (*DAEMONS, "aftermath")]
    ports = [int(at.rpartition(":")[2]) for at in addresses(run)]
    run.process.send_signal(signal.SIGTERM)
    assert run.process.wait(SLOW_S) == 0, run.output()
    nothing_is_left(run, ours)
    assert machine_groups() <= groups_before
    assert not [port for port in ports if not port_is_free(port)]
    report = run.report()
    assert report["left_behind"] == []
    assert {one["name"] for one in report["restarts"]} == {
        "agent", "controller", "nats", "libvirtd", "aftermath", VICTIM
    }  # fmt: skip


def kill_the_worker(scene: Scene) -> None:
    agent = psutil.Process(scene.run.children()["agent"])

    def workers() -> list[int]:
        return [
            child.pid for child in agent.children() if "agent.libvirt_worker" in words_of(child)
        ]

    (pid,) = workers()
    scene.kill(pid)
    scene.wait(lambda: workers() not in ([], [pid]), "the agent has a new worker")
    log = scene.run.state / "agent.log"
    scene.wait(lambda: "libvirt worker" in log.read_text(), "the agent says so")


def kill_a_guest(scene: Scene) -> None:
    guest = guests_of(scene.run)[VICTIM]
    uuid = uuid_of(guest)
    scene.kill(guest.pid)
    scene.says(f"{VICTIM} has ended, and not by us; it is started again")
    scene.says(f"{VICTIM} was started again")
    assert uuid_of(guests_of(scene.run)[VICTIM]) == uuid


def silence_gives_memory_back(scene: Scene) -> None:
    """A controller that stands still is none that is restarted: its lease runs out."""
    run = scene.run
    assert run.ask("pin", IDLE, "memory", "--release").returncode == 0
    scene.wait(lambda: below_fallback(scene), "somebody has less than its fallback")
    controller = run.children()["controller"]
    os.kill(controller, signal.SIGSTOP)
    try:
        scene.wait(lambda: record(run)["intent"] is None, "the last command is done")
        silent = time.monotonic()
        scene.wait(lambda: scene.witness.now().keys() == GUESTS, "a look")
        scene.wait(lambda: not below_fallback(scene), "all have their fallback")
    finally:
        os.kill(controller, signal.SIGCONT)
    looks = scene.witness.since(silent)
    for earlier, later in pairwise(looks):
        assert all(later[name] >= earlier[name] - BALLOON_BYTES for name in GUESTS), "it shrank"
    assert not [text for look in looks for text in scene.complaints(look)]


def below_fallback(scene: Scene) -> list[str]:
    """Guests with less than what the agent is to give them back in silence, by its own record."""
    names = {uuid_of(guest): name for name, guest in guests_of(scene.run).items()}
    now = scene.witness.now()
    return [
        names[one["vm_id"]]
        for one in record(scene.run)["fallback"]
        if one["resource"] == Resource.MEMORY
        and now.get(names[one["vm_id"]], 0) < one["amount"] - BALLOON_BYTES
    ]


def record(run: Run) -> dict[str, Any]:
    """What the agent keeps on disk."""
    return dict(json.loads((run.state / "agent" / "guard.json").read_text()))


def test_a_killed_up_leaves_nothing_for_long(tmp_path: Path) -> None:
    groups_before = machine_groups()
    with running(tmp_path / "first", *REAL) as first:
        until(lambda: guests_of(first).keys() == GUESTS, first, "four guests", SLOW_S)
        ours = [*pids_of_guests(first), *(daemon(first, name) for name in DAEMONS)]
        os.kill(daemon(first, "aftermath"), signal.SIGKILL)
        first.process.kill()  # at the same moment: nobody is left to clear up
        first.process.wait()
    with running(tmp_path / "second", *REAL) as second:
        until(lambda: "libvirt answers" in second.output(), second, "libvirt answers", SLOW_S)
        assert "ended the libvirt of an earlier, killed run" in second.output()
        assert took_s(second, "preparing guests", "libvirt answers") < GONE_WITHIN_S
        assert not any(is_running(pid) for pid in ours)
        until(lambda: guests_of(second).keys() == GUESTS, second, "four guests", SLOW_S)
        ours = [*pids_of_guests(second), *(daemon(second, name) for name in DAEMONS)]
        ours.append(daemon(second, "aftermath"))
        second.process.kill()
        second.process.wait()
        nothing_is_left(second, ours)
        assert machine_groups() <= groups_before


def nothing_is_left(run: Run, pids: list[int]) -> None:
    """Soon, since what is killed needs a moment."""
    deadline = time.monotonic() + GONE_WITHIN_S
    while True:
        left = [pid for pid in pids if is_running(pid)]
        left += processes_with(str(run.state))
        groups = [path for path in groups_below_machine() if NAME_PREFIX in path.name]
        if not left and not groups:
            return
        assert time.monotonic() < deadline, (left, groups)
        time.sleep(0.1)


def daemon(run: Run, name: str) -> int:
    """The process of that name which `up` started."""
    found = [
        child.pid
        for child in psutil.Process(run.process.pid).children()
        if (words := words_of(child)) and name in (child.name(), words[-1].rpartition(".")[2])
    ]
    assert len(found) == 1, (name, found)
    return found[0]


def words_of(process: psutil.Process) -> list[str]:
    """Its command line; none of one that was just killed and not yet waited for."""
    with suppress(psutil.NoSuchProcess):
        return process.cmdline()
    return []


def guests_of(run: Run) -> dict[str, psutil.Process]:
    """QEMU processes of the run's guests, by name."""
    found = {name_of(process, run): process for process in psutil.process_iter()}
    return {name: process for name, process in found.items() if name}


def name_of(process: psutil.Process, run: Run) -> str:
    """Empty when it is no guest of this run."""
    with suppress(psutil.Error, ValueError, OSError):
        words = process.cmdline()
        if words and "qemu" in words[0]:
            owner = owner_of((kernel_of(process).parent / OWNER_NOTE).read_text())
            if owner is not None and owner.pid == run.process.pid:
                return words[words.index("-name") + 1].partition(",")[0].removeprefix("guest=")
    return ""


def kernel_of(guest: psutil.Process) -> Path:
    words = guest.cmdline()
    return Path(words[words.index("-kernel") + 1])


def pids_of_guests(run: Run) -> list[int]:
    return [guest.pid for guest in guests_of(run).values()]


def uuid_of(guest: psutil.Process) -> str:
    words = guest.cmdline()
    return words[words.index("-uuid") + 1]


def console_files(run: Run) -> list[Path]:
    return list(kernel_of(guests_of(run)[IDLE]).parent.glob("*.console"))


def is_running(pid: int) -> bool:
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def machine_groups() -> set[Path]:
    """libvirt's own groups, in every hierarchy."""
    mount = Path("/sys/fs/cgroup")
    return {*mount.glob("machine"), *mount.glob("*/machine")}


def groups_below_machine() -> list[Path]:
    return [path for group in machine_groups() for path in group.iterdir() if path.is_dir()]


def addresses(run: Run) -> list[str]:
    noted = json.loads(run.run_file.read_text())
    return [noted[key] for key in ("admin", "nats", "controller_metrics", "agent_metrics")]


def took_s(run: Run, first: str, then: str) -> float:
    """Between two lines of the record, whole seconds."""

    def at(text: str) -> float:
        line = next(line for line in run.output().splitlines() if text in line)
        hours, minutes, seconds = map(int, line.split()[0].split(":"))
        return hours * 3600.0 + minutes * 60 + seconds

    return (at(then) - at(first)) % 86400
