"""Image encoders: the first layer halves the resolution, which then is that of the cuts."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cutslots.nn.batch_shard import BatchNorm2d
from cutslots.options import option


@dataclass(frozen=True)
class EncoderConfig:
    """Which encoder, and its sizes."""

    kind: str = option("cnn", "plain convolutions or residual blocks", choices=("cnn", "resnet"))
    channels: int = option(64, "feature maps that the cuts and slots see", low=1)
    num_layers: int = option(4, "convolutions (cnn) or blocks after the stem (resnet)", low=1)
    kernel: int = option(5, "side of the convolutions (cnn) or the stem (resnet)", low=1, odd=True)
    stem_channels: int = option(64, "feature maps of the resnet's first convolution", low=1)

    def build(self) -> nn.Module:
        """`(batch, 3, H, W)` in [-1, 1] -> `(batch, channels, H / 2, W / 2)`."""
        return ConvEncoder(self) if self.kind == "cnn" else ResNetEncoder(self)


class ConvEncoder(nn.Sequential):
    """Convolutions with ReLU, the first of stride 2 (Slot Attention's; the paper's for CLEVR)."""

    def __init__(self, config: EncoderConfig) -> None:
        size, kernel, pad = config.channels, config.kernel, config.kernel // 2
        layers: list[nn.Module] = [nn.Conv2d(3, size, kernel, 2, pad), nn.ReLU(inplace=True)]
        for _ in range(config.num_layers - 1):
            layers += [nn.Conv2d(size, size, kernel, 1, pad), nn.ReLU(inplace=True)]
        super().__init__(*layers)


class ResNetEncoder(nn.Sequential):
    """A stem of stride 2 and residual blocks of stride 1 (the paper's encoder for ClevrTex)."""

    def __init__(self, config: EncoderConfig) -> None:
        stem, size, kernel = config.stem_channels, config.channels, config.kernel
        inputs = [stem] + [size] * (config.num_layers - 1)
        blocks = [ResidualBlock(width, size) for width in inputs]
        first = nn.Conv2d(3, stem, kernel, 2, kernel // 2, bias=False)
        super().__init__(first, BatchNorm2d(stem), nn.ReLU(inplace=True), *blocks)


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions around a shortcut.

    Source: the basic block of He et al., Deep Residual Learning for Image Recognition (2016).
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False)
        self.norm1 = BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = BatchNorm2d(outputs)
        self.shortcut = nn.Identity()
        if inputs != outputs:
            project = nn.Conv2d(inputs, outputs, 1, bias=False)
            self.shortcut = nn.Sequential(project, BatchNorm2d(outputs))

    def forward(self, x: Float[Tensor, "batch inputs h w"]) -> Float[Tensor, "batch outputs h w"]:
        y = torch.relu_(self.norm1(self.conv1(x)))
        return torch.relu_(self.norm2(self.conv2(y)) + self.shortcut(x))
