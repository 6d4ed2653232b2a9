"""`hrapaq history`: what was recorded comes out as a trace, value by value, and nothing else."""

import asyncio
import time
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner

from controller.audit import MAGIC, AuditTrail, to_export
from controller.core.chain import in_parts, unpack
from controller.core.cycle import decide
from controller.core.state import Hold
from controller.ctl import cli
from controller.forecast.backtest.traces import read_trace
from controller.history import SCHEMA, Grid, HistoryError, Pace, Seen, Steps, Trail, seen_by
from controller.testing import (
    SMALL_POLICY,
    Machine,
    host,
    machine_id,
    make_forecast,
    make_snapshot,
)
from shared.bus import NatsBus
from shared.clock import SECOND_NS, FakeClock
from shared.resources import MIB
from shared.subjects import AUDIT_STREAM
from shared.testing import FakeBus, NatsServer

START_S = 1_700_000_040  # where a step of 60 s begins, in the middle of one of 300 s
AWAY = 10 * 60 * SECOND_NS  # an age that no reading may have


def vm(name, parent, *, cpu=None, memory=None, io=None, **said):
    """A VM of 2 cores and 512 MiB, and what it uses; None: not known."""
    used = (cpu, None if memory is None else memory * MIB, None if io is None else io * 1000)
    return Machine(name, parent, maximum=(2000, 512 * MIB, None), used=used, **said)


def steady(_cycle):
    return [host("h"), vm("a", "h", cpu=500, memory=128, io=3), vm("b", "h", cpu=1, memory=1, io=0)]


async def write(bus, fleet, cycles, every_s=60.0, start_s=START_S, epoch=1, clock=None):
    """`cycles` cycles of `fleet(cycle)`, recorded as the controller does; what was decided is the
    first one's, since a history looks at what was seen only."""
    clock = clock or FakeClock(unix_ns=start_s * SECOND_NS)
    trail = AuditTrail(bus, clock, epoch)
    await trail.open()
    decision = None
    for cycle in range(cycles):
        machines = fleet(cycle)
        taken = round((start_s + cycle * every_s) * SECOND_NS)
        if isinstance(clock, FakeClock):
            clock.advance(taken - clock.unix_ns())
        snapshot = make_snapshot(machines, epoch=epoch, cycle=cycle)
        snapshot = replace(snapshot, taken_at_unix_ns=taken)
        forecast = make_forecast(machines)
        decision = decision or decide(snapshot, forecast, SMALL_POLICY)
        for root in snapshot.roots():
            await trail.decision(snapshot, forecast, SMALL_POLICY, decision, root)
        await trail.record("effect", cycle, {"moved": cycle})


def records(*writes):
    async def scenario():
        bus = FakeBus()
        await bus.connect()
        for said in writes:
            await write(bus, **said)
        return [stored.data for stored in bus.streams[AUDIT_STREAM]]

    return asyncio.run(scenario())


def exported(tmp_path, *writes, name="audit.bin"):
    path = tmp_path / name
    path.write_bytes(to_export(records(*writes)))
    return path


def run(out, source, *more):
    return CliRunner().invoke(cli, ["history", "--out", str(out), "--from", str(source), *more])


def rows(out, name):
    return pl.read_parquet(out).filter(pl.col("vm_id") == machine_id(name)).sort("ts")


# ---- what comes out ----


