from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class StatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Status(_message.Message):
    __slots__ = ("version", "epoch", "cycles", "cycle_interval_ms", "last_cycle_ms", "telemetry_messages", "dropped", "plans_verified", "rejections", "commands_sent", "commands_acknowledged", "agents_connected", "parts", "steps_applied", "latency_sample_to_command_ms")
    class DroppedEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    class RejectionsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    VERSION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    CYCLES_FIELD_NUMBER: _ClassVar[int]
    CYCLE_INTERVAL_MS_FIELD_NUMBER: _ClassVar[int]
    LAST_CYCLE_MS_FIELD_NUMBER: _ClassVar[int]
    TELEMETRY_MESSAGES_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    PLANS_VERIFIED_FIELD_NUMBER: _ClassVar[int]
    REJECTIONS_FIELD_NUMBER: _ClassVar[int]
    COMMANDS_SENT_FIELD_NUMBER: _ClassVar[int]
    COMMANDS_ACKNOWLEDGED_FIELD_NUMBER: _ClassVar[int]
    AGENTS_CONNECTED_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    STEPS_APPLIED_FIELD_NUMBER: _ClassVar[int]
    LATENCY_SAMPLE_TO_COMMAND_MS_FIELD_NUMBER: _ClassVar[int]
    version: str
    epoch: int
    cycles: int
    cycle_interval_ms: int
    last_cycle_ms: int
    telemetry_messages: int
    dropped: _containers.ScalarMap[str, int]
    plans_verified: int
    rejections: _containers.ScalarMap[str, int]
    commands_sent: int
    commands_acknowledged: int
    agents_connected: int
    parts: _containers.RepeatedCompositeFieldContainer[Part]
    steps_applied: int
    latency_sample_to_command_ms: int
    def __init__(self, version: _Optional[str] = ..., epoch: _Optional[int] = ..., cycles: _Optional[int] = ..., cycle_interval_ms: _Optional[int] = ..., last_cycle_ms: _Optional[int] = ..., telemetry_messages: _Optional[int] = ..., dropped: _Optional[_Mapping[str, int]] = ..., plans_verified: _Optional[int] = ..., rejections: _Optional[_Mapping[str, int]] = ..., commands_sent: _Optional[int] = ..., commands_acknowledged: _Optional[int] = ..., agents_connected: _Optional[int] = ..., parts: _Optional[_Iterable[_Union[Part, _Mapping]]] = ..., steps_applied: _Optional[int] = ..., latency_sample_to_command_ms: _Optional[int] = ...) -> None: ...

class Part(_message.Message):
    __slots__ = ("name", "healthy", "detail")
    NAME_FIELD_NUMBER: _ClassVar[int]
    HEALTHY_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    name: str
    healthy: bool
    detail: str
    def __init__(self, name: _Optional[str] = ..., healthy: _Optional[bool] = ..., detail: _Optional[str] = ...) -> None: ...

class NodesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Nodes(_message.Message):
    __slots__ = ("nodes",)
    NODES_FIELD_NUMBER: _ClassVar[int]
    nodes: _containers.RepeatedCompositeFieldContainer[NodeRow]
    def __init__(self, nodes: _Optional[_Iterable[_Union[NodeRow, _Mapping]]] = ...) -> None: ...

class NodeRow(_message.Message):
    __slots__ = ("node_id", "name", "parent_id", "role", "connected", "age_ms", "resources", "levers", "vms", "inside", "clone")
    class LeversEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    PARENT_ID_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    CONNECTED_FIELD_NUMBER: _ClassVar[int]
    AGE_MS_FIELD_NUMBER: _ClassVar[int]
    RESOURCES_FIELD_NUMBER: _ClassVar[int]
    LEVERS_FIELD_NUMBER: _ClassVar[int]
    VMS_FIELD_NUMBER: _ClassVar[int]
    INSIDE_FIELD_NUMBER: _ClassVar[int]
    CLONE_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    name: str
    parent_id: str
    role: str
    connected: bool
    age_ms: int
    resources: _containers.RepeatedCompositeFieldContainer[Amounts]
    levers: _containers.ScalarMap[str, str]
    vms: int
    inside: Inside
    clone: bool
    def __init__(self, node_id: _Optional[str] = ..., name: _Optional[str] = ..., parent_id: _Optional[str] = ..., role: _Optional[str] = ..., connected: _Optional[bool] = ..., age_ms: _Optional[int] = ..., resources: _Optional[_Iterable[_Union[Amounts, _Mapping]]] = ..., levers: _Optional[_Mapping[str, str]] = ..., vms: _Optional[int] = ..., inside: _Optional[_Union[Inside, _Mapping]] = ..., clone: _Optional[bool] = ...) -> None: ...

