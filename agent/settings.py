"""The agent's settings: `agent.toml`, the table [agent] of a common file, HRAPAQ_* variables.

Every part has a default that is safe on any machine: an agent without a file samples, publishes to
this machine's bus and obeys a controller on it.
"""

import re
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta, Struct

from shared.subjects import is_machine_id

Seconds = Annotated[float, Meta(ge=0.05, le=3600)]
Amount = Annotated[int, Meta(ge=0, le=2**50)]

AUTO = "auto"
NO_HYPERVISOR = "none"
SIMULATED = re.compile(r"simulated:(\d{1,18})")
# Of `restore`: as before the agent's first change; what the last plan called safe without a
# controller; what each VM was started with, for when the records are lost.
Goal = Literal["found", "fallback", "maximum"]
_LISTEN = re.compile(r"(?:\[[0-9a-fA-F:]+\]|[^:\s]+):\d{1,5}")


class AgentSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """All of the agent's settings."""

    bus_servers: tuple[str, ...] = ("nats://127.0.0.1:4222",)
    """NATS servers; default: one on this machine. None reachable: the agent samples on and
    keeps the newest messages."""
    controller_address: str = "127.0.0.1:7420"
    """host:port of the controller that a host agent dials for commands; default: this machine;
    empty: none, the agent only reports."""
    sample_interval_s: Seconds = 10.0
    """Seconds between two samples; default 10, fine enough for a grid of a minute. Guest
    statistics older than three of them, and than 30 s, do not count."""
    state_directory: Path = Path("/var/lib/hrapaq-agent")
    """Directory of a host agent's memory: epoch, lease, fallback, and VMs as they were found.
    Default /var/lib/hrapaq-agent; must be writable and is held by one agent at a time."""
    libvirt_uri: str = AUTO
    """libvirt to read and to move; default auto: qemu:///system as root, else qemu:///session;
    none: no hypervisor; simulated:SEED: VMs of simple physics, always shown as simulated."""
    enable_guest_statistics: bool = True
    """Switches on the balloon's statistics, every 2 s, of VMs that have none or rarer ones; default
    true: without them a VM's memory cannot be judged. Nothing else about a VM changes without a
    command."""
    enable_memory_guard: bool = True
    """Sets memory.high of a VM's process above what the VM was left with, so that a guest that
    takes memory back without leave is slowed, never killed; default true. Needs cgroup v2."""
    role: Literal["auto", "host", "guest"] = "auto"
    """auto, host or guest; default auto: a machine with libvirt is a host, a VM is a guest, and
    a VM with libvirt is both. The guest role needs no root and moves nothing."""
    memory_allocatable_bytes: Amount | None = None
    """Bytes that VMs may have together; default: all memory less memory_reserved_bytes."""
    memory_reserved_bytes: Amount = 1024 * 1024 * 1024
    """Bytes kept for the host itself; default 1 GiB: kernel, libvirt, QEMU's own and this agent."""
    cpu_allocatable_millicores: Amount | None = None
    """Millicores that VMs may have together; default: all CPUs of the machine times
    cpu_overcommit."""
    cpu_overcommit: Annotated[float, Meta(gt=0, le=64)] = 1.0
    """How often each CPU of the machine may be given to VMs; default 1, no overcommitment."""
    io_allocatable_bytes_per_s: Amount | None = None
    """Bytes/s of disk traffic that VMs may have together; default: unknown, and then I/O is left
    alone, because no machine says what its disks can do."""
    tell_need: bool = True
    """Whether a VM tells its host when it is short of memory or CPU, and when it is ready; default
    true. The host gives by what it measures itself, so this costs nobody else anything."""
    tell_roles: bool = True
    """Whether samples say what processes use by role (database, web, ...); default true. Names of
    roles and numbers only: no arguments, environments, paths or names of processes."""
    ready_file: Path | None = None
    """File that says, when it is made, that this machine is up and ready, such as
    /run/app/ready; default: the end of systemd's start-up, or without systemd the agent's own
    start. Let it lie where a boot removes it: one that is older than the boot does not count."""
    start_quiet_s: Seconds = 20.0
    """Seconds that a VM in which no agent ever spoke counts as starting after its balloon's first
    figures; default 20, for what comes up after the driver. Nothing is taken meanwhile."""
    start_max_s: Seconds = 180.0
    """Seconds after which a VM counts as started whatever it says; default 180."""
    enable_reflex: bool = True
    """Lends to VMs between two plans, within the bounds that the controller gives; default true.
    Without a controller's leash and lease nothing is lent either way."""
    pay_back_after_s: Annotated[float, Meta(ge=1, le=3600)] = 30.0
    """Seconds for which a loan must not have been needed before it is taken back; default 30:
    bursts come in trains. Doubles, up to 10 min, for VMs that borrow again right after."""
    start_boost: bool = True
    """Lends a VM that starts all of the CPU that its leash allows, until it is ready; default
    true."""
    memory_available_low_bytes: Amount | None = None
    """Bytes: with less memory available than this the host counts as lacking it, nothing of it is
    lent, and free pages are taken from VMs; default: a quarter of memory_reserved_bytes."""
    buffer_messages: Annotated[int, Meta(ge=1, le=100_000)] = 360
    """Messages kept while the bus is away; default 360, an hour's worth. The oldest go first and
    are counted."""
    metrics_listen: str = "127.0.0.1:9556"
    """host:port of /metrics for Prometheus; default: loopback only, port 0 picks one;
    empty: off."""
    node_name: str = ""
    """Name of this machine for people; default: its host name."""
    node_id: str = ""
    """Lower-case UUID of this machine: of a VM the UUID by which its host knows it. Default: its
    product UUID, as the kernel tells root or as the unit has copied it to
    /run/hrapaq/product_uuid, else one derived from /etc/machine-id. To be set where two machines
    have the same: of physical ones whose maker gave all of them one UUID."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """debug, info, warning or error; default info."""

    def problems(self) -> list[str]:
        found = []
        if not self.bus_servers:
            found.append("bus_servers is empty: without a bus nobody hears the agent")
        if self.controller_address and not _LISTEN.fullmatch(self.controller_address):
            found.append(f"controller_address = {self.controller_address!r} is no host:port")
        if self.metrics_listen and not _LISTEN.fullmatch(self.metrics_listen):
            found.append(f"metrics_listen = {self.metrics_listen!r} is no host:port")
        if self.libvirt_uri.startswith("simulated") and self.simulated_seed is None:
            found.append(f"libvirt_uri = {self.libvirt_uri!r}: a whole number follows simulated:")
        if self.role == "guest" and self.simulated_seed is not None:
            found.append("role = guest has no VMs of its own, so libvirt_uri cannot be simulated")
        if self.node_id and not is_machine_id(self.node_id):
            found.append(
                f"node_id = {self.node_id!r} is no lower-case UUID, as `uuidgen` makes one"
            )
        if self.start_quiet_s > self.start_max_s:
            found.append("start_quiet_s is longer than start_max_s, the longest that a start takes")
        return found

    @property
    def available_low_bytes(self) -> int:
        low = self.memory_available_low_bytes
        return self.memory_reserved_bytes // 4 if low is None else low

    @property
    def simulated_seed(self) -> int | None:
        match = SIMULATED.fullmatch(self.libvirt_uri)
        return int(match[1]) if match else None
