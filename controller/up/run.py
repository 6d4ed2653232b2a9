"""One run of `hrapaq up`: everything started in order, watched, and stopped in the right order."""

import asyncio
import importlib.metadata
import math
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from controller.up.configs import (
    RESERVE_SHARE,
    VM_OVERHEAD_MIB,
    Addresses,
    Demo,
    agent_toml,
    controller_toml,
)
from controller.up.display import display
from controller.up.hypervisor import Hypervisor
from controller.up.leftovers import ends_left
from controller.up.machine import (
    CGROUP_ROOT,
    cgroup_version,
    default_state_root,
    make_state_directory,
)
from controller.up.measure import Measurement
from controller.up.nats import EmbeddedNats, http_get, port_is_free
from controller.up.parts import Parts
from controller.up.record import keep_audit
from controller.up.report import Report, summary, write
from controller.up.runfile import ADMIN_DEFAULT, RunFile, read_run_file, run_file_path
from controller.up.runfile import write_run_file as write_down
from controller.up.supervisor import ChildSpec, Supervisor
from controller.up.view import Ground, View
from controller.up.watch import Watcher
from shared.errors import ConfigError, HrapaqError
from shared.ports import free_ports

GUESTS = 4
GUEST_START_MIB = 256
SIMULATED_START_MIB = 512  # simulated guests start at full size
SIMULATED_MILLICORES = 5000  # of all simulated guests together
IO_POOL_MIB_PER_S = 64  # of disk traffic, for all guests together
CPU_POOL_PERCENT = 70  # of what the guests' virtual CPUs could use: it must move between them


@dataclass(frozen=True, slots=True)
class UpOptions:
    minutes: float | None
    report: Path | None
    guests: str  # auto, libvirt, simulated, none
    cycle_s: int
    state_directory: Path | None
    memory_pool_mib: int | None


def run_up(options: UpOptions) -> int:
    """The exit code: 0 only when the loop closed. Writes the report in any case."""
    other = read_run_file(run_file_path())
    if other is not None:
        raise ConfigError(
            f"`hrapaq up` runs already, as process {other.pid}, files in {other.state_directory}: "
            "stop that one first"
        )
    root = default_state_root(os.environ, os.getuid())
    return asyncio.run(_run(options, make_state_directory(options.state_directory, root)))


async def _run(options: UpOptions, state_directory: Path) -> int:
    return await _Run(options, state_directory).run()


