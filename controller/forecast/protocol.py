"""What every forecaster is given and gives back."""

from dataclasses import dataclass
from typing import Protocol

from controller.core.state import Floats, Forecast, Ints


@dataclass(frozen=True, slots=True, eq=False)
class History:
    """Use on a regular grid, oldest first; NaN where nothing was seen. w = steps of the window."""

    made_at_unix_ns: int
    step_ns: int
    mean: Floats  # (n, 3, w) mean of each step, in the resource's unit
    peak: Floats  # (n, 3, w) highest sample of each step
    limit: Ints  # (n, 3) in force now: use that touches it is demand cut off
    age_ns: Ints  # (n,) of the newest sample; MISSING where there is none


class Forecaster(Protocol):
    def predict(self, history: History, horizon_ns: int) -> Forecast:
        """Quantiles of the peak of the step means over the horizon; NaN where it does not know."""
        ...
