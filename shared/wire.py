"""Telemetry and audit records as bytes: msgpack, one message per node and tick.

All VMs of a node travel as columns: one little-endian int64 array per reading, so that the
reader touches a handful of objects instead of one per VM and value. Every decoder here takes
whatever bytes a stranger may send and answers with a value or with `WireError`, nothing else.
A message must be as long as its shortest encoding: that is how repeated keys, which the typed
decoder would let pass, are found.
"""

import re
import sys
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Annotated, Any, Literal, cast

import msgpack  # type: ignore[import-untyped]  # it ships no types
import msgspec
from msgspec import Meta, Struct

from shared.errors import WireError
from shared.resources import Resource
from shared.subjects import is_machine_id
from shared.telemetry import Loan, NodeReadings, NodeSample, RoleUse, VmSample, VmState

VERSION = 2
MISSING = -1  # a reading that could not be had, in columns; None in values
VALUE_MAX = 2**62  # below it no sum of two readings leaves int64

# Causes of WireError that decoding can name; whoever receives adds causes of its own.
CAUSES = ("oversized", "malformed", "version", "schema", "range")

# The readings of a VM in the order of VmSample, and its state.
COLUMN_NAMES = tuple(f.name for f in fields(VmSample) if f.name not in {"vm_id", "name"})
NODE_READING_NAMES = tuple(f.name for f in fields(NodeReadings))


@dataclass(frozen=True, slots=True)
class WireLimits:
    """What a receiver accepts. NATS carries at most 1 MiB per message, its headers included."""

    message_bytes: int = 1024 * 1024 - 8 * 1024
    vms: int = 4096
    name_characters: int = 256


@dataclass(frozen=True, slots=True)
class NodeBlock:
    """A NodeSample with its VMs as columns; row i of each belongs to `vm_ids[i]`."""

    node_id: str
    name: str
    role: str
    boot_id: str
    sequence: int
    sampled_at_unix_ns: int
    tick_ns: int
    interval_ns: int
    generation: int
    epoch_highest: int
    simulated: bool
    levers: dict[str, str]
    node: NodeReadings
    vm_ids: tuple[str, ...]
    vm_names: tuple[str, ...]
    columns: Mapping[str, "array[int]"]  # by COLUMN_NAMES; MISSING where there was no reading
    loans: tuple[Loan, ...] = ()
    roles: tuple[RoleUse, ...] = ()

    def sample(self) -> NodeSample:
        """The same as values, one object per VM: for people, records and tests."""
        header = {name: getattr(self, name) for name in _HEADER_NAMES}
        rows = zip(*(self.columns[name] for name in COLUMN_NAMES), strict=True)
        vms = map(_vm_sample, self.vm_ids, self.vm_names, rows)
        return NodeSample(
            **header,
            levers=self.levers,
            node=self.node,
            vms=tuple(vms),
            loans=self.loans,
            roles=self.roles,
        )


def encode(sample: NodeSample) -> bytes:
    """`sample` as a message; WireError when it holds what no receiver would accept."""
    message: dict[str, Any] = {"version": VERSION}
    for name in _HEADER_NAMES:
        message[name] = getattr(sample, name)
    message["levers"] = sample.levers
    message["node"] = dict(zip(NODE_READING_NAMES, _node_row(sample.node), strict=True))
    message["vm_ids"] = [vm.vm_id for vm in sample.vms]
    message["vm_names"] = [vm.name for vm in sample.vms]
    message["columns"] = _pack_columns(sample.vms)
    message["loans"] = [_loan_row(loan) for loan in sample.loans]
    message["roles"] = [_role_row(role) for role in sample.roles]
    return _packb(message)


def decode(data: bytes, limits: WireLimits = WireLimits()) -> NodeBlock:
    """The sample in `data`; WireError(cause, detail), cause one of CAUSES, for any other bytes."""
    if len(data) > limits.message_bytes:
        raise WireError("oversized", f"{len(data)} bytes, {limits.message_bytes} are allowed")
    message = _decode_message(data)
    _check_message(message, limits)
    columns = {
        name: _unpack_column(name, message.columns[name], len(message.vm_ids))
        for name in COLUMN_NAMES
    }
    header = {name: getattr(message, name) for name in _HEADER_NAMES}
    return NodeBlock(
        **header,
        levers=message.levers,
        node=NodeReadings(**message.node),
        vm_ids=tuple(message.vm_ids),
        vm_names=tuple(message.vm_names),
        columns=columns,
        loans=tuple(Loan(*row) for row in message.loans),
        roles=tuple(RoleUse(*row) for row in message.roles),
    )


