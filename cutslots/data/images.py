"""Images and instance masks: decoding, center crop, resize."""

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from cutslots.errors import InputError
from cutslots.options import option


def rgb(data: bytes | memoryview) -> np.ndarray:
    """The colors of a PNG or JPEG file without its alpha channel: uint8 (h, w, 3).

    Raises:
        InputError: damaged, or neither RGB nor RGBA.
    """
    return np.ascontiguousarray(_decoded(data, ("RGB", "RGBA"))[..., :3])


def ids(data: bytes | memoryview) -> np.ndarray:
    """The values of a one-channel PNG file: uint8 (h, w); the indices of a palette image.

    Raises:
        InputError: damaged, or a color image, whose colors do not identify instances.
    """
    return _decoded(data, ("P", "L"))


def _decoded(data: bytes | memoryview, modes: tuple[str, ...]) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.verify()  # PNG's checksums, which decoding skips; the image is used up by it
        with Image.open(io.BytesIO(data)) as image:
            mode, pixels = image.mode, np.asarray(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"the image is damaged ({error}). Fetch or copy it again.") from None
    if mode not in modes:
        raise InputError(f"the image has mode {mode}; the format has {' or '.join(modes)}.")
    return pixels


@dataclass(frozen=True)
class Preprocessing:
    """The center crop and the resize that the ClevrTex benchmark applies to every dataset.

    Source: Karazija, Laina, Rupprecht, "ClevrTex: A Texture-Rich Benchmark for Unsupervised
    Multi-Object Segmentation" (2021), the data loader of its public code.
    """

    size: int = option(128, "side of the prepared square image, in pixels", low=8, high=4096)
    crop: float = option(
        0.8, "side of the center crop, as a fraction of the image's shorter side", low=0.05, high=1
    )

    def window(self, height: int, width: int) -> tuple[slice, slice]:
        """The rows and columns that the crop keeps: 24:216 and 64:256 of 240 x 320."""
        side = int(self.crop * min(width, height))
        top, left = (height - side) // 2, (width - side) // 2
        return slice(top, top + side), slice(left, left + side)

    def resize(self, image: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """A uint8 image (h, w, 3) at `size`, bilinear, and its mask (h, w), nearest neighbor."""
        side = (self.size, self.size)
        small_image = Image.fromarray(image).resize(side, Image.Resampling.BILINEAR)
        small_mask = Image.fromarray(mask).resize(side, Image.Resampling.NEAREST)
        return np.asarray(small_image), np.asarray(small_mask)

    def apply(self, image: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The uint8 image (..., H, W, 3) and mask (..., H, W) after crop and resize."""
        if mask.ndim > 2:
            frames = [self.apply(*frame) for frame in zip(image, mask, strict=True)]
            return np.stack([f[0] for f in frames]), np.stack([f[1] for f in frames])
        rows, columns = self.window(*mask.shape)
        return self.resize(image[rows, columns], mask[rows, columns])


def bilinear_without_antialias(image: np.ndarray, size: int) -> np.ndarray:
    """A uint8 image (h, w, 3) at (size, size, 3); a pixel mixes the 4 old ones around its center.

    This is TensorFlow's default. Pillow's bilinear filter averages over the area of the new pixel.
    """
    (top, bottom, lower), (left, right, later) = (_around(n, size) for n in image.shape[:2])
    rows = image[top] * (1 - lower[:, None, None]) + image[bottom] * lower[:, None, None]
    both = rows[:, left] * (1 - later[:, None]) + rows[:, right] * later[:, None]
    return np.rint(both).astype(np.uint8)


def _around(length: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The old pixels before and after the center of every new one, and the second one's weight."""
    center = np.clip((np.arange(size) + 0.5) * (length / size) - 0.5, 0, length - 1)
    before = np.floor(center).astype(np.int64)
    return before, np.minimum(before + 1, length - 1), (center - before).astype(np.float32)