class Inside(_message.Message):
    __slots__ = ("load_milli", "uptime_ms", "ready_ms", "cpu_steal_millicores", "net_used_bytes_per_s", "cpu_pressure_us_per_s", "memory_pressure_us_per_s", "io_pressure_us_per_s", "memory_pressure_full_us_per_s", "swap_used_bytes", "roles")
    LOAD_MILLI_FIELD_NUMBER: _ClassVar[int]
    UPTIME_MS_FIELD_NUMBER: _ClassVar[int]
    READY_MS_FIELD_NUMBER: _ClassVar[int]
    CPU_STEAL_MILLICORES_FIELD_NUMBER: _ClassVar[int]
    NET_USED_BYTES_PER_S_FIELD_NUMBER: _ClassVar[int]
    CPU_PRESSURE_US_PER_S_FIELD_NUMBER: _ClassVar[int]
    MEMORY_PRESSURE_US_PER_S_FIELD_NUMBER: _ClassVar[int]
    IO_PRESSURE_US_PER_S_FIELD_NUMBER: _ClassVar[int]
    MEMORY_PRESSURE_FULL_US_PER_S_FIELD_NUMBER: _ClassVar[int]
    SWAP_USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    ROLES_FIELD_NUMBER: _ClassVar[int]
    load_milli: int
    uptime_ms: int
    ready_ms: int
    cpu_steal_millicores: int
    net_used_bytes_per_s: int
    cpu_pressure_us_per_s: int
    memory_pressure_us_per_s: int
    io_pressure_us_per_s: int
    memory_pressure_full_us_per_s: int
    swap_used_bytes: int
    roles: _containers.RepeatedCompositeFieldContainer[RoleUse]
    def __init__(self, load_milli: _Optional[int] = ..., uptime_ms: _Optional[int] = ..., ready_ms: _Optional[int] = ..., cpu_steal_millicores: _Optional[int] = ..., net_used_bytes_per_s: _Optional[int] = ..., cpu_pressure_us_per_s: _Optional[int] = ..., memory_pressure_us_per_s: _Optional[int] = ..., io_pressure_us_per_s: _Optional[int] = ..., memory_pressure_full_us_per_s: _Optional[int] = ..., swap_used_bytes: _Optional[int] = ..., roles: _Optional[_Iterable[_Union[RoleUse, _Mapping]]] = ...) -> None: ...

class RoleUse(_message.Message):
    __slots__ = ("role", "processes", "cpu_used_millicores", "memory_resident_bytes")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    PROCESSES_FIELD_NUMBER: _ClassVar[int]
    CPU_USED_MILLICORES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_RESIDENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    role: str
    processes: int
    cpu_used_millicores: int
    memory_resident_bytes: int
    def __init__(self, role: _Optional[str] = ..., processes: _Optional[int] = ..., cpu_used_millicores: _Optional[int] = ..., memory_resident_bytes: _Optional[int] = ...) -> None: ...

