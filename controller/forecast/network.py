"""The network as it is used: an LSTM over two hours gives the distribution of a change.

The head is ordinal: masses of fixed bins of log(share + SMALL) relative to the newest step, dense
around no change and wide far off, so that one set of weights serves every level of use. Inside a
bin mass is spread evenly; the distribution can be evaluated at any grid of shares.

    sequence (s, 24, 8) -> LSTM -> last state (s, h) --+
    facts (s, 33) -------------------------------------+-> two layers -> logits (s, 41)

In NumPy, so that forecasting needs no more than planning does. `training` has the same in torch.
"""

from dataclasses import dataclass

import numpy as np

from controller.core.state import Floats, Ints
from controller.forecast.features import STEPS, Inputs, inputs
from controller.forecast.fingerprint import SMALL, fingerprint
from controller.forecast.moment import Moment
from controller.forecast.protocol import Singles

_SIDE = (0.01, 0.03, 0.06, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.65, 0.8, 1, 1.25, 1.5, 2, 2.5, 3, 4, 5)
REACH = 7.0  # where the outermost bins end
EDGES = np.array([-REACH, *(-one for one in reversed(_SIDE)), *_SIDE, REACH])  # in logarithms
BINS = len(EDGES) - 1
ABOVE = 0.02  # of what the masses put above an allotment that was kept so far
_ROUNDING = 1e-6
SERIES_AT_ONCE = 2048  # keeps the states of a batch within the cache
_IMPOSSIBLE = np.float32(-30)


@dataclass(frozen=True, slots=True, eq=False)
class Network:
    """Weights; gates in the order input, forget, cell, output (Hochreiter and Schmidhuber 1997)."""

    sequence: Singles  # (CHANNELS, 4 h)
    state: Singles  # (h, 4 h)
    gates: Singles  # (4 h,)
    first: Singles  # (h + FACTS, h)
    first_bias: Singles  # (h,)
    second: Singles  # (h, BINS)
    second_bias: Singles  # (BINS,)

    @property
    def hidden(self) -> int:
        return int(self.state.shape[0])

    def masses(self, given: Inputs) -> Floats:
        """(s, BINS) of the change until the target."""
        found = np.empty((len(given.newest), BINS))
        for start in range(0, len(found), SERIES_AT_ONCE):
            rows = slice(start, start + SERIES_AT_ONCE)
            logits = self._logits(given.sequence[rows], given.facts[rows])
            floor = np.log(SMALL) - given.newest[rows, None]
            logits = np.where(EDGES[1:] <= floor, _IMPOSSIBLE, logits)  # below a share of nothing
            found[rows] = _softmax(logits)
        return found

    def _logits(self, sequence: Singles, facts: Singles) -> Singles:
        h = self.hidden
        weights = self._joined()
        given = np.zeros((len(sequence), len(weights)), dtype=np.float32)  # state, step, 1
        given[:, -1] = 1
        cell = np.zeros((len(sequence), h), dtype=np.float32)
        gates = np.empty((len(sequence), 4 * h), dtype=np.float32)
        let_in, kept, new, shown = (gates[:, place * h : (place + 1) * h] for place in range(4))
        for step in range(STEPS):
            given[:, h:-1] = sequence[:, step]
            np.tanh(np.matmul(given, weights, out=gates), out=gates)
            kept += 1  # twice the curve: what is kept doubles, and so does what is let in
            cell *= kept
            let_in += 1
            let_in *= new
            cell += let_in
            cell *= np.float32(0.5)
            shown += 1
            np.multiply(shown, np.tanh(cell), out=given[:, :h])
            given[:, :h] *= np.float32(0.5)
        state = given[:, :h]
        inner = np.concatenate([state, facts], axis=1) @ self.first + self.first_bias
        inner *= _sigmoid(inner)
        return np.asarray(inner @ self.second + self.second_bias, dtype=np.float32)

    def _joined(self) -> Singles:
        """(h + CHANNELS + 1, 4 h) all that makes the gates; those with a logistic curve halved:
        1 / (1 + exp(-x)) = (1 + tanh(x / 2)) / 2, and one curve serves all four."""
        half = np.repeat(np.array([0.5, 0.5, 1, 0.5], dtype=np.float32), self.hidden)
        return np.concatenate([self.state, self.sequence, self.gates[None]]) * half


def below(mass: Floats, newest: Floats, shares: Floats) -> Floats:
    """(s, e) probability that the target is below shares (s, e) or (e,); 0 below a share of 0."""
    before = np.concatenate([np.zeros((len(mass), 1)), np.cumsum(mass, axis=1)], axis=1)
    offset = np.log(np.maximum(shares, 0) + SMALL) - newest[:, None]
    place: Ints = np.clip(np.searchsorted(EDGES, offset, side="right") - 1, 0, BINS - 1)
    part = np.clip((offset - EDGES[place]) / (EDGES[place + 1] - EDGES[place]), 0, 1)
    inside = np.take_along_axis(before, place, 1) + part * np.take_along_axis(mass, place, 1)
    return np.where(shares > 0, inside, 0.0)


def _sigmoid(x: Singles) -> Singles:
    return np.asarray(np.float32(1) / (np.float32(1) + np.exp(-np.clip(x, -30, 30))))


def _softmax(logits: Singles) -> Floats:
    powers = np.exp((logits - logits.max(axis=1, keepdims=True)).astype(np.float64))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


@dataclass(frozen=True, slots=True)
class NetworkMember:
    """The network as one voice among the predictors that are mixed."""

    network: Network
    peak_target: bool
    name: str = "network"

    def cdf(self, moment: Moment, day: Singles, edges: Floats) -> Floats:
        """(s, e) probability that the target is below ascending edges (s, e), in shares; of the
        last day (s, SLOTS) the fingerprint is read.

        Where nothing was seen of a series, any share up to its allotment is as likely. Of what was
        never above its allotment in the window, next to nothing is taken to go there: masses are of
        relative changes, and all of it is a place where many stop.
        """
        given = inputs(moment, fingerprint(day), peak_target=self.peak_target)
        unseen = np.isnan(given.newest)
        newest = np.where(unseen, 0.0, given.newest)
        seen = Inputs(given.sequence, given.facts, newest)
        found = below(self.network.masses(seen), newest, edges)
        held = np.fmax.reduce(moment.window, axis=1) <= 1 + _ROUNDING
        found = np.where(held[:, None] & (edges >= 1), 1 - ABOVE * (1 - found), found)
        return np.where(unseen[:, None], np.clip(edges, 0, 1), found)
