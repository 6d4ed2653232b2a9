"""The controller's settings: `controller.toml`, the table [controller] of a common file, HRAPAQ_*.

Units stand last in the names. `problems` names what cannot hold together; `to_policy` hands the
core what it needs in its own units.
"""

from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta, Struct, field

from controller.core.state import Mode, Policy
from shared.clock import MILLISECOND_NS, SECOND_NS
from shared.resources import MIB
from shared.subjects import is_machine_id

ModeWord = Literal["observe", "recommend", "enforce"]
Seconds = Annotated[float, Meta(gt=0, le=86_400 * 30)]
Share = Annotated[float, Meta(ge=0, le=1)]
Weight = Annotated[float, Meta(ge=0, le=1_000)]
Count = Annotated[int, Meta(ge=1, le=2**31)]
Amount = Annotated[int, Meta(ge=0, le=2**40)]
Parts = Annotated[int, Meta(ge=0, le=1_000_000)]

# What must be left of a lease after two cycles, for a command on its way and a slow agent.
LEASE_MARGIN_S = 10.0


class Shares(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One share for each resource."""

    cpu: Share = 0.05
    """Share between 0 and 1; default 0.05."""
    memory: Share = 0.05
    """Share between 0 and 1; default 0.05."""
    io: Share = 0.05
    """Share between 0 and 1; default 0.05."""


class Weights(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One weight for each resource."""

    cpu: Weight = 1.0
    """Per unit of cpu."""
    memory: Weight = 1.0
    """Per unit of memory."""
    io: Weight = 1.0
    """Per unit of io."""


class PolicySettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How much things matter to the planner; the defaults are those of the core."""

    cpu_quantum_millicores: Count = 50
    """Millicores; default 50. Grants come in whole quanta: coarser is faster, finer wastes less."""
    memory_quantum_mib: Count = 100
    """MiB; default 100."""
    io_quantum_mib_per_s: Count = 1
    """MiB/s; default 1."""
    bins_max: Annotated[int, Meta(ge=16, le=256)] = 32
    """Most candidate grants per VM and resource; default 32: more changes little and costs time."""
    waste: Weights = Weights(cpu=0.05, memory=0.15, io=0.05)
    """Cost of a unit that is granted and not used, against the worth 1 of one that is used."""
    short: Weights = Weights(cpu=2.0, memory=4.0, io=1.0)
    """Cost of a unit that is needed and not granted; memory hurts most."""
    move_quanta: Weight = 0.5
    """Quanta of use that a change must be worth at least; default 0.5, against restless limits."""
    drift: Share = 0.02
    """Cost per unit by which a limit changes; default 0.02."""
    floor_tolerance: Share = 0.02
    """Share by which a limit may be below what a violation budget asks for and stay; default 0.02,
    finer than forecasts are. Without it limits follow every breath of them."""
    memory_margin_mib: Amount = 64
    """MiB above the working set that a shrink leaves (I3); default 64."""
    memory_margin_share: Share = 0.05
    """Or this share of the limit, whichever is more; default 0.05."""
    memory_cache_share: Share = 0.05
    """Share of the limit that one step may take of a guest's cache (I4); default 0.05."""
    cpu_shrink_share: Share = 0.20
    """Share of the limit that one step may take of CPU (I4); default 0.2."""
    io_shrink_share: Share = 0.50
    """Share of the limit that one step may take of I/O (I4); default 0.5."""
    stats_age_s_max: Seconds = 30.0
    """Seconds; default 30: three periods of the guest's own memory figures (I6)."""
    sample_age_s_max: Seconds = 30.0
    """Seconds; default 30: three sampling intervals (I6)."""
    forecast_age_s_max: Seconds = 180.0
    """Seconds; default 180. An older forecast moves nothing (I6)."""
    step_deadline_ms: Count = 8_000
    """Milliseconds that an agent waits for the effect of one step; default 8000."""


class VmSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What an operator says of one VM. What is not given is as the machine reports it."""

    mode: ModeWord | None = None
    """observe, recommend or enforce; default: as its node."""
    memory_floor_mib: Amount | None = None
    """MiB; default: `memory_floor_mib` of the controller."""
    memory_ceiling_mib: Amount | None = None
    """MiB; default: all that the VM can have."""
    cpu_floor_millicores: Amount | None = None
    """Millicores; default: `cpu_floor_millicores` of the controller."""
    cpu_ceiling_millicores: Amount | None = None
    """Millicores; default: all of its virtual CPUs."""
    io_floor_mib_per_s: Amount | None = None
    """MiB/s; default: `io_floor_mib_per_s` of the controller."""
    io_ceiling_mib_per_s: Amount | None = None
    """MiB/s; default: all that its node may give."""
    priority: Annotated[int, Meta(ge=1, le=100)] | None = None
    """1 to 100, weighs a shortage; default 1."""
    violation_ppm: Parts | None = None
    """Millionths: accepted probability that demand exceeds the grant; default: the controller's."""

    def problems(self) -> list[str]:
        pairs = (
            ("memory", "mib", self.memory_floor_mib, self.memory_ceiling_mib),
            ("cpu", "millicores", self.cpu_floor_millicores, self.cpu_ceiling_millicores),
            ("io", "mib_per_s", self.io_floor_mib_per_s, self.io_ceiling_mib_per_s),
        )
        return [
            f"{word}_floor_{unit} = {floor} lies above {word}_ceiling_{unit} = {ceiling}"
            for word, unit, floor, ceiling in pairs
            if floor is not None and ceiling is not None and floor > ceiling
        ]


class NodeSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What an operator says of one node and all VMs on it, nested ones too."""

    mode: ModeWord | None = None
    """observe, recommend or enforce; default: as the node that it runs on, or the fleet."""


class ControllerSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """All of the controller's settings."""

    bus_servers: tuple[str, ...] = ("nats://127.0.0.1:4222",)
    """NATS servers; default: one on this machine."""
    commands_listen: str = "127.0.0.1:7420"
    """host:port where agents connect for commands; default: loopback only, port 0 picks one."""
    admin_listen: str = "127.0.0.1:7421"
    """host:port for `hrapaq`; default: loopback only."""
    metrics_listen: str = "127.0.0.1:9555"
    """host:port of /metrics for Prometheus; empty: off."""
    state_directory: Path = Path("/var/lib/hrapaq")
    """Directory for overrides and the epoch; default /var/lib/hrapaq, must be writable."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """debug, info, warning or error; default info."""

    mode: ModeWord = "observe"
    """What may happen to VMs of which nothing else is said; default observe: look, move nothing."""
    cycle_interval_s: Seconds = 60.0
    """Seconds between two decisions; default 60."""
    grid_step_s: Annotated[int, Meta(ge=1, le=3600)] = 60
    """Seconds of one step of the history; default 60."""
    window_steps: Annotated[int, Meta(ge=2, le=10_080)] = 120
    """Steps of history that a forecast sees; default 120. Memory: 12 bytes per VM and step."""
    horizon_s: Annotated[int, Meta(ge=1, le=86_400)] = 600
    """Seconds that a forecast looks ahead; default 600, which is what the network was taught. A
    multiple of `grid_step_s`."""
    forecaster: Literal["auto", "empirical"] = "auto"
    """auto: simple predictors and the network, mixed by how well each does; empirical: the past as
    it was, which needs less memory and time. Default auto."""
    network: Path | None = None
    """File with the network's weights, as `hrapaq train` writes it; default: the one that comes
    with the program."""
    lease_s: Seconds = 150.0
    """Seconds that grants hold without a word from here; default 150: two cycles and a margin."""
    command_ttl_s: Seconds = 15.0
    """Seconds after which an agent refuses a command as old, by its own clock; default 15."""

    reserve_share: Shares = Shares(cpu=0.05, memory=0.05, io=0.0)
    """Share of a host's capacity kept back for bursts between two cycles."""
    early_cycle_s: Annotated[float, Meta(ge=0, le=3600)] = 2.0
    """Least seconds between two cycles out of turn, which decide for the trees of agents that
    lent of their reserve, or had too little to lend; default 2, 0 switches them off."""
    node_overhead_mib: Amount = 256
    """MiB that the system inside a nested host keeps; default 256. A root says what it gives."""
    vm_overhead_mib: Amount = 32
    """MiB that the hypervisor's process takes per VM beside the guest's memory; default 32."""
    memory_floor_mib: Amount = 128
    """MiB below which no VM of which nothing else is said is taken; default 128."""
    cpu_floor_millicores: Amount = 100
    """Millicores likewise; default 100: a guest with less cannot even answer."""
    io_floor_mib_per_s: Amount = 1
    """MiB/s likewise; default 1."""
    violation_ppm: Parts = 50_000
    """Millionths: accepted probability that demand exceeds a grant; default 50000, that is 5 %."""

    sample_past_s_max: Seconds = 300.0
    """Seconds by which a sender's wall clock may be behind before its messages are dropped."""
    sample_future_s_max: Seconds = 300.0
    """Seconds by which it may be ahead; default 300 for both."""
    node_messages_per_minute: Count = 120
    """Messages of one node per minute, more are dropped; default 120, agents send 6."""
    node_expiry_s: Seconds = 600.0
    """Seconds of silence after which a node and its VMs leave the picture; default 600. A nested
    host that its own host says runs stays as it was, up to `forget_s`; nothing moves in it."""
    clone_after_s: Seconds = 60.0
    """Seconds for which two hosts must both say that one VM runs there until it is held as a clone;
    default 60. A migration ends within a sampling interval of either."""
    forget_s: Seconds = 7200.0
    """Seconds after which the history of a VM that is gone is dropped; default two hours."""
    replay_window_s: Seconds = 7200.0
    """Seconds of telemetry kept on the bus for a controller that restarts; default two hours."""
    telemetry_stream_mib_max: Count = 256
    """MiB that this telemetry may take on the server's disk; default 256, the oldest go first."""
    audit_stream_mib_max: Count = 512
    """MiB of audit likewise; default 512. The server must allow both together (max_file_store)."""

    policy: PolicySettings = PolicySettings()
    """How much things matter."""
    vms: dict[str, VmSettings] = field(default_factory=dict)
    """By the VM's UUID; default: nothing is said of any."""
    nodes: dict[str, NodeSettings] = field(default_factory=dict)
    """By the node's UUID; default: nothing is said of any."""

    def problems(self) -> list[str]:
        """Relations that cannot hold, in words for the person who wrote the file."""
        return [*self._time_problems(), *self._share_problems(), *self._machine_problems()]

    def to_policy(self) -> Policy:
        """The core's policy, in nanoseconds, bytes and millicores."""
        return _to_policy(self)

    @property
    def fleet_mode(self) -> Mode:
        return mode_of(self.mode)

    def _time_problems(self) -> list[str]:
        found = []
        lease_s_min = 2 * self.cycle_interval_s + LEASE_MARGIN_S
        if self.lease_s < lease_s_min:
            found.append(
                f"lease_s = {self.lease_s:g} is too short: two cycles of cycle_interval_s = "
                f"{self.cycle_interval_s:g} and {LEASE_MARGIN_S:g} s make {lease_s_min:g}"
            )
        if self.command_ttl_s >= self.lease_s:
            found.append(
                f"command_ttl_s = {self.command_ttl_s:g} must be below lease_s = {self.lease_s:g}"
            )
        if self.horizon_s % self.grid_step_s:
            found.append(
                f"horizon_s = {self.horizon_s} is no multiple of grid_step_s = {self.grid_step_s}"
            )
        if self.horizon_s > self.grid_step_s * self.window_steps:
            found.append(
                f"horizon_s = {self.horizon_s} is longer than the history: window_steps = "
                f"{self.window_steps} of grid_step_s = {self.grid_step_s}"
            )
        if self.node_expiry_s <= self.lease_s:
            found.append(
                f"node_expiry_s = {self.node_expiry_s:g} must be above lease_s = {self.lease_s:g}: "
                "a silent agent still holds its grants"
            )
        return found

    def _share_problems(self) -> list[str]:
        shares = self.reserve_share
        return [
            f"reserve_share.{name} = {share:g} leaves nothing to give"
            for name, share in (("cpu", shares.cpu), ("memory", shares.memory), ("io", shares.io))
            if share >= 1
        ]

    def _machine_problems(self) -> list[str]:
        found = [
            f"{table}.{name}: {name!r} is no lower-case UUID"
            for table, names in (("vms", self.vms), ("nodes", self.nodes))
            for name in names
            if not is_machine_id(name)
        ]
        for name, vm in self.vms.items():
            found += [f"vms.{name}: {problem}" for problem in vm.problems()]
        return found


def mode_of(word: ModeWord) -> Mode:
    return Mode[word.upper()]


def _to_policy(settings: ControllerSettings) -> Policy:
    knobs = settings.policy
    return Policy(
        quantum=(
            knobs.cpu_quantum_millicores,
            knobs.memory_quantum_mib * MIB,
            knobs.io_quantum_mib_per_s * MIB,
        ),
        bins_max=knobs.bins_max,
        waste=(knobs.waste.cpu, knobs.waste.memory, knobs.waste.io),
        short=(knobs.short.cpu, knobs.short.memory, knobs.short.io),
        move_quanta=knobs.move_quanta,
        drift=knobs.drift,
        floor_tolerance=knobs.floor_tolerance,
        memory_margin_bytes=knobs.memory_margin_mib * MIB,
        memory_margin_share=knobs.memory_margin_share,
        memory_cache_share=knobs.memory_cache_share,
        cpu_shrink_share=knobs.cpu_shrink_share,
        io_shrink_share=knobs.io_shrink_share,
        stats_age_ns_max=_ns(knobs.stats_age_s_max),
        sample_age_ns_max=_ns(knobs.sample_age_s_max),
        forecast_age_ns_max=_ns(knobs.forecast_age_s_max),
        lease_ns=_ns(settings.lease_s),
        command_ttl_ns=_ns(settings.command_ttl_s),
        step_deadline_ns=knobs.step_deadline_ms * MILLISECOND_NS,
    )


def _ns(seconds: float) -> int:
    return round(seconds * SECOND_NS)