class Amounts(_message.Message):
    __slots__ = ("resource", "used", "limit", "capacity", "floor", "ceiling", "forecast_p50", "forecast_p95", "planned", "price_micro", "short", "forecast_skill", "forecast_coverage", "forecast_outcomes", "forecast_method", "forecast_novelty", "forecast_archetype", "wanted")
    RESOURCE_FIELD_NUMBER: _ClassVar[int]
    USED_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_FIELD_NUMBER: _ClassVar[int]
    FLOOR_FIELD_NUMBER: _ClassVar[int]
    CEILING_FIELD_NUMBER: _ClassVar[int]
    FORECAST_P50_FIELD_NUMBER: _ClassVar[int]
    FORECAST_P95_FIELD_NUMBER: _ClassVar[int]
    PLANNED_FIELD_NUMBER: _ClassVar[int]
    PRICE_MICRO_FIELD_NUMBER: _ClassVar[int]
    SHORT_FIELD_NUMBER: _ClassVar[int]
    FORECAST_SKILL_FIELD_NUMBER: _ClassVar[int]
    FORECAST_COVERAGE_FIELD_NUMBER: _ClassVar[int]
    FORECAST_OUTCOMES_FIELD_NUMBER: _ClassVar[int]
    FORECAST_METHOD_FIELD_NUMBER: _ClassVar[int]
    FORECAST_NOVELTY_FIELD_NUMBER: _ClassVar[int]
    FORECAST_ARCHETYPE_FIELD_NUMBER: _ClassVar[int]
    WANTED_FIELD_NUMBER: _ClassVar[int]
    resource: str
    used: int
    limit: int
    capacity: int
    floor: int
    ceiling: int
    forecast_p50: int
    forecast_p95: int
    planned: int
    price_micro: int
    short: int
    forecast_skill: float
    forecast_coverage: float
    forecast_outcomes: int
    forecast_method: str
    forecast_novelty: float
    forecast_archetype: int
    wanted: int
    def __init__(self, resource: _Optional[str] = ..., used: _Optional[int] = ..., limit: _Optional[int] = ..., capacity: _Optional[int] = ..., floor: _Optional[int] = ..., ceiling: _Optional[int] = ..., forecast_p50: _Optional[int] = ..., forecast_p95: _Optional[int] = ..., planned: _Optional[int] = ..., price_micro: _Optional[int] = ..., short: _Optional[int] = ..., forecast_skill: _Optional[float] = ..., forecast_coverage: _Optional[float] = ..., forecast_outcomes: _Optional[int] = ..., forecast_method: _Optional[str] = ..., forecast_novelty: _Optional[float] = ..., forecast_archetype: _Optional[int] = ..., wanted: _Optional[int] = ...) -> None: ...

class VmsRequest(_message.Message):
    __slots__ = ("node_id",)
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    def __init__(self, node_id: _Optional[str] = ...) -> None: ...

class Vms(_message.Message):
    __slots__ = ("vms",)
    VMS_FIELD_NUMBER: _ClassVar[int]
    vms: _containers.RepeatedCompositeFieldContainer[VmRow]
    def __init__(self, vms: _Optional[_Iterable[_Union[VmRow, _Mapping]]] = ...) -> None: ...

class VmRow(_message.Message):
    __slots__ = ("vm_id", "name", "node_id", "mode", "state", "resources", "forecast_age_ms", "priority", "simulated", "waits", "short_node_id", "net")
    VM_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    RESOURCES_FIELD_NUMBER: _ClassVar[int]
    FORECAST_AGE_MS_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    SIMULATED_FIELD_NUMBER: _ClassVar[int]
    WAITS_FIELD_NUMBER: _ClassVar[int]
    SHORT_NODE_ID_FIELD_NUMBER: _ClassVar[int]
    NET_FIELD_NUMBER: _ClassVar[int]
    vm_id: str
    name: str
    node_id: str
    mode: str
    state: str
    resources: _containers.RepeatedCompositeFieldContainer[Amounts]
    forecast_age_ms: int
    priority: int
    simulated: bool
    waits: _containers.RepeatedCompositeFieldContainer[Wait]
    short_node_id: str
    net: Amounts
    def __init__(self, vm_id: _Optional[str] = ..., name: _Optional[str] = ..., node_id: _Optional[str] = ..., mode: _Optional[str] = ..., state: _Optional[str] = ..., resources: _Optional[_Iterable[_Union[Amounts, _Mapping]]] = ..., forecast_age_ms: _Optional[int] = ..., priority: _Optional[int] = ..., simulated: _Optional[bool] = ..., waits: _Optional[_Iterable[_Union[Wait, _Mapping]]] = ..., short_node_id: _Optional[str] = ..., net: _Optional[_Union[Amounts, _Mapping]] = ...) -> None: ...

class Wait(_message.Message):
    __slots__ = ("machine_id", "machine", "host_id", "host", "millicores", "share_millicores")
    MACHINE_ID_FIELD_NUMBER: _ClassVar[int]
    MACHINE_FIELD_NUMBER: _ClassVar[int]
    HOST_ID_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    MILLICORES_FIELD_NUMBER: _ClassVar[int]
    SHARE_MILLICORES_FIELD_NUMBER: _ClassVar[int]
    machine_id: str
    machine: str
    host_id: str
    host: str
    millicores: int
    share_millicores: int
    def __init__(self, machine_id: _Optional[str] = ..., machine: _Optional[str] = ..., host_id: _Optional[str] = ..., host: _Optional[str] = ..., millicores: _Optional[int] = ..., share_millicores: _Optional[int] = ...) -> None: ...

