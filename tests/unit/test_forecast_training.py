"""Training with torch: the same network, better after it, the same again for the same seed."""

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: no training here")

from controller.forecast.checkpoint import CheckpointError  # noqa: E402 - after the skip
from controller.forecast.examples import Source, draw, epoch  # noqa: E402
from controller.forecast.network import below  # noqa: E402
from controller.forecast.training import Plan, TorchNetwork, Trainer  # noqa: E402

SMALL_PLAN = Plan(hidden=8, epochs=3, windows=4000, validation=1500, seed=3)


def steps_source(seed=1, step_s=300, resources=1):
    """Machines that go between two levels, two steps at each: what comes is never what is."""
    rng = np.random.default_rng(seed)
    phase = np.arange(400) + rng.integers(0, 4, (resources, 20, 1))
    level = np.where(phase % 4 < 2, 0.7, 0.1) + rng.normal(0, 0.01, phase.shape)
    share = np.maximum(level, 0).astype(np.float32)
    share[:, 0, :50] = np.nan
    return Source("steps", share, 1_700_000_000, step_s, tuple(range(resources)))


def test_without_torch_it_says_the_same():
    torch.manual_seed(1)
    learner = TorchNetwork(8)
    examples = draw(steps_source(), np.random.default_rng(1), 300, 600)
    given = examples.inputs
    newest = torch.tensor(given.newest, dtype=torch.float32)
    with torch.no_grad():
        logits = learner(torch.from_numpy(given.sequence), torch.from_numpy(given.facts), newest)
        mass = torch.softmax(logits, dim=1).numpy()
        scores = learner.losses(logits, newest, torch.tensor(examples.target, dtype=torch.float32))
    found = learner.export().masses(given)
    np.testing.assert_allclose(found, mass, atol=1e-5)
    shares = np.arange(1, 21) / 20
    cdf = below(found, given.newest, np.broadcast_to(shares, (len(found), 20)))
    passed = examples.target[:, None] < shares
    np.testing.assert_allclose(((cdf - passed) ** 2).sum(1), scores[1].numpy(), atol=1e-3)


def test_it_learns_what_a_newest_value_does_not_tell():
    source, judge = steps_source(1), steps_source(2)
    plan = replace(SMALL_PLAN, epochs=5, windows=20_000)
    reached = list(Trainer([source], [judge], plan).epochs())
    assert [one.epoch for one in reached] == [1, 2, 3, 4, 5]
    judged = epoch([judge], np.random.default_rng([3, 0]), 1500, 600)
    newest = np.exp(judged.inputs.newest)[:, None]
    shares = np.arange(1, 21) / 20
    persistence = ((1.0 * (newest < shares) - (judged.target[:, None] < shares)) ** 2).sum(1).mean()
    assert reached[-1].best < 0.5 * persistence


def small_trainer(**changes):
    torch.set_num_threads(1)
    return Trainer([steps_source()], [steps_source(2)], replace(SMALL_PLAN, **changes))


def test_the_same_seed_gives_the_same_network():
    one, other = small_trainer(), small_trainer()
    assert [p.score for p in one.epochs()] == [p.score for p in other.epochs()]
    np.testing.assert_array_equal(one.network().second, other.network().second)


def test_an_interrupted_training_ends_where_a_whole_one_does(tmp_path):
    whole, begun, resumed = small_trainer(), small_trainer(), small_trainer()
    scores = [progress.score for progress in whole.epochs()]
    next(begun.epochs())
    begun.save(tmp_path / "state")
    resumed.resume(tmp_path / "state")
    assert [progress.score for progress in resumed.epochs()] == scores[1:]
    np.testing.assert_array_equal(resumed.network().second, whole.network().second)


def test_what_another_plan_left_is_refused(tmp_path):
    path = tmp_path / "state"
    small_trainer().save(path)
    with pytest.raises(CheckpointError, match="another plan"):
        small_trainer(seed=9).resume(path)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(CheckpointError, match="state"):
        small_trainer().resume(path)


@pytest.mark.parametrize("step_s", [30, 60])
def test_finer_histories_and_several_resources_are_drawn_from(step_s):
    rng = np.random.default_rng(4)
    share = rng.uniform(0, 1, (3, 5, 1200)).astype(np.float32)
    examples = draw(Source("fine", share, 0, step_s, (0, 1, 3)), rng, 200, 600)
    assert len(examples.target) == 200
    of_memory = examples.inputs.facts[:, 13] == 1
    assert 20 < of_memory.sum() < 180
    others = np.abs(examples.inputs.sequence[:, :, 5:]).sum(axis=(0, 1))
    assert (others > 0).all(), "CPU, memory and network are told in places of their own"
    others = np.abs(examples.inputs.sequence[of_memory, :, 5:]).sum(axis=(0, 1))
    assert (others > 0).tolist() == [True, False, True], "there is no disk beside memory"


def test_too_short_a_history_is_refused():
    with pytest.raises(ValueError, match="too few"):
        draw(
            Source("s", np.zeros((1, 2, 20), np.float32), 0, 300), np.random.default_rng(1), 9, 600
        )
