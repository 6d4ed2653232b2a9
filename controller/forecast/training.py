"""Trains the network with torch, in the open: one file, one loop.

The loss is the log loss of the bin that the target fell into, and the ranked probability score on
20 bins of the allotment, by which forecasts are judged. Validation windows are drawn once, from
machines and times apart; the best weights by their score are what is given back.
"""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import torch
from numpy.random import default_rng
from torch import Tensor, nn
from torch.nn import functional

from controller.forecast.checkpoint import CheckpointError
from controller.forecast.examples import Examples, Source, batches, epoch, prints
from controller.forecast.features import CHANNELS, FACTS
from controller.forecast.fingerprint import SMALL, Archetypes, archetypes
from controller.forecast.moment import EDGES as SHARES
from controller.forecast.network import BINS, EDGES, Network

_EDGES = torch.tensor(EDGES, dtype=torch.float32)
_SHARES = torch.tensor(SHARES, dtype=torch.float32)
BATCH = 1024
SCORE_WEIGHT = 2.0  # of the ranked probability score against the log loss
RATE = 4e-3
CLIP = 1.0
_TURNS_MIN = 20  # of fewer the schedule of the rates cannot be made
_PRINTS = 20_000  # that archetypes are made of


@dataclass(frozen=True, slots=True)
class Plan:
    """How long and from what seed."""

    hidden: int = 48
    epochs: int = 8
    windows: int = 200_000  # of an epoch; each draws new ones
    validation: int = 40_000
    patience: int = 6  # epochs without a better score; the last ones, at small rates, gain most
    horizon_s: int = 600
    seed: int = 1


@dataclass(frozen=True, slots=True)
class Progress:
    """After each epoch; scores are ranked probability scores on the validation windows."""

    epoch: int
    loss: float
    score: float
    best: float


