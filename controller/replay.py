"""Recomputes recorded decisions and compares: the same inputs must give the same outcome.

A difference means that the code decides otherwise than the one that wrote the record, or that
the record was changed; both are worth knowing.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from controller.core.chain import AuditLog, AuditRecord
from controller.core.cycle import decide
from controller.core.record import digests, unpack_inputs
from shared.errors import AuditError, WireError


@dataclass(frozen=True, slots=True)
class Difference:
    """One decision that came out otherwise, or could not be recomputed."""

    epoch: int
    cycle: int
    root: str
    what: tuple[str, ...]  # parts that differ: verdict, advice, bins, allocation; or why not


@dataclass(frozen=True, slots=True)
class ReplayReport:
    decisions: int  # recomputed
    differences: tuple[Difference, ...]
    damage: tuple[str, ...]  # of the log itself

    @property
    def agrees(self) -> bool:
        return not self.differences and not self.damage


def replay(log: AuditLog, source: str = "the audit log") -> ReplayReport:
    """Every recorded decision again; AuditError when there is none in the log."""
    found = tuple(_decisions(log.records))
    if not found:
        damaged = f" ({len(log.damage)} damages: {log.damage[0]})" if log.damage else ""
        raise AuditError(
            f"nothing to replay in {source}: {len(log.records)} records, no decision{damaged}"
        )
    differences = [each for parts in found if (each := _difference(parts)) is not None]
    return ReplayReport(len(found), tuple(differences), log.damage)


def _decisions(records: Iterable[AuditRecord]) -> Iterator[tuple[AuditRecord, ...]]:
    """The records of each decision. A large one takes several; others may stand between them.

    At the beginning of a log that was cut the first parts of one may be gone: it is left out.
    """
    open_parts: dict[tuple[Any, ...], list[AuditRecord]] = {}
    for record in records:
        if record.kind != "decision":
            continue
        key = (record.epoch, record.cycle, record.body.get("root"))
        if record.body.get("part") == 0:
            open_parts[key] = []
        elif key not in open_parts:
            continue
        open_parts[key].append(record)
        if len(open_parts[key]) == record.body.get("parts"):
            yield tuple(open_parts.pop(key))
    yield from (tuple(parts) for parts in open_parts.values())  # they never became whole


def _difference(parts: tuple[AuditRecord, ...]) -> Difference | None:
    first = parts[0]
    root = str(first.body.get("root"))
    try:
        what = tuple(_compare(parts))
    except (WireError, KeyError, TypeError) as error:
        what = (f"cannot be recomputed: {error}",)
    return Difference(first.epoch, first.cycle, root, what) if what else None


def _compare(parts: tuple[AuditRecord, ...]) -> Iterator[str]:
    """Names of the parts of the outcome that differ."""
    body = parts[0].body
    if len(parts) != body["parts"]:
        yield f"cannot be recomputed: {len(parts)} of its {body['parts']} records are there"
        return
    snapshot, forecast, policy = unpack_inputs(b"".join(part.body["inputs"] for part in parts))
    now = digests(decide(snapshot, forecast, policy), snapshot, 0)
    recorded = body["digests"]
    for name in sorted(now.keys() | recorded.keys()):
        if now.get(name) != recorded.get(name):
            yield name
