"""Audit records and the chain of hashes that binds them; pure.

Every record holds the SHA-256 of the one before it in the same epoch. An epoch's first holds that
of a record of an earlier epoch, the newest that its writer saw (32 zero bytes at the very
beginning). So two controllers that write at the same time leave two sound branches, and nothing
can be taken out, put in or changed without a gap that shows.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import msgspec
from msgspec import Struct

from shared.errors import WireError
from shared.wire import pack_record, unpack_record

VERSION = 1
BEGINNING = bytes(32)
KINDS = ("decision", "intent", "command", "ack", "rejection", "override", "effect")


@dataclass(frozen=True, slots=True)
class AuditRecord:
    kind: str  # one of KINDS
    epoch: int
    index: int  # from 0 within the epoch
    cycle: int
    at_unix_ns: int
    previous: bytes
    body: dict[str, Any]

    @property
    def record_id(self) -> str:
        return f"{self.epoch}-{self.index}"

    def pack(self) -> bytes:
        return pack_record({"version": VERSION, **asdict(self)})


@dataclass(frozen=True, slots=True)
class AuditLog:
    """What could be read, in the order of writing, and everything that is wrong with it."""

    records: tuple[AuditRecord, ...]
    damage: tuple[str, ...]
    beginning: bool  # False: older records are no longer there


def hash_of(packed: bytes) -> bytes:
    return hashlib.sha256(packed).digest()


def unpack(packed: bytes) -> AuditRecord:
    """WireError for bytes that are no audit record of this version."""
    record = unpack_record(packed)
    version = record.pop("version", None)
    if version != VERSION:
        raise WireError("version", f"audit record of version {version}, {VERSION} is known here")
    try:
        fields = msgspec.convert(record, _Fields)
    except msgspec.ValidationError as error:
        raise WireError("schema", f"audit record: {error}") from None
    return AuditRecord(**msgspec.structs.asdict(fields))


def check(packed: Iterable[bytes]) -> AuditLog:
    """Reads and verifies; what is damaged or missing is named, the rest is given."""
    checker = _Checker()
    for number, each in enumerate(packed, start=1):
        checker.take(number, each)
    return AuditLog(tuple(checker.records), tuple(checker.damage), checker.beginning)


def in_parts(body: Mapping[str, Any], part_bytes: int) -> list[dict[str, Any]]:
    """`body` as it is, or where it is too large for one record, cut: what `joined` undoes."""
    packed = pack_record(body)
    if len(packed) <= part_bytes:
        return [dict(body)]
    chunks = [packed[at : at + part_bytes] for at in range(0, len(packed), part_bytes)]
    return [
        {"part": number, "parts": len(chunks), "bytes": chunk}
        for number, chunk in enumerate(chunks)
    ]


def joined(records: Iterable[AuditRecord]) -> Iterator[AuditRecord]:
    """Records with their bodies whole; the parts of a cut one stand behind each other.

    Parts that make no body, some missing or changed, come as they are.
    """
    held: list[AuditRecord] = []
    for record in records:
        cut = record.body.keys() == {"part", "parts", "bytes"}
        if not cut or record.body["part"] != len(held):
            yield from held
            held = []
        if not cut or record.body["part"] != len(held):
            yield record
            continue
        held.append(record)
        if len(held) == record.body["parts"]:
            yield from _whole(held)
            held = []
    yield from held


def _whole(parts: list[AuditRecord]) -> list[AuditRecord]:
    """The last part's record with the body of all."""
    try:
        packed = b"".join(part.body["bytes"] for part in parts)
        return [replace(parts[-1], body=unpack_record(packed, max_bytes=len(packed)))]
    except (WireError, TypeError):
        return parts


class _Fields(Struct, forbid_unknown_fields=True):
    kind: str
    epoch: int
    index: int
    cycle: int
    at_unix_ns: int
    previous: bytes
    body: dict[str, Any]


class _Checker:
    def __init__(self) -> None:
        self.records: list[AuditRecord] = []
        self.damage: list[str] = []
        self.beginning = True
        self._hashes: set[bytes] = set()
        self._newest: dict[int, tuple[int, bytes]] = {}  # by epoch: index, hash

    def take(self, number: int, packed: bytes) -> None:
        found = hash_of(packed)
        if found in self._hashes:
            return  # sent again after an answer was lost: the same record
        try:
            record = unpack(packed)
        except WireError as error:
            self.damage.append(f"record {number} of the log cannot be read: {error}")
            return
        self._link(number, record)
        self._hashes.add(found)
        self._newest[record.epoch] = (record.index, found)
        self.records.append(record)

    def _link(self, number: int, record: AuditRecord) -> None:
        newest = self._newest.get(record.epoch)
        if newest is None:
            self._link_first(number, record)
        elif record.index != newest[0] + 1:
            self.damage.append(
                f"record {record.record_id} follows {record.epoch}-{newest[0]}: "
                f"{max(record.index - newest[0] - 1, 0)} records between them are missing"
                if record.index > newest[0]
                else f"record {record.record_id} stands after {record.epoch}-{newest[0]}"
            )
        elif record.previous != newest[1]:
            self.damage.append(f"record {record.record_id} does not fit the one before it")

    def _link_first(self, number: int, record: AuditRecord) -> None:
        """An epoch's first in this log: its link may point to what the log no longer holds."""
        if record.index == 0 and record.previous == BEGINNING:
            if number > 1:
                self.damage.append(
                    f"record {record.record_id} claims to be the first, {number - 1} precede it"
                )
        elif not self.records and not self.damage:
            self.beginning = False
        elif record.index > 0:
            self.damage.append(
                f"epoch {record.epoch} begins with {record.record_id}: "
                f"{record.index} records before it are missing"
            )
        elif record.previous not in self._hashes:
            self.damage.append(f"record {record.record_id} follows one that is not there")
