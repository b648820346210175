"""Image encoders: a first layer of stride 2, then everything at that resolution, which is the grid that is cut."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cutslots.nn.batch_norm import BatchNorm2d
from cutslots.options import option


@dataclass(frozen=True)
class EncoderConfig:
    """Which encoder, and its sizes."""

    kind: str = option(
        "cnn",
        "a plain stack of convolutions, or residual blocks with batch normalisation",
        choices=("cnn", "resnet"),
    )
    channels: int = option(64, "feature maps that the cuts and slots see", low=1)
    num_layers: int = option(
        4, "convolutions (cnn) or residual blocks after the stem (resnet)", low=1
    )
    kernel: int = option(
        5, "side of the convolutions (cnn) or of the stem's (resnet)", low=1, odd=True
    )
    stem_channels: int = option(64, "feature maps of the resnet's first convolution", low=1)

    def build(self) -> nn.Module:
        """`(batch, 3, H, W)` in [-1, 1] -> `(batch, channels, H / 2, W / 2)`."""
        return ConvEncoder(self) if self.kind == "cnn" else ResNetEncoder(self)


class ConvEncoder(nn.Sequential):
    """Convolutions with ReLU, the first of stride 2 (Slot Attention's encoder, which the paper uses for CLEVR)."""

    def __init__(self, config: EncoderConfig) -> None:
        layers: list[nn.Module] = []
        for layer in range(config.num_layers):
            layers += [
                nn.Conv2d(
                    3 if layer == 0 else config.channels,
                    config.channels,
                    config.kernel,
                    2 if layer == 0 else 1,
                    config.kernel // 2,
                ),
                nn.ReLU(inplace=True),
            ]
        super().__init__(*layers)


class ResNetEncoder(nn.Sequential):
    """A stem of stride 2 and residual blocks of stride 1 (the paper's encoder for ClevrTex)."""

    def __init__(self, config: EncoderConfig) -> None:
        stem = config.stem_channels
        blocks = [
            ResidualBlock(stem if block == 0 else config.channels, config.channels)
            for block in range(config.num_layers)
        ]
        super().__init__(
            nn.Conv2d(3, stem, config.kernel, 2, config.kernel // 2, bias=False),
            BatchNorm2d(stem),
            nn.ReLU(inplace=True),
            *blocks,
        )


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions around a shortcut.

    Source: the basic block of He et al., Deep Residual Learning for Image Recognition (2016).
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = (
            nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False),
            BatchNorm2d(outputs),
        )
        self.conv2, self.norm2 = (
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            BatchNorm2d(outputs),
        )
        self.shortcut = (
            nn.Identity()
            if inputs == outputs
            else nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), BatchNorm2d(outputs))
        )

    def forward(
        self, x: Float[Tensor, "batch inputs height width"]
    ) -> Float[Tensor, "batch outputs height width"]:
        y = torch.relu_(self.norm1(self.conv1(x)))
        return torch.relu_(self.norm2(self.conv2(y)) + self.shortcut(x))
