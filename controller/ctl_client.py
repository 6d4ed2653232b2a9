"""The admin service as the command line calls it: addresses found, errors put into plain words."""

import difflib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import click
import grpc
from google.protobuf.message import Message

from controller.up.runfile import ADMIN_DEFAULT, read_run_file, run_file_path
from shared.pb import admin_pb2 as pb
from shared.pb.admin_pb2_grpc import AdminStub

Reply = TypeVar("Reply", bound=Message)

CALL_TIMEOUT_S = 5.0  # per call and always given: keepalive alone does not end a waiting call


class Complaint(click.ClickException):
    """One line for a person, and the exit code: 1 = refused or not found, 2 = cannot ask."""

    def __init__(self, text: str, exit_code: int = 1) -> None:
        super().__init__(text)
        self.exit_code = exit_code  # type: ignore[misc] # click reads it from the instance too


def admin_address(given: str | None) -> tuple[str, str]:
    """HOST:PORT and where it comes from: asked for, a running `hrapaq up`, or the default."""
    if given:
        return given, "as given"
    run = read_run_file(run_file_path())
    if run is not None:
        return run.admin, f"of the `hrapaq up` with process id {run.pid}"
    return ADMIN_DEFAULT, "the default"


def nats_address(given: str | None) -> str:
    """The bus to read the audit from: as given, or the running `hrapaq up`'s."""
    if given:
        return given
    run = read_run_file(run_file_path())
    return run.nats if run is not None else "nats://127.0.0.1:4222"


class Client:
    """Calls with a deadline; every failure is a Complaint."""

    def __init__(self, stub: AdminStub, address: str, origin: str) -> None:
        self.stub = stub
        self._where = f"{address} ({origin})"

    def call(self, method: Callable[..., Reply], request: Message) -> Reply:
        try:
            return method(request, timeout=CALL_TIMEOUT_S)
        except grpc.RpcError as error:
            raise self._complaint(error) from error

    def vm_id(self, text: str) -> str:
        """The id of the VM that `text` names: an id, a name, or the beginning of an id."""
        rows = self.call(self.stub.ListVms, pb.VmsRequest()).vms
        found = [row for row in rows if text in {row.vm_id, row.name}]
        if not found and len(text) >= 4:  # noqa: PLR2004 - fewer letters are a guess, not a name
            found = [row for row in rows if row.vm_id.startswith(text.lower())]
        if len(found) == 1:
            return found[0].vm_id
        if found:
            several = ", ".join(f"{row.vm_id} on {row.node_id}" for row in found)
            raise Complaint(f"several VMs answer to {text!r}: {several}; give the id")
        raise Complaint(f"no VM is called {text!r}{_closest(text, [row.name for row in rows])}")

    def target(self, text: str) -> str:
        """`fleet`, or the id of the node or VM that `text` names."""
        nodes = self.call(self.stub.ListNodes, pb.NodesRequest()).nodes
        found = [row.node_id for row in nodes if text in {row.node_id, row.name}]
        if text == "fleet" or len(found) == 1:
            return text if text == "fleet" else found[0]
        return self.vm_id(text)

    def _complaint(self, error: grpc.RpcError) -> Complaint:
        code, detail = error.code(), error.details()
        if code in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}:
            silent = code is grpc.StatusCode.DEADLINE_EXCEEDED
            what = "does not answer" if silent else "is not there"
            return Complaint(
                f"no controller: {self._where} {what}. Start one (`hrapaq up`, or "
                "`hrapaq-controller serve --config FILE`) or name it with --controller HOST:PORT",
                exit_code=2,
            )
        return Complaint(f"the controller at {self._where} refused: {detail or code.name}")


@contextmanager
def connected(address: str | None) -> Iterator[Client]:
    """A client whose channel is closed on the way out."""
    found, origin = admin_address(address)
    options = [("grpc.enable_http_proxy", 0)]  # a proxy in the environment is for the web
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its own log lines help nobody here
    with grpc.insecure_channel(found, options=options) as channel:
        yield Client(AdminStub(channel), found, origin)


def _closest(text: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(text, names, n=1, cutoff=0.5)
    if near:
        return f"; did you mean {near[0]!r}?"
    if names:
        return f"; there are {', '.join(sorted(names)[:8])}"
    return "; the controller knows none"
