"""The process behind a bed: starts everything, keeps it running, and answers at a socket.

`up` starts it and returns when the bed is ready; whatever ends it ends all of the bed, because all
of it dies with its parent (the VMs with their PID namespace).
"""

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from controller.up.libvirtd import answers, connect, guarded, require_libvirt
from controller.up.nats import EmbeddedNats, http_get, port_is_free
from controller.up.owner import Owner
from controller.up.runfile import RunFile, write_run_file
from controller.up.supervisor import ChildSpec, Supervisor
from shared.ports import free_ports
from testbed.configs import Ports, controller_toml, l0_agent_toml, l1_agent_toml
from testbed.domains import l1_xml, l2_xml
from testbed.hub import Hub, MachineError, Message
from testbed.image import Image
from testbed.layout import L1, Layout, Places
from testbed.witness import Record, Witness, take_sample

CREATE_DEADLINE_S = 120.0
DESTROY_DEADLINE_S = 20.0
L1_STRAGGLERS_S = 120.0
L2_BOOTS_S = 90.0  # takes 5 to 30, with much other work on the machine 75
SET_UP_TRIES = 4
# What libvirt believes that QEMU can do, when QEMU was too slow to say.
FORGET_ABILITIES = "rm -f /var/cache/libvirt/qemu/capabilities/*; systemctl restart libvirtd"
AGENT_TOML = "/etc/hrapaq/agent.toml"


@dataclass(slots=True)
class MachineState:
    """What is known of one machine's way up; times are Unix seconds on L0's clock."""

    started: float | None = None
    heard: float | None = None  # its relay or worker said hello
    set_up: float | None = None  # an L1: agent configured, guests started
    error: str = ""


