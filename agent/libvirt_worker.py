"""libvirt in a process of its own, because a call into it can block for good: then it is killed.

`python -m agent.libvirt_worker URI`. Requests and replies are msgpack behind a four-byte
big-endian length: [number, lane, method, [argument, ...]] in on stdin, [number, "ok", result] or
[number, kind of failure, text] out on stdout; between them what nobody asked for, as
[0, "event", agent.libvirt_events']. Ends when stdin does, so none is ever left over.
Two lanes, each with a connection and at most four threads of its own: a stuck reading does not
hold up a command. The asking side sees to it that a VM has one call in flight.
Few imports on purpose: this process counts towards the agent's memory.
"""

import os
import sys
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, BinaryIO

import libvirt
import msgpack  # type: ignore[import-untyped]  # it ships no types

from agent.libvirt_events import subscribe

THREADS_MAX = 4  # libvirtd takes five requests of one client at once and cuts those that stall it
KEEPALIVE_INTERVAL_S = 2
KEEPALIVE_MISSES_MAX = 2
THREAD_STACK_BYTES = 512 * 1024

STATS = (
    libvirt.VIR_DOMAIN_STATS_STATE
    | libvirt.VIR_DOMAIN_STATS_CPU_TOTAL
    | libvirt.VIR_DOMAIN_STATS_BALLOON
    | libvirt.VIR_DOMAIN_STATS_VCPU
    | libvirt.VIR_DOMAIN_STATS_BLOCK
    | libvirt.VIR_DOMAIN_STATS_INTERFACE
)
# NOWAIT: a VM that is busy with another call comes with gaps instead of holding up all others.
# Not ENFORCE_STATS: a driver without one of the groups then refuses all of them.
NOWAIT = libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT
ACTIVE = libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_ACTIVE
WANTED = frozenset(
    {
        "state.state",
        "state.reason",
        "cpu.time",
        "vcpu.current",
        "balloon.current",
        "balloon.maximum",
        "balloon.rss",
        "balloon.usable",
        "balloon.unused",
        "balloon.disk_caches",
        "balloon.last-update",
        "balloon.major_fault",
        "balloon.swap_in",
    }
)
WANTED_ENDINGS = (".delay", ".rd.bytes", ".wr.bytes", ".rx.bytes", ".tx.bytes")

Record = tuple[str, str, dict[str, int]]  # UUID, name, statistics


def main() -> None:
    uri = sys.argv[1]
    requests = sys.stdin.buffer
    replies = Replies(os.fdopen(os.dup(1), "wb", buffering=0))
    os.dup2(2, 1)  # whatever a library prints must not get between the replies
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    libvirt.virEventRegisterDefaultImpl()
    threading.stack_size(THREAD_STACK_BYTES)
    threading.Thread(target=run_events, daemon=True).start()
    lanes = {
        "statistics": Lane(uri, True, replies, replies.tell),
        "control": Lane(uri, False, replies),
    }
    while (request := read_frame(requests)) is not None:
        lanes[request[1]].submit(request)
    os._exit(0)  # threads stuck in libvirt would keep an ordinary exit waiting


