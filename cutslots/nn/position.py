"""Pixel positions, added to features."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class PositionEncoding(nn.Module):
    """Adds a learned linear map of a pixel's distances to the borders, `(x, y, 1 - x, 1 - y)`.

    Source: the soft position embedding of Locatello et al., Object-Centric Learning with Slot
    Attention (2020).
    """

    def __init__(self, channels: int, height: int, width: int) -> None:
        super().__init__()
        self.project = nn.Linear(4, channels)
        rows, columns = torch.linspace(0, 1, height), torch.linspace(0, 1, width)
        y, x = torch.meshgrid(rows, columns, indexing="ij")
        self.register_buffer("grid", torch.stack([x, y, 1 - x, 1 - y], dim=-1), persistent=False)

    def forward(self, features: Float[Tensor, "batch c h w"]) -> Float[Tensor, "batch c h w"]:
        return features + self.project(self.grid).permute(2, 0, 1)