def pack_record(record: Mapping[str, Any]) -> bytes:
    """A record of None, bool, int64, float, str, bytes, lists and maps with text keys as bytes.

    Tuples come back as lists. WireError for anything else.
    """
    _check_record(record, RECORD_DEPTH_MAX)
    return _packb(record)


def unpack_record(data: bytes, max_bytes: int = 1024 * 1024) -> dict[str, Any]:
    """The record in `data`; WireError for bytes that `pack_record` could not have written."""
    if len(data) > max_bytes:
        raise WireError("oversized", f"{len(data)} bytes, {max_bytes} are allowed")
    try:
        record = _RECORD_DECODER.decode(data)
        shortest = len(_ENCODER.encode(record))
    except _DECODE_ERRORS as error:
        raise WireError("malformed", _excerpt(error)) from None
    _check_record(record, RECORD_DEPTH_MAX)
    _check_shortest(data, shortest)
    return record


# ---- the schema ----

RECORD_DEPTH_MAX = 16  # maps and lists inside each other in an audit record

_Count = Annotated[int, Meta(ge=0, le=VALUE_MAX)]
_Text = Annotated[str, Meta(max_length=256)]
_Lever = Annotated[str, Meta(max_length=32)]
_Reason = Annotated[str, Meta(max_length=1024)]
_Role = Annotated[str, Meta(max_length=64)]
_Resource = Annotated[int, Meta(ge=0, lt=len(Resource))]
_LoanRow = tuple[_Text, _Resource, _Count, _Count, _Count]
_RoleRow = tuple[_Role, _Count, _Count | None, _Count | None]


class _Message(Struct, forbid_unknown_fields=True, kw_only=True):
    version: Annotated[int, Meta(ge=VERSION, le=VERSION)]
    node_id: _Text
    name: _Text
    role: Literal["host", "guest", "host+guest"]
    boot_id: _Text
    sequence: _Count
    sampled_at_unix_ns: _Count
    tick_ns: _Count
    interval_ns: _Count
    generation: _Count
    epoch_highest: _Count
    simulated: bool
    levers: Annotated[dict[_Lever, _Reason], Meta(max_length=16)]
    node: Annotated[dict[_Text, _Count | None], Meta(max_length=len(NODE_READING_NAMES))]
    vm_ids: Annotated[list[_Text], Meta(max_length=65536)]
    vm_names: Annotated[list[str], Meta(max_length=65536)]
    columns: Annotated[dict[_Text, bytes], Meta(max_length=len(COLUMN_NAMES))]
    loans: Annotated[list[_LoanRow], Meta(max_length=65536)]
    roles: Annotated[list[_RoleRow], Meta(max_length=64)]


class _Versioned(Struct):
    """Only the version, of a message in whatever schema."""

    version: int


_HEADER_NAMES = (
    "node_id",
    "name",
    "role",
    "boot_id",
    "sequence",
    "sampled_at_unix_ns",
    "tick_ns",
    "interval_ns",
    "generation",
    "epoch_highest",
    "simulated",
)
_NODE_READING_SET = frozenset(NODE_READING_NAMES)
_COLUMN_SET = frozenset(COLUMN_NAMES)
_STATES = tuple(VmState)

_node_row = attrgetter(*NODE_READING_NAMES)
_vm_row = attrgetter(*COLUMN_NAMES)
_loan_row = attrgetter(*(f.name for f in fields(Loan)))
_role_row = attrgetter(*(f.name for f in fields(RoleUse)))

_DECODER = msgspec.msgpack.Decoder(_Message)
_VERSION_DECODER = msgspec.msgpack.Decoder(_Versioned)
_RECORD_DECODER = msgspec.msgpack.Decoder(dict[str, Any])
_ENCODER = msgspec.msgpack.Encoder()

# ValueError: what msgspec raises, and text that is no UTF-8. RecursionError: a thousand arrays in
# each other. TypeError: an unhashable key. OverflowError: a timestamp outside the calendar.
_DECODE_ERRORS = (ValueError, RecursionError, TypeError, OverflowError)
_OUT_OF_RANGE = re.compile(r"Expected `int` [<>]=")


def _packb(value: Mapping[str, Any]) -> bytes:
    try:
        return cast("bytes", msgpack.packb(value))
    except UnicodeEncodeError as error:  # a name that was read from bytes that are no UTF-8
        raise WireError("malformed", _excerpt(error)) from None
    except OverflowError as error:
        raise WireError("range", _excerpt(error)) from None
    except (TypeError, ValueError) as error:
        raise WireError("schema", _excerpt(error)) from None


# ---- telemetry ----


