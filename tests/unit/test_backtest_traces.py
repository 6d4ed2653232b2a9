"""Parquet files become one regular grid; what is wrong in them is missing, or named."""

import numpy as np
import polars as pl
import pytest

from controller.forecast.backtest.traces import RATE_FLOOR, TraceError, read_trace

START = 1_372_629_804


def write(path, **columns):
    pl.DataFrame(columns).write_parquet(path)
    return path


def rows(path, ts, cpu, vm_id=None, **more):
    return write(path, vm_id=vm_id or ["a"] * len(ts), ts=ts, cpu_util=cpu, **more)


@pytest.mark.parametrize("step", [30, 60, 300])
def test_the_step_is_found_and_gaps_are_missing(tmp_path, step):
    ts = [START + step * n for n in (0, 1, 2, 5, 6)]
    trace = read_trace(rows(tmp_path / "t.parquet", ts, [0.1, 0.2, 0.3, 0.6, 0.7]), "cpu")
    assert (trace.step_s, trace.start_s, trace.vm_ids) == (step, START, ("a",))
    expected = np.array([0.1, 0.2, 0.3, np.nan, np.nan, 0.6, 0.7], dtype=np.float32)
    np.testing.assert_array_equal(trace.share[0], expected)


def test_unordered_and_repeated_rows_the_last_of_a_time_counts(tmp_path):
    ts = [START + 600, START, START + 300, START]
    trace = read_trace(rows(tmp_path / "t.parquet", ts, [0.3, 0.9, 0.2, 0.1]), "cpu")
    np.testing.assert_allclose(trace.share[0], [0.1, 0.2, 0.3])
    assert any("1 rows of a VM and time that were given again" in each for each in trace.notes)


def test_a_drifting_clock_leaves_neither_holes_nor_collisions(tmp_path):
    ts = [START + 301 * n for n in range(2000)] + [START + 300 * n for n in range(4000)]
    ids = ["drift"] * 2000 + ["exact"] * 4000
    trace = read_trace(rows(tmp_path / "t.parquet", ts, [0.5] * 6000, ids), "cpu")
    assert np.isfinite(trace.share[trace.vm_ids.index("drift")]).sum() == 2000
    assert np.isfinite(trace.share[trace.vm_ids.index("drift"), :2000]).all()
    assert trace.late_s[0, 1999] == 1999  # what the source called this step is not lost


def test_rows_whose_clock_was_years_off_are_left_out_and_told(tmp_path):
    ts = [5, 300, *[START + 300 * n for n in range(10)], START * 2]
    trace = read_trace(rows(tmp_path / "t.parquet", ts, [0.5] * 13), "cpu")
    assert trace.steps == 10
    assert any("3 rows whose time lies months" in each for each in trace.notes)


def test_what_is_no_share_is_missing(tmp_path):
    ts = [START + 300 * n for n in range(6)]
    cpu = [0.1, float("nan"), None, float("inf"), -0.1, 1.7]
    trace = read_trace(rows(tmp_path / "t.parquet", ts, cpu), "cpu")
    np.testing.assert_array_equal(np.isfinite(trace.share[0]), [1, 0, 0, 0, 0, 1])
    assert trace.share[0, 5] == np.float32(1.7)  # more than the allotment is possible


def test_memory_from_bytes_where_capacity_is_zero_missing_or_changes(tmp_path):
    path = write(
        tmp_path / "t.parquet",
        vm_id=["a"] * 5,
        ts=[START + 60 * n for n in range(5)],
        mem_bytes=[50, 50, 50, 50, 50],
        cap_mem_bytes=[100, 0, None, 200, 200],
        mem_util=[None, None, None, None, 0.75],
    )
    share = read_trace(path, "memory").share[0]
    np.testing.assert_array_equal(share, np.float32([0.5, np.nan, np.nan, 0.25, 0.75]))


