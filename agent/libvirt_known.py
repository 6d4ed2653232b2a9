"""What is remembered of a VM under libvirt between two readings."""

import asyncio
from dataclasses import dataclass, field

from agent.libvirt_levers import VmLevers
from shared.clock import SECOND_NS

BACKOFF_NS_MIN = 5 * SECOND_NS


@dataclass(slots=True)
class KnownVm:
    """What is remembered of it."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)  # one call in flight per VM
    run: int | None = None  # libvirt's number of this run of the VM
    cpu_count: int | None = None
    cpu_time_ns: int = 0
    complete: bool = False  # its statistics have come with resident memory before
    levers: VmLevers = field(default_factory=VmLevers)
    inspected_tick_ns: int | None = None
    events: int = 0  # heard of it: what was asked for before the last one may be outdated
    migrating: bool = False
    frozen: bool = False
    run_id: str = ""  # of the run that is on record, where records are kept
    retry_tick_ns: int = 0
    backoff_ns: int = BACKOFF_NS_MIN

    def forget_run(self) -> None:
        """It was started anew: nothing of what its last run was like holds."""
        self.inspected_tick_ns = self.run = self.cpu_count = None
        self.levers = VmLevers()
        self.cpu_time_ns = 0
        self.complete = self.frozen = self.migrating = False
        self.run_id = ""
