"""The predictor as it is assembled: simple members, the network where there is one, the mixture."""

from controller.core.state import Floats
from controller.forecast import centres
from controller.forecast.buckets import DEVIATIONS
from controller.forecast.learnt import Learnt
from controller.forecast.members import Distribution, External, Family, Past, Residuals
from controller.forecast.mixture import Mixture
from controller.forecast.moment import LEVELS
from controller.forecast.sight import Target

_DAY_S = 86_400.0
_FAVOUR = 7.0  # what the network weighs at first beside one of the simple members


def make_predictor(
    horizon_steps: int,
    target: Target,
    network: Distribution | None = None,
    levels: Floats = LEVELS,
    learnt: Learnt | None = None,
) -> Mixture:
    """A `Predictor` of what comes `horizon_steps` after a moment, with nothing learnt yet
    but what other fleets taught (`Mixture.learnt`, `learnt.combined`), if that is given.

    Its quantiles are those at `levels`, ascending. Errors: `LearntError` where `learnt` does not
    fit.
    """
    families: list[Family] = [
        Past(7 * _DAY_S),
        Residuals([centres.newest, centres.day_before], DEVIATIONS, _DAY_S),
    ]
    favoured = [1.0] * sum(family.count for family in families)
    if network is not None:
        families.append(External(network))
        favoured.append(_FAVOUR)
    mixture = Mixture(families, horizon_steps, target, favoured, levels=levels)
    if learnt is not None:
        mixture.start_from(learnt)
    return mixture
