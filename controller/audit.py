"""The audit trail: what was decided, meant, sent and answered, on JetStream before anything moves.

`intent` is the only way to an AuditedPlan, and dispatch takes nothing else (I10). A record counts
once the stream has acknowledged it. One whose acknowledgement was lost may be stored or not: it is
sent again, with the same id, before any other.

An exported log is a file: `MAGIC`, then per record its length (4 bytes, big-endian) and its bytes,
unchanged, so that the chain can be verified from it.
"""

import asyncio
import struct
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from controller.core.chain import (
    BEGINNING,
    KINDS,
    AuditLog,
    AuditRecord,
    check,
    hash_of,
    in_parts,
    unpack,
)
from controller.core.record import digests, pack_inputs, tree
from controller.core.state import Decision, Forecast, Policy, Snapshot, VerifiedPlan
from shared.bus import Bus
from shared.clock import SECOND_NS, Clock
from shared.errors import AuditError, BusError, WireError
from shared.resources import MIB
from shared.subjects import AUDIT_ALL, AUDIT_STREAM, audit_subject

MAGIC = b"HRAPAQ-AUDIT-1\n"
PART_BYTES = 192 * 1024  # per record: servers are often set to 256 KiB a message
_LENGTH = struct.Struct(">I")
_LOOK_BACK_S = (600, 86_400, None)  # for the newest record: usually minutes ago, else anywhere


@dataclass(frozen=True, slots=True)
class AuditedPlan:
    """A verified plan whose intent is on the record. Only `AuditTrail.intent` makes one."""

    verified: VerifiedPlan
    record_id: str
    stream_sequence: int


@dataclass(frozen=True, slots=True)
class Written:
    record_id: str
    stream_sequence: int


class AuditTrail:
    """The trail of one epoch. `open` first; then one record after the other."""

    def __init__(
        self, bus: Bus, clock: Clock, epoch: int, *, timeout_s: float = 5.0, attempts: int = 2
    ) -> None:
        self._bus = bus
        self._clock = clock
        self._epoch = epoch
        self._timeout_s = timeout_s
        self._attempts = attempts
        self._previous = BEGINNING
        self._next_index = 0
        self._unsure: AuditRecord | None = None  # sent, and nobody said that it is stored
        self._turn = asyncio.Lock()
        self._opened = False
        self.epoch_found = 0  # of the newest record when the trail was opened; 0: there was none

    async def open(self, max_bytes: int = 512 * MIB) -> None:
        """Makes the stream where it is not there, and finds the record to go on from.

        AuditError when the bus is not there or refuses: try again later, dispatch nothing. A
        trail that has written goes on from its own last record, whoever wrote meanwhile.
        """
        try:
            await self._bus.ensure_stream(
                AUDIT_STREAM, [AUDIT_ALL], max_age_s=0, max_bytes=max_bytes, append_only=True
            )
            fresh = self._next_index == 0 and self._unsure is None
            newest = await self._newest() if fresh else None
        except BusError as error:
            raise AuditError(f"the audit stream cannot be opened: {error}") from error
        if newest is not None:
            self._previous = hash_of(newest)
            self.epoch_found = _epoch_in(newest)
        self._opened = True

    async def record(self, kind: str, cycle: int, body: Mapping[str, Any]) -> Written:
        """One record of `kind`, acknowledged; AuditError when nobody says that it is stored.

        A body of more than PART_BYTES takes several records, which `chain.joined` puts together;
        the last one's place is returned.
        """
        assert self._opened, "open the trail first"
        assert kind in KINDS, kind
        async with self._turn:
            if self._unsure is not None:
                await self._send(self._unsure)
            for part in in_parts(body, PART_BYTES):
                written = await self._send(self._next(kind, cycle, part))
        return written

    async def intent(self, verified: VerifiedPlan) -> AuditedPlan:
        """What is about to be sent; only with this may it be (I10)."""
        written = await self.record("intent", verified.plan.cycle, _intent_body(verified))
        return AuditedPlan(verified, written.record_id, written.stream_sequence)

    async def decision(
        self,
        snapshot: Snapshot,
        forecast: Forecast,
        policy: Policy,
        decision: Decision,
        root: int,
    ) -> None:
        """All that one tree's decision was made of, and digests of what came of it.

        Written as one record, of a large tree as several.
        """
        body = {
            "root": snapshot.ids[root],
            "digests": digests(decision, snapshot, root),
            "inputs": pack_inputs(*tree(snapshot, forecast, root), policy),
        }
        await self.record("decision", snapshot.cycle, body)

    def _next(self, kind: str, cycle: int, body: dict[str, Any]) -> AuditRecord:
        return AuditRecord(
            kind=kind,
            epoch=self._epoch,
            index=self._next_index,
            cycle=cycle,
            at_unix_ns=self._clock.unix_ns(),
            previous=self._previous,
            body=body,
        )

    async def _send(self, record: AuditRecord) -> Written:
        packed = record.pack()
        sequence = await self._publish(record, packed)
        self._unsure = None
        self._previous = hash_of(packed)
        self._next_index = record.index + 1
        return Written(record.record_id, sequence)

    async def _publish(self, record: AuditRecord, packed: bytes) -> int:
        self._unsure = record
        subject = audit_subject(record.kind)
        # The beginning of the hash: two controllers that took one epoch shadow nothing.
        message_id = f"{record.record_id}-{hash_of(packed).hex()[:16]}"
        for attempt in range(1, self._attempts + 1):
            try:
                return await self._bus.publish_acknowledged(
                    subject, packed, message_id, self._timeout_s
                )
            except BusError as error:
                if attempt == self._attempts:
                    raise AuditError(
                        f"{record.kind} record {record.record_id} is not acknowledged by the "
                        f"audit stream: {error}. Nothing is dispatched until it is"
                    ) from error
        raise AssertionError("at least one attempt")

    async def _newest(self) -> bytes | None:
        now_ns = self._clock.unix_ns()
        for seconds in _LOOK_BACK_S:
            since_ns = None if seconds is None else now_ns - seconds * SECOND_NS
            newest = None
            async for packed in _stored(self._bus, since_ns):
                newest = packed
            if newest is not None:
                return newest
        return None