class _Run:
    """Made inside the event loop that it runs on."""

    def __init__(self, options: UpOptions, state_directory: Path) -> None:
        self.options = options
        self.directory = state_directory
        self.report = Report()
        self.view = View(started_tick_s=time.monotonic())
        self.stop_asked = asyncio.Event()
        self.supervisor = Supervisor(self._said_by_supervisor)
        self.hypervisor = Hypervisor(state_directory, self._say_from_thread)
        self.loop = asyncio.get_running_loop()
        ports = free_ports(6)
        self.nats = EmbeddedNats(state_directory / "nats", ports[0], ports[1])
        admin_port = int(ADMIN_DEFAULT.rpartition(":")[2])
        self.at = Addresses(
            nats=self.nats.url,
            commands=f"127.0.0.1:{ports[2]}",
            admin=ADMIN_DEFAULT if port_is_free(admin_port) else f"127.0.0.1:{ports[3]}",
            controller_metrics=f"127.0.0.1:{ports[4]}",
            agent_metrics=f"127.0.0.1:{ports[5]}",
        )

    async def run(self) -> int:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            self.loop.add_signal_handler(number, self.stop_asked.set)
        screen = self.options.report is None and sys.stdout.isatty()
        self._write_report()  # a place that cannot be written to is said before anything starts
        try:
            async with display(self.view, screen=screen):
                await self._start_watch_stop()
        finally:
            self._finish_report()
        return self._say_goodbye()

    async def _start_watch_stop(self) -> None:
        try:
            if await self._unless_stopped(self._start()):
                await self._watch()
        except (HrapaqError, OSError) as error:  # OSError: a full disk, a file in the way
            self._complain(str(error))
        finally:
            await self._stop()

    # --- start -----------------------------------------------------------------------------------

    async def _start(self) -> None:
        self._say(f"files of this run: {self.directory}")
        self._stage("preparing guests")
        await self.hypervisor.prepare(self.options.guests)
        self._lay_ground()
        demo = self._demo()
        self._stage("starting nats-server")
        await self.supervisor.start(self.nats.spec())
        self._stage("starting the controller")
        text = controller_toml(demo, self.at, self.directory / "controller")
        await self.supervisor.start(self._child("controller", text, "serve", self.at.admin))
        write_down(run_file_path(), self._run_file())
        self._stage("starting the agent")
        text = agent_toml(demo, self.at, self.directory / "agent")
        await self.supervisor.start(self._child("agent", text, "host", self.at.agent_metrics))
        self._stage("waiting for the first cycle")
        self._say(f"all parts run; ask them from another terminal: {_our_command()} status")

    def _lay_ground(self) -> None:
        hypervisor = self.hypervisor
        simulated = hypervisor.kind == "simulated"
        names = {uuid: name for name, uuid in hypervisor.uuids.items()}
        self.report.guest_names, self.view.guest_names = dict(names), dict(names)
        cgroup = cgroup_version()
        around = f"/proc, cgroup {cgroup}, nats-server, gRPC"
        ground = Ground(
            version=importlib.metadata.version("hrapaq"),
            hypervisor=hypervisor.kind,
            hypervisor_why=hypervisor.why,
            guests=tuple(names.values()),
            state_directory=str(self.directory),
            cgroup=cgroup,
            real=around if simulated or not names else f"guests, libvirt, {around}",
            simulated="all guests, and what moves in them" if simulated else "",
        )
        self.view.ground = self.report.ground = ground
        self._say(f"guests: {ground.hypervisor} ({ground.hypervisor_why})")

    def _demo(self) -> Demo:
        simulated = self.hypervisor.kind == "simulated"
        start_mib = SIMULATED_START_MIB if simulated else GUEST_START_MIB
        pool_mib = self.options.memory_pool_mib or GUESTS * (start_mib + VM_OVERHEAD_MIB)
        others = self.hypervisor.others
        millicores = SIMULATED_MILLICORES if simulated else GUESTS * 1000
        cpu_pool = millicores * CPU_POOL_PERCENT // 100
        return Demo(
            cycle_s=self.options.cycle_s,
            enforced=tuple(self.hypervisor.uuids.values()),
            simulated_seed=random.randrange(1, 1_000_000) if simulated else None,  # noqa: S311 - a story, no secret
            libvirt_uri=self.hypervisor.uri,
            memory_allocatable_mib=math.ceil((pool_mib + others.memory_mib) / (1 - RESERVE_SHARE)),
            cpu_allocatable_millicores=math.ceil(
                (cpu_pool + others.cpu_millicores) / (1 - RESERVE_SHARE)
            ),
            # Where other VMs run, what they may read and write has no limit and no sum.
            io_allocatable_mib_per_s=None if others.cpu_millicores else IO_POOL_MIB_PER_S,
        )

    def _child(self, name: str, config: str, command: str, answers_at: str) -> ChildSpec:
        """Our own program `name` with its file of settings and its directory."""
        path = self.directory / f"{name}.toml"
        path.write_text(config)
        (self.directory / name).mkdir(mode=0o700, exist_ok=True)
        port = int(answers_at.rpartition(":")[2])

        async def ready() -> bool:
            if name == "controller":
                return not port_is_free(port)
            return await http_get(port, "/metrics") is not None

        program = (sys.executable, "-m", name, command, "--config", str(path))
        return ChildSpec(name, program, self.directory / f"{name}.log", ready)

    def _run_file(self) -> RunFile:
        return RunFile(
            pid=os.getpid(),
            started_at_unix_ns=time.time_ns(),
            admin=self.at.admin,
            nats=self.at.nats,
            nats_monitor=self.nats.monitor,
            controller_metrics=self.at.controller_metrics,
            agent_metrics=self.at.agent_metrics,
            state_directory=str(self.directory),
        )

    # --- run -------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """Until somebody stops us, the time is over, or a child crashes too often."""
        view, report = self.view, self.report
        view.stage = "running"
        parts = Parts(
            self.supervisor, self.hypervisor, self.nats.monitor_port, view, report, self._say
        )
        watchers = (
            Watcher(self.at.admin, view, report, view.note),
            Measurement(self.hypervisor, view, report, self._say),
            parts,
        )
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(watcher.run()) for watcher in watchers]
            try:
                await self._end()
            finally:
                for task in running:
                    task.cancel()

    async def _end(self) -> None:
        minutes = self.options.minutes
        left_s = None if minutes is None else 60 * minutes
        self.view.ends_tick_s = None if left_s is None else time.monotonic() + left_s
        asked = asyncio.create_task(self.stop_asked.wait())
        ends: list[asyncio.Future[str] | asyncio.Task[Literal[True]]]
        ends = [asked, self.supervisor.gave_up]
        try:
            await asyncio.wait(ends, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            asked.cancel()
        if self.supervisor.gave_up.done():
            self._complain(self.supervisor.gave_up.result())

    async def _unless_stopped(self, work: Coroutine[object, object, None]) -> bool:
        """Whether the work was done; it is cancelled when somebody stops us meanwhile."""
        task = asyncio.create_task(work)
        asked = asyncio.create_task(self.stop_asked.wait())
        await asyncio.wait({task, asked}, return_when=asyncio.FIRST_COMPLETED)
        asked.cancel()
        if not task.done():
            self._stage("stopping")
            task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            return False
        return True

    # --- stop ------------------------------------------------------------------------------------

    async def _stop(self) -> None:
        """Guests, agent, controller, nats, libvirt; then a look at what is left."""
        self._stage("stopping")
        uuids = tuple(self.hypervisor.uuids.values())
        try:
            await self.hypervisor.stop_guests()
            await self.supervisor.stop("agent")
            await self.supervisor.stop("controller")
            await self._keep_audit()
        finally:
            await self.supervisor.stop_all()
            await self.hypervisor.stop()
            self.hypervisor.close()
        run_file_path().unlink(missing_ok=True)
        cgroups = CGROUP_ROOT if uuids else None
        left = await ends_left((str(self.directory), *uuids), self._ports(), cgroups)
        self.report.left_behind = left
        for text in left:
            self._complain(f"left behind: {text}")

    async def _keep_audit(self) -> None:
        if self.supervisor.pid("nats") is None:
            return
        path = self.directory / "audit.log"
        count = await keep_audit(self.at.nats, path)
        if count is None:
            self._complain("the audit of this run could not be written to a file")
        else:
            self.report.audit_file = str(path)
            self._say(f"{count} audit records kept; to recompute: hrapaq replay --from {path}")

    def _ports(self) -> list[int]:
        at = self.at
        hosts = (at.nats, at.commands, at.admin, at.controller_metrics, at.agent_metrics)
        return [int(host.rpartition(":")[2]) for host in hosts]

    def _finish_report(self) -> None:
        for restart in self.supervisor.restarts:
            entry = {"name": restart.name, "at_unix_ns": restart.at_unix_ns, "ended": restart.ended}
            self.report.restarts.append(entry)
        self._write_report()

    def _write_report(self) -> None:
        self.result = self.report.as_json(time.monotonic() - self.view.started_tick_s)
        path = self.options.report
        if path is None:
            return
        try:
            write(path, self.result)
        except OSError as error:
            raise ConfigError(f"the report cannot be written to {path}: {error}") from error

    def _say_goodbye(self) -> int:
        lines = [*self.report.errors, *summary(self.result), f"files: {self.directory}"]
        if self.report.audit_file:
            lines.append(f"recompute its decisions: hrapaq replay --from {self.report.audit_file}")
        sys.stdout.write("\n".join(lines) + "\n")
        return 0 if self.result["loop_closed"] else 1

    # --- words -----------------------------------------------------------------------------------

    def _stage(self, text: str) -> None:
        self.view.stage = text
        self._say(text)

    def _say(self, text: str) -> None:
        self.view.note(f"{time.strftime('%H:%M:%S')} up: {text}")

    def _say_from_thread(self, text: str) -> None:
        self.loop.call_soon_threadsafe(self._say, text)

    def _said_by_supervisor(self, text: str) -> None:
        self._complain(text)

    def _complain(self, text: str) -> None:
        self.report.error(text)
        self._say(text)


def _our_command() -> str:
    """`hrapaq` as a person can type it here: by its path where it is not on PATH."""
    if shutil.which("hrapaq"):
        return "hrapaq"
    return os.path.relpath(Path(sys.executable).parent / "hrapaq")
