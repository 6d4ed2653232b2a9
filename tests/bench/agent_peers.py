"""What reads the same VMs beside our agent: another program, and other calls.

The program is Debian's prometheus-libvirt-exporter, in Go: it reads all VMs once per scrape, and
neither publishes nor guards nor moves anything. Where it is not installed that is said and the
table left out. (collectd leaves paused VMs out, so that there was nothing to compare.)
"""

import contextlib
import os
import shutil
import statistics
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from measuring import (
    BenchError,
    Memory,
    Program,
    children_of,
    cpu_seconds,
    memory_of,
    mib,
    say,
    say_table,
    wait_for,
)
from paused_vms import Vms

from controller.up.libvirtd import require_libvirt
from shared.ports import free_ports

CALL_PAUSE_S = 1.0  # a tick finds caches cold, calls back to back do not
WARM_UP_ROUNDS = 2


@dataclass(frozen=True, slots=True)
class Cost:
    """CPU seconds over the window of a program and of libvirtd beside it; memory of the program."""

    own_s: float
    daemon_s: float | None
    memory: Memory


# ---- other programs ----


def compare_with_exporter(
    vms: Vms, directory: Path, interval_s: float, seconds: float, idle_share: float, ours: Cost
) -> None:
    """For the same time as ours was watched, scraped as often as ours samples."""
    try:
        with exporter(vms, directory) as (program, ask):
            theirs = _watch(program, ask, vms, interval_s, seconds)
    except BenchError as error:
        say(f"no libvirt exporter to compare with: {error}\n")
        return
    say(
        f"Programs that read {vms.count} VMs of libvirt every {interval_s:g} s, each alone for"
        f" {seconds:.0f} s"
    )
    rows = [
        _row("host agent (both processes)", ours, seconds, idle_share),
        _row("prometheus-libvirt-exporter (peer)", theirs, seconds, idle_share),
    ]
    rows.append(["ours / theirs", *map(_ratio, rows[0][1:], rows[1][1:])])
    say_table(["", "% of a core", "libvirtd %", "both %", "RSS MiB", "PSS MiB"], rows)


def _row(name: str, cost: Cost, seconds: float, idle_share: float) -> list[str]:
    own = 100 * cost.own_s / seconds
    daemon = 100 * max(0.0, (cost.daemon_s or 0) / seconds - idle_share)
    shares = (f"{each:.2f}" for each in (own, daemon, own + daemon))
    return [name, *shares, mib(cost.memory.resident), mib(cost.memory.proportional)]


def _ratio(ours: str, theirs: str) -> str:
    return f"{float(ours) / float(theirs):.2f}" if float(theirs) else "-"


class Other(Program):
    """A program that is none of ours."""

    def __init__(self, name: str, command: Sequence[str], log: Path) -> None:
        super().__init__(name, log=log)
        self._command = command


@contextmanager
def exporter(vms: Vms, directory: Path) -> Iterator[tuple[Program, Callable[[], str]]]:
    """The program, and what makes it read: it does when it is asked for /metrics."""
    path = shutil.which("prometheus-libvirt-exporter")
    if path is None:
        raise BenchError("apt install prometheus-libvirt-exporter")
    address = f"127.0.0.1:{free_ports(1)[0]}"
    command = (path, f"--libvirt.uri={vms.uri}", f"--web.listen-address={address}")
    with Other("exporter", command, directory / "exporter.log") as running:

        def ask() -> str:
            with urllib.request.urlopen(f"http://{address}/metrics", timeout=30) as reply:
                text: str = reply.read().decode()
            return text

        def answers() -> bool | None:
            with contextlib.suppress(OSError):
                return ask().count("\nlibvirt_domain_info_maximum_memory_bytes{") >= vms.count
            return None

        wait_for("metrics of each VM", lambda: answers() or None, running)
        yield running, ask


def _watch(
    program: Program, ask: Callable[[], str], vms: Vms, interval_s: float, seconds: float
) -> Cost:
    """From the middle between two readings, as our own agent is watched."""

    def spent() -> tuple[float, float]:
        own = sum(map(cpu_seconds, (program.pid, *children_of(program.pid))))
        return own, cpu_seconds(vms.daemon) if vms.daemon else 0.0

    def pass_time(duration_s: float) -> None:
        until = time.monotonic() + duration_s
        while (left := until - time.monotonic()) > 0:
            time.sleep(min(left, interval_s / 2))
            ask()
            time.sleep(max(0.0, min(until - time.monotonic(), interval_s / 2)))

    pass_time(WARM_UP_ROUNDS * interval_s)
    before = spent()
    pass_time(seconds)
    own_s, daemon_s = (now - then for now, then in zip(spent(), before, strict=True))
    pids = (program.pid, *children_of(program.pid))
    memory = sum((memory_of(pid) for pid in pids[1:]), memory_of(pids[0]))
    return Cost(own_s, daemon_s if vms.daemon else None, memory)


# ---- the bulk call and its peer ----


def say_calls(vms: Vms, rounds: int) -> None:
    say(
        f"Reading all VMs of {vms.uri} once, as a tick does, by libvirt-python alone:\n"
        f"{rounds} rounds {CALL_PAUSE_S:g} s apart, median of the time, mean of the CPU"
    )
    rows = []
    for name, call in (
        ("getAllDomainStats, one call (the agent's)", read_bulk),
        ("one call after the other per VM (peer)", read_each),
    ):
        rows.append([name, *_cost(call, vms, rounds)])
    say_table(["", "calls", "ms", "ms CPU here", "ms CPU libvirtd"], rows)


def read_bulk(connection: Any) -> int:
    from agent import libvirt_worker  # noqa: PLC0415 - imports libvirt

    libvirt_worker.read_all(connection)
    return 1


def read_each(connection: Any) -> int:
    """State, CPU, balloon and guest memory, vCPUs, disk: what the bulk call brings."""
    libvirt_error = require_libvirt().libvirtError
    calls = 1
    for domain in connection.listAllDomains():
        reads = (
            domain.state,
            domain.info,
            domain.memoryStats,
            domain.vcpus,
            partial(domain.blockStats, "vda"),
        )
        for read in reads:
            with contextlib.suppress(libvirt_error):  # the test driver does not know all of them
                read()
        calls += len(reads)
    return calls


def _cost(call: Callable[[Any], int], vms: Vms, rounds: int) -> tuple[str, str, str, str]:
    calls = call(vms.connection)
    walls, daemon, own = [], vms.daemon, os.getpid()
    cpu_before = cpu_seconds(own), cpu_seconds(daemon) if daemon else 0.0
    for _ in range(rounds):
        time.sleep(CALL_PAUSE_S)
        began = time.perf_counter()
        call(vms.connection)
        walls.append(time.perf_counter() - began)
    cpu_after = cpu_seconds(own), cpu_seconds(daemon) if daemon else 0.0
    here, there = (
        1000 * (now - then) / rounds for now, then in zip(cpu_after, cpu_before, strict=True)
    )
    wall = f"{1000 * statistics.median(walls):.1f}"
    return str(calls), wall, f"{here:.1f}", f"{there:.1f}" if daemon else "-"
