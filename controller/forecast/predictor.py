"""The predictor as it is assembled: simple members, the network where there is one, the mixture."""

from controller.core.state import Floats
from controller.forecast.buckets import DEVIATIONS
from controller.forecast.centres import Newest, Regression
from controller.forecast.levels import Levels
from controller.forecast.members import Distribution, External, Family, Residuals, WindowHistograms
from controller.forecast.mixture import Mixture
from controller.forecast.moment import LEVELS
from controller.forecast.seasonal import Analogues, Day, Yesterday
from controller.forecast.sight import Target

_HOUR_S, _DAY_S = 3600.0, 86_400.0
_FAVOUR = 12.0  # what the network weighs at first beside one of the simple members


def make_predictor(
    horizon_steps: int,
    target: Target,
    network: Distribution | None = None,
    levels: Floats = LEVELS,
) -> Mixture:
    """A `Predictor` of what comes `horizon_steps` after a moment, with nothing learnt yet.

    Its quantiles are those at `levels`, ascending.
    """
    day = Day()
    families: list[Family] = [
        WindowHistograms([_HOUR_S / 4, 3 * _HOUR_S / 4]),
        Levels([6 * _HOUR_S], 7 * _DAY_S),
        Residuals(Newest(scaled=True), DEVIATIONS, _DAY_S),
        Residuals(Regression(_DAY_S), DEVIATIONS, _DAY_S),
        Analogues(day),
        Residuals(Yesterday(day), DEVIATIONS, _DAY_S),
    ]
    favoured = [1.0] * sum(family.count for family in families)
    if network is not None:
        families.append(External(network))
        favoured.append(_FAVOUR)
    return Mixture(families, horizon_steps, target, favoured, levels=levels)
