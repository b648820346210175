"""From slots to pictures: every slot is painted on its own, with an opacity that lets them compete."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cutslots.errors import InputError
from cutslots.nn.position import PositionEncoding
from cutslots.options import option


@dataclass(frozen=True)
class DecoderConfig:
    """Sizes of the spatial broadcast decoder."""

    start: int = option(8, "side of the grid that a slot is broadcast to", low=1)
    channels: int = option(64, "feature maps", low=1)
    kernel: int = option(5, "side of the transposed convolutions", low=1, odd=True)
    num_refine: int = option(2, "convolutions of stride 1 at full size, before the last", low=0)


class BroadcastDecoder(nn.Module):
    """Broadcasts a slot over a small grid, adds positions and doubles the grid up to the image.

    Source: Slot Attention's decoder; layer counts and LeakyReLU after the paper's published code.
    """

    def __init__(self, config: DecoderConfig, slot_size: int, image_size: int) -> None:
        super().__init__()
        num_doublings = (image_size // config.start).bit_length() - 1
        if config.start > image_size or config.start << num_doublings != image_size:
            usual = min(3, (image_size & -image_size).bit_length() - 1)
            raise InputError(
                f"decoder.start is {config.start} and image_size {image_size}; the image must be start times a power of two. "
                f"Use decoder.start={image_size >> usual}, for example."
            )
        self.start = config.start
        self.position = PositionEncoding(slot_size, config.start, config.start)
        layers: list[nn.Module] = []
        inputs, pad = slot_size, config.kernel // 2
        for _ in range(num_doublings):
            layers += [
                nn.ConvTranspose2d(
                    inputs, config.channels, config.kernel, 2, pad, output_padding=1
                ),
                nn.LeakyReLU(inplace=True),
            ]
            inputs = config.channels
        for _ in range(config.num_refine):
            layers += [
                nn.Conv2d(inputs, config.channels, config.kernel, 1, pad),
                nn.LeakyReLU(inplace=True),
            ]
            inputs = config.channels
        self.layers = nn.Sequential(*layers, nn.Conv2d(inputs, 4, 3, 1, 1))

    def forward(
        self, slots: Float[Tensor, "batch slots size"]
    ) -> tuple[
        Float[Tensor, "batch slots 3 height width"], Float[Tensor, "batch slots height width"]
    ]:
        """A picture in [-1, 1] for each slot, and its opacity before the softmax over slots."""
        grid = slots.flatten(0, 1)[:, :, None, None].expand(-1, -1, self.start, self.start)
        # The grid lies channels-last, and convolutions keep it so. What follows works on one channel or three of the four: pixel by
        # pixel, four apart, tanh does not vectorise.
        painted = self.layers(self.position(grid)).contiguous().unflatten(0, slots.shape[:2])
        return torch.tanh(painted[:, :, :3]), painted[:, :, 3]
