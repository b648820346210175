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
    hidden: int = option(256, "hidden units of the MLPs before pooling", low=1)
    hidden_after: int | None = option(
        None, "of those after pooling (published code: 128); none: hidden", low=1
    )
    num_heads: int = option(3, "MLPs on the features; their pooled results are summed", low=1)


class SlotHeads(nn.Module):
    """Pools features under masks into slots: s_1 + sum_h mlp_h(s_h), s_h = mean(mask * f_h(x)).

    The mean is over all H W pixels and not over the mask's mass, so a slot encodes its mask's size.

    Source: Algorithm 2; three heads as in the published code.
    """

    def __init__(self, config: SlotsConfig, channels: int) -> None:
        super().__init__()
        heads, hidden, size = config.num_heads, config.hidden, config.size
        after = config.hidden_after or hidden
        self.norm = nn.LayerNorm(channels)
        self.before = nn.Linear(channels, heads * hidden)
        self.project = nn.ModuleList(nn.Linear(hidden, size) for _ in range(heads))
        self.after = nn.ModuleList(
            nn.Sequential(nn.Linear(size, after), nn.ReLU(inplace=True), nn.Linear(after, size))
            for _ in range(heads)
        )

    def forward(
        self, features: Float[Tensor, "batch channels h w"], masks: Float[Tensor, "batch slots h w"]
    ) -> Float[Tensor, "batch slots size"]:
        hidden = torch.relu_(self.before(self.norm(features.flatten(2).mT)))
        # The mean over pixels is linear, so f_h's second layer can follow it: k projections instead
        # of H W, with the same result.
        masks = masks.flatten(2)
        pooled = masks.to(hidden.dtype) @ hidden / hidden.shape[1]
        mass = masks.mean(-1, keepdim=True)
        slots = []
        parts = pooled.chunk(len(self.project), dim=-1)
        for part, head in zip(parts, self.project, strict=True):
            assert isinstance(head, nn.Linear)
            slots.append(nn.functional.linear(part, head.weight) + mass * head.bias)
        return slots[0] + sum(mlp(slot) for mlp, slot in zip(self.after, slots, strict=True))
