"""The network, its training and its evaluation."""

import numpy as np
import pytest
import torch

from cutslots import cora
from cutslots.cora.learn import (
    Decision,
    InequalityDecision,
    PairNetwork,
    Problems,
    Settings,
    Side,
    TwoStage,
    train,
    values,
)
from cutslots.cora.protocol import Split, run_reference
from cutslots.qp import Matching


def toy(count: int = 12, side: int = 8, words: int = 20, swap: bool = True) -> cora.Instances:
    """A pair cites when one paper holds word 0 and the other word 1, or one word 2 and the other word 3; learning has to find that.

    With `swap` whichever holds which, else the left paper the even one.
    """
    generator = np.random.default_rng(0)
    has = generator.random((count, 2, side, words)) < 0.25
    left, right = has[:, 0, :, None], has[:, 1, None, :]
    edges = (left[..., 0] & right[..., 1]) | (left[..., 2] & right[..., 3])
    if swap:
        edges |= (left[..., 1] & right[..., 0]) | (left[..., 3] & right[..., 2])
    return cora.Instances(
        has, edges, np.arange(count * 2 * side, dtype=np.int32).reshape(count, 2, side)
    )


def test_the_factored_first_layer_is_the_plain_one():
    torch.manual_seed(0)
    words = np.random.default_rng(0).random((2, 7, 30)) < 0.2
    words[0, 3] = words[1, 6] = False  # a paper without words, also as the last
    network = PairNetwork(30, 16)
    found = network(Side.of(words[0]), Side.of(words[1]))
    left, right = torch.from_numpy(words).float()
    pairs = torch.cat([left[:, None].expand(7, 7, 30), right[None].expand(7, 7, 30)], dim=2)
    hidden = torch.relu(pairs @ torch.cat([network.left, network.right]) + network.bias)
    torch.testing.assert_close(found, network.score(hidden)[..., 0], rtol=1e-5, atol=1e-6)


def test_the_decision_s_loss_is_minus_the_edges_that_the_program_chooses():
    scores, edges = torch.randn(6, 6, generator=torch.Generator().manual_seed(0)), torch.eye(6)
    chosen = Matching(gamma=0.1, temperature=2.0)(-torch.sigmoid(scores)[None]).assignment[0]
    torch.testing.assert_close(
        Decision(temperature=2.0).loss(scores, edges), -chosen.diagonal().sum()
    )
    assert Decision(bounded=False).loss(10 * torch.eye(6), edges) < -5.9
    assert Decision(bounded=False).weights(scores) is scores


@pytest.mark.parametrize(
    "objective",
    [Decision(), InequalityDecision(), TwoStage(positive=5.0)],
    ids=lambda each: type(each).__name__,
)
@pytest.mark.parametrize("swap", [False, True])
def test_training_beats_random_where_there_is_something_to_learn(objective, swap):
    instances = toy(40, swap=swap)
    problems, settings = (
        Problems(instances),
        Settings(objective, hidden=32, learning_rate=1e-2, epochs=15, swap=swap),
    )
    (network,) = train(problems, range(32), settings, seed=0)
    held_out = range(32, 40)
    split = Split(0, tuple(range(32)), tuple(held_out))
    learned, optimum = (
        np.mean(values(problems, held_out, network, settings)),
        instances.optimum()[32:].mean(),
    )
    random = np.mean(
        [
            run_reference(instances, Split(seed, split.train, split.held_out), "random")
            for seed in range(20)
        ]
    )
    assert learned > random + 0.5 * (optimum - random), (learned, random, optimum)


def test_the_same_seed_gives_the_same_network_and_stops_lie_on_one_way():
    problems, settings = Problems(toy()), Settings(Decision(), hidden=8, epochs=3)
    once, (again,) = (
        train(problems, range(8), settings, 0, stops=(1, 3)),
        train(problems, range(8), settings, 0),
    )
    (other,) = train(problems, range(8), settings, 1)
    torch.testing.assert_close(once[1].left, again.left, rtol=0, atol=0)
    assert not torch.equal(once[0].left, once[1].left)
    assert not torch.equal(again.left, other.left)


def test_swapped_predictions_do_not_depend_on_which_side_is_left():
    instances = toy()
    exchanged = cora.Instances(
        instances.words[:, ::-1], instances.edges.transpose(0, 2, 1), instances.papers[:, ::-1]
    )
    settings = Settings(Decision(), hidden=8)
    network = PairNetwork(20, 8)
    assert values(Problems(instances), range(12), network, settings) == values(
        Problems(exchanged), range(12), network, settings
    )
