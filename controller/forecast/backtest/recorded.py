"""Predictions that were made elsewhere, from a file of the form that `--predictions` writes.

So a model in any environment or language is scored on the same windows as everybody else.
"""

from pathlib import Path

import numpy as np
import polars as pl

from controller.core.state import Bools
from controller.forecast.backtest.peers_math import quantile_of_mass
from controller.forecast.backtest.traces import Trace, TraceError
from controller.forecast.moment import BINS, Moment, Prediction

_MASSES = tuple(f"p_{place}" for place in range(BINS + 1))
_SUM_ERROR_MAX = 1e-3


class Recorded:
    """A `Predictor` that reads out what a file says; quantiles follow from its probabilities."""

    def __init__(self, name: str, path: Path, trace: Trace, scored: Bools) -> None:
        """`scored` (v, t): the windows that the file must speak of. Errors: `TraceError`."""
        self.name = name
        self._trace = trace
        row, step = np.nonzero(scored)
        ids = np.array(trace.vm_ids)
        ts = trace.start_s + step * trace.step_s + trace.late_s[row, step]
        asked = pl.DataFrame({"vm_id": ids[row], "ts": ts.astype(np.int64)})
        told = _read(path).unique(["vm_id", "ts"], keep="last")
        found = asked.join(told, on=["vm_id", "ts"], how="left", maintain_order="left")
        missing = found["p_0"].null_count()
        if missing:
            vm_id, when = found.filter(pl.col("p_0").is_null()).row(0)[:2]
            raise TraceError(
                f"{path}: says nothing of {missing} of {len(found)} windows that are scored here, "
                f"such as that of {vm_id} at ts {when}; predict the same --part, --vms and --days"
            )
        mass = found.select(_MASSES).to_numpy()
        self._mass = _checked(path, mass.astype(np.float64))
        self._place = np.full(scored.shape, -1, dtype=np.int64)
        self._place[row, step] = np.arange(len(row))

    def step(self, moment: Moment) -> Prediction:
        end_s = int(np.max(moment.end_s))
        place = self._place[:, (end_s - self._trace.start_s) // self._trace.step_s - 1]
        mass = np.full((len(place), BINS + 1), 1 / (BINS + 1))
        mass[place >= 0] = self._mass[place[place >= 0]]
        return Prediction(mass, quantile_of_mass(mass))


def _read(path: Path) -> pl.DataFrame:
    try:
        frame = pl.scan_parquet(path)
        missing = {"vm_id", "ts", *_MASSES} - set(frame.collect_schema().names())
        if missing:
            raise TraceError(f"{path}: columns are missing: {', '.join(sorted(missing))}")
        return frame.select(
            pl.col("vm_id").cast(pl.String),
            pl.col("ts").cast(pl.Int64),
            *(pl.col(each).cast(pl.Float32) for each in _MASSES),
        ).collect()
    except (OSError, pl.exceptions.PolarsError) as error:
        raise TraceError(f"{path}: cannot be read as a file of predictions: {error}") from error


def _checked(path: Path, mass: np.ndarray) -> np.ndarray:
    """Probabilities that sum to 1 exactly."""
    total = mass.sum(axis=1)
    wrong = ~np.isfinite(total) | (np.abs(total - 1) > _SUM_ERROR_MAX) | (mass < 0).any(axis=1)
    if wrong.any():
        raise TraceError(
            f"{path}: {int(wrong.sum())} of {len(mass)} windows have probabilities that are "
            "missing, negative, or do not sum to 1"
        )
    return np.asarray(mass / total[:, None])
