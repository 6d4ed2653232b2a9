"""How the controller's forecaster is, in a line that an operator reads."""

import numpy as np
import pytest

from controller.bookkeeping import Books
from controller.claims import Trouble
from controller.core.state import Forecast
from controller.forecast.protocol import Said, Standing
from controller.forecast.skill import SkillBook
from controller.metrics import ControllerMetrics
from controller.panel import forecast_part, judged, topology_part

LSTM = "lstm+mixture"


def shown(learnt, standing):
    """Of two machines, one of whose resources is not seen; `learnt`: how many of five series."""
    quantile = np.zeros((2, 3, 2))
    quantile[1, 2] = np.nan
    by_mixture = (np.arange(6) < learnt).reshape(2, 3)
    borrowed = np.zeros((2, 3), dtype=np.bool_)
    borrowed[0, 2] = learnt == 2
    nothing = np.zeros(2, dtype=np.int64)
    ends = np.array([0.0, 1.0])
    forecast = Forecast(0, 600, standing.method, ends, quantile, nothing, nothing, nothing)
    return judged(Said(forecast, by_mixture, borrowed, nothing), standing, SkillBook(), ("a", "b"))


def shown_novel(novelty):
    standing = Standing(LSTM)
    machines = len(novelty)
    every, zeros = np.ones((machines, 3), dtype=np.bool_), np.zeros(machines, dtype=np.int64)
    forecast = Forecast(
        0, 600, LSTM, np.array([0.0, 1.0]), np.zeros((machines, 3, 2)), zeros, zeros, zeros
    )
    archetype = np.where(np.isfinite(novelty), 2, -1).astype(np.int16)
    said = Said(forecast, every, ~every, zeros, novelty, archetype)
    return judged(said, standing, SkillBook(), tuple("abcdefghij"))


def gauges(metrics, name, label):
    return {
        sample.labels[label]: sample.value
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name == name
    }


def test_it_names_method_horizon_and_what_is_too_new():
    standing = Standing(LSTM)
    waiting = forecast_part(standing, 600, None)
    assert waiting.healthy
    assert waiting.detail == "lstm+mixture, 10 min ahead, none yet"
    learning = forecast_part(standing, 600, shown(2, standing))
    said = "10 min ahead, 3 of 5 series are too new for it: empirical, empirical+neighbours"
    assert learning.detail.endswith(said)
    begun = forecast_part(standing, 600, shown(0, standing)).detail
    assert begun.endswith("10 min ahead, all series are too new for it: empirical")
    assert forecast_part(standing, 600, shown(5, standing)).detail.endswith("10 min ahead")
    empirical = Standing("empirical")
    assert forecast_part(empirical, 600, shown(0, empirical)).detail == "empirical, 10 min ahead"


@pytest.mark.parametrize(("novel", "said"), [(6, "6 of 24 series are unlike"), (4, "")])
def test_it_says_when_much_of_the_fleet_is_unlike_what_was_taught(novel, said):
    novelty = np.full(30, np.nan, dtype=np.float32)
    novelty[:24], novelty[:novel] = 0.5, 1.5
    standing = Standing(LSTM)
    part = forecast_part(standing, 600, shown_novel(novelty.reshape(10, 3)))
    assert part.healthy
    assert said in part.detail
    assert ("unlike" in part.detail) == bool(said)
    metrics = ControllerMetrics()
    Books(metrics).skill(SkillBook(), shown_novel(novelty.reshape(10, 3)))
    counted = gauges(metrics, "hrapaq_controller_forecast_novel_series", "resource")
    by_resource = (novelty.reshape(10, 3) > 1).sum(axis=0).tolist()
    assert counted == dict(zip(("cpu", "memory", "io"), by_resource, strict=True))


def test_it_is_ill_with_less_than_it_should_have_and_only_then():
    other_horizon = Standing("mixture (no network: it knows 600 s ahead only)")
    assert forecast_part(other_horizon, 30, None).healthy
    damaged = Standing("mixture (no network: its file cannot be used)", "x.safetensors: cut short")
    part = forecast_part(damaged, 600, shown(5, damaged))
    assert not part.healthy
    assert part.detail.endswith("10 min ahead: x.safetensors: cut short")


def test_metrics_count_series_by_method_without_the_reason():
    metrics = ControllerMetrics()
    standing = Standing("mixture (no network: because)")
    metrics.series(shown(2, standing).series)
    counted = gauges(metrics, "hrapaq_controller_forecast_series", "method")
    assert counted == {"mixture": 2.0, "empirical": 2.0, "empirical+neighbours": 1.0}


def test_what_is_wrong_with_the_tree_stands_in_a_line_with_what_to_do():
    clones = [
        Trouble("clone", str(i), f"vm{i}", (), f"vm{i} is two", "part them") for i in range(5)
    ]
    orphan = Trouble("orphan", "o", "lonely", (), "nobody has lonely", "look for its host")
    assert topology_part(()).healthy
    part = topology_part((orphan, *clones))
    assert (part.healthy, part.detail) == (
        False,
        "vm0 is two; vm1 is two; vm2 is two; 2 more; part them",
    )
    alone = topology_part((orphan,))
    assert (alone.healthy, alone.detail) == (True, "nobody has lonely; look for its host")
