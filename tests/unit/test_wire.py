"""The wire format: what goes in comes out, and whatever strangers send is refused by name."""

from dataclasses import fields, replace

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared import wire
from shared.errors import WireError
from shared.telemetry import Loan, NodeReadings, NodeSample, RoleUse, VmSample, VmState

NODE = "00000000-0000-4000-8000-000000000001"
VM = "00000000-0000-4000-8000-0000000000aa"
OTHER_VM = "00000000-0000-4000-8000-0000000000bb"

readings = st.none() | st.integers(0, wire.VALUE_MAX)
counts = st.integers(0, wire.VALUE_MAX)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
identities = st.uuids().map(str)
vm_samples = st.builds(
    VmSample,
    vm_id=identities,
    name=texts,
    state=st.sampled_from(VmState),
    **{f.name: readings for f in fields(VmSample) if f.name not in {"vm_id", "name", "state"}},
)
samples = st.builds(
    NodeSample,
    node_id=identities,
    name=texts,
    role=st.sampled_from(["host", "guest", "host+guest"]),
    boot_id=texts,
    sequence=counts,
    sampled_at_unix_ns=counts,
    tick_ns=counts,
    interval_ns=counts,
    generation=counts,
    epoch_highest=counts,
    simulated=st.booleans(),
    levers=st.dictionaries(st.sampled_from(["cpu", "memory", "io"]), texts),
    node=st.builds(NodeReadings, **{f.name: readings for f in fields(NodeReadings)}),
    vms=st.lists(vm_samples, max_size=4, unique_by=lambda vm: vm.vm_id).map(tuple),
    roles=st.lists(
        st.builds(RoleUse, texts, counts, readings, readings), max_size=3, unique_by=str
    ).map(tuple),
)


def example() -> NodeSample:
    return NodeSample(
        node_id=NODE,
        name="host-1",
        role="host",
        boot_id="boot",
        sequence=7,
        sampled_at_unix_ns=1_700_000_000_000_000_000,
        tick_ns=5_000_000_000,
        interval_ns=10_000_000_000,
        levers={"memory": "", "io": "no cgroup"},
        node=NodeReadings(memory_total_bytes=2**34, cpu_used_millicores=0),
        vms=(
            VmSample(VM, "guest-1", memory_used_bytes=2**28, cpu_used_millicores=150),
            VmSample(OTHER_VM, "guest-2", VmState.PAUSED, memory_stats_age_ns=0),
        ),
        loans=(Loan(VM, 1, 2**28, 2**28 + 2**26, 2**29),),
        roles=(RoleUse("database", 3, 120, 2**27), RoleUse("other", 40)),
    )


def cause_of(data: bytes, limits: wire.WireLimits | None = None) -> str:
    with pytest.raises(WireError) as refusal:
        wire.decode(data, limits or wire.WireLimits())
    assert refusal.value.cause in wire.CAUSES
    assert len(str(refusal.value)) < 400
    return refusal.value.cause


def accepted(decoder, data: bytes):
    """What `decoder` makes of `data`; None when it refuses in the way that it may."""
    try:
        return decoder(data)
    except WireError as error:
        refusal = error
    assert refusal.cause in wire.CAUSES
    return None


@settings(max_examples=60, deadline=None)
@given(samples)
def test_what_goes_in_comes_out(sample):
    assert wire.decode(wire.encode(sample)).sample() == sample


def test_columns_hold_one_value_per_vm_and_minus_one_where_there_was_no_reading():
    block = wire.decode(wire.encode(example()))
    assert block.vm_ids == (VM, OTHER_VM)
    assert block.vm_names == ("guest-1", "guest-2")
    assert set(block.columns) == set(wire.COLUMN_NAMES)
    assert list(block.columns["cpu_used_millicores"]) == [150, wire.MISSING]
    assert list(block.columns["memory_stats_age_ns"]) == [wire.MISSING, 0]
    assert list(block.columns["state"]) == [VmState.RUNNING, VmState.PAUSED]
    assert block.columns["state"].typecode == "q"


