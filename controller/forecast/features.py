"""What the network is told: two hours in steps of five minutes, what sums them up, and a day.

Everything is relative or in logarithms, so that a VM at a hundredth of its allotment looks like one
at half of it. Finer grids are brought to five minutes. Of the day it is told the fingerprint. Pure.
"""

from dataclasses import dataclass

import numpy as np

from controller.core.state import Bools, Floats
from controller.forecast.fingerprint import SIZE, SMALL
from controller.forecast.moment import KINDS, Moment, folded
from controller.forecast.protocol import Singles

STEPS = 24
STEP_S = 300
CHANNELS = 8
_OF_WINDOW = 12
FACTS = _OF_WINDOW + KINDS + SIZE
DAY_S, WEEK_S = 86_400, 7 * 86_400


@dataclass(frozen=True, slots=True, eq=False)
class Inputs:
    """s series. `newest` is where predictions start from: the last step that was seen."""

    sequence: Singles  # (s, STEPS, CHANNELS)
    facts: Singles  # (s, FACTS)
    newest: Floats  # (s,) log(share + SMALL); NaN where nothing was seen at all


def inputs(moment: Moment, prints: Singles, *, peak_target: bool | Bools) -> Inputs:
    """From a moment on any grid whose step divides five minutes, and fingerprints (s, SIZE).

    `peak_target`: whether the highest until the horizon is asked for; one for all, or (s,).
    """
    level, missing = _filled(_coarse(moment.window, moment.step_s)[0])
    peak, _ = _filled(_coarse(moment.peak, moment.step_s)[1])
    newest = _newest(moment.window)
    log = np.log(level + SMALL)
    middle, spread = level.mean(axis=1, keepdims=True), level.std(axis=1, keepdims=True)
    scaled = (level - middle) / (spread + 0.01)
    step = np.diff(log, axis=1, prepend=log[:, :1])
    others = np.stack(
        [_standard(_coarse(moment.others[:, one], moment.step_s)[0]) for one in range(3)], axis=2
    )
    sequence = np.concatenate(
        [
            np.stack(
                [
                    log / 3 + 1,
                    np.clip(scaled, -4, 4),
                    np.clip(step, -4, 4),
                    np.clip((peak - level) / (spread + 0.01), 0, 6) / 2,
                    missing,
                ],
                axis=2,
            ),
            others,
        ],
        axis=2,
    )
    facts = _facts(moment, level, missing, newest, peak_target=peak_target)
    facts = np.concatenate([facts, _kinds(moment), prints], axis=1)
    return Inputs(sequence.astype(np.float32), facts.astype(np.float32), newest)


def _kinds(moment: Moment) -> Floats:
    """(s, KINDS) 1 for the resource that a series is of; all 0 where that is not known."""
    kind = np.broadcast_to(moment.kind, (len(moment.window),))
    return np.asarray(kind[:, None] == np.arange(KINDS), dtype=np.float64)


def _facts(
    moment: Moment,
    level: Floats,
    missing: Floats,
    newest: Floats,
    *,
    peak_target: bool | Bools,
) -> Floats:
    """(s, _OF_WINDOW)"""
    series = len(level)
    day = 2 * np.pi * (moment.end_s % DAY_S) / DAY_S
    week = 2 * np.pi * (moment.end_s % WEEK_S) / WEEK_S
    told = [np.sin(day), np.cos(day), np.sin(week), np.cos(week), np.asarray(peak_target)]
    columns = [
        np.log(level.mean(axis=1) + SMALL) / 3 + 1,
        np.log(level.std(axis=1) + SMALL) / 3 + 1,
        np.log(level.max(axis=1) + SMALL) / 3 + 1,
        np.log(level.min(axis=1) + SMALL) / 3 + 1,
        (level < SMALL).mean(axis=1),
        missing.mean(axis=1),
        np.nan_to_num(newest, nan=np.log(SMALL)) / 3 + 1,
        *(np.broadcast_to(value, (series,)) for value in told),
    ]
    return np.stack(columns, axis=1)


def _coarse(window: Floats, step_s: int) -> tuple[Floats, Floats]:
    """(s, STEPS) means and highest of five minutes each; a short past is padded in front."""
    each = max(1, STEP_S // step_s)
    wanted = STEPS * each
    window = window[:, -wanted:]
    padding = np.full((len(window), wanted - window.shape[1]), np.nan)
    return folded(np.concatenate([padding, window], axis=1), each)


def _filled(coarse: Floats) -> tuple[Floats, Floats]:
    """Unseen steps take the last that was seen, or the first; and where that is, as 1."""
    known = np.isfinite(coarse)
    place = np.maximum.accumulate(np.where(known, np.arange(coarse.shape[1]), -1), axis=1)
    first = np.argmax(known, axis=1)[:, None]
    place = np.where(place < 0, first, place)
    filled = np.nan_to_num(np.take_along_axis(coarse, place, axis=1))
    return np.maximum(filled, 0), (~known).astype(np.float64)


def _standard(coarse: Floats) -> Floats:
    """(s, STEPS) distances from the mean in deviations; 0 where the resource is not known."""
    level, missing = _filled(coarse)
    middle, spread = level.mean(axis=1, keepdims=True), level.std(axis=1, keepdims=True)
    return np.where(missing > 0, 0, np.clip((level - middle) / (spread + 0.01), -4, 4))


def _newest(window: Floats) -> Floats:
    """(s,) in logarithms; NaN where nothing was seen."""
    known: Bools = np.isfinite(window)
    last = window.shape[1] - 1 - np.argmax(known[:, ::-1], axis=1)
    value = np.take_along_axis(window, last[:, None], axis=1)[:, 0]
    return np.where(known.any(axis=1), np.log(np.maximum(value, 0) + SMALL), np.nan)
