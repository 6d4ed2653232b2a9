"""What a testbed consists of: its machines, their sizes, and how tight their memory is. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID, uuid5

# The same machines have the same identity in every run.
_NAMESPACE = UUID("6c6a1d0e-5f0b-4f6e-8a43-2f2d1c9b7e10")

L1_OVERHEAD_MIB = 464  # kernel, systemd, libvirt, our agent and the testbed's relay in an L1
VM_OVERHEAD_MIB = 64  # of QEMU for each VM, beside the guest's memory
RESERVE_SHARE = 0.05


@dataclass(frozen=True, slots=True)
class L2:
    name: str
    number: int  # within its L1; makes its network
    memory_mib: int = 512
    current_mib: int = 320  # what its balloon leaves it at the start
    balloon: bool = True  # False: its kernel has no driver for it
    cpu_millicores: int | None = None  # quota that it starts with; None: no limit
    scratch_mib: int = 256

    @property
    def uuid(self) -> str:
        return str(uuid5(_NAMESPACE, self.name))


@dataclass(frozen=True, slots=True)
class L1:
    name: str
    guests: tuple[L2, ...]
    memory_mib: int = 1792
    vcpus: int = 2

    @property
    def uuid(self) -> str:
        return str(uuid5(_NAMESPACE, self.name))

    @property
    def current_mib(self) -> int:
        """What it needs for its guests as they start, and no more."""
        sizes = (guest.current_mib + VM_OVERHEAD_MIB for guest in self.guests)
        return L1_OVERHEAD_MIB + sum(sizes)


@dataclass(frozen=True, slots=True)
class Layout:
    l1s: tuple[L1, ...]
    cycle_s: int = 10
    cpu_share: float = 0.85  # of all virtual CPUs of the L1s, what L0 gives
    spare_mib: int = 0  # memory of L0 beyond what all L1s start with

    @property
    def memory_allocatable_mib(self) -> int:
        """Of L0, so that nothing is left over but the planner's reserve and `spare_mib`."""
        needed = sum(l1.current_mib + VM_OVERHEAD_MIB for l1 in self.l1s) + self.spare_mib
        return -(-needed * 100 // round(100 * (1 - RESERVE_SHARE)))

    @property
    def cpu_allocatable_millicores(self) -> int:
        return round(sum(l1.vcpus for l1 in self.l1s) * 1000 * self.cpu_share)

    @property
    def machines(self) -> Iterator[L1 | L2]:
        for l1 in self.l1s:
            yield l1
            yield from l1.guests

    def find(self, name: str) -> L1 | L2:
        return next(machine for machine in self.machines if machine.name == name)

    def host_of(self, name: str) -> L1:
        """The L1 of an L2; LookupError for anything else."""
        for l1 in self.l1s:
            if any(guest.name == name for guest in l1.guests):
                return l1
        raise LookupError(name)


def layout(kind: str) -> Layout:
    """`short`: one L1 with two L2s, and memory for it to grow; `full`: two L1s, where one grows
    only when another shrinks."""
    l1s, spare_mib = {"short": ("a", 400), "full": ("ab", 0)}[kind]
    return Layout(
        tuple(L1(f"l1{x}", (L2(f"l2{x}1", 1), L2(f"l2{x}2", 2))) for x in l1s), spare_mib=spare_mib
    )


@dataclass(frozen=True, slots=True)
class Places:
    """Where a bed keeps its files. One bed runs on a machine at a time, so these are fixed."""

    state: Path = Path("/var/lib/hrapaq-testbed")  # disks, logs, records
    run: Path = Path("/run/hrapaq-testbed")  # sockets: their paths must be short

    @property
    def control(self) -> Path:
        return self.run / "control"

    @property
    def note(self) -> Path:
        """Says which process keeps the bed."""
        return self.run / "keeper"

    @property
    def run_file(self) -> Path:
        """Where `hrapaq` looks with XDG_RUNTIME_DIR set to `run`."""
        return self.run / "hrapaq/up.json"

    @property
    def libvirt_uri(self) -> str:
        return f"qemu+unix:///system?socket={self.run}/libvirt/libvirt-sock"

    @property
    def witness(self) -> Path:
        return self.state / "witness.jsonl"

    @property
    def events(self) -> Path:
        return self.state / "events.jsonl"

    def port(self, name: str) -> Path:
        """The socket of an L1's virtio-serial port."""
        return self.run / f"{name}.port"

    def disk(self, name: str) -> Path:
        return self.state / f"{name}.raw"

    def console(self, name: str) -> Path:
        return self.state / f"{name}.console"