class Replies:
    """The way back; threads take turns."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()

    def send(self, number: int, kind: str, content: object) -> None:
        body = msgpack.packb((number, kind, content))
        frame = memoryview(len(body).to_bytes(4, "big") + body)
        with self._lock:
            while frame:
                frame = frame[self._stream.write(frame) :]

    def tell(self, event: list[Any]) -> None:
        """What nobody asked for: calls are numbered from one."""
        self.send(0, "event", event)


class Lane:
    """One connection, opened when needed and again when it died, and the threads that use it.

    With `tell`, every connection of this lane is also listened on.
    """

    def __init__(
        self,
        uri: str,
        read_only: bool,
        replies: Replies,
        tell: Callable[[list[Any]], None] | None = None,
    ) -> None:
        self._open: Callable[[str], Any] = libvirt.openReadOnly if read_only else libvirt.open
        self._uri = uri
        self._replies = replies
        self._tell = tell
        self._queue: SimpleQueue[tuple[int, str, str, list[Any]]] = SimpleQueue()
        self._connection: Any = None
        self._connection_lock = threading.Lock()
        self._threads = 0

    def submit(self, request: tuple[int, str, str, list[Any]]) -> None:
        """Only the main thread calls this."""
        self._queue.put(request)
        if self._threads < THREADS_MAX:
            self._threads += 1
            threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            number, _, method, arguments = self._queue.get()
            self._replies.send(number, *self._answer(method, arguments))

    def _answer(self, method: str, arguments: list[Any]) -> tuple[str, object]:
        connection = None
        try:
            connection = self._connected()
            return "ok", METHODS[method](connection, *arguments)
        except Gone as error:
            return "gone", str(error)
        except libvirt.libvirtError as error:
            return kind_of(error, connection), str(error)

    def _connected(self) -> Any:  # noqa: ANN401 - libvirt-python has no types
        with self._connection_lock:
            if self._connection is not None and self._connection.isAlive():
                return self._connection
            self._connection = None  # handles of a dead connection are dead for good
            connection = self._open(self._uri)
            try:
                connection.setKeepAlive(KEEPALIVE_INTERVAL_S, KEEPALIVE_MISSES_MAX)
            except libvirt.libvirtError as error:
                if error.get_error_code() != libvirt.VIR_ERR_NO_SUPPORT:  # drivers in the process
                    raise
            if self._tell is not None:
                subscribe(connection, self._tell)
            self._connection = connection
            return connection


class Gone(Exception):  # noqa: N818 - an expected state
    """The domain is not there or not active."""


def run_events() -> None:
    """Keepalive lives on this loop; without it a stopped libvirtd would never be noticed."""
    try:
        while True:
            libvirt.virEventRunDefaultImpl()
    finally:
        os._exit(1)


def read_frame(stream: BinaryIO) -> tuple[int, str, str, list[Any]] | None:
    head = stream.read(4)
    if len(head) < 4:  # noqa: PLR2004 - the length itself
        return None
    body = stream.read(int.from_bytes(head, "big"))
    number, lane, method, arguments = msgpack.unpackb(body)
    return number, lane, method, arguments


def kind_of(error: Any, connection: Any) -> str:  # noqa: ANN401 - libvirt-python has no types
    """One word that the asking side turns into an exception."""
    code = error.get_error_code()
    if connection is None or not connection.isAlive():
        return "unavailable"
    if code == libvirt.VIR_ERR_NO_DOMAIN:
        return "gone"
    if code == libvirt.VIR_ERR_OPERATION_TIMEOUT:  # another call holds the VM: it hangs
        return "timeout"
    return "refused"


def describe(connection: Any) -> str:  # noqa: ANN401 - likewise below: libvirt-python has no types
    return str(connection.getType())


def read_all(connection: Any) -> list[Record]:  # noqa: ANN401
    found = connection.getAllDomainStats(STATS, ACTIVE | NOWAIT)
    return [record_of(domain, stats) for domain, stats in found]


def list_active(connection: Any) -> list[Record]:  # noqa: ANN401
    """Names and states only; does not ask any VM."""
    records: list[Record] = []
    for domain in connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE):
        try:
            state, reason = domain.state()
        except libvirt.libvirtError:  # gone since the list was made
            continue
        stats = {"state.state": state, "state.reason": reason, "domain.id": domain.ID()}
        records.append((domain.UUIDString(), domain.name(), stats))
    return records


def read_one(connection: Any, vm_id: str) -> Record:  # noqa: ANN401
    domain = active(connection, vm_id)
    ((domain, stats),) = connection.domainListGetStats([domain], STATS, NOWAIT)
    return record_of(domain, stats)


def inspect(connection: Any, vm_id: str) -> list[Any]:  # noqa: ANN401
    """What changes rarely: the XML, scheduler and block I/O parameters (or why there are none),
    the scheduler parameters that it is defined with, its definition ("" where it has none) and its
    balloon's size."""
    domain = active(connection, vm_id)
    live, defined = libvirt.VIR_DOMAIN_AFFECT_LIVE, libvirt.VIR_DOMAIN_AFFECT_CONFIG
    return [
        domain.XMLDesc(0),
        parameters(lambda: domain.schedulerParametersFlags(live)),
        parameters(lambda: domain.blkioParameters(live)),
        parameters(lambda: domain.schedulerParametersFlags(defined)),
        domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE) if domain.isPersistent() else "",
        balloon_kib(domain),
    ]


def balloon_kib(domain: Any) -> int | None:  # noqa: ANN401
    """Asked of the VM: XML and bulk statistics learn of its balloon's last steps a second late.

    Only of one that runs: while a VM comes in by migration, such a call waits until it is there.
    """
    try:
        if domain.state()[0] != libvirt.VIR_DOMAIN_RUNNING:
            return None
        return domain.memoryStats().get("actual")  # type: ignore[no-any-return]
    except libvirt.libvirtError:
        return None


def has_job(connection: Any, vm_id: str) -> bool:  # noqa: ANN401
    """Whether the VM is being migrated, saved or dumped."""
    return bool(active(connection, vm_id).jobInfo()[0] != libvirt.VIR_DOMAIN_JOB_NONE)