@dataclass
class Keeper:
    """Made inside the event loop that it runs on. `run` returns when `stop` was asked for."""

    layout: Layout
    image: Image
    cache: Path
    places: Places
    say: Callable[[str], None]
    ports: Ports = field(default_factory=lambda: Ports(*free_ports(6)))
    machines: dict[str, MachineState] = field(default_factory=dict)
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def run(self) -> None:
        self._prepare_places()
        self.machines = {machine.name: MachineState() for machine in self.layout.machines}
        self.events, self.record = Record(self.places.events), Record(self.places.witness)
        self.supervisor = Supervisor(self.say)
        self.hub = Hub(self.layout, self.places, self._on_event)
        witness = Witness(self.layout, self.places, self.record)
        hub = asyncio.create_task(self.hub.run(), name="hub")
        try:
            await self._start_hypervisor()
            witness.start()
            await asyncio.gather(*(self.start_l1(l1) for l1 in self.layout.l1s))
            await self._unless_stopped(self._start_control())
            await self.stopping.wait()
        finally:
            self.say("stopping")
            for task in (hub, *self._tasks):
                task.cancel()
            witness.stop()
            await self.supervisor.stop_all()
            self.events.close()
            self.record.close()

    # --- L0 --------------------------------------------------------------------------------------

    async def _start_hypervisor(self) -> None:
        self.say("starting libvirt and nats-server")
        await self.supervisor.start(self._hypervisor())
        nats = EmbeddedNats(self.places.state / "nats", self.ports.nats, self.ports.nats_monitor)
        await self.supervisor.start(nats.spec())

    async def _start_control(self) -> None:
        """Controller and agent of L0, when all machines are up: to see how one boots in a tight
        fleet is for a test, and no test should begin with it."""
        while self._is_one_unheard():
            await self._reset_what_hangs()
            await asyncio.sleep(0.2)
        self.say("all machines are up; starting controller and agent")
        text = controller_toml(self.layout, self.ports, self.places)
        await self.supervisor.start(self._program("controller", "serve", text, self.ports.admin))
        write_run_file(self.places.run_file, self._run_file())
        text = l0_agent_toml(self.layout, self.ports, self.places)
        await self.supervisor.start(self._program("agent", "host", text, self.ports.agent_metrics))

    async def _reset_what_hangs(self) -> None:
        """The emulator now and then lets a nested guest wait for ever at its boot (seen: a lock
        taken twice on one CPU). That is no matter of ours, so that guest begins anew."""
        for l1 in self.layout.l1s:
            for name in (guest.name for guest in l1.guests):
                state = self.machines[name]
                if state.heard or not state.started or time.time() - state.started < L2_BOOTS_S:
                    continue
                self.say(f"{name} hangs at its boot; it is reset")
                state.started = time.time()
                with contextlib.suppress(MachineError):
                    await self.hub.ask(l1.name, "domain", {"name": name, "call": "reset"})

    def _is_one_unheard(self) -> bool:
        return any(state.heard is None for state in self.machines.values())

    def _run_file(self) -> RunFile:
        """What `hrapaq` finds everything by, with XDG_RUNTIME_DIR set to our directory."""
        return RunFile(
            pid=os.getpid(),
            started_at_unix_ns=time.time_ns(),
            admin=f"127.0.0.1:{self.ports.admin}",
            nats=self.ports.bus(),
            nats_monitor=f"127.0.0.1:{self.ports.nats_monitor}",
            controller_metrics=f"127.0.0.1:{self.ports.controller_metrics}",
            agent_metrics=f"127.0.0.1:{self.ports.agent_metrics}",
            state_directory=str(self.places.state),
        )

    async def _unless_stopped(self, work: Coroutine[object, object, None]) -> None:
        tasks = [asyncio.create_task(work), asyncio.create_task(self.stopping.wait())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if tasks[0].done():
                tasks[0].result()
        finally:
            for task in tasks:
                task.cancel()

    def _hypervisor(self) -> ChildSpec:
        async def ready() -> bool:
            return await asyncio.to_thread(answers, self.places.libvirt_uri)

        script = Path(__file__).with_name("hypervisor.sh")
        places = (self.places.run, self.places.state, self.cache / "libvirt")
        apart = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
        command = (*apart, "sh", str(script), *map(str, places))
        log = self.places.state / "libvirtd.log"
        return ChildSpec("hypervisor", command, log, ready, ready_within_s=60.0, stop_within_s=0.5)

    def _program(self, name: str, command: str, config: str, port: int) -> ChildSpec:
        """Our own program `name` with its file of settings and its directory."""
        path = self.places.state / f"{name}.toml"
        path.write_text(config)
        (self.places.state / name).mkdir(mode=0o700, exist_ok=True)

        async def ready() -> bool:
            if name == "controller":
                return not port_is_free(port)
            return await http_get(port, "/metrics") is not None

        program = (sys.executable, "-m", name, command, "--config", str(path))
        log = self.places.state / f"{name}.log"
        return ChildSpec(name, program, log, ready, ready_within_s=60.0)

    # --- L1 and L2 -------------------------------------------------------------------------------

    async def start_l1(self, l1: L1) -> None:
        """Boots it; what it wrote to its disk before is still there."""
        self.say(f"starting {l1.name}")
        self.hub.forget(l1.name)
        for name in (l1.name, *(guest.name for guest in l1.guests)):
            self.machines[name] = MachineState()
        disk = self.places.disk(l1.name)
        if not disk.exists():
            await asyncio.to_thread(_copy_sparse, self.image.disk, disk)
        text = l1_xml(l1, self.image, self.places)
        await asyncio.to_thread(self._create, text, l1.name)
        self.machines[l1.name].started = time.time()

    def _create(self, text: str, name: str) -> None:
        connection = connect(self.places.libvirt_uri)
        try:
            guarded(lambda: connection.createXML(text, 0), CREATE_DEADLINE_S, f"creating {name}")
        finally:
            connection.close()

    async def domain_call(self, l1: str, call: str) -> None:
        """suspend, resume, destroy, reset of an L1; HypervisorError where libvirt refuses."""
        uuid = self.layout.find(l1).uuid

        def do() -> None:
            connection = connect(self.places.libvirt_uri)
            try:
                getattr(connection.lookupByUUIDString(uuid), call)()
            finally:
                connection.close()

        require_libvirt()
        await asyncio.to_thread(guarded, do, DESTROY_DEADLINE_S, f"{call} of {l1}")

    def _on_event(self, machine: str, message: Message) -> None:
        if message["event"] == "sample":
            take_sample(self.record, machine, message)
            return
        self.events.add(machine=machine, **message)
        if message["event"] == "hello":
            state = self.machines[machine]
            state.heard = time.time()
            self.say(f"{machine} says hello, up for {message['uptime_s']:.1f} s")
            if machine in {l1.name for l1 in self.layout.l1s}:
                task = asyncio.create_task(self._set_up(machine), name=f"set up {machine}")
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _set_up(self, name: str) -> None:
        """Tells an L1 who it is and starts its agent and guests; harmless where that was done."""
        l1, state = self.layout.find(name), self.machines[name]
        assert isinstance(l1, L1)
        for _ in range(SET_UP_TRIES):
            try:
                await self._configure(l1)
            except MachineError as error:
                state.error = str(error)
                self.say(f"{name} could not be set up, tried again: {error}")
                with contextlib.suppress(MachineError):
                    await self._exec(name, FORGET_ABILITIES)
            else:
                state.set_up, state.error = time.time(), ""
                self.say(f"{name} is set up, its guests boot")
                return

    async def _configure(self, l1: L1) -> None:
        name = l1.name
        files = {AGENT_TOML: l1_agent_toml(l1, self.ports), "/etc/hostname": f"{name}\n"}
        changed = (await self.hub.ask(name, "write", {"files": files}))["changed"]
        verb = "restart" if AGENT_TOML in changed else "start"
        await self._exec(name, f"hostname {name} && systemctl enable -q hrapaq-agent")
        await self._exec(name, f"systemctl --no-block {verb} hrapaq-agent")
        await asyncio.gather(*(self.start_l2(l1, guest.name) for guest in l1.guests))

    async def _exec(self, name: str, command: str) -> None:
        """MachineError where it does not end with 0."""
        answer = await self.hub.ask(name, "exec", {"command": command}, L1_STRAGGLERS_S)
        if answer["code"] != 0:
            raise MachineError(f"{name}: {command}: {answer['err']}")

    async def start_l2(self, l1: L1, name: str, changes: Message | None = None) -> None:
        """changes: fields of its layout that are otherwise this time."""
        guest = next(guest for guest in l1.guests if guest.name == name)
        guest = replace(guest, **(changes or {}))
        xml = l2_xml(guest, self.ports.bus(inside=True))
        words = {"name": name, "xml": xml, "scratch_mib": guest.scratch_mib}
        answer = await self.hub.ask(l1.name, "create", words, L1_STRAGGLERS_S)
        if answer["created"]:  # it says hello in a few seconds at the earliest
            self.hub.forget(name)
            self.machines[name] = MachineState(started=time.time())

    # --- state -----------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        children = ("hypervisor", "nats", "controller", "agent")
        return {
            "pid": os.getpid(),
            "admin": f"127.0.0.1:{self.ports.admin}",
            "nats": self.ports.bus(),
            "controller_metrics": f"127.0.0.1:{self.ports.controller_metrics}",
            "agent_metrics": f"127.0.0.1:{self.ports.agent_metrics}",
            "libvirt": self.places.libvirt_uri,
            "state_directory": str(self.places.state),
            "processes": {name: self.supervisor.pid(name) for name in children},
            "restarts": [f"{one.name}: {one.ended}" for one in self.supervisor.restarts],
            "gave_up": self.supervisor.gave_up.done(),
            "is_controlled": self.supervisor.pid("agent") is not None,
            "machines": {name: self._machine_status(name) for name in self.machines},
        }

    def _machine_status(self, name: str) -> dict[str, Any]:
        state, heard = self.machines[name], self.hub.last_heard_s.get(name)
        return {
            "uuid": self.layout.find(name).uuid,
            "started": state.started,
            "heard": state.heard,
            "set_up": state.set_up,
            "error": state.error,
            "silent_s": None if heard is None else time.monotonic() - heard,
            "clock_offset_s": self.hub.offset_s(name),
        }

    def _prepare_places(self) -> None:
        """Nothing of an earlier bed counts."""
        shutil.rmtree(self.places.state, ignore_errors=True)
        self.places.state.mkdir(parents=True)
        (self.cache / "libvirt").mkdir(exist_ok=True)
        self.places.note.write_text(str(Owner.this_process()))


def stop_on_signals(keeper: Keeper) -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, keeper.stopping.set)


def _copy_sparse(source: Path, target: Path) -> None:
    """Through a name of its own, so that a copy that was interrupted is not taken for one."""
    part = target.with_suffix(".part")
    copy = ("cp", "--sparse=always", "--reflink=auto", str(source), str(part))
    subprocess.run(copy, check=True)
    part.replace(target)