def test_columns_are_little_endian_whatever_machine_wrote_them():
    packed = msgpack.unpackb(wire.encode(example()))["columns"]["memory_used_bytes"]
    assert packed == bytes([0, 0, 0, 16, 0, 0, 0, 0]) + b"\xff" * 8


def test_fifty_vms_fit_in_ten_kilobytes():
    assert len(wire.encode(fleet(50))) < 16 * 1024


def test_a_node_without_vms_is_a_message_too():
    lonely = replace(example(), vms=(), loans=())
    assert wire.decode(wire.encode(lonely)).sample() == lonely


def fleet(count: int) -> NodeSample:
    vms = (VmSample(f"00000000-0000-4000-8000-{i:012x}", f"vm{i}") for i in range(count))
    return replace(example(), vms=tuple(vms), loans=())


# ---- what is refused ----


def altered(**changes) -> bytes:
    """The example as a valid map with keys replaced; None as a value stays None."""
    message = msgpack.unpackb(wire.encode(example()))
    message.update(changes)
    return msgpack.packb(message)


def without(key: str) -> bytes:
    message = msgpack.unpackb(wire.encode(example()))
    del message[key]
    return msgpack.packb(message)


def with_column(name: str, packed: object) -> bytes:
    columns = msgpack.unpackb(wire.encode(example()))["columns"]
    return altered(columns={**columns, name: packed})


def with_reading(name: str, value: object) -> bytes:
    node = msgpack.unpackb(wire.encode(example()))["node"]
    return altered(node={**node, name: value})


def int64s(*values: int) -> bytes:
    return b"".join(value.to_bytes(8, "little", signed=True) for value in values)


