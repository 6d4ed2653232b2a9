"""What a run reports: figures gathered while it goes, the verdict at its end. Pure but for `write`.

`MemoryMeter` is fed with what the hypervisor says of the balloons, read by `hrapaq up` itself: it
does not believe the agent's acknowledgements. `Counters` adds up over restarts of the controller.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from controller.up.view import Ground
from shared.pb import admin_pb2 as pb

PLANS_MAX = 50
STEPS_MAX = 32
ERRORS_MAX = 100


@dataclass(slots=True)
class GuestMeter:
    first_bytes: int
    last_bytes: int
    least_bytes: int
    most_bytes: int
    grown_bytes: int = 0
    shrunk_bytes: int = 0


@dataclass(slots=True)
class MemoryMeter:
    """Balloon sizes over time, by VM id, from the moment when all guests were ready."""

    guests: dict[str, GuestMeter] = field(default_factory=dict)
    _present: set[str] = field(default_factory=set)

    def read(self, actual_bytes: Mapping[str, int]) -> None:
        """One reading of all guests; one that was gone for a time moved nothing meanwhile."""
        for vm_id, actual in actual_bytes.items():
            meter = self.guests.setdefault(vm_id, GuestMeter(actual, actual, actual, actual))
            if vm_id in self._present:
                meter.grown_bytes += max(0, actual - meter.last_bytes)
                meter.shrunk_bytes += max(0, meter.last_bytes - actual)
            meter.last_bytes = actual
            meter.least_bytes = min(meter.least_bytes, actual)
            meter.most_bytes = max(meter.most_bytes, actual)
        self._present = set(actual_bytes)

    @property
    def grown_bytes(self) -> int:
        return sum(guest.grown_bytes for guest in self.guests.values())

    @property
    def shrunk_bytes(self) -> int:
        return sum(guest.shrunk_bytes for guest in self.guests.values())

    @property
    def moved_bytes(self) -> int:
        """What left some guests and came to others (or to the same one, later)."""
        return min(self.grown_bytes, self.shrunk_bytes)


@dataclass(slots=True)
class Counters:
    """Totals over the run: a controller that was restarted counts from zero under a new epoch."""

    _epoch: int = 0
    _before: pb.Status = field(default_factory=pb.Status)  # of all earlier epochs
    _now: pb.Status = field(default_factory=pb.Status)

    def read(self, status: pb.Status) -> None:
        if status.epoch != self._epoch:
            self._before = self.total()
            self._epoch = status.epoch
        self._now = status

    def total(self) -> pb.Status:
        """Sums of the counters; only these fields are set."""
        total = pb.Status()
        for name in COUNTED:
            setattr(total, name, getattr(self._before, name) + getattr(self._now, name))
        for name in ("dropped", "rejections"):
            for part in (self._before, self._now):
                for cause, count in getattr(part, name).items():
                    getattr(total, name)[cause] += count
        return total


COUNTED = (
    "cycles",
    "telemetry_messages",
    "plans_verified",
    "commands_sent",
    "commands_acknowledged",
    "steps_applied",
)


@dataclass(slots=True)
class Report:
    """Filled during the run, written at its end and also when it fails."""

    ground: Ground | None = None
    meter: MemoryMeter = field(default_factory=MemoryMeter)
    counters: Counters = field(default_factory=Counters)
    errors: list[str] = field(default_factory=list)
    restarts: list[dict[str, object]] = field(default_factory=list)
    latencies_ms: list[int] = field(default_factory=list)
    guest_names: dict[str, str] = field(default_factory=dict)  # name by VM id
    left_behind: list[str] = field(default_factory=list)
    audit_file: str = ""
    _plans: dict[str, pb.PlanReply] = field(default_factory=dict)

    def error(self, text: str) -> None:
        if len(self.errors) < ERRORS_MAX:
            self.errors.append(text)

    def saw_plan(self, plan: pb.PlanReply) -> None:
        """Keeps the newest 50 by id, each as it was seen last."""
        self._plans.pop(plan.plan_id, None)
        self._plans[plan.plan_id] = plan
        if len(self._plans) > PLANS_MAX:
            del self._plans[next(iter(self._plans))]

    def saw_status(self, status: pb.Status) -> None:
        self.counters.read(status)
        latency = status.latency_sample_to_command_ms
        if latency and self.latencies_ms[-1:] != [latency]:
            self.latencies_ms = [*self.latencies_ms[-999:], latency]

    def open_ends(self) -> list[str]:
        """What keeps the loop from being closed, in words; empty when it is."""
        total = self.counters.total()
        changed = self.meter.grown_bytes + self.meter.shrunk_bytes
        checks = (
            (total.telemetry_messages, "no telemetry came in"),
            (total.plans_verified, "no plan was verified"),
            (total.commands_acknowledged, "no command was acknowledged"),
            (total.steps_applied, "no agent measured the effect of a step"),
            (changed, "no guest's memory was seen to change in the hypervisor"),
        )
        return [text for figure, text in checks if not figure]

    def as_json(self, duration_s: float) -> dict[str, object]:
        total, ground = self.counters.total(), self.ground
        open_ends = self.open_ends()
        return {
            "loop_closed": not open_ends,
            "why_not": open_ends,
            "hypervisor": ground.hypervisor if ground else "none",
            "hypervisor_why": ground.hypervisor_why if ground else "",
            "simulated": ground.simulated if ground else "",
            "guests": [self._guest(vm_id, name) for vm_id, name in self.guest_names.items()],
            "telemetry_messages": total.telemetry_messages,
            "cycles": total.cycles,
            "plans_verified": total.plans_verified,
            "commands_sent": total.commands_sent,
            "commands_acknowledged": total.commands_acknowledged,
            "steps_applied": total.steps_applied,
            "memory_moved_bytes": self.meter.moved_bytes,
            "memory_grown_bytes": self.meter.grown_bytes,
            "memory_shrunk_bytes": self.meter.shrunk_bytes,
            "rejections": dict(total.rejections),
            "dropped": dict(total.dropped),
            "errors": self.errors,
            "restarts": self.restarts,
            "left_behind": self.left_behind,
            "audit_file": self.audit_file,
            "latency_sample_to_command_ms": _spread(self.latencies_ms),
            "plans": [_plan(plan) for plan in self._plans.values()],
            "duration_s": round(duration_s, 1),
            "version": ground.version if ground else "",
            "cgroup": ground.cgroup if ground else "",
            "state_directory": ground.state_directory if ground else "",
        }

    def _guest(self, vm_id: str, name: str) -> dict[str, object]:
        meter = self.meter.guests.get(vm_id)
        if meter is None:
            return {"name": name, "vm_id": vm_id, "memory_bytes": None}
        figures = {key: getattr(meter, f"{key}_bytes") for key in GUEST_FIGURES}
        return {"name": name, "vm_id": vm_id, "memory_bytes": figures}


GUEST_FIGURES = ("first", "last", "least", "most", "grown", "shrunk")


def write(path: Path, report: Mapping[str, object]) -> None:
    """Whole or not at all, and on the disk when this returns."""
    new = path.with_name(path.name + ".new")
    path.parent.mkdir(parents=True, exist_ok=True)
    with new.open("w") as file:
        json.dump(report, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


def summary(report: Mapping[str, object]) -> list[str]:
    """The end of a run in a few lines for a person."""
    moved = int(str(report["memory_moved_bytes"])) // (1024 * 1024)
    simulated = " (simulated)" if report["hypervisor"] == "simulated" else ""
    figures = (
        f"{report['telemetry_messages']} telemetry messages, {report['cycles']} cycles, "
        f"{report['plans_verified']} plans verified, {report['commands_acknowledged']} commands "
        f"acknowledged, {report['steps_applied']} steps with their effect measured, "
        f"{moved} MiB of memory moved between guests{simulated}"
    )
    lines = [figures]
    if report["loop_closed"]:
        lines.append("the loop closed: telemetry in, plan verified, commands carried out and seen")
    else:
        why = report["why_not"]
        assert isinstance(why, list)
        lines.append(f"the loop did NOT close: {'; '.join(why)}")
    return lines


def _spread(figures: Sequence[int]) -> dict[str, int | None]:
    if not figures:
        return {"least": None, "median": None, "most": None, "count": 0}
    ordered = sorted(figures)
    middle = ordered[len(ordered) // 2]
    return {"least": ordered[0], "median": middle, "most": ordered[-1], "count": len(ordered)}


def _plan(plan: pb.PlanReply) -> dict[str, object]:
    steps = [
        {
            "phase": step.phase,
            "vm": step.vm_name or step.vm_id,
            "resource": step.resource,
            "from": step.from_amount,
            "to": step.to_amount,
            "why": step.why,
            "outcome": step.outcome,
        }
        for step in plan.steps[:STEPS_MAX]
    ]
    return {
        "plan_id": plan.plan_id,
        "cycle": plan.cycle,
        "verdict": plan.verdict,
        "rejections": [f"{one.invariant}: {one.detail}" for one in plan.rejections],
        "steps_in_all": len(plan.steps),
        "steps": steps,
    }