def _pack_columns(vms: Sequence[VmSample]) -> dict[str, bytes]:
    if not vms:
        return dict.fromkeys(COLUMN_NAMES, b"")
    columns = zip(*map(_vm_row, vms), strict=True)
    return {
        name: _pack_column(name, column) for name, column in zip(COLUMN_NAMES, columns, strict=True)
    }


def _pack_column(name: str, readings: Sequence[int | None]) -> bytes:
    if None in readings:
        present = [reading for reading in readings if reading is not None]
        values = array("q", [MISSING if reading is None else reading for reading in readings])
    else:
        present = cast("list[int]", readings)
        values = array("q", present)
    if present and (min(present) < 0 or max(present) > VALUE_MAX):
        raise WireError("range", f"{name} holds {min(present)} to {max(present)}")
    if sys.byteorder == "big":
        values.byteswap()
    return values.tobytes()


def _decode_message(data: bytes) -> _Message:
    try:
        message = _DECODER.decode(data)
    except msgspec.ValidationError as error:
        raise _refusal(data, error) from None
    except _DECODE_ERRORS as error:
        raise WireError("malformed", _excerpt(error)) from None
    _check_shortest(data, len(_ENCODER.encode(message)))
    return message


def _refusal(data: bytes, error: msgspec.ValidationError) -> WireError:
    """Why bytes that are msgpack are no message: above all, another version of it."""
    try:
        version = _VERSION_DECODER.decode(data).version
    except msgspec.ValidationError:
        return WireError("schema", _excerpt(error))
    except _DECODE_ERRORS as broken:
        return WireError("malformed", _excerpt(broken))
    if version != VERSION:
        return WireError("version", f"{version}, {VERSION} is understood here")
    cause = "range" if _OUT_OF_RANGE.match(str(error)) else "schema"
    return WireError(cause, _excerpt(error))


def _check_message(message: _Message, limits: WireLimits) -> None:
    ids, names = message.vm_ids, message.vm_names
    if len(ids) > limits.vms:
        raise WireError("oversized", f"{len(ids)} VMs, {limits.vms} are allowed")
    if len(names) != len(ids):
        raise WireError("schema", f"{len(names)} names for {len(ids)} VMs")
    if names and max(map(len, names)) > limits.name_characters:
        raise WireError("oversized", f"a VM name over {limits.name_characters} characters")
    if not is_machine_id(message.node_id) or not all(map(is_machine_id, ids)):
        raise WireError("schema", "an identity that is no lower-case UUID")
    if len(set(ids)) != len(ids):
        raise WireError("schema", "two VMs with one identity")
    if not set(ids).issuperset(row[0] for row in message.loans):
        raise WireError("schema", "a loan to a VM that is not in the message")
    if message.node.keys() != _NODE_READING_SET or message.columns.keys() != _COLUMN_SET:
        raise WireError("schema", "readings other than those of this version")


def _unpack_column(name: str, packed: bytes, count: int) -> "array[int]":
    if len(packed) != 8 * count:
        raise WireError("schema", f"{name} has {len(packed)} bytes for {count} VMs")
    values = array("q")
    values.frombytes(packed)
    if sys.byteorder == "big":
        values.byteswap()
    lowest, highest = (0, len(_STATES) - 1) if name == "state" else (MISSING, VALUE_MAX)
    if count and (min(values) < lowest or max(values) > highest):
        raise WireError("range", f"{name} holds {min(values)} to {max(values)}")
    return values


def _vm_sample(vm_id: str, name: str, row: Sequence[int]) -> VmSample:
    readings: dict[str, Any] = {
        column: None if value == MISSING else value
        for column, value in zip(COLUMN_NAMES, row, strict=True)
    }
    readings["state"] = _STATES[row[0]]
    return VmSample(vm_id, name, **readings)


# ---- records and both ----


def _check_record(value: object, depth: int) -> None:
    """Maps with text keys, lists and scalars, at most `depth` inside each other."""
    if value is None or isinstance(value, (str, bytes, int, float)):
        return
    if depth == 0:
        raise WireError("schema", f"nested deeper than {RECORD_DEPTH_MAX}")
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise WireError("schema", f"a key of type {type(key).__name__}, text is needed")
            _check_record(item, depth - 1)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _check_record(item, depth - 1)
    else:
        raise WireError("schema", f"a value of type {type(value).__name__}")


def _check_shortest(data: bytes, shortest: int) -> None:
    if len(data) != shortest:
        raise WireError("malformed", f"{len(data)} bytes where {shortest} say it: a repeated key?")


def _excerpt(error: Exception) -> str:
    return str(error)[:200]