class PlanRequest(_message.Message):
    __slots__ = ("plan_id",)
    PLAN_ID_FIELD_NUMBER: _ClassVar[int]
    plan_id: str
    def __init__(self, plan_id: _Optional[str] = ...) -> None: ...

class PlanReply(_message.Message):
    __slots__ = ("found", "plan_id", "cycle", "verdict", "steps", "rejections", "made_at_unix_ns")
    FOUND_FIELD_NUMBER: _ClassVar[int]
    PLAN_ID_FIELD_NUMBER: _ClassVar[int]
    CYCLE_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    REJECTIONS_FIELD_NUMBER: _ClassVar[int]
    MADE_AT_UNIX_NS_FIELD_NUMBER: _ClassVar[int]
    found: bool
    plan_id: str
    cycle: int
    verdict: str
    steps: _containers.RepeatedCompositeFieldContainer[PlanStep]
    rejections: _containers.RepeatedCompositeFieldContainer[Broken]
    made_at_unix_ns: int
    def __init__(self, found: _Optional[bool] = ..., plan_id: _Optional[str] = ..., cycle: _Optional[int] = ..., verdict: _Optional[str] = ..., steps: _Optional[_Iterable[_Union[PlanStep, _Mapping]]] = ..., rejections: _Optional[_Iterable[_Union[Broken, _Mapping]]] = ..., made_at_unix_ns: _Optional[int] = ...) -> None: ...

class PlanStep(_message.Message):
    __slots__ = ("index", "phase", "vm_id", "vm_name", "resource", "from_amount", "to_amount", "why", "outcome")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    VM_ID_FIELD_NUMBER: _ClassVar[int]
    VM_NAME_FIELD_NUMBER: _ClassVar[int]
    RESOURCE_FIELD_NUMBER: _ClassVar[int]
    FROM_AMOUNT_FIELD_NUMBER: _ClassVar[int]
    TO_AMOUNT_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    index: int
    phase: int
    vm_id: str
    vm_name: str
    resource: str
    from_amount: int
    to_amount: int
    why: str
    outcome: str
    def __init__(self, index: _Optional[int] = ..., phase: _Optional[int] = ..., vm_id: _Optional[str] = ..., vm_name: _Optional[str] = ..., resource: _Optional[str] = ..., from_amount: _Optional[int] = ..., to_amount: _Optional[int] = ..., why: _Optional[str] = ..., outcome: _Optional[str] = ...) -> None: ...

class Broken(_message.Message):
    __slots__ = ("node_id", "invariant", "detail")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    INVARIANT_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    invariant: str
    detail: str
    def __init__(self, node_id: _Optional[str] = ..., invariant: _Optional[str] = ..., detail: _Optional[str] = ...) -> None: ...

class ExplainRequest(_message.Message):
    __slots__ = ("vm",)
    VM_FIELD_NUMBER: _ClassVar[int]
    vm: str
    def __init__(self, vm: _Optional[str] = ...) -> None: ...

class Explanation(_message.Message):
    __slots__ = ("found", "vm", "resources", "inside")
    FOUND_FIELD_NUMBER: _ClassVar[int]
    VM_FIELD_NUMBER: _ClassVar[int]
    RESOURCES_FIELD_NUMBER: _ClassVar[int]
    INSIDE_FIELD_NUMBER: _ClassVar[int]
    found: bool
    vm: VmRow
    resources: _containers.RepeatedCompositeFieldContainer[ResourceExplanation]
    inside: Inside
    def __init__(self, found: _Optional[bool] = ..., vm: _Optional[_Union[VmRow, _Mapping]] = ..., resources: _Optional[_Iterable[_Union[ResourceExplanation, _Mapping]]] = ..., inside: _Optional[_Union[Inside, _Mapping]] = ...) -> None: ...

class ResourceExplanation(_message.Message):
    __slots__ = ("resource", "options", "chosen", "why", "price_micro", "without_forecast", "forecast_mattered", "forecast_unlike")
    RESOURCE_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    CHOSEN_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    PRICE_MICRO_FIELD_NUMBER: _ClassVar[int]
    WITHOUT_FORECAST_FIELD_NUMBER: _ClassVar[int]
    FORECAST_MATTERED_FIELD_NUMBER: _ClassVar[int]
    FORECAST_UNLIKE_FIELD_NUMBER: _ClassVar[int]
    resource: str
    options: _containers.RepeatedCompositeFieldContainer[Option]
    chosen: int
    why: str
    price_micro: int
    without_forecast: int
    forecast_mattered: str
    forecast_unlike: str
    def __init__(self, resource: _Optional[str] = ..., options: _Optional[_Iterable[_Union[Option, _Mapping]]] = ..., chosen: _Optional[int] = ..., why: _Optional[str] = ..., price_micro: _Optional[int] = ..., without_forecast: _Optional[int] = ..., forecast_mattered: _Optional[str] = ..., forecast_unlike: _Optional[str] = ...) -> None: ...