class TorchNetwork(nn.Module):
    """What `network.Network` is, with gradients."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(CHANNELS, hidden, batch_first=True)
        self.first = nn.Linear(hidden + FACTS, hidden)
        self.second = nn.Linear(hidden, BINS)

    def forward(self, sequence: Tensor, facts: Tensor, newest: Tensor) -> Tensor:
        """(s, BINS) logits; bins that lie below a share of nothing have next to none."""
        _, (state, _) = self.lstm(sequence)  # (1, s, h)
        inner = functional.silu(self.first(torch.cat([state[0], facts], dim=1)))
        logits: Tensor = self.second(inner)
        floor = float(np.log(SMALL)) - newest[:, None]
        return logits.masked_fill(_EDGES[None, 1:] <= floor, -30.0)

    def losses(self, logits: Tensor, newest: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """(s,) log loss in bins of the change, (s,) ranked probability score in bins of shares."""
        change = torch.log(target.clamp(min=0) + SMALL) - newest
        place = torch.bucketize(change, _EDGES[1:-1], right=True)
        log_loss = functional.cross_entropy(logits, place, reduction="none")
        passed = (target[:, None] < _SHARES).float()
        score = ((self._below(logits, newest) - passed) ** 2).sum(dim=1)
        return log_loss, score

    def _below(self, logits: Tensor, newest: Tensor) -> Tensor:
        """(s, 20) as `network.below` at the edges of the 20 bins."""
        mass = torch.softmax(logits, dim=1)
        before = torch.cat([torch.zeros_like(mass[:, :1]), mass.cumsum(dim=1)], dim=1)
        offset = torch.log(_SHARES + SMALL) - newest[:, None]
        place = (torch.bucketize(offset, _EDGES, right=True) - 1).clamp(0, BINS - 1)
        low, high = _EDGES[place], _EDGES[place + 1]
        part = ((offset - low) / (high - low)).clamp(0, 1)
        return before.gather(1, place) + part * mass.gather(1, place)

    def export(self) -> Network:
        """The weights as they are used without torch."""
        plain = {
            name: np.ascontiguousarray(tensor.numpy().astype(np.float32).T)
            for name, tensor in self.state_dict().items()
        }
        return Network(
            sequence=plain["lstm.weight_ih_l0"],
            state=plain["lstm.weight_hh_l0"],
            gates=plain["lstm.bias_ih_l0"] + plain["lstm.bias_hh_l0"],
            first=plain["first.weight"],
            first_bias=plain["first.bias"],
            second=plain["second.weight"],
            second_bias=plain["second.bias"],
        )


class Trainer:
    """A training that can be put down after any epoch and taken up again.

    `judges`: histories apart from `sources`, to stop by. Deterministic for a seed and one thread,
    whether it was interrupted or not.
    """

    def __init__(self, sources: list[Source], judges: list[Source], plan: Plan) -> None:
        torch.manual_seed(plan.seed)
        self.sources, self.plan = sources, plan
        self.judged = epoch(judges, default_rng([plan.seed, 0]), plan.validation, plan.horizon_s)
        self.learner = TorchNetwork(plan.hidden)
        weights = self.learner.parameters()
        self.optimizer = torch.optim.AdamW(weights, lr=RATE, weight_decay=1e-4)
        turns = max(_TURNS_MIN, plan.epochs * (plan.windows // BATCH + len(sources) + 1))
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, RATE, total_steps=turns, pct_start=0.1
        )
        self.epoch, self.since, self.best = 0, 0, float("inf")
        self.best_weights = deepcopy(self.learner.state_dict())

    def epochs(self) -> Iterator[Progress]:
        """Progress after each, until the plan ends or scores no longer improve."""
        while self.epoch < self.plan.epochs and self.since < self.plan.patience:
            self.epoch += 1
            loss = self._learn()
            score = validate(self.learner, self.judged)
            self.since += 1
            if score < self.best:
                self.best, self.since = score, 0
                self.best_weights = deepcopy(self.learner.state_dict())
            yield Progress(self.epoch, loss, score, self.best)

    def network(self) -> Network:
        """The best so far."""
        best = TorchNetwork(self.plan.hidden)
        best.load_state_dict(self.best_weights)
        return best.export()

    def archetypes(self) -> Archetypes:
        """What machines that it learns from gather around."""
        random = default_rng([self.plan.seed, 0])
        return archetypes(prints(self.sources, random, _PRINTS, self.plan.horizon_s), random)

    def save(self, path: Path) -> None:
        """What `resume` needs; the file appears when it is complete."""
        state = {name: getattr(self, name).state_dict() for name in _PARTS}
        state |= {name: getattr(self, name) for name in _COUNTS}
        state["plan"] = asdict(self.plan)
        beside = path.with_name(path.name + ".part")
        torch.save(state, beside)
        beside.replace(path)

    def resume(self, path: Path) -> None:
        """Goes on where a training of the same plan was saved; CheckpointError otherwise."""
        try:
            state = torch.load(path, weights_only=True)
        except (OSError, RuntimeError, ValueError, LookupError, EOFError, UnpicklingError) as error:
            raise CheckpointError(f"{path}: no saved training ({error}); remove it") from error
        if not isinstance(state, dict) or state.get("plan") != asdict(self.plan):
            raise CheckpointError(f"{path}: saved by a training of another plan; remove it")
        for name in _PARTS:
            getattr(self, name).load_state_dict(state[name])
        for name in _COUNTS:
            setattr(self, name, state[name])

    def _learn(self) -> float:
        """One epoch over newly drawn windows; its mean loss."""
        random = default_rng([self.plan.seed, self.epoch])
        drawn = epoch(self.sources, random, self.plan.windows, self.plan.horizon_s)
        losses = []
        for batch in batches(drawn, BATCH):
            log_loss, scores = self.learner.losses(*_run(self.learner, batch))
            loss = (log_loss + SCORE_WEIGHT * scores).mean()
            self.optimizer.zero_grad()
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(self.learner.parameters(), CLIP)
            self.optimizer.step()
            self.schedule.step()
            losses.append(float(loss.detach()))
        return float(np.mean(losses))


_PARTS = ("learner", "optimizer", "schedule")
_COUNTS = ("epoch", "since", "best", "best_weights")


def validate(network: TorchNetwork, judged: Examples) -> float:
    """Mean ranked probability score."""
    with torch.no_grad():
        scores = [network.losses(*_run(network, one))[1] for one in batches(judged, 8 * BATCH)]
    return float(torch.cat(scores).mean())


def _run(network: TorchNetwork, batch: Examples) -> tuple[Tensor, Tensor, Tensor]:
    given = batch.inputs
    newest = torch.tensor(given.newest, dtype=torch.float32)
    logits = network(torch.from_numpy(given.sequence), torch.from_numpy(given.facts), newest)
    return logits, newest, torch.tensor(batch.target, dtype=torch.float32)
