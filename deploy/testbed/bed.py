"""A bed as tests and commands handle it: a client of its keeper. Everything here waits for a state
and says what it waited for; nothing waits for a number of seconds to pass."""

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc

from shared.errors import HrapaqError
from shared.pb.admin_pb2_grpc import AdminStub
from testbed.layout import Places
from testbed.processes import find, virtual_machines
from testbed.records import Records

T = TypeVar("T")

READY_WITHIN_S = 300.0
POLL_S = 0.2
ANSWER_S = 120.0
L0 = "l0"


class BedError(HrapaqError):
    """The bed refused an order, or did not come to a state in time."""


@dataclass(frozen=True, slots=True)
class Done:
    """A command that was run in a machine; code None: it did not end in time."""

    code: int | None
    out: str
    err: str


class Bed:
    """Attaches to the bed that is up on this machine; BedError where there is none."""

    def __init__(self, places: Places | None = None) -> None:
        self.places = places or Places()
        status = self.status()
        self.records = Records(self.places)
        self.libvirt_uri: str = status["libvirt"]
        self.admin_address: str = status["admin"]
        self.uuids: dict[str, str] = {
            name: machine["uuid"] for name, machine in status["machines"].items()
        }
        options = [("grpc.enable_http_proxy", 0)]
        self._channel = grpc.insecure_channel(self.admin_address, options=options)
        self.controller = AdminStub(self._channel)

    def close(self) -> None:
        self._channel.close()

    # --- state -----------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        return self._order("status")

    def is_ready(self) -> bool:
        """Every machine has said hello, every clock is known, controller and agents run."""
        status = self.status()
        if status["gave_up"]:
            raise BedError(f"a part of L0 crashes again and again: see {status['state_directory']}")
        return status["is_controlled"] and all(
            machine["heard"] is not None and machine["clock_offset_s"] is not None
            for machine in status["machines"].values()
        )

    def wait_until_ready(self, timeout_s: float = READY_WITHIN_S) -> None:
        self.wait_for(self.is_ready, timeout_s, "all machines are up", self._who_is_missing)

    def wait_for(
        self,
        condition: Callable[[], T],
        timeout_s: float,
        what: str,
        otherwise: Callable[[], object] | None = None,
    ) -> T:
        """The first value of `condition` that counts as true; BedError after `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while True:
            if value := condition():
                return value
            if time.monotonic() > deadline:
                seen = f"; {otherwise()}" if otherwise else ""
                raise BedError(f"not within {timeout_s:g} s: {what}{seen}")
            time.sleep(POLL_S)

    def _who_is_missing(self) -> str:
        machines = self.status()["machines"].items()
        late = [name for name, machine in machines if machine["clock_offset_s"] is None]
        errors = [machine["error"] for _, machine in machines if machine["error"]]
        return f"missing: {', '.join(late)}; {' '.join(errors)}"

    # --- orders ----------------------------------------------------------------------------------

    def exec(self, machine: str, command: str, timeout_s: float = 60.0) -> Done:
        """Runs a shell command in a machine (`l0` is this one), as root."""
        if machine == L0:
            return _run_here(command, timeout_s)
        words = {"command": command, "timeout_s": timeout_s}
        answer = self._ask(machine, "exec", words, timeout_s)
        return Done(answer["code"], answer["out"], answer["err"])

    def check(self, machine: str, command: str, timeout_s: float = 60.0) -> str:
        """As `exec`; its output, BedError where it does not end with 0."""
        done = self.exec(machine, command, timeout_s)
        if done.code != 0:
            raise BedError(f"{machine}: `{command}` ended with {done.code}: {done.err or done.out}")
        return done.out

    def start_load(
        self,
        l2: str,
        name: str,
        kind: str,
        points: list[tuple[float, float]],
        *,
        ramp: bool = False,
    ) -> None:
        """Replaces the load of this name. kind: memory (MiB), cpu (millicores), disk (MiB/s).

        points: (second from now, amount); the last amount stays. ramp: straight lines in between.
        """
        spec = {"name": name, "kind": kind, "points": points, "ramp": ramp}
        self._ask(l2, "load", spec, 30.0)

    def stop_load(self, l2: str, name: str) -> None:
        self._ask(l2, "stop", {"name": name}, 30.0)

    def start(self, machine: str, **changes: object) -> None:
        """Boots a machine that has ended; `changes`: fields of an L2's layout, for this time."""
        self._order("start", machine=machine, changes=changes)

    def domain(self, machine: str, call: str) -> None:
        """suspend, resume, destroy or reset, by the libvirt that the machine runs under."""
        self._order("domain", machine=machine, call=call)

    def kill(self, what: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Sends a signal to a machine's QEMU (`l1a`, `l2a1`) or to a part of one: `l0/agent`,
        `l0/controller`, `l0/nats`, `l0/libvirtd`, `l1a/agent`, `l1a/libvirtd`, `l2a1/agent`."""
        machine, _, part = what.partition("/")
        if machine == L0 or (not part and self._is_l1(machine)):
            os.kill(self.pid(what), number)
        elif not part:
            self.check(self.host_of(machine), _signal(number, f"/run/libvirt/qemu/{machine}.pid"))
        elif self._is_l1(machine):
            unit = {"agent": "hrapaq-agent"}.get(part, part)
            self.check(machine, f"systemctl kill --kill-who=main --signal={number.name} {unit}")
        else:
            self.check(machine, _signal(number, f"/run/{part}.pid"))

    def pid(self, what: str) -> int:
        """Of a process on L0, as `kill` names it."""
        machine, _, part = what.partition("/")
        if not part:
            found = virtual_machines().get(self.uuids[machine])
        elif part == "libvirtd":
            mark = f"{self.places.run}/libvirtd.pid"
            words = find(lambda words: words[0].endswith("libvirtd") and mark in words)
            found = next(words, None)
        else:
            found = self.status()["processes"][part]
        if found is None:
            raise BedError(f"{what} does not run")
        return found

    def host_of(self, machine: str) -> str:
        """`l1a` for `l2a1`, `l0` for `l1a`: the names say it."""
        return f"l1{machine[2]}" if machine.startswith("l2") else L0

    def _is_l1(self, machine: str) -> bool:
        return machine.startswith("l1")

    def _ask(
        self, machine: str, order: str, words: dict[str, Any], timeout_s: float
    ) -> dict[str, Any]:
        return self._order("ask", machine=machine, order=order, words=words, timeout_s=timeout_s)

    def _order(self, do: str, **words: Any) -> dict[str, Any]:  # noqa: ANN401 - as JSON has it
        """One question to the keeper, on a connection of its own."""
        with socket.socket(socket.AF_UNIX) as control:
            control.settimeout(words.get("timeout_s", 0.0) + ANSWER_S)
            try:
                control.connect(str(self.places.control))
                control.sendall(json.dumps({"do": do, **words}).encode() + b"\n")
                with control.makefile("rb") as lines:
                    line = lines.readline()
            except OSError as error:
                raise BedError(f"no bed answers on this machine ({error}): up?") from None
        answer: dict[str, Any] = json.loads(line or b'{"error": "the keeper ended"}')
        if set(answer) == {"error"}:
            raise BedError(answer["error"])
        return answer


def _signal(number: signal.Signals, pid_file: str) -> str:
    return f"kill -{number.value} $(cat {pid_file})"


def _run_here(command: str, timeout_s: float) -> Done:
    try:
        done = subprocess.run(
            ["/bin/sh", "-c", command],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Done(None, "", f"not within {timeout_s:g} s")
    return Done(done.returncode, done.stdout, done.stderr)
