"""What a fleet taught that others can begin with: plain arrays by name. Pure.

Every part keeps counts, or means per outcome. A fleet that begins with what others taught gives it
the weight of a few outcomes of its own (`lightened`), so that where it differs it is itself within
hours.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from controller.core.state import Floats

Learnt = dict[str, Floats]
_DAMPING = 1e-12


class LearntError(ValueError):
    """What was learnt elsewhere does not fit; the text says which array and why."""


def taken(learnt: Mapping[str, Floats], name: str, shape: tuple[int, ...]) -> Floats:
    """An array of this shape. Errors: `LearntError`."""
    found = learnt.get(name)
    if found is None:
        raise LearntError(f"{name} is missing among {', '.join(sorted(learnt))}")
    if found.shape != shape:
        raise LearntError(f"{name} has the shape {found.shape} instead of {shape}")
    if not np.isfinite(found).all():
        raise LearntError(f"{name} holds what is no number")
    return found.astype(np.float64)


def lightened(counts: Floats, at_most: float, axis: int | None = None) -> Floats:
    """Counts that add up to `at_most` or less, in all or along an axis."""
    total = np.abs(counts).sum(axis=axis, keepdims=True)
    return np.asarray(counts * np.minimum(1.0, at_most / (total + _DAMPING)))


def combined(parts: Sequence[Mapping[str, Floats]]) -> Learnt:
    """Of several fleets, each counting the same: what one of them has not seen, the others tell."""
    return {name: _mean([part[name] for part in parts]) for name in _names(parts)}


def _names(parts: Sequence[Mapping[str, Floats]]) -> Iterator[str]:
    for name in sorted(parts[0]):
        if all(name in part for part in parts):
            yield name
        else:
            raise LearntError(f"{name} was not learnt in all parts")


def _mean(arrays: Sequence[Floats]) -> Floats:
    shapes = {array.shape for array in arrays}
    if len(shapes) > 1:
        raise LearntError(f"arrays of one name have different shapes: {sorted(shapes)}")
    return np.asarray(np.mean(arrays, axis=0))
