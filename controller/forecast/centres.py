"""Point forecasts whose own errors make a distribution (`members.Residuals`). Pure. s series."""

from collections.abc import Callable

import numpy as np

from controller.forecast.buckets import Small
from controller.forecast.seasonal import yesterday
from controller.forecast.sight import Sight

Centre = Callable[[Sight], Small]  # (s,) NaN: none


def newest(sight: Sight) -> Small:
    """As now."""
    return sight.newest


def day_before(sight: Sight) -> Small:
    """The same time a day before; the mean of two hours where that was not seen."""
    before = yesterday(sight)
    return np.where(np.isfinite(before), before, sight.long_mean)
