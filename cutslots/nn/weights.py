"""From features to the edge weights of cuts."""

import itertools
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cutslots.options import option


@dataclass(frozen=True)
class WeightsConfig:
    """Sizes of the networks that predict edge weights, of the object cuts and the foreground."""

    hidden: int = option(100, "feature maps of its hidden layers", low=1)
    num_layers: int = option(3, "convolutions; the published code has 2, the paper says 3", low=1)
    kernel: int = option(3, "side of its convolutions", low=1, odd=True)
    dilated: bool = option(
        False, "dilation 1, 2, 4, ... of its hidden layers, which see farther (paper: no)"
    )
    norm: bool = option(False, "instance normalisation before its last layer (not in the paper)")


class WeightNet(nn.Module):
    """Convolutions with LeakyReLU; the last with ReLU, for six weights >= 0 per pixel and cut.

    Source: section 6.1 ("a 3-layer convNet"); hidden size and activations as published.
    """

    def __init__(self, config: WeightsConfig, channels: int, num_cuts: int) -> None:
        super().__init__()
        kernel, pad = config.kernel, config.kernel // 2
        sizes = [channels] + [config.hidden] * (config.num_layers - 1)
        layers: list[nn.Module] = []
        for layer, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
            dilation = 2**layer if config.dilated else 1
            convolution = nn.Conv2d(inputs, outputs, kernel, 1, dilation * pad, dilation)
            layers += [convolution, nn.LeakyReLU(inplace=True)]
        if config.norm:
            # If gamma_edge is the largest gamma, the cut amplifies the mean over the image most:
            # unless it is removed, a random initial offset lets one cut win everywhere.
            layers.append(nn.InstanceNorm2d(sizes[-1]))
        self.layers = nn.Sequential(*layers)
        self.last = nn.Conv2d(sizes[-1], 6 * num_cuts, kernel, 1, pad)
        self.num_cuts = num_cuts

    def forward(self, features: Float[Tensor, "batch c h w"]) -> Float[Tensor, "batch cuts 6 h w"]:
        return torch.relu_(self.last(self.layers(features))).unflatten(1, (self.num_cuts, 6))
