"""What a candidate grant is worth: expected use, less waste, shortage and the cost of moving.

    u(j) = sum_k P_k [ min(l_k, q_j) - waste (q_j - l_k)+ - short priority (l_k - q_j)+ ]
           - move 1[q_j != now] - drift |q_j - now|                     (DESIGN section 4)

Measured in quanta, times SCALE, rounded once; everything after this is integer and exact.
"""

import numpy as np

from controller.core.state import MISSING, Bins, Floats, Forecast, Ints, Policy, Snapshot

SCALE = 1000


def values(snapshot: Snapshot, forecast: Forecast, bins: Bins, policy: Policy) -> Ints:
    """(n, 3, b) integer value of each candidate; 0 in unused places and for single candidates."""
    quantum = np.array(policy.quantum, dtype=np.float64)[:, None]
    used = bins.level != MISSING
    level = np.where(used, bins.level, 0) / quantum
    demand = np.concatenate([level, _overflow(forecast, bins, level, quantum)], axis=2)
    mass = bins.probability
    below = np.cumsum(mass, axis=2)[:, :, :-1]  # P(demand <= level)
    mean_below = np.cumsum(mass * demand, axis=2)
    mean, mean_below = mean_below[:, :, -1:], mean_below[:, :, :-1]

    use = mean_below + level * (1.0 - below)
    waste = level * below - mean_below
    short = (mean - mean_below) - level * (1.0 - below)
    gain = (
        use
        - np.array(policy.waste)[:, None] * waste
        - np.array(policy.short)[:, None] * snapshot.priority[:, None, None] * short
    )
    now = (snapshot.limit / quantum[:, 0])[:, :, None]
    away = used & (bins.level != snapshot.limit[:, :, None])
    cost = np.where(away, policy.move_quanta + policy.drift * np.abs(level - now), 0.0)
    worth = np.rint((gain - cost) * SCALE).astype(np.int64)
    choice = used & (bins.count > 1)[:, :, None]
    return np.where(choice, worth, 0)


def _overflow(forecast: Forecast, bins: Bins, level: Floats, quantum: Floats) -> Floats:
    """(n, 3, 1) where demand above every candidate is taken to lie: the forecast's far end."""
    far = np.nan_to_num(forecast.quantile[:, :, -1:]) / quantum
    return np.asarray(np.maximum(far, level.max(axis=2, keepdims=True)), dtype=np.float64)