def test_rates_are_shares_of_the_first_day(tmp_path):
    count = 2 * 288
    read = [1_000_000] * 288 + [2_000_000] * 288
    path = write(
        tmp_path / "t.parquet",
        vm_id=["busy"] * count + ["idle"] * count,
        ts=[START + 300 * n for n in range(count)] * 2,
        disk_read_Bps=read + [0] * (count - 1) + [int(RATE_FLOOR) // 2],
        disk_write_Bps=[0] * 2 * count,
    )
    trace = read_trace(path, "io")
    busy, idle = (trace.share[trace.vm_ids.index(each)] for each in ("busy", "idle"))
    assert busy[0] == pytest.approx(1.0)
    assert busy[-1] == pytest.approx(2.0)
    assert idle[0] == 0.0
    assert idle[-1] == pytest.approx(0.5)


def test_other_resources_stand_beside_in_a_fixed_order(tmp_path):
    more = {"mem_util": [0.4, 0.5], "net_rx_Bps": [None, None], "net_tx_Bps": [1, 1]}
    trace = read_trace(
        rows(tmp_path / "t.parquet", [START, START + 300], [0.1, 0.2], **more), "cpu"
    )
    assert trace.others.shape == (1, 3, 2)
    np.testing.assert_allclose(trace.others[0, 0], [0.4, 0.5])
    assert np.isnan(trace.others[0, 1:]).all()
    part = trace.part(np.array([0]), 1)
    assert part.start_s == START + 300
    np.testing.assert_allclose(part.others[0, 0], [0.5])


def test_no_others_take_no_memory(tmp_path):
    trace = read_trace(rows(tmp_path / "t.parquet", [START, START + 300], [0.1, 0.2]), "cpu")
    assert trace.others.strides == (0, 0, 0)
    assert trace.part(np.array([0])).others.strides == (0, 0, 0)


@pytest.mark.parametrize(
    ("columns", "resource", "said"),
    [
        ({"vm_id": ["a"], "ts": [1]}, "cpu", "missing here: cpu_util; there are vm_id, ts"),
        ({"ts": [1], "cpu_util": [0.1]}, "cpu", "missing here: vm_id"),
        ({"vm_id": ["a"], "ts": [1]}, "memory", "mem_util or mem_bytes + cap_mem_bytes"),
        ({"vm_id": ["a"], "ts": [1], "disk_read_Bps": [1]}, "io", "disk_write_Bps"),
        ({"vm_id": ["a"], "ts": [1], "cpu_util": [0.1]}, "cpu", "no VM has two rows"),
        ({"vm_id": ["a"] * 2, "ts": [1, 8], "cpu_util": [0.1] * 2}, "cpu", "mostly 7 s apart"),
        ({"vm_id": [None], "ts": [1], "cpu_util": [0.1]}, "cpu", "no row with both"),
        ({"vm_id": ["a"] * 2, "ts": [0, 60], "cpu_util": [None] * 2}, "cpu", "has no values"),
        ({"vm_id": ["a"] * 2, "ts": ["x", "y"], "cpu_util": [0.1] * 2}, "cpu", "documented type"),
    ],
)
def test_what_is_wrong_with_a_file_is_named(tmp_path, columns, resource, said):
    with pytest.raises(TraceError, match=r"t\.parquet") as error:
        read_trace(write(tmp_path / "t.parquet", **columns), resource)
    assert said in str(error.value)


def test_dates_are_times_too(tmp_path):
    ts = [START + 300 * n for n in range(5)]
    dates = pl.from_epoch(pl.Series(ts))
    trace = read_trace(rows(tmp_path / "t.parquet", dates, [0.5] * 5), "cpu")
    assert (trace.start_s, trace.step_s, trace.steps) == (START, 300, 5)


def test_milliseconds_and_percent_are_noticed(tmp_path):
    ts = [START + 300 * n for n in range(5)]
    with pytest.raises(TraceError, match="milliseconds"):
        read_trace(rows(tmp_path / "t.parquet", [1000 * each for each in ts], [0.5] * 5), "cpu")
    trace = read_trace(rows(tmp_path / "t.parquet", ts, [7.0, 8.0, 9.0, 30.0, 1.0]), "cpu")
    assert "half of all shares are above 8: 1.0 is the whole allotment, not 1 %" in trace.notes


def test_a_file_that_is_no_parquet_is_named(tmp_path):
    path = tmp_path / "t.parquet"
    path.write_text("vm_id,ts\n")
    with pytest.raises(TraceError, match="cannot be read as parquet"):
        read_trace(path, "cpu")