GOOD = wire.encode(example())
HOSTILE = {
    "nothing": (b"", "malformed"),
    "text": (b"GET / HTTP/1.1\r\n\r\n", "schema"),
    "nil": (b"\xc0", "schema"),
    "an integer": (b"\x01", "schema"),
    "an empty map": (b"\x80", "schema"),
    "a list of the values": (msgpack.packb([1, NODE]), "schema"),
    "reserved byte": (b"\xc1", "malformed"),
    "cut in half": (GOOD[: len(GOOD) // 2], "malformed"),
    "last byte missing": (GOOD[:-1], "malformed"),
    "trailing bytes": (GOOD + b"\x00", "malformed"),
    "twice": (GOOD + GOOD, "malformed"),
    "version 3": (altered(version=3), "version"),
    "version 3 of another shape": (msgpack.packb({"version": 3, "vms": [1, {}]}), "version"),
    "negative version": (altered(version=-1), "version"),
    "version as text": (altered(version="1"), "schema"),
    "version as true": (altered(version=True), "schema"),
    "no version": (without("version"), "schema"),
    "extra key": (altered(command="shutdown"), "schema"),
    "key missing": (without("tick_ns"), "schema"),
    "repeated key": (bytes([0xDE, 0, GOOD[2] + 1]) + GOOD[3:] + b"\xa4name\xa1x", "malformed"),
    "longer than need be": (
        GOOD.replace(b"\xa8sequence\x07", b"\xa8sequence\xcc\x07"),
        "malformed",
    ),
    "NaN": (altered(sequence=float("nan")), "schema"),
    "infinity": (altered(interval_ns=float("inf")), "schema"),
    "whole number as float": (altered(sequence=7.0), "schema"),
    "true as number": (altered(sequence=True), "schema"),
    "number as bool": (altered(simulated=1), "schema"),
    "nil in the header": (altered(name=None), "schema"),
    "negative count": (altered(generation=-1), "range"),
    "time of 2^64-1": (altered(sampled_at_unix_ns=2**64 - 1), "range"),
    "negative node reading": (with_reading("memory_total_bytes", -1), "range"),
    "NaN node reading": (with_reading("memory_total_bytes", float("nan")), "schema"),
    "unknown node reading": (altered(node={"x": 1}), "schema"),
    "one node reading too many": (with_reading("uptime", 1), "schema"),
    "below missing": (with_column("cpu_used_millicores", int64s(-2, 0)), "range"),
    "lowest int64": (with_column("cpu_used_millicores", int64s(0, -(2**63))), "range"),
    "above 2^62": (with_column("memory_used_bytes", int64s(2**62 + 1, 0)), "range"),
    "unknown state": (with_column("state", int64s(1, len(VmState))), "range"),
    "missing state": (with_column("state", int64s(1, -1)), "range"),
    "column too short": (with_column("state", int64s(1)), "schema"),
    "column too long": (with_column("state", int64s(1, 1, 1)), "schema"),
    "odd column": (with_column("state", int64s(1, 1)[:-1]), "schema"),
    "column as text": (with_column("state", "x" * 16), "schema"),
    "column as list": (with_column("state", [1, 1]), "schema"),
    "unknown column": (with_column("uptime", int64s(1, 1)), "schema"),
    "no columns": (altered(columns={}), "schema"),
    "names for fewer VMs": (altered(vm_names=["one"]), "schema"),
    "one VM twice": (altered(vm_ids=[VM, VM]), "schema"),
    "VM id is no UUID": (altered(vm_ids=[VM, "guest"]), "schema"),
    "VM id with a line end": (altered(vm_ids=[VM, OTHER_VM + "\n"]), "schema"),
    "upper-case id": (altered(node_id=NODE.replace("0", "A")), "schema"),
    "node id is a wildcard": (altered(node_id=">"), "schema"),
    "unknown role": (altered(role="controller"), "schema"),
    "huge node name": (altered(name="x" * 257), "schema"),
    "a loan of a fourth resource": (altered(loans=[[VM, 3, 1, 2, 3]]), "range"),
    "a loan to nobody here": (altered(loans=[[NODE, 1, 1, 2, 3]]), "schema"),
    "a loan below zero": (altered(loans=[[VM, 1, 1, -2, 3]]), "range"),
    "a short loan": (altered(loans=[[VM, 1, 1]]), "schema"),
    "a role with arguments": (altered(roles=[["postgres -D /secret", 1, 1, 1, 1]]), "schema"),
    "huge role": (altered(roles=[["x" * 65, 1, 1, 1]]), "schema"),
    "huge VM name": (altered(vm_names=["x" * 257, "y"]), "oversized"),
    "many levers": (altered(levers={str(i): "" for i in range(17)}), "schema"),
    "huge lever reason": (altered(levers={"cpu": "x" * 1025}), "schema"),
    "an extension": (altered(sequence=msgpack.ExtType(5, b"x")), "schema"),
    "a timestamp": (altered(sequence=msgpack.Timestamp(2**40)), "schema"),
    "broken UTF-8": (GOOD.replace(b"host-1", b"hos\xff-1"), "malformed"),
    "half a surrogate": (GOOD.replace(b"host-1", b"\xed\xa0\x80t-1"), "malformed"),
    "100,000 lists in each other": (b"\x91" * 100_000, "schema"),
    "the same as a value": (b"\x81\xa1x" + b"\x91" * 100_000, "malformed"),
    "4 GB of text announced": (b"\xdb\xff\xff\xff\xff", "malformed"),
    "4 G keys announced": (b"\xdf\xff\xff\xff\xff", "malformed"),
    "4 G VMs announced": (
        GOOD.replace(b"\xa6vm_ids\x92", b"\xa6vm_ids\xdd\xff\xff\xff\xff"),
        "malformed",
    ),
    "4 GB of name announced": (GOOD.replace(b"\xa6host-1", b"\xdb\xff\xff\xff\xff"), "malformed"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_bytes_are_refused_with_their_cause(what):
    data, cause = HOSTILE[what]
    assert data != GOOD
    assert cause_of(data) == cause


def test_a_message_over_the_limit_is_not_even_read():
    assert cause_of(b"\x00" * 2**21) == "oversized"
    assert cause_of(GOOD, wire.WireLimits(message_bytes=len(GOOD) - 1)) == "oversized"


def test_limits_on_vms_and_names_are_the_receivers_own():
    assert cause_of(GOOD, wire.WireLimits(vms=1)) == "oversized"
    assert cause_of(GOOD, wire.WireLimits(name_characters=6)) == "oversized"
    assert wire.decode(GOOD, wire.WireLimits(vms=2, name_characters=7)).vm_ids == (VM, OTHER_VM)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_random_bytes_never_raise_anything_but_wire_errors(data):
    assert accepted(wire.decode, data) is None
    accepted(wire.unpack_record, data)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_mutated_messages_are_decoded_or_refused(data):
    mutated = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(mutated) - 1))
        end = at + data.draw(st.integers(0, 4))
        mutated[at:end] = data.draw(st.binary(max_size=6))
    block = accepted(wire.decode, bytes(mutated))
    if block is not None:
        assert wire.encode(block.sample())  # what is let in is a sample in every respect


def test_every_truncation_is_refused():
    for length in range(len(GOOD)):
        assert cause_of(GOOD[:length]) in {"malformed", "schema"}


# ---- what may not be sent ----


@pytest.mark.parametrize("value", [-1, -5, 2**62 + 1])
def test_a_reading_that_no_receiver_accepts_is_not_encoded(value):
    vm = VmSample(VM, "guest", memory_used_bytes=value)
    with pytest.raises(WireError, match="range") as refusal:
        wire.encode(replace(example(), vms=(vm,)))
    assert "memory_used_bytes" in str(refusal.value)


def test_a_name_that_is_no_text_is_a_wire_error_for_its_sender_too():
    with pytest.raises(WireError, match="malformed"):
        wire.encode(replace(example(), name="caf\udce9"))


# ---- audit records ----

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | texts
    | st.binary(max_size=20)
)
trees = st.recursive(
    scalars, lambda inner: st.lists(inner) | st.dictionaries(texts, inner), max_leaves=10
)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(texts, trees, max_size=5))
def test_records_come_back_as_they_were(record):
    assert wire.unpack_record(wire.pack_record(record)) == record