def set_memory(connection: Any, vm_id: str, kib: int) -> None:  # noqa: ANN401
    active(connection, vm_id).setMemoryFlags(kib, libvirt.VIR_DOMAIN_AFFECT_LIVE)


def set_scheduler(connection: Any, vm_id: str, wanted: dict[str, int]) -> None:  # noqa: ANN401
    domain = active(connection, vm_id)
    domain.setSchedulerParametersFlags(wanted, libvirt.VIR_DOMAIN_AFFECT_LIVE)


def set_blkio(connection: Any, vm_id: str, wanted: dict[str, str]) -> None:  # noqa: ANN401
    domain = active(connection, vm_id)
    domain.setBlkioParameters(wanted, libvirt.VIR_DOMAIN_AFFECT_LIVE)


def update_device(connection: Any, vm_id: str, xml: str) -> None:  # noqa: ANN401
    active(connection, vm_id).updateDeviceFlags(xml, libvirt.VIR_DOMAIN_AFFECT_LIVE)


def set_interface(connection: Any, vm_id: str, device: str, rates: dict[str, int]) -> None:  # noqa: ANN401
    domain = active(connection, vm_id)
    domain.setInterfaceParameters(device, rates, libvirt.VIR_DOMAIN_AFFECT_LIVE)


def set_mark(connection: Any, vm_id: str, word: str, amount: int | None) -> None:  # noqa: ANN401
    """A note of ours beside the running VM; it goes with it, and ends with it."""
    xml = None if amount is None else f"<{word} amount='{amount}'/>"
    kind, live = libvirt.VIR_DOMAIN_METADATA_ELEMENT, libvirt.VIR_DOMAIN_AFFECT_LIVE
    key, uri = f"hrapaq-{word}", f"urn:hrapaq:{word}"
    active(connection, vm_id).setMetadata(kind, xml, key, uri, live)


def set_note(connection: Any, vm_id: str, word: str, amounts: dict[str, int] | None) -> None:  # noqa: ANN401
    """Like a mark, with several amounts by name."""
    attributes = " ".join(f"{name}='{amount}'" for name, amount in (amounts or {}).items())
    xml = None if amounts is None else f"<{word} {attributes}/>"
    kind, live = libvirt.VIR_DOMAIN_METADATA_ELEMENT, libvirt.VIR_DOMAIN_AFFECT_LIVE
    active(connection, vm_id).setMetadata(kind, xml, f"hrapaq-{word}", f"urn:hrapaq:{word}", live)


def set_stats_period(connection: Any, vm_id: str, seconds: int) -> None:  # noqa: ANN401
    domain = active(connection, vm_id)
    domain.setMemoryStatsPeriod(seconds, libvirt.VIR_DOMAIN_AFFECT_LIVE)


METHODS: dict[str, Callable[..., Any]] = {
    "describe": describe,
    "read_all": read_all,
    "list_active": list_active,
    "read_one": read_one,
    "inspect": inspect,
    "has_job": has_job,
    "set_memory": set_memory,
    "set_scheduler": set_scheduler,
    "set_blkio": set_blkio,
    "update_device": update_device,
    "set_interface": set_interface,
    "set_mark": set_mark,
    "set_note": set_note,
    "set_stats_period": set_stats_period,
}


def active(connection: Any, vm_id: str) -> Any:  # noqa: ANN401
    """The domain, when it runs; asking this does not touch the VM."""
    domain = connection.lookupByUUIDString(vm_id)
    if not domain.isActive():
        raise Gone(f"domain {domain.name()} is shut off")
    return domain


def record_of(domain: Any, stats: dict[str, int]) -> Record:  # noqa: ANN401
    wanted = {
        key: amount
        for key, amount in stats.items()
        if key in WANTED or key.endswith(WANTED_ENDINGS)
    }
    if "balloon.current" not in wanted:  # drivers that know no bulk statistics but the state
        _, maximum_kib, current_kib, cpu_count, cpu_time_ns = domain.info()
        wanted |= {
            "balloon.maximum": maximum_kib,
            "balloon.current": current_kib,
            "vcpu.current": cpu_count,
            "cpu.time": cpu_time_ns,
        }
    # A number of this run of the VM: libvirt's own, other after every start.
    return domain.UUIDString(), domain.name(), wanted | {"domain.id": domain.ID()}


def parameters(read: Callable[[], dict[str, Any]]) -> dict[str, Any] | str:
    try:
        return read()
    except libvirt.libvirtError as error:
        return str(error)


if __name__ == "__main__":
    main()
