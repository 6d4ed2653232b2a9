"""What the scenarios share: a stack at rest, the witness's sights, and what is asked of the stack
after each of them. Nothing here believes what agents or controller say of memory."""

import base64
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
from testbed.bed import Bed, BedError
from testbed.figures import Breach, actual_at, breaches
from testbed.layout import L1, layout
from testbed.records import Sight
from testbed.report import Report, Result

from shared.pb import admin_pb2 as pb
from shared.resources import MIB

ANSWER_S = 5.0
WHOLE_WITHIN_S = 240.0  # for a slow machine; what is demanded is said beside each measurement
CALM_WITHIN_S = 60.0
MOVED_WITHIN_S = 90.0
QUIET_CYCLES = 2
PIN_S = 120
PIN_STEP_MIB = 16
QUANTUM_MIB = 8
NEAR_MIB = 4.0
KEPT_MIB = 40  # what a program holds in each L2 through everything
KEPT = "kept"
FRESH_MS = 12_000
MOVING = ("growing", "shrinking", "lent", "asks for")
INSIDE = Path(__file__).parent / "inside"
GUEST_PYTHON = "/opt/hrapaq/bin/python"
AGENT_SETTINGS = "/etc/hrapaq/agent.toml"


class Scene:
    """One scenario on a bed: `scene.wanted(...)` is a line of the report under its name."""

    def __init__(self, bed: Bed, report: Report, name: str) -> None:
        self.bed = bed
        self.report = report
        self.name = name
        self.layout = layout("full" if "l1b" in bed.uuids else "short")
        self.l2s = [guest.name for l1 in self.layout.l1s for guest in l1.guests]

    def wanted(self, what: str, *figures: Any, **more: Any) -> Result:
        return self.report.add(self.name, what, *figures, **more)

    # --- what is seen ----------------------------------------------------------------------------

    def sights(self, since: float) -> dict[str, list[Sight]]:
        names = (machine.name for machine in self.layout.machines)
        return {name: self.bed.records.series(name, since) for name in names}

    def breaches(self, since: float) -> list[Breach]:
        return breaches(self.layout, self.sights(since))

    def actual(self, name: str) -> float:
        """MiB that its balloon leaves it; BedError where nobody saw it lately."""
        seen = actual_at(self.bed.records.series(name, time.time() - 15.0), time.time())
        if seen is None:
            raise BedError(f"nobody has seen {name} in the last 15 s")
        return seen

    def usable(self, name: str) -> float:
        """MiB that its own kernel could still use."""
        seen = self.bed.records.series(name, time.time() - 15.0)
        usable = [one.usable_mib for one in seen if one.usable_mib is not None]
        if not usable:
            raise BedError(f"{name} has said nothing of its memory in the last 15 s")
        return usable[-1]

    # --- what the controller says ----------------------------------------------------------------

    def status(self) -> pb.Status | None:
        """None while there is no controller."""
        return self._ask(
            lambda: self.bed.controller.GetStatus(pb.StatusRequest(), timeout=ANSWER_S)
        )

    def vm(self, name: str) -> pb.VmRow | None:
        rows = self.vms()
        return rows.get(name)

    def vms(self) -> dict[str, pb.VmRow]:
        """By the testbed's names; empty while there is no controller."""
        answer = self._ask(lambda: self.bed.controller.ListVms(pb.VmsRequest(), timeout=ANSWER_S))
        names = {uuid: name for name, uuid in self.bed.uuids.items()}
        return {
            names[row.vm_id]: row for row in (answer.vms if answer else ()) if row.vm_id in names
        }

    def lacking(self) -> list[str]:
        """What keeps the tree from being whole, in words."""
        ask = self.bed.controller.ListNodes
        answer = self._ask(lambda: ask(pb.NodesRequest(), timeout=ANSWER_S))
        if answer is None:
            return ["the controller does not answer"]
        hosts = {row.name: row for row in answer.nodes if "host" in row.role}
        wanted = ["l0", *(l1.name for l1 in self.layout.l1s)]
        found = [f"{name} is not known" for name in wanted if name not in hosts]
        for name in set(wanted) & hosts.keys():
            row = hosts[name]
            if not row.connected:
                found.append(f"{name} is not connected")
            elif row.age_ms > FRESH_MS:
                found.append(f"{name} was heard {row.age_ms} ms ago")
        rows = self.vms()
        found += [
            f"{one.name} is not known" for one in self.layout.machines if one.name not in rows
        ]
        found += [
            f"{name} is {row.state}"
            for name, row in rows.items()
            if row.state in {"stale", "clone", "observe"}
        ]
        return found

    def audit_damage(self) -> list[str]:
        """What `hrapaq audit` finds wrong with the chain of the audit; empty: it is whole."""
        environment = {**os.environ, "XDG_RUNTIME_DIR": str(self.bed.places.run)}
        program = (sys.executable, "-c", "from controller.ctl import main; main()")
        command = (*program, "audit", "--tail", "1", "--json")
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=120, check=False
        )
        try:
            return list(json.loads(done.stdout)["damage"])
        except ValueError:
            return [f"`hrapaq audit` ended with {done.returncode}: {done.stderr[-300:]}"]

    # --- states ----------------------------------------------------------------------------------

    def settle(self) -> None:
        """Everything runs, every L2 holds its program's memory, and nothing is under way."""
        self.bed.wait_until_ready(WHOLE_WITHIN_S)
        for name in self.l2s:
            self.release(name)
            if not self._keeps(name):
                self.keep(name)
        self.wait_until_whole()
        self.wait_until_calm()

    def keep(self, name: str) -> None:
        """A program that holds memory, and must not lose it."""
        self.bed.start_load(name, KEPT, "memory", [(0, KEPT_MIB)])

    def wait_until_whole(self, timeout_s: float = WHOLE_WITHIN_S) -> None:
        self.bed.wait_for(
            lambda: not self.lacking(), timeout_s, "the tree is complete", self.lacking
        )

    def wait_until_calm(self, timeout_s: float = CALM_WITHIN_S) -> bool:
        """Nothing moves and nothing is lent for two cycles; False: it does not come to that."""
        since = 0

        def calm() -> bool:
            nonlocal since
            status, rows = self.status(), self.vms()
            if status is None or any(row.state.startswith(MOVING) for row in rows.values()):
                since = 0
            elif not since:
                since = status.cycles
            return bool(since and status and status.cycles >= since + QUIET_CYCLES)

        try:
            return self.bed.wait_for(calm, timeout_s, "nothing moves")
        except BedError:
            return False

    def lost_programs(self, since: float, but: tuple[str, ...] = ()) -> list[str]:
        """L2s in which the program that holds memory ended by itself: killed for memory."""
        ended = self.bed.records.events("load-ended", since)
        return sorted(
            {one["machine"] for one in ended if one["load"] == KEPT and not one["asked"]} - set(but)
        )

    def _keeps(self, name: str) -> bool:
        reports = self.bed.records.loads(name, KEPT, time.time() - 10.0)
        return bool(reports) and reports[-1].got >= KEPT_MIB

    # --- orders ----------------------------------------------------------------------------------

    def pin(self, name: str, mib: float) -> pb.Changed | None:
        amount = int(mib) * MIB
        request = pb.PinRequest(
            vm=self.bed.uuids[name], resource="memory", amount=amount, ttl_seconds=PIN_S, by="test"
        )
        return self._ask(lambda: self.bed.controller.Pin(request, timeout=ANSWER_S))

    def release(self, name: str) -> None:
        request = pb.PinRequest(vm=self.bed.uuids[name], resource="memory", release=True, by="test")
        self._ask(lambda: self.bed.controller.Pin(request, timeout=ANSWER_S))

    def moves(self, name: str) -> float:
        """Seconds until an operator's wish for another size has come true, as its hypervisor says:
        the whole way from controller through plan, audit and agent to balloon works."""
        before = self.actual(name)
        target = (before - PIN_STEP_MIB) // QUANTUM_MIB * QUANTUM_MIB
        began = time.time()
        self.bed.wait_for(
            lambda: (said := self.pin(name, target)) is not None and said.done,
            MOVED_WITHIN_S,
            f"the controller takes a pin of {name} to {target:.0f} MiB",
        )
        try:
            self.bed.wait_for(
                lambda: abs(self.actual(name) - target) <= NEAR_MIB,
                MOVED_WITHIN_S,
                f"{name} goes from {before:.0f} to {target:.0f} MiB",
                lambda: self.said_of(name),
            )
        finally:
            self.release(name)
        return time.time() - began

    def said_of(self, name: str) -> str:
        row = self.vm(name)
        return "the controller does not answer" if row is None else f"the controller: {row.state}"

    @contextmanager
    def agent_with(self, l1: L1, **settings: str) -> Iterator[None]:
        """The agent of an L1 runs with other settings (as TOML writes values), then as before."""
        before = self.bed.check(l1.name, f"cat {AGENT_SETTINGS}")
        kept = [line for line in before.splitlines() if line.partition(" =")[0] not in settings]
        self._restart_agent(l1, [*kept, *(f"{name} = {text}" for name, text in settings.items())])
        try:
            yield
        finally:
            self._restart_agent(l1, before.splitlines())

    def _restart_agent(self, l1: L1, lines: list[str]) -> None:
        text = base64.b64encode(("\n".join(lines) + "\n").encode()).decode()
        self.bed.check(l1.name, f"echo {text} | base64 -d >{AGENT_SETTINGS}")
        self.bed.check(l1.name, "systemctl restart hrapaq-agent")
        self.wait_until_whole()

    def run_inside(
        self, machine: str, script: str, *words: object, python: str = "python3"
    ) -> None:
        """Starts a script of ./inside in a machine; what it says is in /run/SCRIPT.log."""
        text = base64.b64encode((INSIDE / f"{script}.py").read_bytes()).decode()
        line = " ".join(map(str, words))
        self.bed.check(
            machine,
            f"echo {text} | base64 -d >/run/{script}.py && "
            f"(setsid {python} /run/{script}.py {line} >/run/{script}.log 2>&1 </dev/null & "
            f"echo $! >/run/{script}.pid)",
        )

    def end_inside(self, machine: str, script: str) -> str:
        """Ends it, also where it has ended; what it said."""
        self.bed.exec(machine, f"kill $(cat /run/{script}.pid)")
        return self.bed.exec(machine, f"cat /run/{script}.log").out

    def _ask(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except grpc.RpcError:
            return None
