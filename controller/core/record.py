"""A decision's inputs as bytes that give the very same values back, and its outcome as digests.

Arrays stand as dtype, shape and little-endian bytes. A tree's record holds its machines only:
the decision of a tree depends on nothing outside it. Digests speak of machines by id, so that
a tree's are the same whether it was decided alone or among others.
"""

import hashlib
import zlib
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from typing import Any

import numpy as np

from controller.core.state import (
    MISSING,
    Broken,
    Decision,
    Fallback,
    Floats,
    Forecast,
    Ints,
    Plan,
    Policy,
    Rejection,
    Snapshot,
    Step,
    Verdict,
)
from shared.errors import WireError
from shared.wire import pack_record, unpack_record

COMPRESS_OVER_BYTES = 64 * 1024
UNPACKED_BYTES_MAX = 512 * 1024 * 1024  # more than the largest tree; a bomb ends here
_PLAIN, _ZLIB = b"\x00", b"\x01"
_DTYPES = {"<i8": np.dtype("<i8"), "<f8": np.dtype("<f8"), "|b1": np.dtype("|b1")}

Inputs = tuple[Snapshot, Forecast, Policy]


def pack_inputs(snapshot: Snapshot, forecast: Forecast, policy: Policy) -> bytes:
    """Everything that `decide` was given; compressed where it is large."""
    packed = pack_record(to_record(snapshot, forecast, policy))
    if len(packed) <= COMPRESS_OVER_BYTES:
        return _PLAIN + packed
    return _ZLIB + zlib.compress(packed, level=1)


def unpack_inputs(data: bytes) -> Inputs:
    """What `pack_inputs` was given; WireError for any other bytes."""
    kind, packed = data[:1], data[1:]
    if kind == _ZLIB:
        packed = _inflate(packed)
    elif kind != _PLAIN:
        raise WireError("malformed", f"inputs begin with {kind!r}")
    return from_record(unpack_record(packed, UNPACKED_BYTES_MAX))


def to_record(snapshot: Snapshot, forecast: Forecast, policy: Policy) -> dict[str, Any]:
    """Plain values only: int, float, text, bytes, lists and maps."""
    return {
        "snapshot": _of_fields(snapshot),
        "forecast": _of_fields(forecast),
        "policy": {name: _plain(value) for name, value in asdict(policy).items()},
    }


def from_record(record: Mapping[str, Any]) -> Inputs:
    """The inverse of `to_record`; WireError where something is missing or of a wrong shape."""
    try:
        return (
            Snapshot(**_with_wanted(_to_fields(record["snapshot"]))),
            Forecast(**_to_fields(record["forecast"])),
            Policy(**_to_fields(record["policy"])),
        )
    except (KeyError, TypeError, ValueError, AssertionError) as error:
        raise WireError("schema", f"no inputs of a decision: {error!r}"[:200]) from None


def tree(snapshot: Snapshot, forecast: Forecast, root: int) -> tuple[Snapshot, Forecast]:
    """The machines of one root alone, in their order."""
    chosen = np.array(snapshot.tree(root))
    place = np.full(len(snapshot.ids), -1, dtype=np.int64)
    place[chosen] = np.arange(len(chosen))
    cut = {name: value[chosen] for name, value in _arrays(snapshot).items()}
    cut["parent"] = np.where(cut["parent"] < 0, -1, place[cut["parent"]])
    few = replace(
        snapshot,
        ids=tuple(snapshot.ids[i] for i in chosen),
        names=tuple(snapshot.names[i] for i in chosen),
        **cut,
    )
    per_machine = _arrays(forecast)
    del per_machine["probability"]
    rows = {name: value[chosen] for name, value in per_machine.items()}
    return few, replace(forecast, **rows)


def digests(decision: Decision, snapshot: Snapshot, root: int) -> dict[str, str]:
    """SHA-256 of each part of one root's outcome, so that a difference has a name."""
    found = next(each for each in decision.trees if each.root == root)
    chosen = np.array(snapshot.tree(root))
    row = snapshot.roots().index(root)
    return {
        "verdict": _sha256(_verdict(found.verdict, snapshot)),
        "advice": _sha256(found.advice and _verdict(found.advice, snapshot)),
        "bins": _sha256(_bins(decision, chosen)),
        "allocation": _sha256(_allocation(decision, chosen, row)),
    }


def digest(decision: Decision, snapshot: Snapshot, root: int | None = None) -> str:
    """One SHA-256 of the outcome of one root, or of all."""
    roots = snapshot.roots() if root is None else (root,)
    return _sha256([[snapshot.ids[i], digests(decision, snapshot, i)] for i in roots])


