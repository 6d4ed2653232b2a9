"""Where to try multipliers next: the linear programme over the selections seen so far.

A selection c that is worth U_c and leaves g_c of each resource bounds the dual from below by the
plane U_c + lam g_c. `Master` finds the lowest point of the highest planes, for many hosts at once:
the simplex method on the convex combinations of selections (Dantzig, Wolfe, "Decomposition
principle for linear programs", 1960), r + 1 rows, the basis inverse kept explicitly.

Floating point throughout: it only proposes multipliers, and any multipliers prove a bound. Each
operation is elementwise along the hosts, so a host's result does not depend on its neighbours.
"""

import numpy as np
from numpy.typing import NDArray

from controller.core.allocate.problem import Bools, Ints

Floats = NDArray[np.float64]

_TINY = 1e-12  # smaller entries are rounding, no pivots


class Master:
    """Multipliers between 0 and `cap` for h hosts. All arrays end with the axis of the hosts."""

    def __init__(self, worth: Floats, left: Floats, cap: Floats, rounds: int) -> None:
        """Start from one selection: its worth (h,) and what it leaves, left (r, h)."""
        resources, hosts = left.shape
        size = resources + 1
        self.cap = cap  # (r, h)
        self.seen = 0
        self.worth = np.empty((rounds, hosts))
        self.left = np.empty((rounds, resources, hosts))
        self.scale = np.abs(left).max(axis=0) + 1.0  # (h,) a multiplier's step in terms of worth
        # The basis: the selection itself and, per resource, the limit on its multiplier that the
        # selection pushes against: the cap where it takes too much, 0 where some is left.
        self.inverse = np.zeros((size, size, hosts))
        self.share = np.zeros((size, hosts))
        self.cost = np.zeros((size, hosts))
        self.capped = np.full((size, hosts), -1)  # the resource whose cap is in this row
        self.inverse[0, 0], self.share[0], self.cost[0] = 1.0, 1.0, worth
        over = left < 0
        for resource in range(resources):
            row, sign = resource + 1, np.where(over[resource], 1.0, -1.0)
            self.inverse[row, row] = sign
            self.inverse[row, 0] = -sign * left[resource]
            self.share[row] = np.abs(left[resource])
            self.cost[row] = np.where(over[resource], -cap[resource], 0.0)
            self.capped[row] = np.where(over[resource], resource, -1)
        self._settle()

    def add(self, worth: Ints, left: Ints) -> None:
        """A selection that may enter the basis."""
        self.worth[self.seen], self.left[self.seen] = worth, left
        self.seen += 1

    def lowest(self, active: Bools) -> tuple[Floats, Floats]:
        """(h,) a floor of the dual, and (r, h) multipliers where it is, after one more pivot.

        The floor is that of some of the planes, so it holds whether or not more pivots would
        raise it; one per evaluation keeps up with the selections that come.
        """
        self._pivot(active)
        return self.dual[0], np.clip(-self.dual[1:], 0.0, self.cap)

    def leans(self) -> Bools:
        """(r, h) whether the cap of a multiplier holds the lowest point up."""
        resource = np.arange(len(self.cap))[:, None, None]
        return np.asarray(((self.capped == resource) & (self.share > 0)).any(axis=1))

    def widen(self, where: Bools, limit: Ints) -> None:
        """Raise caps (r, h), to no more than the limit."""
        if where.any():
            self.cap = np.where(where, np.minimum(self.cap * 16.0, limit), self.cap)
            raised = -np.take_along_axis(self.cap, np.maximum(self.capped, 0), 0)
            self.cost = np.where(self.capped >= 0, raised, self.cost)
            self._settle()

    def keep(self, hosts: Ints) -> None:
        """Go on with these hosts only."""
        for name in ("cap", "worth", "left", "scale", "inverse", "share", "cost", "capped", "dual"):
            setattr(self, name, getattr(self, name).take(hosts, axis=-1))

    def _settle(self) -> None:
        """The lowest point of the basis' planes: its height and, negative, its multipliers."""
        self.dual = self.cost[0] * self.inverse[0]
        for row in range(1, len(self.cost)):
            self.dual = self.dual + self.cost[row] * self.inverse[row]

    def _pivot(self, active: Bools) -> None:
        """Exchange one column of the basis per host, where that gains anything."""
        host = np.arange(len(active))
        gain = self._gains(self.dual[0], -self.dual[1:])
        entering = gain.argmax(axis=0)
        go = active & (gain[entering, host] > 0.25 + _TINY * abs(self.dual[0]))
        if not go.any():
            return
        column, cost, capped = self._column(entering)
        step = self.inverse[:, 0] * column[0]
        for row in range(1, len(column)):
            step = step + self.inverse[:, row] * column[row]
        ratio = np.where(step > _TINY, self.share / np.where(step > _TINY, step, 1.0), np.inf)
        leaving = ratio.argmin(axis=0)
        length = ratio[leaving, host]
        go &= np.isfinite(length)
        swapped = (np.arange(len(column))[:, None] == leaving) & go
        self._exchange(swapped, leaving, np.where(go, length, 0.0), np.where(go, step, 0.0))
        self.cost = np.where(swapped, cost, self.cost)
        self.capped = np.where(swapped, capped, self.capped)
        self._settle()

    def _gains(self, height: Floats, lam: Floats) -> Floats:
        """(selections seen + 2 r, h) by how much each column rises above the lowest point."""
        gain = self.worth[: self.seen] - height
        for resource in range(len(lam)):
            gain = gain + lam[resource] * self.left[: self.seen, resource]
        return np.concatenate([gain, -lam * self.scale, (lam - self.cap) * self.scale])

    def _column(self, entering: Ints) -> tuple[Floats, Floats, Ints]:
        """(r + 1, h) the entering column, (h,) its cost, (h,) the resource that it caps or -1."""
        resources, hosts = self.cap.shape
        selection = entering < self.seen
        place, host = np.where(selection, entering, 0), np.arange(hosts)
        limit = entering - self.seen
        column = np.empty((resources + 1, hosts))
        column[0] = selection
        for resource in range(resources):
            edge = np.where(
                limit == resource, -1.0, np.where(limit == resources + resource, 1.0, 0)
            )
            column[resource + 1] = np.where(selection, self.left[place, resource, host], edge)
        capped = np.where(limit >= resources, limit - resources, -1)
        cap = np.where(capped >= 0, -self.cap[np.maximum(capped, 0), host], 0.0)
        return column, np.where(selection, self.worth[place, host], cap), capped

    def _exchange(self, swapped: Bools, leaving: Ints, length: Floats, step: Floats) -> None:
        """Bring the basis inverse and the shares up to date; a step of 0 changes nothing."""
        host = np.arange(len(leaving))
        divisor = step[leaving, host]
        row = self.inverse[leaving, :, host].T / np.where(divisor > 0, divisor, 1.0)
        self.share = np.where(swapped, length, np.maximum(self.share - step * length, 0.0))
        self.inverse = np.where(swapped[:, None], row, self.inverse - step[:, None] * row)
