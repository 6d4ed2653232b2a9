"""Predictors are stepped through time in order, see the past only, and are scored on what came."""

import json

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner

from controller.ctl import cli
from controller.forecast.backtest.peers import PEERS, Persistence
from controller.forecast.backtest.run import CLASSES, Setup, backtest, load_classes
from controller.forecast.backtest.traces import Trace, TraceError
from controller.forecast.moment import Prediction, bin_of

START = 1_372_636_800


def trace_of(share, step_s=300):
    share = np.asarray(share, dtype=np.float32)
    nothing = np.broadcast_to(np.float32(np.nan), (len(share), 3, share.shape[1]))
    ids = tuple(f"vm{row}" for row in range(len(share)))
    late = np.zeros(share.shape, dtype=np.int16)
    return Trace("made", "cpu", ids, START, step_s, share, nothing, late)


class Recorder:
    """Says what a function of the moment says, and keeps all that it saw."""

    name = "recorder"

    def __init__(self, say=lambda moment: moment.window[:, -1]):
        self.say, self.seen = say, []

    def step(self, moment):
        self.seen.append(moment)
        value = np.nan_to_num(self.say(moment))
        mass = np.eye(21)[bin_of(value)]
        return Prediction(mass, np.repeat(value[:, None], 4, axis=1))


def test_moments_are_the_past_in_order():
    share = np.arange(60, dtype=float).reshape(1, 60) / 100
    recorder = Recorder()
    backtest(trace_of(share), {"recorder": recorder}, Setup())
    assert [each.end_s for each in recorder.seen] == [START + 300 * (n + 1) for n in range(60)]
    for step, moment in enumerate(recorder.seen):
        assert moment.window.shape == (1, 24)
        known = moment.window[0][np.isfinite(moment.window[0])]
        np.testing.assert_allclose(known, share[0, max(0, step - 23) : step + 1], atol=1e-7)
        assert np.isfinite(moment.window[0, -1])
        assert moment.others.shape == (1, 3, 24)


@pytest.mark.parametrize(("step_s", "ahead"), [(300, 2), (60, 10), (30, 20)])
def test_the_target_is_the_step_at_the_horizon(step_s, ahead):
    share = np.linspace(0.1, 0.6, 300)[None]
    by_step = share[0, 1] - share[0, 0]
    oracle = Recorder(lambda moment: moment.window[:, -1] + ahead * by_step)
    outcome = backtest(trace_of(share, step_s), {"oracle": oracle}, Setup())
    found = outcome.tally["oracle"].result()["all"]
    assert found["windows"] == 300 - ahead
    assert found["pinball"] == pytest.approx(0, abs=1e-6)


def test_the_peak_needs_all_steps_up_to_the_horizon():
    share = np.array([[0.1, 0.9, 0.2, np.nan, 0.3, 0.4, 0.5]])
    said = []
    outcome = backtest(
        trace_of(share), {"p": Recorder()}, Setup(target="peak"), on_said=said.append
    )
    assert outcome.tally["p"].result()["all"]["windows"] == 2
    np.testing.assert_array_equal(said[0].step, [0, 4])
    np.testing.assert_allclose(said[0].target, [0.9, 0.5])


def test_windows_without_newest_step_or_target_do_not_count():
    share = np.full((2, 40), 0.3)
    share[0, 10:20] = np.nan
    outcome = backtest(trace_of(share), {"p": Persistence()}, Setup())
    # VM 0: 30 steps seen, the last two and the two before the gap without a target.
    assert outcome.tally["p"].result()["all"]["windows"] == 38 + 26


def test_peers_see_peaks_where_peaks_are_asked_for_and_ours_sees_steps():
    share = np.array([[0.1, 0.9, 0.2, 0.3]])
    peer, ours = Recorder(), Recorder()
    backtest(trace_of(share), {"peer": peer, "ours": ours}, Setup(target="peak"))
    np.testing.assert_allclose(peer.seen[-1].window[0, -4:], [0.1, 0.9, 0.9, 0.3])
    np.testing.assert_allclose(ours.seen[-1].window[0, -4:], share[0])


