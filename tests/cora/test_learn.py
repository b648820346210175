"""The network, its training, and the matching program with inequalities."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from cutslots import cora
from cutslots.cora.learn import (
    Decision,
    InequalityDecision,
    PairNetwork,
    Problems,
    Settings,
    Side,
    TwoStage,
    evaluate,
    train,
)
from cutslots.cora.polytope import nearest_matching
from cutslots.cora.protocol import Split, run
from cutslots.qp import Matching


@pytest.fixture(autouse=True)
def one_thread():
    """As in the experiment's processes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def toy(count: int = 12, side: int = 8, words: int = 20, swap: bool = True) -> cora.Instances:
    """A pair cites if one paper has word 0 and the other word 1, or words 2 and 3.

    With `swap` in either order, else the left paper has the even word.
    """
    has = np.random.default_rng(0).random((count, 2, side, words)) < 0.25
    left, right = has[:, 0, :, None], has[:, 1, None, :]
    edges = (left[..., 0] & right[..., 1]) | (left[..., 2] & right[..., 3])
    if swap:
        edges |= (left[..., 1] & right[..., 0]) | (left[..., 3] & right[..., 2])
    return cora.Instances(has, edges, np.arange(count * 2 * side).reshape(count, 2, side))


def test_the_factored_first_layer_is_the_plain_one():
    torch.manual_seed(0)
    words = np.random.default_rng(0).random((2, 7, 30)) < 0.2
    words[0, 3] = words[1, 6] = False  # papers without words, one of them the last
    network = PairNetwork(30, 16)
    scores = network(Side(words[0]), Side(words[1]))
    left, right = torch.from_numpy(words).float()
    pairs = torch.cat([left[:, None].expand(7, 7, 30), right[None].expand(7, 7, 30)], dim=2)
    hidden = torch.relu(pairs @ torch.cat([network.left, network.right]) + network.bias)
    torch.testing.assert_close(scores, network.score(hidden)[..., 0], rtol=1e-5, atol=1e-6)


def test_the_decision_loss_is_minus_the_true_edges_in_the_assignment():
    scores, edges = torch.randn(6, 6, generator=torch.Generator().manual_seed(0)), torch.eye(6)
    program = Matching(gamma=0.1, temperature=2.0)
    expected = -program(-torch.sigmoid(scores)[None]).assignment[0].diagonal().sum()
    torch.testing.assert_close(Decision(temperature=2.0).loss(scores, edges), expected)
    assert Decision(bounded=False).loss(10 * torch.eye(6), edges) < -5.9
    assert Decision(bounded=False).weights(scores) is scores


@pytest.mark.parametrize("objective", [Decision(), InequalityDecision(), TwoStage(positive=5.0)])
@pytest.mark.parametrize("swap", [False, True])
def test_training_learns_a_learnable_rule(objective, swap):
    instances, held_out = toy(40, swap=swap), tuple(range(32, 40))
    problems = Problems(instances)
    settings = Settings(objective, hidden=32, learning_rate=1e-2, epochs=15, swap=swap)
    (network,) = train(problems, range(32), settings, seed=0)
    learned = np.mean(evaluate(problems, held_out, network, settings))
    splits = [Split(seed, (), held_out) for seed in range(20)]
    random = np.mean([run(problems, split, "random", None).value for split in splits])
    optimum = instances.optimum()[32:].mean()
    assert learned > random + 0.5 * (optimum - random), (learned, random, optimum)


def test_training_is_deterministic_and_stops_are_on_its_way():
    problems, settings = Problems(toy()), Settings(Decision(), hidden=8, epochs=3)
    first, last = train(problems, range(8), settings, 0, stops=(1, 3))
    (again,) = train(problems, range(8), settings, 0)
    (other,) = train(problems, range(8), settings, 1)
    torch.testing.assert_close(last.left, again.left, rtol=0, atol=0)
    assert not torch.equal(first.left, last.left)
    assert not torch.equal(again.left, other.left)


def test_swapped_predictions_do_not_depend_on_which_side_is_left():
    one = toy()
    other = cora.Instances(one.words[:, ::-1], one.edges.transpose(0, 2, 1), one.papers[:, ::-1])
    settings, network = Settings(Decision(), hidden=8), PairNetwork(20, 8)
    results = [evaluate(Problems(each), range(12), network, settings) for each in (one, other)]
    assert results[0] == results[1]


def target(scale, shape=(4, 5), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(shape, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("shape", [(1, 1), (4, 5), (5, 3)])
def test_the_nearest_matching_equals_a_general_solver(scale, shape):
    goal = target(scale, shape).numpy()

    def slack(x):
        x = x.reshape(shape)
        return 1 - np.concatenate([x.sum(0), x.sum(1)])

    expected = minimize(
        lambda x: ((x - goal.ravel()) ** 2).sum() / 2,
        np.zeros(goal.size),
        jac=lambda x: x - goal.ravel(),
        bounds=[(0, None)] * goal.size,
        constraints={"type": "ineq", "fun": slack},
        options={"ftol": 1e-14, "maxiter": 500},
    ).x
    result = nearest_matching(torch.from_numpy(goal)).numpy().ravel()
    np.testing.assert_allclose(result, expected, atol=1e-6)


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0, 100.0])
def test_the_nearest_matching_is_optimal_at_full_size(scale):
    torch.manual_seed(0)
    normal, eye = torch.randn(50, 50).double(), torch.eye(50).double()
    for target in (torch.rand(50, 50).double(), normal, 0.5 + 0.001 * normal):
        goal = scale * target
        matching = nearest_matching(goal)
        assert matching.min() >= 0
        assert max(matching.sum(0).max(), matching.sum(1).max()) <= 1 + 1e-6
        # Every other point of the convex set is on the far side of the plane through `matching`.
        for point in (0 * eye, eye, eye[torch.randperm(50)], torch.full_like(eye, 1 / 50)):
            assert ((goal - matching) * (point - matching)).sum() <= 1e-5 * scale


@pytest.mark.parametrize("scale", [0.2, 1.0, 4.0])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_derivative_of_the_nearest_matching_is_exact(scale, seed):
    point = target(scale, seed=seed).requires_grad_()
    assert torch.autograd.gradcheck(nearest_matching, (point,), eps=1e-5, atol=1e-4)
