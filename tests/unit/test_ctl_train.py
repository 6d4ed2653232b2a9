"""`hrapaq train` as a person meets it: learns, goes on, promotes only what is better."""

import re

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner

pytest.importorskip("torch", reason="torch is not installed: no training here")

from controller.ctl import cli
from controller.forecast import checkpoint

STEPS = 400


@pytest.fixture
def traces(tmp_path):
    """Twelve machines that go between two levels, each at its own times."""
    rng = np.random.default_rng(1)
    rows = []
    for vm in range(12):
        phase = (np.arange(STEPS) + rng.integers(0, 40)) // rng.integers(2, 9)
        share = np.where(phase % 2, 0.7, 0.1) + rng.normal(0, 0.02, STEPS)
        rows.append(
            pl.DataFrame(
                {
                    "vm_id": [f"vm-{vm}"] * STEPS,
                    "ts": 1_700_000_000 // 300 * 300 + 300 * np.arange(STEPS),
                    "cpu_util": np.maximum(share, 0).astype(np.float32),
                }
            )
        )
    path = tmp_path / "small.parquet"
    pl.concat(rows).write_parquet(path)
    return path


def run(traces, out, *more):
    words = ["train", "--traces", str(traces), "--out", str(out), "--hidden", "8"]
    words += ["--epochs", "2", "--windows", "3000", *more]
    return CliRunner().invoke(cli, words)


def test_it_learns_and_keeps_the_better(traces, tmp_path):
    out = tmp_path / "network.safetensors"
    done = run(traces, out)
    assert done.exit_code == 0, done.output
    assert "on machines and times not learnt from" in done.output
    assert re.search(r"comes with the program has \d\.\d+", done.output)
    about = checkpoint.read(out).about
    assert about["traces"] == "small"
    first = out.read_bytes()
    again = run(traces, out)  # the same seed: no better than what is there
    assert again.exit_code == 0, again.output
    assert "stays" in again.output
    assert out.read_bytes() == first
    assert checkpoint.read(tmp_path / "network.safetensors.candidate").about == about
    assert not (tmp_path / "network.safetensors.state").exists()


def test_weights_that_cannot_be_used_are_named_and_replaced(traces, tmp_path):
    out = tmp_path / "network.safetensors"
    out.write_bytes(b"not weights")
    done = run(traces, out)
    assert done.exit_code == 0, done.output
    assert "what is there is not compared" in done.output
    checkpoint.read(out)


def test_what_another_training_left_is_not_gone_on_with(traces, tmp_path):
    out = tmp_path / "network.safetensors"
    (tmp_path / "network.safetensors.state").write_bytes(b"half a state")
    done = run(traces, out)
    assert done.exit_code == 1
    assert "network.safetensors.state" in done.output
    assert not out.exists()


def test_a_trace_without_its_columns_is_refused_with_their_names(tmp_path):
    path = tmp_path / "wrong.parquet"
    pl.DataFrame({"vm_id": ["a"], "ts": [0]}).write_parquet(path)
    done = run(path, tmp_path / "n")
    assert done.exit_code == 2
    assert "cpu_util" in done.output


def test_too_short_a_trace_is_refused(traces, tmp_path):
    path = tmp_path / "short.parquet"
    pl.read_parquet(traces).filter(pl.col("ts") < 1_700_000_000 + 300 * 30).write_parquet(path)
    done = run(path, tmp_path / "n")
    assert done.exit_code == 2
    assert "too few" in done.output
    assert "15 hours do" in done.output


def test_machines_that_are_too_few_to_judge_by_are_refused(traces, tmp_path):
    path = tmp_path / "two.parquet"
    pl.read_parquet(traces).filter(pl.col("vm_id").is_in(["vm-0", "vm-1"])).write_parquet(path)
    done = run(path, tmp_path / "n")
    assert done.exit_code == 2
    assert "two.parquet: too few VMs" in done.output


def test_less_than_a_day_in_minutes_is_enough(traces, tmp_path):
    """No day was seen from which archetypes could be made, and the schedule has few turns."""
    begin = 1_700_000_000 // 300 * 300
    once = pl.read_parquet(traces).with_columns(ts=(pl.col("ts") - begin) // 5 + begin)
    path = tmp_path / "minutes.parquet"
    days = [once.with_columns(ts=pl.col("ts") + 60 * STEPS * place) for place in range(3)]
    pl.concat(days).write_parquet(path)
    out = tmp_path / "n"
    done = run(path, out)
    assert done.exit_code == 0, done.output
    assert np.isfinite(checkpoint.read(out).archetypes.centre).all()
