"""Initial weights that keep a signal's size from layer to layer."""

import math

from torch import nn


def he_init(module: nn.Module) -> None:
    """Draw every convolution and linear layer from a normal of variance 2 / fan-in and set its biases to 0, in place.

    The fan-in of a transposed convolution is what reaches one output pixel: inputs * kernel area / stride area. torch's own default
    has a sixth of the variance and, in transposed convolutions of stride 2, a twenty-fourth: a decoder of several doublings
    then starts almost constant.

    Source: He et al., Delving Deep into Rectifiers (2015).
    """
    for layer in module.modules():
        if not isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            continue
        if isinstance(layer, nn.ConvTranspose2d):
            fan_in = layer.in_channels * math.prod(layer.kernel_size) / math.prod(layer.stride)
        else:
            fan_in = layer.weight[0].numel()
        nn.init.normal_(layer.weight, std=math.sqrt(2 / fan_in))
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def glorot_init(module: nn.Module) -> None:
    """Draw every convolution and linear layer, and what a GRU cell does to its input, from a uniform of variance 2 / (fan-in +
    fan-out); make a GRU cell's recurrent weights orthogonal and set all biases to 0, in place.

    Source: Glorot and Bengio, Understanding the difficulty of training deep feedforward neural networks (2010); TensorFlow's
    defaults, with which Slot Attention was published.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.GRUCell):
            nn.init.xavier_uniform_(layer.weight_ih)
            nn.init.orthogonal_(layer.weight_hh)
            nn.init.zeros_(layer.bias_ih)
            nn.init.zeros_(layer.bias_hh)
