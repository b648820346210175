"""From masked features to slots."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cutslots.options import option


@dataclass(frozen=True)
class SlotsConfig:
    """Sizes of the slots and of the MLPs before and after pooling."""

    size: int = option(64, "numbers in a slot", low=1)
    hidden: int = option(256, "hidden units of the MLPs", low=1)
    num_heads: int = option(
        3, "MLPs that look at the features; their pooled results are summed", low=1
    )


class SlotHeads(nn.Module):
    """Pools features under masks and turns them into slots: s_1 + sum_h mlp_h(s_h), s_h = mean over all pixels of mask * f_h(x).

    The mean is over H W, not over the mask's own mass, so a slot knows how large its mask is.

    Source: Algorithm 2; three heads after the published code.
    """

    def __init__(self, config: SlotsConfig, channels: int) -> None:
        super().__init__()
        heads, hidden, size = config.num_heads, config.hidden, config.size
        self.norm = nn.LayerNorm(channels)
        self.before = nn.Linear(channels, heads * hidden)
        self.project = nn.ModuleList(nn.Linear(hidden, size) for _ in range(heads))
        self.after = nn.ModuleList(
            nn.Sequential(nn.Linear(size, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, size))
            for _ in range(heads)
        )

    def forward(
        self,
        features: Float[Tensor, "batch channels height width"],
        masks: Float[Tensor, "batch slots height width"],
    ) -> Float[Tensor, "batch slots size"]:
        x = self.norm(features.flatten(2).mT)
        hidden = torch.relu_(self.before(x))
        # The mean over pixels is linear, so the second layer of f_h follows it: k projections in place of H W, the same numbers.
        masks = masks.flatten(2)
        pooled = (masks.to(hidden.dtype) @ hidden / hidden.shape[1]).chunk(
            len(self.project), dim=-1
        )
        mass = masks.mean(-1, keepdim=True)
        slots = []
        for part, head in zip(pooled, self.project, strict=True):
            assert isinstance(head, nn.Linear)
            slots.append(nn.functional.linear(part, head.weight) + mass * head.bias)
        return slots[0] + sum(mlp(slot) for mlp, slot in zip(self.after, slots, strict=True))
