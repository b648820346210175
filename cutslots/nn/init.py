"""Initial weights that keep a signal's size from layer to layer, set in place."""

import math

from torch import nn

_LAYERS = nn.Conv2d | nn.ConvTranspose2d | nn.Linear


def he_init(module: nn.Module) -> None:
    """Normal weights of variance 2 / fan-in in convolutions and linear layers; biases 0.

    The fan-in of a transposed convolution is what reaches one output pixel: inputs * kernel area /
    stride area. The default of torch has a sixth of the variance, and a twenty-fourth in transposed
    convolutions of stride 2: a decoder of several doublings then starts almost constant.

    Source: He et al., Delving Deep into Rectifiers (2015).
    """
    for layer in module.modules():
        if isinstance(layer, _LAYERS):
            fan_in = layer.weight[0].numel()
            if isinstance(layer, nn.ConvTranspose2d):
                fan_in = layer.in_channels * math.prod(layer.kernel_size) / math.prod(layer.stride)
            nn.init.normal_(layer.weight, std=math.sqrt(2 / fan_in))
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def glorot_init(module: nn.Module) -> None:
    """Uniform weights of variance 2 / (fan-in + fan-out), also from a GRU cell's input.

    The recurrent weights of a GRU cell become orthogonal, all biases 0.

    Source: Glorot and Bengio, Understanding the difficulty of training deep feedforward neural
    networks (2010); TensorFlow's defaults, with which Slot Attention was published.
    """
    for layer in module.modules():
        if isinstance(layer, _LAYERS):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.GRUCell):
            nn.init.xavier_uniform_(layer.weight_ih)
            nn.init.orthogonal_(layer.weight_hh)
            nn.init.zeros_(layer.bias_ih)
            nn.init.zeros_(layer.bias_hh)
