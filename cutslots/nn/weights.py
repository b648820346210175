"""From features to the edge weights of cuts."""

import itertools
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cutslots.options import option


@dataclass(frozen=True)
class WeightsConfig:
    """Sizes of the network that predicts edge weights (one for the object cuts, one for the foreground cut)."""

    hidden: int = option(100, "feature maps of its hidden layers", low=1)
    num_layers: int = option(3, "convolutions; the published code has 2, the paper says 3", low=1)
    kernel: int = option(3, "side of its convolutions", low=1, odd=True)
    norm: bool = option(False, "instance normalisation before its last layer (not in the paper)")


class WeightNet(nn.Module):
    """Convolutions with LeakyReLU; a ReLU on the last makes the six weights of each pixel and cut >= 0.

    Source: section 6.1 ("a 3-layer convNet"); hidden size and activations after the published code.
    """

    def __init__(self, config: WeightsConfig, channels: int, num_cuts: int) -> None:
        super().__init__()
        sizes = [channels] + [config.hidden] * (config.num_layers - 1)
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(sizes):
            layers += [
                nn.Conv2d(inputs, outputs, config.kernel, 1, config.kernel // 2),
                nn.LeakyReLU(inplace=True),
            ]
        if config.norm:
            # The cut amplifies the mean over the image most when gamma_edge is the largest gamma: without it removed, a random
            # offset at the start lets one cut win everywhere.
            layers.append(nn.InstanceNorm2d(sizes[-1]))
        self.layers = nn.Sequential(*layers)
        self.last = nn.Conv2d(sizes[-1], 6 * num_cuts, config.kernel, 1, config.kernel // 2)
        self.num_cuts = num_cuts

    def forward(
        self, features: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch cuts 6 height width"]:
        return torch.relu_(self.last(self.layers(features))).unflatten(1, (self.num_cuts, 6))