def test_long_gaps_of_the_whole_fleet_are_stepped_over():
    share = np.full((1, 400), 0.3)
    share[0, 10:300] = np.nan
    recorder = Recorder()
    outcome = backtest(trace_of(share), {"p": recorder}, Setup())
    assert outcome.steps == len(recorder.seen) == 10 + 23 + 100
    assert recorder.seen[-1].end_s == START + 400 * 300


def test_active_and_cold_windows():
    share = np.full((2, 100), 0.3)
    share[1, ::2] = 0.5
    outcome = backtest(trace_of(share), {"p": Persistence()}, Setup())
    found = outcome.tally["p"].result()
    assert found["active"]["windows"] == 97  # of one sample nothing varies
    assert found["cold"]["windows"] == 12


def test_load_classes():
    hours = np.arange(24 * 14)
    random = np.random.default_rng(1)
    day = 0.3 + 0.2 * np.sin(2 * np.pi * hours / 24)
    burst = np.where(random.uniform(size=len(hours)) < 0.08, 0.8, 0.02)
    made = [np.full(len(hours), 0.01), random.normal(0.3, 0.02, len(hours)), day, burst]
    load = load_classes(trace_of(np.repeat(made, 12, axis=1)))
    assert [CLASSES[each] for each in load] == ["idle", "steady", "periodic", "bursty"]


def test_a_horizon_that_is_no_whole_number_of_steps_is_refused():
    with pytest.raises(TraceError, match="450 s is no multiple of 300 s"):
        backtest(trace_of([[0.1]]), {}, Setup(450))


@pytest.fixture
def parquet(tmp_path):
    steps = 400
    random = np.random.default_rng(2)
    frames = [
        pl.DataFrame(
            {
                "vm_id": [f"vm{vm}"] * steps,
                "ts": [START + 7 + 300 * n for n in range(steps)],
                "cpu_util": random.uniform(0, 1, steps).astype(np.float32),
            }
        )
        for vm in range(6)
    ]
    path = tmp_path / "made.parquet"
    pl.concat(frames).write_parquet(path)
    return path


def call(*arguments):
    return CliRunner().invoke(cli, ["backtest", *map(str, arguments)])


