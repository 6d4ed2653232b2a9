"""Encoding and decoding telemetry, in values per second, beside what one would write first.

`python tests/bench/bench_wire.py`: one core; a value is one reading of one VM.
"""

import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict

import msgpack

from shared import wire
from shared.telemetry import NodeReadings, NodeSample, VmSample

VMS = 50
SECONDS_PER_ROW = 0.5
ROUNDS = 3


def main() -> None:
    sample = busy_host(VMS)
    values = VMS * len(wire.COLUMN_NAMES)
    columns, maps = wire.encode(sample), encode_maps(sample)
    rows = [
        ("columns (shared.wire), encode", len(columns), lambda: wire.encode(sample)),
        ("columns (shared.wire), decode", len(columns), lambda: wire.decode(columns)),
        ("columns (shared.wire), both", len(columns), lambda: wire.decode(wire.encode(sample))),
        ("msgpack list of maps, packb", len(maps), lambda: encode_maps(sample)),
        ("msgpack list of maps, unpackb", len(maps), lambda: msgpack.unpackb(maps)),
        ("msgpack list of maps, both", len(maps), lambda: msgpack.unpackb(encode_maps(sample))),
    ]
    say(f"{VMS} VMs, {values} values per message, {os.cpu_count()} cores, one used")
    say(f"{'':32}{'bytes/message':>14}{'us/message':>12}{'values/s':>14}")
    for label, size, call in rows:
        seconds = seconds_per_call(call)
        say(f"{label:32}{size:>14,}{seconds * 1e6:>12.1f}{values / seconds:>14,.0f}")


def busy_host(vms: int) -> NodeSample:
    """A host whose VMs have almost all readings; one column has gaps, one is empty."""
    return NodeSample(
        node_id="00000000-0000-4000-8000-000000000001",
        name="host-1",
        role="host",
        boot_id="00000000-0000-4000-8000-000000000002",
        sequence=1000,
        sampled_at_unix_ns=1_700_000_000_000_000_000,
        tick_ns=10_000_000_000_000,
        interval_ns=10_000_000_000,
        levers={"cpu": "", "memory": "", "io": ""},
        node=NodeReadings(memory_total_bytes=2**38, cpu_total_millicores=64_000),
        vms=tuple(busy_vm(index) for index in range(vms)),
    )


def busy_vm(index: int) -> VmSample:
    readings = {
        name: 1000 * index + 2**30
        for name in wire.COLUMN_NAMES
        if name not in {"state", "io_limit_bytes_per_s"}
    }
    if index % 3 == 0:
        del readings["memory_pressure_us_per_s"]
    return VmSample(f"00000000-0000-4000-8000-{index:012x}", f"guest-{index}", **readings)


def encode_maps(sample: NodeSample) -> bytes:
    """The peer: the same facts as a list of one map per VM."""
    vms = [{name: getattr(vm, name) for name in VM_KEYS} for vm in sample.vms]
    return msgpack.packb({"node_id": sample.node_id, "node": asdict(sample.node), "vms": vms})


VM_KEYS = ("vm_id", "name", *wire.COLUMN_NAMES)


def seconds_per_call(call: Callable[[], object]) -> float:
    """The best of a few rounds: the other load of the machine only ever adds."""
    calls, best = 1, float("inf")
    for _ in range(ROUNDS):
        spent = 0.0
        while spent < SECONDS_PER_ROW / ROUNDS:
            start = time.perf_counter()
            for _ in range(calls):
                call()
            spent = time.perf_counter() - start
            best = min(best, spent / calls)
            calls = calls if spent > SECONDS_PER_ROW / ROUNDS else calls * 2
    return best


def say(line: str) -> None:
    sys.stdout.write(line + "\n")


if __name__ == "__main__":
    main()
