"""The spatial broadcast decoder: each slot to an image and an opacity."""

from dataclasses import dataclass

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

    Source: Slot Attention's decoder; layer counts and LeakyReLU as in the paper's published code.
    """

    def __init__(self, config: DecoderConfig, slot_size: int, image_size: int) -> None:
        super().__init__()
        num_doublings = (image_size // config.start).bit_length() - 1
        if config.start > image_size or config.start << num_doublings != image_size:
            usual = min(3, (image_size & -image_size).bit_length() - 1)
            raise InputError(
                f"image_size must be decoder.start times a power of two, got {image_size} and "
                f"{config.start}. Use for example decoder.start={image_size >> usual}."
            )
        self.start = config.start
        self.position = PositionEncoding(slot_size, config.start, config.start)
        kernel, pad = config.kernel, config.kernel // 2
        size = [slot_size] + [config.channels] * (num_doublings + config.num_refine)
        layers: list[nn.Module] = []
        for layer in range(num_doublings):
            layers.append(nn.ConvTranspose2d(size[layer], size[layer + 1], kernel, 2, pad, 1))
            layers.append(nn.LeakyReLU(inplace=True))
        for layer in range(num_doublings, num_doublings + config.num_refine):
            layers.append(nn.Conv2d(size[layer], size[layer + 1], kernel, 1, pad))
            layers.append(nn.LeakyReLU(inplace=True))
        self.layers = nn.Sequential(*layers, nn.Conv2d(size[-1], 4, 3, 1, 1))

    def forward(
        self, slots: Float[Tensor, "batch slots size"]
    ) -> tuple[Float[Tensor, "batch slots 3 h w"], Float[Tensor, "batch slots h w"]]:
        """An image per slot before the tanh, and its opacity before the softmax over slots."""
        grid = slots.flatten(0, 1)[:, :, None, None].expand(-1, -1, self.start, self.start)
        # The grid is channels-last, and convolutions keep it so. Later operations read one or three
        # of the four channels: with a stride of four, tanh does not vectorise.
        decoded = self.layers(self.position(grid)).contiguous().unflatten(0, slots.shape[:2])
        return decoded[:, :, :3], decoded[:, :, 3]
