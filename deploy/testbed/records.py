"""Reads what a bed's witness saw and what its loads said: time series on L0's clock."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from testbed.layout import Places

MIB_KIB = 1024
NO_QUOTA_US = 10**9  # libvirt calls a group without a limit by an enormous one


@dataclass(frozen=True, slots=True)
class Sight:
    """One VM at one moment, as the libvirt below it says; None where that did not say."""

    at: float  # Unix seconds, L0's clock
    actual_mib: float | None  # what its balloon leaves it
    rss_mib: float | None  # of its QEMU, on the machine below
    usable_mib: float | None  # what its kernel calls available
    updated_s: float | None  # Unix time of the guest's own figures, as usable_mib; guest's clock
    cpu_s: float | None  # CPU time used since it started
    cpu_millicores: float | None  # quota for each virtual CPU; None: no limit


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What a load wanted and got at one moment: MiB, millicores or MiB/s."""

    at: float  # Unix seconds, L0's clock
    wanted: float
    got: float
    available_mib: float  # of its machine


class Records:
    def __init__(self, places: Places) -> None:
        self._places = places

    def series(self, vm: str, since: float = 0.0) -> list[Sight]:
        """By time; of an L1 as L0 sees it, of an L2 as its L1 sees it."""
        lines = _lines(self._places.witness, f'"vm": "{vm}"')
        return [_sight(line) for line in lines if line["at"] >= since]

    def node_series(self, l1: str, since: float = 0.0) -> list[dict[str, Any]]:
        """An L1 from inside: memory in KiB, PSI totals in microseconds, `at`."""
        lines = _lines(self._places.witness, f'"node": "{l1}"')
        return [line for line in lines if line["at"] >= since]

    def loads(self, l2: str, name: str, since: float = 0.0) -> list[LoadReport]:
        return [
            LoadReport(line["at"], line["wanted"], line["got"], line["available_mib"])
            for line in self.events("load", since)
            if line["machine"] == l2 and line["load"] == name
        ]

    def satisfied_at(self, l2: str, name: str, wanted: float, since: float) -> float | None:
        """When the load first said that it has this much; None: not yet."""
        reports = self.loads(l2, name, since)
        return next((one.at for one in reports if one.got >= wanted), None)

    def events(self, kind: str, since: float = 0.0) -> list[dict[str, Any]]:
        """`load`, `load-ended`, `hello`."""
        lines = _lines(self._places.events, f'"event": "{kind}"')
        return [line for line in lines if line.get("at", line.get("unix_s", 0.0)) >= since]


def _sight(line: dict[str, Any]) -> Sight:
    cpu_ns = line.get("cpu_ns")
    quota, period = line.get("vcpu_quota_us") or 0, line.get("vcpu_period_us") or 0
    return Sight(
        at=line["at"],
        actual_mib=_mib(line.get("actual_kib")),
        rss_mib=_mib(line.get("resident_kib") or line.get("rss_kib")),
        usable_mib=_mib(line.get("usable_kib")),
        updated_s=line.get("updated_s"),
        cpu_s=None if cpu_ns is None else cpu_ns / 1e9,
        cpu_millicores=1000 * quota / period if 0 < quota < NO_QUOTA_US and period else None,
    )


def _mib(kib: int | None) -> float | None:
    return None if kib is None else kib / MIB_KIB


def _lines(path: Path, mark: str) -> Iterator[dict[str, Any]]:
    """Those that hold the mark; the last line may be under way."""
    if not path.exists():
        return
    with path.open() as lines:
        for line in lines:
            if mark in line and line.endswith("\n"):
                yield json.loads(line)