async def read_audit(source: Bus | Path, since_unix_ns: int | None = None) -> AuditLog:
    """The log from the stream or from an exported file, verified; AuditError when there is none."""
    if isinstance(source, Path):
        return check(_exported(source))
    try:
        return check([packed async for packed in _stored(source, since_unix_ns)])
    except BusError as error:
        raise AuditError(f"the audit stream cannot be read: {error}") from error


async def export_audit(bus: Bus, path: Path, since_unix_ns: int | None = None) -> int:
    """Writes the stream to a file, byte by byte as stored; how many records."""
    try:
        packed = [each async for each in _stored(bus, since_unix_ns)]
    except BusError as error:
        raise AuditError(f"the audit stream cannot be read: {error}") from error
    await asyncio.to_thread(path.write_bytes, to_export(packed))
    return len(packed)


def to_export(records: Iterable[bytes]) -> bytes:
    return MAGIC + b"".join(_LENGTH.pack(len(each)) + each for each in records)


async def _stored(bus: Bus, since_unix_ns: int | None) -> AsyncIterator[bytes]:
    reading = bus.read_stream(AUDIT_STREAM, AUDIT_ALL, since_unix_ns=since_unix_ns)
    async with aclosing(reading):
        async for message in reading:
            yield message.data


def _epoch_in(packed: bytes) -> int:
    try:
        return unpack(packed).epoch
    except WireError:
        return 0  # no record of ours; the chain's check says so


def _exported(path: Path) -> Iterator[bytes]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise AuditError(f"{path}: {error.strerror}") from error
    if not data.startswith(MAGIC):
        raise AuditError(f"{path} is no exported audit log: it does not begin with {MAGIC!r}")
    at = len(MAGIC)
    while at < len(data):
        length = _LENGTH.unpack(data[at : at + 4])[0] if len(data) - at >= _LENGTH.size else -1
        at += _LENGTH.size
        if length < 0:
            yield data[at - _LENGTH.size :]  # cut short: no record, the check says so
            return
        yield data[at : at + length]  # fewer bytes at a cut end: likewise
        at += length


def _intent_body(verified: VerifiedPlan) -> dict[str, Any]:
    steps = [
        {
            "index": step.index,
            "phase": step.phase,
            "vm_id": step.vm_id,
            "resource": step.resource.word,
            "from_amount": step.from_amount,
            "to_amount": step.to_amount,
            "why": step.why,
        }
        for step in verified.plan.steps
    ]
    fallback = [
        {"vm_id": each.vm_id, "resource": each.resource.word, "amount": each.amount}
        for each in verified.plan.fallback
    ]
    return {"plan_id": verified.plan.plan_id, "steps": steps, "fallback": fallback}
