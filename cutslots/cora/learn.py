"""A network predicts the weight of every pair of papers; it is trained through a relaxed matching, or to classify pairs.

Three objectives, of the same network and the same loop:

- `Decision`: the edge variables of the regularised program (the paper's Eq. 7) become an assignment; the loss is minus the number
  of true edges that the assignment chooses.
- `InequalityDecision`: the same loss through the program of Wilder et al. (2018), which keeps every inequality of the matching LP.
- `TwoStage`: cross-entropy of "does this pair cite": the weights are learned without the program.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from cutslots.cora.instances import Instances, matched
from cutslots.cora.polytope import nearest_matching
from cutslots.qp import Matching


class PairNetwork(nn.Module):
    """A two-layer network on pairs of papers, a score a pair: `v . relu(U x_left + V x_right + b) + c`.

    It is the plain network on the concatenated words of a pair. Because its first layer is linear, the two halves are computed once
    a paper, from the few words that the paper holds, and added for every pair.
    """

    def __init__(self, num_words: int, hidden: int) -> None:
        super().__init__()
        bound = (2 * num_words) ** -0.5  # as torch initialises a linear layer on both papers' words
        self.left = nn.Parameter(torch.empty(num_words, hidden).uniform_(-bound, bound))
        self.right = nn.Parameter(torch.empty(num_words, hidden).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(hidden).uniform_(-bound, bound))
        self.score = nn.Linear(hidden, 1)

    def forward(self, left: "Side", right: "Side") -> Tensor:
        """Scores (papers on the left, papers on the right)."""
        first, second = left.sums(self.left) + self.bias, right.sums(self.right)
        return self.score((first[:, None] + second[None]).relu_()).squeeze(2)


@dataclass(frozen=True)
class Side:
    """The papers of one side of an instance as lists of words: all in one array, and where each paper's begin."""

    words: Tensor
    starts: Tensor

    @classmethod
    def of(cls, words: np.ndarray) -> "Side":
        """From bool (papers, words)."""
        starts = np.concatenate([[0], words.sum(1).cumsum()[:-1]])
        return cls(torch.from_numpy(words.nonzero()[1]), torch.from_numpy(starts.astype(np.int64)))

    def sums(self, weights: Tensor) -> Tensor:
        """(papers, hidden): the sum of the weights' rows over each paper's words."""
        return functional.embedding_bag(self.words, weights, self.starts, mode="sum")


class Objective(Protocol):
    """What a network is trained for: `loss` of scores and true edges (side, side), and the `weights` that the LP is given."""

    def loss(self, scores: Tensor, edges: Tensor) -> Tensor: ...
    def weights(self, scores: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Decision:
    """Minus the true edges chosen by the regularised program without inequalities.

    Attributes:
        temperature: of the softmax over the second side.
        bounded: weights are sigmoids of the scores, else the scores themselves.
        gamma: the program's regularisation, 0.1 in the paper.
    """

    temperature: float = 1.0
    bounded: bool = True
    gamma: float = 0.1

    def loss(self, scores: Tensor, edges: Tensor) -> Tensor:
        matching = Matching(gamma=self.gamma, temperature=self.temperature)
        return -(matching(-self.weights(scores)[None]).assignment[0] * edges).sum()

    def weights(self, scores: Tensor) -> Tensor:
        return torch.sigmoid(scores) if self.bounded else scores


@dataclass(frozen=True)
class InequalityDecision:
    """Minus the true edges chosen by the program with all inequalities (Wilder et al. 2018)."""

    bounded: bool = True
    gamma: float = 0.1

    def loss(self, scores: Tensor, edges: Tensor) -> Tensor:
        return -(nearest_matching(self.weights(scores) / self.gamma) * edges).sum()

    def weights(self, scores: Tensor) -> Tensor:
        return torch.sigmoid(scores) if self.bounded else scores


@dataclass(frozen=True)
class TwoStage:
    """Cross-entropy of every pair; the LP gets the predicted probabilities.

    Attributes:
        positive: how much a pair that cites counts, beside 1 for one that does not: citing pairs are one in twenty.
    """

    positive: float = 1.0

    def loss(self, scores: Tensor, edges: Tensor) -> Tensor:
        return functional.binary_cross_entropy_with_logits(
            scores, edges, pos_weight=scores.new_tensor(self.positive)
        )

    def weights(self, scores: Tensor) -> Tensor:
        return torch.sigmoid(scores)


@dataclass(frozen=True)
class Settings:
    """How a network is trained.

    Attributes:
        objective: what for.
        hidden: size of the hidden layer.
        learning_rate: of Adam.
        epochs: passes over the training instances, one instance a step.
        swap: which side is left means nothing, so in each step a coin exchanges them, and a prediction is the mean of both ways.
    """

    objective: Objective
    hidden: int = 200
    learning_rate: float = 1e-3
    epochs: int = 12
    swap: bool = True


class Problems:
    """Instances as tensors.

    Attributes:
        sides: for every instance, its left and its right papers.
        edges: float (instances, side, side), 1 where a pair cites.
    """

    def __init__(self, instances: Instances) -> None:
        self.instances, self.num_words = instances, instances.words.shape[-1]
        self.sides = [(Side.of(left), Side.of(right)) for left, right in instances.words]
        self.edges = torch.from_numpy(instances.edges.astype(np.float32))


def train(
    problems: Problems,
    members: Sequence[int],
    settings: Settings,
    seed: int,
    stops: Sequence[int] = (),
) -> list[PairNetwork]:
    """Train on the instances `members`, seeded; the networks after each of the epochs `stops` (default: the last).

    Raises:
        InputError: from the program, for settings it cannot use.
    """
    stops = tuple(stops) or (settings.epochs,)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        network = PairNetwork(problems.num_words, settings.hidden)
    optimizer = torch.optim.Adam(network.parameters(), settings.learning_rate, fused=True)
    generator, kept = np.random.default_rng(seed), []
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
            kept.append(copy.deepcopy(network))
    return kept


@torch.no_grad()
def values(
    problems: Problems, members: Sequence[int], network: PairNetwork, settings: Settings
) -> list[float]:
    """For each of the instances `members`: how many true edges the matching LP chooses under the learned weights."""
    found = []
    for member in members:
        left, right = problems.sides[member]
        scores = network(left, right)
        if settings.swap:
            scores = (scores + network(right, left).T) / 2
        found.append(
            matched(settings.objective.weights(scores).numpy(), problems.instances.edges[member])
        )
    return found