def test_values_are_those_that_were_recorded(tmp_path):
    def fleet(cycle):
        return [
            host("h0"),
            vm("a", "h0", cpu=100 * cycle, memory=64 + cycle, io=cycle),
            vm("n", "h0", cpu=700, memory=256, io=5),
            vm("g", "n", cpu=50, memory=16 * (cycle % 3), io=None),
            host("h1"),
            vm("b", "h1", cpu=None, memory=128, io=7),
        ]

    out = tmp_path / "own.parquet"
    done = run(out, exported(tmp_path, {"fleet": fleet, "cycles": 12}))
    assert done.exit_code == 0, done.output
    assert "48 rows, up to 4 VMs at a time, steps of 60 s (1 cycle each)" in done.output
    assert sorted(tmp_path.iterdir()) == [tmp_path / "audit.bin", out]
    assert pl.read_parquet_schema(out) == SCHEMA
    cpu, memory = read_trace(out, "cpu"), read_trace(out, "memory")
    assert cpu.vm_ids == tuple(sorted(machine_id(name) for name in "abgn"))
    assert (cpu.step_s, cpu.steps, cpu.start_s, cpu.notes) == (60, 12, START_S // 60 * 60, ())
    cycles = np.arange(12)
    share = dict(zip(cpu.vm_ids, cpu.share, strict=True))
    np.testing.assert_allclose(share[machine_id("a")], cycles / 20, rtol=1e-6)
    assert np.isnan(share[machine_id("b")]).all()
    share = dict(zip(memory.vm_ids, memory.share, strict=True))
    np.testing.assert_allclose(share[machine_id("a")], (64 + cycles) / 512, rtol=1e-6)
    np.testing.assert_allclose(share[machine_id("g")], cycles % 3 / 32, rtol=1e-6)
    nested = rows(out, "a")
    assert nested["disk_read_Bps"].to_list() == [1000 * cycle for cycle in range(12)]
    assert nested["disk_write_Bps"].to_list() == [0] * 12
    assert nested["cap_cores"].unique().to_list() == [2.0]
    assert nested["cap_mem_bytes"].unique().to_list() == [512 * MIB]
    assert nested["trace"].unique().to_list() == ["own"]
    unknown = rows(out, "g")
    assert unknown["disk_read_Bps"].null_count() == unknown["disk_write_Bps"].null_count() == 12
    assert unknown["net_rx_Bps"].null_count() == 12


def test_stale_and_missing_readings_are_missing_and_not_zero(tmp_path):
    def fleet(cycle):
        late = AWAY if cycle in {3, 4} else 0
        figures = {5: AWAY, 6: None}.get(cycle, 0)
        off = Hold.NOT_RUNNING if cycle < 2 else Hold.NONE
        return [
            host("h"),
            vm("a", "h", cpu=500, memory=128, io=1, sample_age_ns=late, stats_age_ns=figures),
            vm("b", "h", cpu=20, memory=0, io=0, hold=off),
            vm("c", "h", sample_age_ns=None, cpu=9, memory=9),
            Machine("d", "h", maximum=(None, None, None), used=(40, 64 * MIB, MIB)),
        ]

    out = tmp_path / "own.parquet"
    done = run(out, exported(tmp_path, {"fleet": fleet, "cycles": 8}))
    assert done.exit_code == 0, done.output
    assert "10 of 30 readings of VMs were too old" in done.output
    places = (rows(out, "a")["ts"] - START_S // 60 * 60).to_numpy() // 60
    assert places.tolist() == [0, 1, 2, 5, 6, 7]
    assert rows(out, "a")["cpu_util"].to_list() == [0.25] * 6
    assert rows(out, "a")["mem_util"].to_list() == [0.25] * 3 + [None, None, 0.25]
    assert rows(out, "a")["mem_bytes"].null_count() == 2
    assert len(rows(out, "b")) == 6
    assert rows(out, "b")["mem_util"].to_list() == [0.0] * 6
    assert rows(out, "c").is_empty()
    unbounded = rows(out, "d")
    assert unbounded["cpu_util"].null_count() == unbounded["mem_util"].null_count() == 8
    assert unbounded["mem_bytes"].to_list() == [64 * MIB] * 8


def test_a_step_is_the_mean_of_its_cycles(tmp_path):
    def fleet(cycle):
        cpu = None if cycle == 7 else 100 * (cycle % 6)
        return [host("h"), vm("a", "h", cpu=cpu, memory=64, io=1 + cycle % 2)]

    source = exported(
        tmp_path, {"fleet": fleet, "cycles": 24, "every_s": 10, "start_s": 1_700_000_100}
    )
    out = tmp_path / "own.parquet"
    assert run(out, source).exit_code == 0
    assert len(rows(out, "a")) == 8  # of 30 s
    np.testing.assert_allclose(rows(out, "a")["cpu_util"][:2], [0.05, 0.2], rtol=1e-6)
    assert run(out, source, "--step", "60").exit_code == 0
    means = [np.mean([0, 1, 2, 3, 4, 5]), np.mean([0, 2, 3, 4, 5])]
    np.testing.assert_allclose(rows(out, "a")["cpu_util"][:2], np.array(means) / 20, rtol=1e-6)
    assert rows(out, "a")["disk_read_Bps"].to_list() == [1500] * 4


def test_only_the_last_hours_are_taken(tmp_path):
    now_s = int(time.time()) // 60 * 60
    said = {"fleet": steady, "cycles": 180, "start_s": now_s - 180 * 60}
    source = exported(tmp_path, said)
    out = tmp_path / "own.parquet"
    assert run(out, source, "--last", "1.5").exit_code == 0
    assert len(rows(out, "a")) in {89, 90, 91}  # as the minute goes
    assert rows(out, "a")["ts"].min() >= now_s - 91 * 60
    assert run(out, source).exit_code == 0
    assert len(rows(out, "a")) == 180


def test_a_tree_over_several_records_and_one_that_was_sent_twice(tmp_path):
    cut = []
    for packed in records({"fleet": steady, "cycles": 4}):
        record = unpack(packed)
        if record.kind == "decision":
            parts = in_parts(record.body, 500)
            assert len(parts) > 3  # or nothing is shown here
            cut += [replace(record, index=len(cut) + i, body=each) for i, each in enumerate(parts)]
    stored = [packed for each in cut for packed in (each.pack(), each.pack())]
    source, out = tmp_path / "audit.bin", tmp_path / "own.parquet"
    source.write_bytes(to_export(stored))
    done = run(out, source)
    assert done.exit_code == 0, done.output
    assert rows(out, "a")["cpu_util"].to_list() == [0.25] * 4
    source.write_bytes(to_export(stored[2:]))  # begins in the middle of one
    again = run(out, source)
    assert again.exit_code == 0, again.output
    assert "damaged" not in again.output
    assert len(rows(out, "a")) == 3
    source.write_bytes(to_export(stored[:-2]))  # ends in the middle of one
    again = run(out, source)  # as a stream does that is being written to
    assert "damaged" not in again.output
    assert len(rows(out, "a")) == 3
    source.write_bytes(to_export([*stored[:2], *stored[4:]]))  # one without its middle
    assert "damaged" in run(out, source).output
    assert len(rows(out, "a")) == 3


def test_two_controllers_and_a_restart_make_one_history(tmp_path):
    first = {"fleet": steady, "cycles": 10}
    second = {"fleet": steady, "cycles": 10, "epoch": 2, "start_s": START_S + 600 + 20}
    out = tmp_path / "own.parquet"
    done = run(out, exported(tmp_path, first, second))
    assert done.exit_code == 0, done.output
    trace = read_trace(out, "cpu")
    assert (trace.steps, trace.notes) == (20, ())
    assert np.isfinite(trace.share).all()


# ---- what is wrong ----


@pytest.mark.parametrize(
    ("every_s", "more", "said"),
    [
        (45, (), "cycles are 45 s apart, which is no whole part of a step of 30, 60, 300 s"),
        (20, ("--step", "30"), "cycles are 20 s apart, which is no whole part of a step of 30 s"),
        (300, ("--step", "60"), "cycles are 300 s apart"),
    ],
)
def test_cycles_that_do_not_fill_a_step_are_refused(tmp_path, every_s, more, said):
    source = exported(tmp_path, {"fleet": steady, "cycles": 6, "every_s": every_s})
    done = run(tmp_path / "own.parquet", source, *more)
    assert done.exit_code == 1
    assert said in done.output
    assert list(tmp_path.iterdir()) == [source]


def test_a_trail_without_a_history_says_why(tmp_path):
    out = tmp_path / "own.parquet"
    empty = tmp_path / "empty.bin"
    empty.write_bytes(MAGIC)
    assert "empty.bin: no decision was recorded" in run(out, empty).output
    old = exported(tmp_path, {"fleet": steady, "cycles": 5})
    done = run(out, old, "--last", "2")
    assert done.exit_code == 1
    assert "audit.bin since " in done.output
    assert "no decision was recorded" in done.output
    one = exported(tmp_path, {"fleet": steady, "cycles": 1}, name="one.bin")
    assert "a single cycle" in run(out, one).output
    two = exported(tmp_path, {"fleet": steady, "cycles": 2, "every_s": 1}, name="two.bin")
    assert "shorter than two steps" in run(out, two).output
    bare = exported(tmp_path, {"fleet": lambda _: [host("h")], "cycles": 5}, name="bare.bin")
    assert "no VM that runs" in run(out, bare).output
    other = tmp_path / "other.bin"
    other.write_bytes(b"something else")
    assert "no exported audit log" in run(out, other).output
    assert "No such file" in run(out, tmp_path / "nowhere").output
    assert not out.exists()


def test_no_server_is_said_and_a_place_that_cannot_be_written(tmp_path):
    done = run(tmp_path / "own.parquet", "nats://127.0.0.1:1")
    assert done.exit_code == 2
    assert "no bus: nats://127.0.0.1:1 does not answer" in done.output
    target = tmp_path / "missing" / "own.parquet"
    done = run(target, exported(tmp_path, {"fleet": steady, "cycles": 5}))
    assert done.exit_code == 1
    assert f"{target}: cannot be written: No such file" in done.output


def test_damage_is_left_out_and_counted_and_what_was_there_stays_until_the_end(tmp_path):
    packed = records({"fleet": steady, "cycles": 6})
    broken = bytearray(packed[2])
    broken[40] ^= 255
    source, out = tmp_path / "audit.bin", tmp_path / "own.parquet"
    source.write_bytes(to_export([*packed[:2], bytes(broken), *packed[3:]])[:-3])
    out.write_bytes(b"as it was")
    done = run(out, source)
    assert done.exit_code == 0, done.output
    assert "2 damaged records are left out" in done.output
    assert len(rows(out, "a")) == 5
    out.write_bytes(b"as it was")
    length_of_first = len(MAGIC)
    damaged = bytearray(source.read_bytes())
    damaged[length_of_first : length_of_first + 4] = b"\xff\xff\xff\xff"
    source.write_bytes(damaged)
    assert run(out, source).exit_code == 1
    assert out.read_bytes() == b"as it was"
    assert sorted(tmp_path.iterdir()) == [source, out]


def test_inputs_of_strangers_are_counted():
    packed = records({"fleet": steady, "cycles": 1})[0]
    record = unpack(packed)
    for inputs in (b"\x01junk", b"", 7, None):
        trail = Trail()
        assert trail.take(replace(record, body={**record.body, "inputs": inputs}).pack()) == []
        assert (trail.tally.decisions, trail.tally.unreadable) == (1, 1)


# ---- pieces ----


def test_the_pace_is_known_although_clocks_tremble_and_cycles_are_left_out():
    rng = np.random.default_rng(3)
    packed = records({"fleet": steady, "cycles": 40, "every_s": 10})
    pace, at = Pace(), 0
    for number, each in enumerate(each for each in packed if unpack(each).kind == "decision"):
        at += int(SECOND_NS * (10 + rng.normal(0, 0.2) + 10 * (number % 9 == 0)))
        going_on = pace.add(replace(unpack(each), at_unix_ns=at).pack())
    assert going_on
    assert (pace.grid().step_s, pace.grid().cycles) == (30, 3)
    assert pace.grid(300).cycles == 30
    with pytest.raises(HistoryError, match="no decision"):
        Pace().grid()


def test_a_cycle_that_trembles_at_the_edge_of_a_step_leaves_none_out():
    rng = np.random.default_rng(1)
    grid = Grid(60, 1)
    times = (np.arange(500) * 60 + rng.uniform(-0.4, 0.4, 500) + 1_700_000_040 // 60 * 60) * 1e9
    places = [grid.step(1, int(each)) for each in times]
    assert set(np.diff(places).tolist()) == {60}
    assert grid.step(1, int(times[-1]) + 3600 * SECOND_NS) == places[-1] + 3600
    assert abs(grid.step(1, int(times[0])) - places[0]) <= 60  # a clock that was set back


def test_a_reading_knows_its_age_and_bounds():
    machines = [host("h"), vm("a", "h", cpu=3000, memory=64, io=2)]
    snapshot = replace(make_snapshot(machines), taken_at_unix_ns=5 * SECOND_NS)
    seen, stale = seen_by((snapshot, make_forecast(machines), SMALL_POLICY))
    assert (seen.ids, stale, seen.taken_at_unix_ns) == ((machine_id("a"),), 0, 5 * SECOND_NS)
    np.testing.assert_allclose(seen.value, [[1.5, 0.125, 64 * MIB, 2000]])


def test_a_step_waits_for_a_controller_that_lags_and_keeps_the_maximum_that_is_known():
    def seen(epoch, second, cpu, cores):
        value, maximum = [[cpu, np.nan, np.nan, np.nan]], [[cores * 1000, np.nan]]
        taken = (START_S + second) * SECOND_NS
        return Seen(epoch, taken, ("a",), np.array(value), np.array(maximum), simulated=False)

    steps = Steps("own", Grid(60, 6))
    several = [seen(1, 10, 0.1, 4), seen(2, 61, 0.5, 8), seen(1, 20, 0.3, np.nan)]
    assert list(steps.add(several)) == []
    (first,) = steps.add([seen(2, 130, 0.7, 8)])
    assert first["ts"].to_list() == [START_S]
    assert first["cpu_util"].to_list() == pytest.approx([0.2])
    assert first["cap_cores"].to_list() == [4]
    assert [frame["ts"].item() - START_S for frame in steps.rest()] == [60, 120]


# ---- the whole way ----


def test_from_a_real_stream_the_same_as_from_its_export(tmp_path):
    """The stream keeps when it stored a record, so this one is written at the present time."""
    start_s = int(time.time()) - 1200
    with NatsServer() as server:

        async def scenario():
            bus = NatsBus([server.url], "controller", lambda _error: None)
            await bus.connect()
            try:
                assert await bus.wait_connected(10)
                clock = FakeClock(unix_ns=start_s * SECOND_NS)
                await write(bus, steady, 20, start_s=start_s, clock=clock)
            finally:
                await bus.close()

        nothing = run(tmp_path / "n.parquet", server.url)
        assert nothing.exit_code == 1
        assert "the audit stream cannot be read" in nothing.output
        asyncio.run(scenario())
        secret = server.url.replace("//", "//token@")
        late = run(tmp_path / "n.parquet", secret, "--last", "0.001")
        assert "no decision was recorded" in late.output
        assert "token" not in late.output
        out, other = tmp_path / "own.parquet", tmp_path / "other" / "own.parquet"
        other.parent.mkdir()
        done = run(out, server.url, "--last", "1")
        assert done.exit_code == 0, done.output
        export = tmp_path / "audit.bin"
        words = ["audit", "--nats", server.url, "--export", str(export)]
        assert CliRunner().invoke(cli, words).exit_code == 0
        assert run(other, export).exit_code == 0
    assert len(rows(out, "a")) == 20
    assert pl.read_parquet(out).equals(pl.read_parquet(other))


def test_a_network_learns_from_an_own_history(tmp_path):
    pytest.importorskip("torch", reason="torch is not installed: no training here")
    rng = np.random.default_rng(1)
    phases = [int(each) for each in rng.integers(2, 9, 12)]

    def fleet(cycle):
        levels = [1400 if cycle // each % 2 else 200 for each in phases]
        guests = [
            vm(f"v{number}", "h", cpu=level + int(rng.integers(0, 50)), memory=200, io=1)
            for number, level in enumerate(levels)
        ]
        return [host("h"), *guests]

    out = tmp_path / "own.parquet"
    source = exported(tmp_path, {"fleet": fleet, "cycles": 240, "every_s": 300})
    assert run(out, source).exit_code == 0
    words = ["train", "--traces", str(out), "--out", str(tmp_path / "network.safetensors")]
    words += ["--hidden", "8", "--epochs", "1", "--windows", "1000"]
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 0, done.output
    assert "on machines and times not learnt from" in done.output