def _of_fields(value: Snapshot | Forecast) -> dict[str, Any]:
    return {each.name: _plain(getattr(value, each.name)) for each in fields(value) if each.init}


def _plain(value: object) -> object:
    if isinstance(value, np.ndarray):
        stored = np.ascontiguousarray(value, dtype=value.dtype.newbyteorder("<"))
        return {
            "dtype": stored.dtype.str,
            "shape": list(stored.shape),
            "data": stored.tobytes(),
        }
    return list(value) if isinstance(value, tuple) else value


def _to_fields(record: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _value(value) for name, value in record.items()}


def _with_wanted(values: dict[str, Any]) -> dict[str, Any]:
    """Records from before agents lent anything have nothing wanted in them."""
    if "wanted" not in values:
        values["wanted"] = np.full_like(values["limit"], MISSING)
    return values


def _value(plain: object) -> object:
    if isinstance(plain, dict):
        dtype = _DTYPES[plain["dtype"]]
        return np.frombuffer(plain["data"], dtype=dtype).reshape(plain["shape"])
    return tuple(plain) if isinstance(plain, list) else plain


def _arrays(value: Snapshot | Forecast) -> dict[str, Any]:
    named = {each.name: getattr(value, each.name) for each in fields(value) if each.init}
    return {name: item for name, item in named.items() if isinstance(item, np.ndarray)}


def _inflate(packed: bytes) -> bytes:
    inflater = zlib.decompressobj()
    try:
        data = inflater.decompress(packed, UNPACKED_BYTES_MAX)
    except zlib.error as error:
        raise WireError("malformed", str(error)) from None
    if not inflater.eof:
        raise WireError("oversized", f"over {UNPACKED_BYTES_MAX} bytes unpacked, or cut short")
    return data


# ---- an outcome as plain values ----


def _verdict(verdict: Verdict, snapshot: Snapshot) -> list[Any]:
    plan = _plan(verdict.plan, snapshot)
    if isinstance(verdict, Rejection):
        return ["rejected", plan, [_broken(each, snapshot) for each in verdict.broken]]
    return ["verified", plan, int(verdict.lowest_mode)]


def _plan(plan: Plan, snapshot: Snapshot) -> list[Any]:
    ids = snapshot.ids
    steps = [
        [s.index, s.phase, ids[s.machine], s.vm_id, ids[s.node], int(s.resource), *_amounts(s)]
        for s in plan.steps
    ]
    fallback = [
        [ids[f.machine], f.vm_id, ids[f.node], int(f.resource), f.amount, *_leash(f)]
        for f in plan.fallback
    ]
    lend = [[ids[one.node], int(one.resource), one.amount] for one in plan.lend]
    generations = [[ids[host], generation] for host, generation in plan.generations]
    heads = [plan.plan_id, ids[plan.root], plan.epoch, plan.cycle]
    return [heads, steps, fallback, generations, lend]


def _amounts(step: Step) -> list[Any]:
    return [step.from_amount, step.to_amount, step.floor_amount, step.ceiling_amount, step.why]


def _leash(entry: Fallback) -> list[int]:
    return [entry.plan_amount, entry.low_amount, entry.high_amount]


def _broken(broken: Broken, snapshot: Snapshot) -> list[Any]:
    machine = snapshot.ids[broken.machine] if broken.machine >= 0 else ""
    return [broken.invariant, machine, broken.detail]


def _bins(decision: Decision, chosen: Ints) -> list[Any]:
    """Without unused places: how wide the arrays are depends on the other trees."""
    bins = decision.bins
    width = int(bins.count[chosen].max(initial=0))
    return [
        _plain(bins.count[chosen]),
        _plain(bins.level[chosen][..., :width]),
        _plain(_mass(bins.probability[chosen], bins.count[chosen], width)),
        _plain(bins.needed[chosen]),
        _plain(bins.lowest[chosen]),
        _plain(bins.own[chosen]),
    ]


def _mass(probability: Floats, count: Ints, width: int) -> Floats:
    """(m, 3, width + 1): the mass of the used places, then that above all levels."""
    used = np.arange(width) < count[..., None]
    inside = np.where(used, probability[..., :width], 0.0)
    return np.concatenate([inside, probability[..., -1:]], axis=-1)


def _allocation(decision: Decision, chosen: Ints, row: int) -> list[Any]:
    found = decision.allocation
    width = int(decision.bins.count[chosen].max(initial=0))
    return [
        _plain(found.level[chosen]),
        _plain(found.value[chosen][..., :width]),
        _plain(found.total[row]),
        _plain(found.price[chosen]),
        list(found.status[row]),
    ]


def _sha256(value: object) -> str:
    return hashlib.sha256(pack_record({"": value})).hexdigest()
