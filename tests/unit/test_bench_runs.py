"""The benchmarks still run: each with sizes so small that its figures mean nothing."""

import asyncio
import importlib
import os
import subprocess
import sys
from pathlib import Path

import msgpack
import pytest

from shared import wire
from shared.pb import admin_pb2 as pb

BENCH = Path(__file__).parents[1] / "bench"
MS = 1_000_000


@pytest.fixture
def bench(monkeypatch):
    """Imports as a script of that folder does."""
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module


def test_costs_of_a_process_are_read(bench):
    measuring = bench("measuring")
    memory = measuring.memory_of(os.getpid())
    assert memory.resident >= memory.proportional >= memory.private > measuring.MIB
    assert (memory + memory).private == 2 * memory.private
    before = measuring.cpu_seconds(os.getpid())
    while measuring.cpu_seconds(os.getpid()) == before:
        pass  # spends what is measured
    with subprocess.Popen(["sleep", "10"]) as child:
        assert child.pid in measuring.children_of(os.getpid())
        child.kill()


def test_quantiles_are_values_that_were_measured(bench):
    quantile = bench("measuring").quantile
    assert quantile([5, 1, 3, 2, 4], 0.5) == 3
    assert quantile([5, 1, 3, 2, 4], 0.95) == 5
    assert quantile([7], 0.5) == quantile([7], 1.0) == 7


def test_a_program_that_ends_is_said_with_its_words(bench, tmp_path):
    measuring = bench("measuring")
    log = tmp_path / "log"
    with (
        measuring.Program(
            "agent", "agent", "host", "--config", "/nowhere.toml", log=log
        ) as program,
        pytest.raises(measuring.BenchError, match=r"(?s)agent ended.*nowhere\.toml"),
    ):
        measuring.wait_for("nothing", lambda: None, program)


def test_the_peers_of_the_wire_format_say_the_same(bench):
    bench_wire = bench("bench_wire")
    sample = bench_wire.busy_host(3)
    assert wire.decode(wire.encode(sample)).sample() == sample
    maps = msgpack.unpackb(bench_wire.encode_maps(sample))["vms"]
    assert [one["cpu_used_millicores"] for one in maps] == [
        vm.cpu_used_millicores for vm in sample.vms
    ]


@pytest.mark.parametrize("nested", [0, 4])
def test_a_fleet_to_decide_on_is_solved_and_moves(bench, nested):
    """A fleet that is over its capacity or has gaps would be timed without being solved."""
    bench_decide = bench("bench_decide")
    timed = bench_decide.measure(bench_decide.fleet(1, nested), bench_decide.SMALL_POLICY, 1)
    assert (timed.roots, timed.verified, timed.solved) == (1, 1, 2)
    assert timed.steps > 0 and min(timed.stages.values()) > 0


def test_the_script_of_decisions_prints_its_table():
    script = BENCH / "bench_decide.py"
    done = subprocess.run(
        [sys.executable, script, "--hosts", "1", "--rounds", "1"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "cores" in done.stdout and "1 x 50 VMs, nested" in done.stdout


def test_the_script_of_the_loops_forecasts_prints_its_table():
    done = subprocess.run(
        [sys.executable, BENCH / "bench_forecast_loop.py", "--vms", "6", "--cycles", "4"],
        capture_output=True,
        text=True,
        check=True,
    )
    for text in ("cores", "s per cycle of 500,000 VMs", "lstm+mixture; all of it keeps"):
        assert text in done.stdout


def test_events_are_paired_into_latencies(bench):
    bench_latency = bench("bench_latency")
    events = [
        pb.Event(at_unix_ns=at_ms * MS, kind=kind, node_id=node, plan_id="p")
        for at_ms, kind, node in [
            (1000, "command", "a"), (1001, "command", "b"), (1005, "ack", "b"),
            (1010, "ack", "a"), (1020, "command", "a"), (1021, "cycle", ""), (1050, "ack", "a"),
            (1060, "ack", "a"),
        ]
    ]  # fmt: skip
    assert bench_latency.command_to_ack_ms(events) == [4.0, 10.0, 30.0]
    seen = bench_latency.Seen(
        messages=[(100 * MS, 110 * MS), (800 * MS, 804 * MS), (990 * MS, 994 * MS)],
        first_commands=[(events[0], 195)],
    )
    assert bench_latency.sample_to_command_ms(seen) == [200.0]


def test_a_simulated_loop_is_observed(bench):
    """How far it gets in that time depends on the machine; a balloon holds up its cycle."""
    bench_latency = bench("bench_latency")
    seen = asyncio.run(bench_latency.observe(seconds=10, cycle_s=1))
    assert len(seen.messages) >= 3 and seen.events
    bench_latency.say_latencies(seen, 10, 1)


def test_an_agent_is_weighed_on_stand_ins(bench, tmp_path, capsys):
    stand_ins = bench("paused_vms").stand_ins(2, tmp_path)
    try:
        bench("bench_agent").compare(stand_ins, tmp_path, seconds=0.5, interval_s=0.1, rounds=1)
    finally:
        if stand_ins.connection is not None:
            stand_ins.connection.close()
    text = capsys.readouterr().out
    assert "host role (all)" in text and "guest role" in text and "gate" in text
    assert "SIMULATED" in text or "TEST driver" in text
