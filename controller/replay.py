"""Recomputes recorded decisions and compares: the same inputs must give the same outcome.

A difference means that the code decides otherwise than the one that wrote the record, or that
the record was changed; both are worth knowing.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from controller.core.chain import AuditLog, AuditRecord, joined
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
    found = tuple(each for each in joined(log.records) if each.kind == "decision")
    if not found:
        damaged = f" ({len(log.damage)} damages: {log.damage[0]})" if log.damage else ""
        raise AuditError(
            f"nothing to replay in {source}: {len(log.records)} records, no decision{damaged}"
        )
    differences = [each for record in found if (each := _difference(record)) is not None]
    return ReplayReport(len(found), tuple(differences), log.damage)


def _difference(record: AuditRecord) -> Difference | None:
    try:
        what = tuple(_compare(record.body))
    except (WireError, KeyError, TypeError, AttributeError) as error:
        what = (f"cannot be recomputed: {error!r}",)
    root = str(record.body.get("root", "unknown"))
    return Difference(record.epoch, record.cycle, root, what) if what else None


def _compare(body: Mapping[str, Any]) -> Iterator[str]:
    """Names of the parts of the outcome that differ."""
    if "inputs" not in body:
        yield f"cannot be recomputed: part {body.get('part')} of {body.get('parts')} stands alone"
        return
    snapshot, forecast, policy = unpack_inputs(body["inputs"])
    now = digests(decide(snapshot, forecast, policy), snapshot, 0)
    recorded = body["digests"]
    for name in sorted(now.keys() | recorded.keys()):
        if now.get(name) != recorded.get(name):
            yield name
