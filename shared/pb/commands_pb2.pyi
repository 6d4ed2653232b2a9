from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Resource(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RESOURCE_UNSPECIFIED: _ClassVar[Resource]
    RESOURCE_CPU: _ClassVar[Resource]
    RESOURCE_MEMORY: _ClassVar[Resource]
    RESOURCE_IO: _ClassVar[Resource]

class Outcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OUTCOME_UNSPECIFIED: _ClassVar[Outcome]
    OUTCOME_APPLIED: _ClassVar[Outcome]
    OUTCOME_PARTIAL: _ClassVar[Outcome]
    OUTCOME_NO_EFFECT: _ClassVar[Outcome]
    OUTCOME_UNCHANGED: _ClassVar[Outcome]
    OUTCOME_GONE: _ClassVar[Outcome]
    OUTCOME_REFUSED: _ClassVar[Outcome]
    OUTCOME_FAILED: _ClassVar[Outcome]
    OUTCOME_DRY_RUN: _ClassVar[Outcome]
RESOURCE_UNSPECIFIED: Resource
RESOURCE_CPU: Resource
RESOURCE_MEMORY: Resource
RESOURCE_IO: Resource
OUTCOME_UNSPECIFIED: Outcome
OUTCOME_APPLIED: Outcome
OUTCOME_PARTIAL: Outcome
OUTCOME_NO_EFFECT: Outcome
OUTCOME_UNCHANGED: Outcome
OUTCOME_GONE: Outcome
OUTCOME_REFUSED: Outcome
OUTCOME_FAILED: Outcome
OUTCOME_DRY_RUN: Outcome

class AgentMessage(_message.Message):
    __slots__ = ("hello", "ack", "beat")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    ACK_FIELD_NUMBER: _ClassVar[int]
    BEAT_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    ack: Ack
    beat: Beat
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., ack: _Optional[_Union[Ack, _Mapping]] = ..., beat: _Optional[_Union[Beat, _Mapping]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("node_id", "node_name", "boot_id", "version", "epoch_highest", "agent_tick_ns", "generation", "run_id")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    NODE_NAME_FIELD_NUMBER: _ClassVar[int]
    BOOT_ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_HIGHEST_FIELD_NUMBER: _ClassVar[int]
    AGENT_TICK_NS_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    node_name: str
    boot_id: str
    version: str
    epoch_highest: int
    agent_tick_ns: int
    generation: int
    run_id: str
    def __init__(self, node_id: _Optional[str] = ..., node_name: _Optional[str] = ..., boot_id: _Optional[str] = ..., version: _Optional[str] = ..., epoch_highest: _Optional[int] = ..., agent_tick_ns: _Optional[int] = ..., generation: _Optional[int] = ..., run_id: _Optional[str] = ...) -> None: ...

class Beat(_message.Message):
    __slots__ = ("agent_tick_ns", "generation", "epoch_highest")
    AGENT_TICK_NS_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_HIGHEST_FIELD_NUMBER: _ClassVar[int]
    agent_tick_ns: int
    generation: int
    epoch_highest: int
    def __init__(self, agent_tick_ns: _Optional[int] = ..., generation: _Optional[int] = ..., epoch_highest: _Optional[int] = ...) -> None: ...

class ControllerMessage(_message.Message):
    __slots__ = ("apply", "renew", "net_limits")
    APPLY_FIELD_NUMBER: _ClassVar[int]
    RENEW_FIELD_NUMBER: _ClassVar[int]
    NET_LIMITS_FIELD_NUMBER: _ClassVar[int]
    apply: Apply
    renew: Renew
    net_limits: NetLimits
    def __init__(self, apply: _Optional[_Union[Apply, _Mapping]] = ..., renew: _Optional[_Union[Renew, _Mapping]] = ..., net_limits: _Optional[_Union[NetLimits, _Mapping]] = ...) -> None: ...

class Header(_message.Message):
    __slots__ = ("command_id", "plan_id", "epoch", "sequence", "based_on_generation", "agent_tick_ns", "ttl_ms", "lease_ms", "dry_run")
    COMMAND_ID_FIELD_NUMBER: _ClassVar[int]
    PLAN_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    BASED_ON_GENERATION_FIELD_NUMBER: _ClassVar[int]
    AGENT_TICK_NS_FIELD_NUMBER: _ClassVar[int]
    TTL_MS_FIELD_NUMBER: _ClassVar[int]
    LEASE_MS_FIELD_NUMBER: _ClassVar[int]
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    command_id: str
    plan_id: str
    epoch: int
    sequence: int
    based_on_generation: int
    agent_tick_ns: int
    ttl_ms: int
    lease_ms: int
    dry_run: bool
    def __init__(self, command_id: _Optional[str] = ..., plan_id: _Optional[str] = ..., epoch: _Optional[int] = ..., sequence: _Optional[int] = ..., based_on_generation: _Optional[int] = ..., agent_tick_ns: _Optional[int] = ..., ttl_ms: _Optional[int] = ..., lease_ms: _Optional[int] = ..., dry_run: _Optional[bool] = ...) -> None: ...

class Apply(_message.Message):
    __slots__ = ("header", "steps", "fallback", "leash", "reserve")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    FALLBACK_FIELD_NUMBER: _ClassVar[int]
    LEASH_FIELD_NUMBER: _ClassVar[int]
    RESERVE_FIELD_NUMBER: _ClassVar[int]
    header: Header
    steps: _containers.RepeatedCompositeFieldContainer[Step]
    fallback: _containers.RepeatedCompositeFieldContainer[Fallback]
    leash: _containers.RepeatedCompositeFieldContainer[Leash]
    reserve: _containers.RepeatedCompositeFieldContainer[Reserve]
    def __init__(self, header: _Optional[_Union[Header, _Mapping]] = ..., steps: _Optional[_Iterable[_Union[Step, _Mapping]]] = ..., fallback: _Optional[_Iterable[_Union[Fallback, _Mapping]]] = ..., leash: _Optional[_Iterable[_Union[Leash, _Mapping]]] = ..., reserve: _Optional[_Iterable[_Union[Reserve, _Mapping]]] = ...) -> None: ...

class Step(_message.Message):
    __slots__ = ("index", "vm_id", "resource", "from_amount", "to_amount", "floor_amount", "ceiling_amount", "deadline_ms")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    VM_ID_FIELD_NUMBER: _ClassVar[int]
    RESOURCE_FIELD_NUMBER: _ClassVar[int]
    FROM_AMOUNT_FIELD_NUMBER: _ClassVar[int]
    TO_AMOUNT_FIELD_NUMBER: _ClassVar[int]
    FLOOR_AMOUNT_FIELD_NUMBER: _ClassVar[int]
    CEILING_AMOUNT_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_MS_FIELD_NUMBER: _ClassVar[int]
    index: int
    vm_id: str
    resource: Resource
    from_amount: int
    to_amount: int
    floor_amount: int
    ceiling_amount: int
    deadline_ms: int
    def __init__(self, index: _Optional[int] = ..., vm_id: _Optional[str] = ..., resource: _Optional[_Union[Resource, str]] = ..., from_amount: _Optional[int] = ..., to_amount: _Optional[int] = ..., floor_amount: _Optional[int] = ..., ceiling_amount: _Optional[int] = ..., deadline_ms: _Optional[int] = ...) -> None: ...

class Fallback(_message.Message):
    __slots__ = ("vm_id", "resource", "amount")
    VM_ID_FIELD_NUMBER: _ClassVar[int]
    RESOURCE_FIELD_NUMBER: _ClassVar[int]
    AMOUNT_FIELD_NUMBER: _ClassVar[int]
    vm_id: str
    resource: Resource
    amount: int
    def __init__(self, vm_id: _Optional[str] = ..., resource: _Optional[_Union[Resource, str]] = ..., amount: _Optional[int] = ...) -> None: ...

class Leash(_message.Message):
    __slots__ = ("vm_id", "resource", "low_amount", "high_amount", "plan_amount")
    VM_ID_FIELD_NUMBER: _ClassVar[int]
    RESOURCE_FIELD_NUMBER: _ClassVar[int]
    LOW_AMOUNT_FIELD_NUMBER: _ClassVar[int]
    HIGH_AMOUNT_FIELD_NUMBER: _ClassVar[int]
    PLAN_AMOUNT_FIELD_NUMBER: _ClassVar[int]
    vm_id: str
    resource: Resource
    low_amount: int
    high_amount: int
    plan_amount: int
    def __init__(self, vm_id: _Optional[str] = ..., resource: _Optional[_Union[Resource, str]] = ..., low_amount: _Optional[int] = ..., high_amount: _Optional[int] = ..., plan_amount: _Optional[int] = ...) -> None: ...

class Reserve(_message.Message):
    __slots__ = ("resource", "amount")
    RESOURCE_FIELD_NUMBER: _ClassVar[int]
    AMOUNT_FIELD_NUMBER: _ClassVar[int]
    resource: Resource
    amount: int
    def __init__(self, resource: _Optional[_Union[Resource, str]] = ..., amount: _Optional[int] = ...) -> None: ...

class Renew(_message.Message):
    __slots__ = ("header", "fallback", "leash", "reserve")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    FALLBACK_FIELD_NUMBER: _ClassVar[int]
    LEASH_FIELD_NUMBER: _ClassVar[int]
    RESERVE_FIELD_NUMBER: _ClassVar[int]
    header: Header
    fallback: _containers.RepeatedCompositeFieldContainer[Fallback]
    leash: _containers.RepeatedCompositeFieldContainer[Leash]
    reserve: _containers.RepeatedCompositeFieldContainer[Reserve]
    def __init__(self, header: _Optional[_Union[Header, _Mapping]] = ..., fallback: _Optional[_Iterable[_Union[Fallback, _Mapping]]] = ..., leash: _Optional[_Iterable[_Union[Leash, _Mapping]]] = ..., reserve: _Optional[_Iterable[_Union[Reserve, _Mapping]]] = ...) -> None: ...

class NetLimits(_message.Message):
    __slots__ = ("header", "limits")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    header: Header
    limits: _containers.RepeatedCompositeFieldContainer[NetLimit]
    def __init__(self, header: _Optional[_Union[Header, _Mapping]] = ..., limits: _Optional[_Iterable[_Union[NetLimit, _Mapping]]] = ...) -> None: ...

class NetLimit(_message.Message):
    __slots__ = ("vm_id", "bytes_per_s")
    VM_ID_FIELD_NUMBER: _ClassVar[int]
    BYTES_PER_S_FIELD_NUMBER: _ClassVar[int]
    vm_id: str
    bytes_per_s: int
    def __init__(self, vm_id: _Optional[str] = ..., bytes_per_s: _Optional[int] = ...) -> None: ...

class Ack(_message.Message):
    __slots__ = ("command_id", "plan_id", "epoch", "generation", "agent_tick_ns", "accepted", "refusal", "results")
    COMMAND_ID_FIELD_NUMBER: _ClassVar[int]
    PLAN_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    AGENT_TICK_NS_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    command_id: str
    plan_id: str
    epoch: int
    generation: int
    agent_tick_ns: int
    accepted: bool
    refusal: str
    results: _containers.RepeatedCompositeFieldContainer[StepResult]
    def __init__(self, command_id: _Optional[str] = ..., plan_id: _Optional[str] = ..., epoch: _Optional[int] = ..., generation: _Optional[int] = ..., agent_tick_ns: _Optional[int] = ..., accepted: _Optional[bool] = ..., refusal: _Optional[str] = ..., results: _Optional[_Iterable[_Union[StepResult, _Mapping]]] = ...) -> None: ...

class StepResult(_message.Message):
    __slots__ = ("index", "outcome", "detail", "before_amount", "after_amount", "host_freed_bytes", "took_ms")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    BEFORE_AMOUNT_FIELD_NUMBER: _ClassVar[int]
    AFTER_AMOUNT_FIELD_NUMBER: _ClassVar[int]
    HOST_FREED_BYTES_FIELD_NUMBER: _ClassVar[int]
    TOOK_MS_FIELD_NUMBER: _ClassVar[int]
    index: int
    outcome: Outcome
    detail: str
    before_amount: int
    after_amount: int
    host_freed_bytes: int
    took_ms: int
    def __init__(self, index: _Optional[int] = ..., outcome: _Optional[_Union[Outcome, str]] = ..., detail: _Optional[str] = ..., before_amount: _Optional[int] = ..., after_amount: _Optional[int] = ..., host_freed_bytes: _Optional[int] = ..., took_ms: _Optional[int] = ...) -> None: ...
