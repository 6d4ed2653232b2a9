"""How the controller's forecaster is, in a line that an operator reads."""

import numpy as np

from controller.core.state import Forecast
from controller.forecast.protocol import Said, Standing
from controller.forecast.skill import SkillBook
from controller.metrics import ControllerMetrics
from controller.panel import forecast_part, judged

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


def test_it_names_method_horizon_and_what_is_too_new():
    standing = Standing(LSTM)
    waiting = forecast_part(standing, 600, None)
    assert waiting.healthy
    assert waiting.detail == "lstm+mixture, 10 min ahead, none yet"
    learning = forecast_part(standing, 600, shown(2, standing))
    said = "10 min ahead, 3 of 5 series are too new for it: empirical, empirical+neighbours"
    assert learning.detail.endswith(said)
    # Right after a start nobody is known better: that is no news.
    for learnt in (0, 5):
        assert forecast_part(standing, 600, shown(learnt, standing)).detail.endswith("min ahead")


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
    counted = {
        sample.labels["method"]: sample.value
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name == "hrapaq_controller_forecast_series"
    }
    assert counted == {"mixture": 2.0, "empirical": 2.0, "empirical+neighbours": 1.0}
