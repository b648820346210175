"""Networks that predict the weight of every pair of papers, and the objectives they train for."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from cutslots.cora.instances import Instances, matched
from cutslots.cora.polytope import nearest_matching
from cutslots.qp import Matching


class PairNetwork(nn.Module):
    """A two-layer network on pairs of papers: `v . relu(U x_left + V x_right + b) + c`.

    It equals the plain network on the concatenated words of a pair, but computes the two halves of
    its linear first layer once per paper, from the few words that the paper contains.
    """

    def __init__(self, num_words: int, hidden: int) -> None:
        super().__init__()
        bound = (2 * num_words) ** -0.5  # as torch initialises a linear layer on both papers' words
        self.left = nn.Parameter(torch.empty(num_words, hidden).uniform_(-bound, bound))
        self.right = nn.Parameter(torch.empty(num_words, hidden).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(hidden).uniform_(-bound, bound))
        self.score = nn.Linear(hidden, 1)

    def forward(self, left: "Side", right: "Side") -> Tensor:
        """Scores (left papers, right papers)."""
        first, second = left.sums(self.left) + self.bias, right.sums(self.right)
        return self.score((first[:, None] + second[None]).relu_()).squeeze(2)


class Side:
    """The papers on one side of an instance, from bool (papers, words), as lists of words."""

    def __init__(self, words: np.ndarray) -> None:
        starts = np.concatenate([[0], words.sum(1).cumsum()[:-1]]).astype(np.int64)
        self.words, self.starts = torch.from_numpy(words.nonzero()[1]), torch.from_numpy(starts)

    def sums(self, weights: Tensor) -> Tensor:
        """(papers, hidden): the sum of the weights' rows over each paper's words."""
        return functional.embedding_bag(self.words, weights, self.starts, mode="sum")


class Objective:
    """What a network trains for: scores and true edges are (side, side)."""

    bounded = True

    def loss(self, scores: Tensor, edges: Tensor) -> Tensor:
        raise NotImplementedError

    def weights(self, scores: Tensor) -> Tensor:
        """What the LP is given: sigmoids of the scores if `bounded`, else the scores."""
        return torch.sigmoid(scores) if self.bounded else scores


@dataclass(frozen=True)
class Decision(Objective):
    """Minus the true edges in the assignment of the regularised program (Eq. 7 of the paper).

    Attributes:
        temperature: of the softmax over the second side.
        gamma: the program's regularisation, 0.1 in the paper.
    """

    temperature: float = 1.0
    bounded: bool = True
    gamma: float = 0.1

    def loss(self, scores: Tensor, edges: Tensor) -> Tensor:
        matching = Matching(gamma=self.gamma, temperature=self.temperature)
        return -(matching(-self.weights(scores)[None]).assignment[0] * edges).sum()


@dataclass(frozen=True)
class InequalityDecision(Objective):
    """The same loss through the program with all inequalities of the LP (Wilder et al. 2018)."""

    bounded: bool = True
    gamma: float = 0.1

    def loss(self, scores: Tensor, edges: Tensor) -> Tensor:
        return -(nearest_matching(self.weights(scores) / self.gamma) * edges).sum()


@dataclass(frozen=True)
class TwoStage(Objective):
    """Cross-entropy of "does this pair cite"; the LP gets the predicted probabilities.

    Attributes:
        positive: weight of a citing pair, beside 1 for others: one pair in twenty cites.
    """

    positive: float = 1.0

    def loss(self, scores: Tensor, edges: Tensor) -> Tensor:
        weight = scores.new_tensor(self.positive)
        return functional.binary_cross_entropy_with_logits(scores, edges, pos_weight=weight)


@dataclass(frozen=True)
class Settings:
    """How a network is trained.

    Attributes:
        hidden: size of the hidden layer.
        learning_rate: of Adam.
        epochs: passes over the training instances, one instance per step.
        swap: exchange left and right in half of the steps, by a seeded coin, and predict the mean
            of both orders, since which side is left means nothing.
    """

    objective: Objective
    hidden: int = 200
    learning_rate: float = 1e-3
    epochs: int = 12
    swap: bool = True


class Problems:
    """Instances as tensors: the two `Side`s of each, and float `edges` (instances, side, side)."""

    def __init__(self, instances: Instances) -> None:
        self.instances, self.num_words = instances, instances.words.shape[-1]
        self.sides = [(Side(left), Side(right)) for left, right in instances.words]
        self.edges = torch.from_numpy(instances.edges.astype(np.float32))


def train(
    problems: Problems,
    members: Sequence[int],
    settings: Settings,
    seed: int,
    stops: Sequence[int] = (),
) -> list[PairNetwork]:
    """Train on the instances `members`; the networks after the epochs `stops` (default: the last).

    Raises:
        InputError: from the program, for settings it cannot use.
    """
    stops = tuple(stops) or (settings.epochs,)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        network = PairNetwork(problems.num_words, settings.hidden)
    optimizer = torch.optim.Adam(network.parameters(), settings.learning_rate, fused=True)
    generator, networks = np.random.default_rng(seed), []
    for epoch in range(1, max(stops) + 1):
        for member in generator.permutation(members):
            (left, right), edges = problems.sides[member], problems.edges[member]
            if settings.swap and generator.integers(2):
                left, right, edges = right, left, edges.T
            loss = settings.objective.loss(network(left, right), edges)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if epoch in stops:
            networks.append(copy.deepcopy(network))
    return networks


@torch.no_grad()
def evaluate(
    problems: Problems, members: Sequence[int], network: PairNetwork, settings: Settings
) -> list[float]:
    """Per instance of `members`: the true edges in the LP's matching under the learned weights."""
    values = []
    for member in members:
        left, right = problems.sides[member]
        scores = network(left, right)
        if settings.swap:
            scores = (scores + network(right, left).T) / 2
        weights = settings.objective.weights(scores).numpy()
        values.append(matched(weights, problems.instances.edges[member]))
    return values
