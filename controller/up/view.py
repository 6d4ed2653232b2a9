"""What a run looks like at one moment: gathered by `watch`, drawn by `screen`, kept by `report`."""

from collections import deque
from dataclasses import dataclass, field

from shared.pb import admin_pb2 as pb

NOTES_MAX = 200


@dataclass(frozen=True, slots=True)
class Ground:
    """What the run stands on; known when it has started."""

    version: str
    hypervisor: str  # kvm, tcg, simulated or none
    hypervisor_why: str  # in words: why not KVM, or why no real guests
    guests: tuple[str, ...]  # names of the demo guests
    state_directory: str
    cgroup: str  # v1, v2, hybrid or none
    real: str  # in words: what of the picture is real
    simulated: str  # in words: what is not; empty: nothing


@dataclass(frozen=True, slots=True)
class PartHealth:
    name: str
    healthy: bool
    detail: str


@dataclass(slots=True)
class View:
    """Filled as the run goes on; a part that has not been heard of yet is None or empty."""

    ground: Ground | None = None
    stage: str = "starting"  # what is being done until the first cycle
    started_tick_s: float = 0.0  # monotonic
    ends_tick_s: float | None = None
    status: pb.Status | None = None
    nodes: list[pb.NodeRow] = field(default_factory=list)
    vms: list[pb.VmRow] = field(default_factory=list)
    plan: pb.PlanReply | None = None  # the last that had steps
    parts: list[PartHealth] = field(default_factory=list)
    notes: deque[str] = field(default_factory=lambda: deque(maxlen=NOTES_MAX))  # newest last
    noted: int = 0  # notes in all, also those that `notes` has dropped
    actual_bytes: dict[str, int] = field(default_factory=dict)  # by VM id, our own look
    guest_names: dict[str, str] = field(default_factory=dict)  # of the demo guests, by VM id
    moved_bytes: int = 0
    controller_silent: str = ""  # why the figures above are old; empty: they are fresh

    def note(self, text: str) -> None:
        """One line of the record, with its time."""
        self.notes.append(text)
        self.noted += 1

    def actual_by_name(self) -> dict[str, int]:
        return {self.guest_names.get(vm, vm): size for vm, size in self.actual_bytes.items()}
