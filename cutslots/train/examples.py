"""The scenes of a split on which a model does best, middling and worst: found while it is scored, then looked at once more."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from cutslots.data.batches import Batches
from cutslots.train.callbacks import Examples
from cutslots.train.evaluate import sample_of
from cutslots.train.ranks import Ranks


@dataclass
class ItemScores:
    """One score of every item of a split; made to be `evaluate`'s `scored`.

    Attributes:
        score: its name.
        values: by the item's number in the split, of this rank's share.
    """

    score: str
    smaller_is_better: bool = False

    def __post_init__(self) -> None:
        self.values: dict[int, float] = {}

    def __call__(self, index: np.ndarray, scores: Mapping[str, Tensor]) -> None:
        self.values |= dict(zip(index.tolist(), scores[self.score].tolist(), strict=True))

    def chosen(self, ranks: Ranks) -> dict[int, str]:
        """The items of the best, the median and the worst value and which they are, each item once; none that is not finite."""
        count = int(
            ranks.sum({"count": len(self.values)})["count"]
        )  # the first so many of the split
        values = ranks.sum({str(item): self.values.get(item, 0.0) for item in range(count)})
        sign = 1 if self.smaller_is_better else -1
        self.values = {int(item): value for item, value in values.items() if math.isfinite(value)}
        order = sorted(self.values, key=lambda item: (sign * self.values[item], item))
        if not order:
            return {}
        last = len(order) - 1
        places = {last // 2: "median", last: "worst", 0: "best"}  # of the same place the last holds
        return {order[place]: places[place] for place in sorted(places)}

    def examples(
        self, model: nn.Module, batches: Batches, device: torch.device, ranks: Ranks
    ) -> Examples | None:
        """Those scenes with what the model makes of them, on rank 0; None on the others, and where no value is finite.

        Costs a forward pass of three items. A model in evaluation draws no random numbers, so a training goes on as without it.
        """
        chosen = self.chosen(ranks)
        with ranks.agreed():
            if not (chosen and ranks.is_first):
                return None
            items = np.array(list(chosen), np.int64)
            sample = sample_of(model, batches.items(items), device)
            values = [self.values[item] for item in chosen]
            return Examples(self.score, list(chosen.values()), batches.ids(items), values, sample)