def test_records_carry_infinity_and_nan():
    back = wire.unpack_record(wire.pack_record({"bound": float("inf"), "mean": float("nan")}))
    assert back["bound"] == float("inf")
    assert back["mean"] != back["mean"]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x90",
        b"\x81\xa1a",
        b"\x80\x80",
        b"\x81\x01\x02",  # a number as key
        b"\x81\xa1a\x81\x01\x02",  # likewise, inside
        b"\x81\xa1a\x81\x91\x01\x02",  # a list as key
        b"\x81\xa1a\x81\x81\x01\x02\x03",  # a map as key
        b"\x82\xa1a\x01\xa1a\x02",  # the same key twice
        b"\x81\xa1a\xd4\x05x",  # an extension
        b"\x81\xa1a\xd6\xff\xff\xff\xff\xff",  # a timestamp
        b"\x81\xa1a\xc7\x0c\xff\x00\x00\x00\x01\x7f\xff\xff\xff\xff\xff\xff\xff",
        b"\x81\xa1a" + b"\x91" * 17 + b"\x00",
        b"\x81\xa1a" + b"\x91" * 100_000,
        b"\x81\xa1a" + b"\xdd\xff\xff\xff\xff" * 900,
        b"\x81\xa1a\xa1\xff",
    ],
)
def test_junk_is_no_record(data):
    with pytest.raises(WireError):
        wire.unpack_record(data)


def test_a_record_has_a_size_limit():
    data = wire.pack_record({"blob": b"x" * 1000})
    with pytest.raises(WireError, match="oversized"):
        wire.unpack_record(data, max_bytes=1000)


@pytest.mark.parametrize("value", [object(), {1: 2}, {1, 2}, 2**70])
def test_what_a_record_cannot_carry_is_refused_at_once(value):
    with pytest.raises(WireError):
        wire.pack_record({"value": value})