class Option(_message.Message):
    __slots__ = ("level", "value", "probability_enough", "allowed", "net_value")
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    PROBABILITY_ENOUGH_FIELD_NUMBER: _ClassVar[int]
    ALLOWED_FIELD_NUMBER: _ClassVar[int]
    NET_VALUE_FIELD_NUMBER: _ClassVar[int]
    level: int
    value: int
    probability_enough: float
    allowed: bool
    net_value: int
    def __init__(self, level: _Optional[int] = ..., value: _Optional[int] = ..., probability_enough: _Optional[float] = ..., allowed: _Optional[bool] = ..., net_value: _Optional[int] = ...) -> None: ...

class WatchRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Event(_message.Message):
    __slots__ = ("at_unix_ns", "kind", "text", "node_id", "plan_id")
    AT_UNIX_NS_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    PLAN_ID_FIELD_NUMBER: _ClassVar[int]
    at_unix_ns: int
    kind: str
    text: str
    node_id: str
    plan_id: str
    def __init__(self, at_unix_ns: _Optional[int] = ..., kind: _Optional[str] = ..., text: _Optional[str] = ..., node_id: _Optional[str] = ..., plan_id: _Optional[str] = ...) -> None: ...

class ApproveRequest(_message.Message):
    __slots__ = ("plan_id", "by")
    PLAN_ID_FIELD_NUMBER: _ClassVar[int]
    BY_FIELD_NUMBER: _ClassVar[int]
    plan_id: str
    by: str
    def __init__(self, plan_id: _Optional[str] = ..., by: _Optional[str] = ...) -> None: ...

class RejectRequest(_message.Message):
    __slots__ = ("plan_id", "by", "why")
    PLAN_ID_FIELD_NUMBER: _ClassVar[int]
    BY_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    plan_id: str
    by: str
    why: str
    def __init__(self, plan_id: _Optional[str] = ..., by: _Optional[str] = ..., why: _Optional[str] = ...) -> None: ...

class PinRequest(_message.Message):
    __slots__ = ("vm", "resource", "amount", "ttl_seconds", "release", "by")
    VM_FIELD_NUMBER: _ClassVar[int]
    RESOURCE_FIELD_NUMBER: _ClassVar[int]
    AMOUNT_FIELD_NUMBER: _ClassVar[int]
    TTL_SECONDS_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    BY_FIELD_NUMBER: _ClassVar[int]
    vm: str
    resource: str
    amount: int
    ttl_seconds: int
    release: bool
    by: str
    def __init__(self, vm: _Optional[str] = ..., resource: _Optional[str] = ..., amount: _Optional[int] = ..., ttl_seconds: _Optional[int] = ..., release: _Optional[bool] = ..., by: _Optional[str] = ...) -> None: ...

class FreezeRequest(_message.Message):
    __slots__ = ("vm", "ttl_seconds", "release", "by")
    VM_FIELD_NUMBER: _ClassVar[int]
    TTL_SECONDS_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    BY_FIELD_NUMBER: _ClassVar[int]
    vm: str
    ttl_seconds: int
    release: bool
    by: str
    def __init__(self, vm: _Optional[str] = ..., ttl_seconds: _Optional[int] = ..., release: _Optional[bool] = ..., by: _Optional[str] = ...) -> None: ...

class ModeRequest(_message.Message):
    __slots__ = ("target", "mode", "by")
    TARGET_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    BY_FIELD_NUMBER: _ClassVar[int]
    target: str
    mode: str
    by: str
    def __init__(self, target: _Optional[str] = ..., mode: _Optional[str] = ..., by: _Optional[str] = ...) -> None: ...

class Changed(_message.Message):
    __slots__ = ("done", "detail")
    DONE_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    done: bool
    detail: str
    def __init__(self, done: _Optional[bool] = ..., detail: _Optional[str] = ...) -> None: ...
