"""One record of a data set: an image, its instance mask, and what is known of every object."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from cutslots.options import option

SCHEMA_VERSION = 1

# For every split its half-open range of records; None = to the last one.
Ranges = dict[str, tuple[int, int | None]]


@dataclass(frozen=True)
class Scene:
    """One image with its ground truth; a clip is the same with a leading time axis on `image` and `mask`.

    Attributes:
        id: name that is unique within the data set.
        image: uint8 (..., H, W, 3), RGB.
        mask: uint8 (..., H, W), instance ids, 0 = background.
        objects: `objects[k - 1]` is the metadata of id k, JSON values only; ids that no pixel shows may be among them.
    """

    id: str
    image: np.ndarray
    mask: np.ndarray
    objects: tuple[dict[str, Any], ...]

    @property
    def frame_shape(self) -> tuple[int, ...]:
        """The mask's shape: (H, W), or (T, H, W) for a clip."""
        return self.mask.shape


def num_visible(mask: np.ndarray) -> int:
    """The number of instance ids other than 0 in a uint8 mask."""
    return int(np.count_nonzero(np.bincount(mask.reshape(-1), minlength=256)[1:]))


def schema(frame_shape: Sequence[int]) -> pa.Schema:
    """The Arrow schema of records whose masks have `frame_shape`: (H, W), or (T, H, W) for clips.

    Columns: `id` string; `image` uint8 tensor (*frame_shape, 3); `mask` uint8 tensor (*frame_shape); `num_objects`
    int32, the ids that the mask shows; `objects` string, the metadata as a JSON list.
    """
    frame = tuple(frame_shape)
    fields = [
        pa.field("id", pa.string(), nullable=False),
        pa.field("image", pa.fixed_shape_tensor(pa.uint8(), (*frame, 3)), nullable=False),
        pa.field("mask", pa.fixed_shape_tensor(pa.uint8(), frame), nullable=False),
        pa.field("num_objects", pa.int32(), nullable=False),
        pa.field("objects", pa.string(), nullable=False),
    ]
    return pa.schema(fields, metadata={"cutslots.schema_version": str(SCHEMA_VERSION)})


def record_batch(scenes: Sequence[Scene]) -> pa.RecordBatch:
    """Scenes of one frame shape as one Arrow record batch: every column is one contiguous block."""
    pixels = (np.stack([getattr(scene, name) for scene in scenes]) for name in ("image", "mask"))
    columns = [
        pa.array([scene.id for scene in scenes], pa.string()),
        # Of arrays in another order `stack` makes one in that order, which would be another type to Arrow.
        *(
            pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(block))
            for block in pixels
        ),
        pa.array([num_visible(scene.mask) for scene in scenes], pa.int32()),
        pa.array([json.dumps(scene.objects, allow_nan=False) for scene in scenes], pa.string()),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema(scenes[0].frame_shape))


@dataclass(frozen=True)
class Preparation:
    """The centre crop and the resize that the ClevrTex benchmark applies to every data set.

    Source: Karazija, Laina, Rupprecht, "ClevrTex: A Texture-Rich Benchmark for Unsupervised Multi-Object Segmentation"
    (2021), the data loader of its public code.
    """

    size: int = option(128, "side of the prepared square image, in pixels", low=8, high=4096)
    crop: float = option(
        0.8, "side of the centre crop, as a fraction of the image's shorter side", low=0.05, high=1
    )

    def limit(self, split: str) -> int | None:
        """The most scenes that a split gets; None for all of its range."""
        return None

    def window(self, height: int, width: int) -> tuple[slice, slice]:
        """The rows and columns that the crop keeps: 24:216 and 64:256 of 240 x 320."""
        side = int(self.crop * min(width, height))
        top, left = (height - side) // 2, (width - side) // 2
        return slice(top, top + side), slice(left, left + side)

    def resize(self, image: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The cropped uint8 image (..., h, w, 3) and mask (..., h, w) at `size`: bilinear and nearest."""
        if mask.ndim > 2:
            frames = [self.resize(*frame) for frame in zip(image, mask, strict=True)]
            return np.stack([frame[0] for frame in frames]), np.stack(
                [frame[1] for frame in frames]
            )
        side = (self.size, self.size)
        small_image = Image.fromarray(image).resize(side, Image.Resampling.BILINEAR)
        small_mask = Image.fromarray(mask).resize(side, Image.Resampling.NEAREST)
        return np.asarray(small_image), np.asarray(small_mask)

    def apply(self, image: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The uint8 image (..., H, W, 3) and mask (..., H, W) after crop and resize."""
        rows, columns = self.window(*mask.shape[-2:])
        return self.resize(image[..., rows, columns, :], mask[..., rows, columns])


def bilinear_without_antialias(image: np.ndarray, size: int) -> np.ndarray:
    """A uint8 image (h, w, 3) at (size, size, 3), each new pixel mixed from the four old ones around its centre.

    This is TensorFlow's default; Pillow's bilinear, in `Preparation`, averages over the area that a new pixel covers.
    """
    rows, columns = (_around(length, size) for length in image.shape[:2])
    tall = image[rows[0]] * (1 - rows[2][:, None, None]) + image[rows[1]] * rows[2][:, None, None]
    both = (
        tall[:, columns[0]] * (1 - columns[2][:, None]) + tall[:, columns[1]] * columns[2][:, None]
    )
    return np.rint(both).astype(np.uint8)


def _around(length: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For every new pixel of an axis the old pixels before and behind its centre, and the part of the second."""
    centre = np.clip((np.arange(size) + 0.5) * (length / size) - 0.5, 0, length - 1)
    before = np.floor(centre).astype(np.int64)
    return before, np.minimum(before + 1, length - 1), (centre - before).astype(np.float32)
