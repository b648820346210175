"""One record of a dataset, and its form in an Arrow record batch."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

SCHEMA_VERSION = 1

# The half-open range of record numbers of every split; None = to the last record.
Ranges = dict[str, tuple[int, int | None]]


@dataclass(frozen=True)
class Scene:
    """An image with its ground truth, or a clip, whose `image` and `mask` have a leading time axis.

    Attributes:
        id: name that is unique within the dataset.
        image: uint8 (..., H, W, 3), RGB.
        mask: uint8 (..., H, W), instance ids, 0 = background.
        objects: `objects[k - 1]` is the metadata of instance id k, JSON values only. It may include
            instances that no pixel shows.
    """

    id: str
    image: np.ndarray
    mask: np.ndarray
    objects: tuple[dict[str, Any], ...]


def num_visible(mask: np.ndarray) -> int:
    """The number of instance ids other than 0 in a uint8 mask."""
    return int(np.count_nonzero(np.bincount(mask.reshape(-1), minlength=256)[1:]))


def schema(frame_shape: Sequence[int]) -> pa.Schema:
    """The Arrow schema of records whose masks have `frame_shape`: (H, W), or (T, H, W) for clips.

    `num_objects` is the number of ids in the mask, `objects` the metadata as a JSON list.
    """
    types = {
        "id": pa.string(),
        "image": pa.fixed_shape_tensor(pa.uint8(), (*frame_shape, 3)),
        "mask": pa.fixed_shape_tensor(pa.uint8(), tuple(frame_shape)),
        "num_objects": pa.int32(),
        "objects": pa.string(),
    }
    fields = [pa.field(name, kind, nullable=False) for name, kind in types.items()]
    return pa.schema(fields, metadata={"cutslots.schema_version": str(SCHEMA_VERSION)})


def record_batch(scenes: Sequence[Scene]) -> pa.RecordBatch:
    """Scenes of one frame shape as one Arrow record batch: every column is one contiguous block."""
    images, masks = np.stack([s.image for s in scenes]), np.stack([s.mask for s in scenes])
    # `stack` keeps the memory order of its inputs, but Arrow's type is that of C order.
    tensors = (np.ascontiguousarray(block) for block in (images, masks))
    columns = [
        pa.array([scene.id for scene in scenes], pa.string()),
        *map(pa.FixedShapeTensorArray.from_numpy_ndarray, tensors),
        pa.array([num_visible(scene.mask) for scene in scenes], pa.int32()),
        pa.array([json.dumps(scene.objects, allow_nan=False) for scene in scenes], pa.string()),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema(scenes[0].mask.shape))