def test_the_command_writes_all_that_it_is_asked_for(parquet, tmp_path):
    told, said, drawn = tmp_path / "o.json", tmp_path / "o.parquet", tmp_path / "o.png"
    done = call(
        "--traces", parquet, "--json", told, "--predictions", said, "--plot", drawn,
        "--predictor", "persistence", "--predictor", "window-histogram", "--vms", 4,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "persistence" in done.output
    read = json.loads(told.read_text())
    (trace,) = read["traces"]
    assert trace["vms"] == 4
    assert set(trace["predictors"]) == {"persistence", "window-histogram"}
    assert trace["predictors"]["persistence"]["groups"]["all"]["windows"] == 4 * 398
    frame = pl.read_parquet(said)
    assert frame.columns == ["vm_id", "ts", "target", *(f"p_{n}" for n in range(21))]
    assert len(frame) == 4 * 398
    assert frame["ts"].min() == START + 7
    assert frame.select(pl.sum_horizontal(pl.col("^p_.*$"))).to_numpy() == pytest.approx(1)
    # Whoever scores the file finds what the table says.
    mass = frame.select(pl.col("^p_.*$")).to_numpy()
    came = bin_of(frame["target"].to_numpy().astype(float))
    below = mass.cumsum(axis=1)[:, :20] - (came[:, None] <= np.arange(20))
    figures = trace["predictors"]["persistence"]["groups"]["all"]
    assert (below**2).sum(axis=1).mean() == pytest.approx(figures["rps"])
    assert drawn.read_bytes().startswith(b"\x89PNG")
    assert sorted(each.name for each in tmp_path.iterdir()) == [
        "made.parquet", "o.json", "o.parquet", "o.png",
    ]  # fmt: skip


def test_the_same_seed_draws_the_same_vms(parquet, tmp_path):
    drawn = []
    for seed in (1, 1, 2):
        out = tmp_path / f"{len(drawn)}.parquet"
        call("--traces", parquet, "--vms", 3, "--predictor", "persistence", "--seed", seed,
             "--predictions", out)  # fmt: skip
        drawn.append(set(pl.read_parquet(out)["vm_id"]))
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_file_without_the_resource_is_refused_in_one_line(parquet):
    done = call("--traces", parquet, "--resource", "memory")
    assert done.exit_code == 1
    assert "memory needs the columns that are missing here: mem_util" in done.output
    assert "Traceback" not in done.output


def test_a_trace_shorter_than_the_horizon_is_refused_and_a_short_one_is_called_so(parquet):
    names = ("--predictor", "persistence", "--predictor", "markov")
    refused = call("--traces", parquet, "--days", 0.003, *names)
    assert refused.exit_code == 1
    assert "made: too short, nothing can be scored: 1 steps of 300 s" in refused.output
    few = call("--traces", parquet, "--days", 0.1, *names)
    assert few.exit_code == 0, few.output
    assert "few windows: chance decides" in few.output
    assert "few windows" not in call("--traces", parquet, *names).output


def test_an_unknown_predictor_is_refused_with_the_closest(parquet):
    done = call("--traces", parquet, "--predictor", "persistense")
    assert done.exit_code == 2
    assert "did you mean 'persistence'?" in done.output


def test_all_peers_run_on_every_part_of_the_split(parquet):
    for part in ("train", "test"):
        names = [word for name in PEERS for word in ("--predictor", name)]
        done = call("--traces", parquet, "--part", part, *names)
        assert done.exit_code == 0, done.output


def test_predictions_of_another_model_are_scored_on_the_same_windows(parquet, tmp_path):
    said, told = tmp_path / "o.parquet", tmp_path / "o.json"
    call("--traces", parquet, "--predictor", "markov", "--predictions", said)
    done = call("--traces", parquet, "--predictor", "markov", "--beside", f"theirs={said}",
                "--json", told)  # fmt: skip
    assert done.exit_code == 0, done.output
    (trace,) = json.loads(told.read_text())["traces"]
    markov, theirs = (trace["predictors"][each]["groups"] for each in ("markov", "theirs"))
    for group, of in markov.items():
        for figure in ("windows", "rps", "nll", "ece", "pinball"):
            assert theirs[group][figure] == pytest.approx(of[figure], abs=1e-3), (group, figure)


def test_a_file_of_predictions_must_speak_of_every_window(parquet, tmp_path):
    said = tmp_path / "o.parquet"
    call("--traces", parquet, "--predictor", "persistence", "--days", 1, "--predictions", said)
    beside = ("--traces", parquet, "--predictor", "persistence", "--beside", f"theirs={said}")
    done = call(*beside)
    assert done.exit_code == 1
    assert "says nothing of" in done.output
    frame = pl.read_parquet(said)
    frame.with_columns(p_3=pl.lit(0.5)).write_parquet(said)
    assert "do not sum to 1" in call(*beside, "--days", 1).output
    frame.drop("p_3").write_parquet(said)
    assert "columns are missing: p_3" in call(*beside).output
    assert call("--traces", parquet, "--beside", "theirs").exit_code == 2


def test_what_cannot_be_written_is_said_and_nothing_half_written_stays(parquet, tmp_path):
    few = ("--traces", parquet, "--predictor", "persistence", "--days", 1)
    missing = tmp_path / "none"
    done = call(*few, "--json", missing / "o.json")
    assert done.exit_code == 1
    assert "o.json: cannot be written" in done.output
    done = call(*few, "--plot", missing / "o.png")
    assert "the picture cannot be written" in done.output
    done = call(*few, "--predictions", tmp_path / "o.parquet", "--horizon", 450)
    assert "no multiple of 300 s" in done.output
    # A day is as long as the part: no window has a target.
    done = call(*few, "--predictions", tmp_path / "o.parquet", "--horizon", 86_400)
    assert "nothing can be scored" in done.output
    assert [each.name for each in tmp_path.iterdir()] == ["made.parquet"]
