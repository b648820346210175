"""A fixed grid of tiles, the same on every image: what scores give to a partition that has looked at nothing.

ARI-FG leaves the background out, so few objects, each mostly within one tile, make a tiling look like a segmentation. A model that
scores no more than its tiles has found no objects.
"""

import math

import torch
from torch import Tensor

from cutslots.data.batches import Batches
from cutslots.metrics import segmentation
from cutslots.train.inputs import masks_to_model
from cutslots.train.scoring import first_items


def tiles(num_slots: int, size: int) -> Tensor:
    """The label map of the finest square grid of at most `num_slots` tiles, `(size, size)`."""
    side = math.isqrt(num_slots)
    place = torch.arange(size) * side // size
    return place[:, None] * side + place


def tiles_scores(
    batches: Batches, num_slots: int, size: int, max_images: int | None = None
) -> dict[str, float]:
    """The scores that `evaluate` would give to the tiles: `ari_fg`, `ari`, `miou`, and of clips `video_*`.

    Args:
        num_slots: as many as the model has, whose control this is.
        size: at which the model is scored.
        max_images: see `evaluate` and `evaluate_clips`.
    """
    grid, cpu = tiles(num_slots, size), torch.device("cpu")
    limit = max_images and -(-max_images // (batches.num_frames or 1))
    totals: dict[str, float] = {}
    done = 0
    for batch in first_items(batches, limit):
        for masks in batch.masks if batches.num_frames else [batch.masks]:
            true = masks_to_model(masks, size, cpu)
            found = segmentation(true, grid.expand_as(true), num_slots)
            if batches.num_frames:  # a clip: the mean over its frames, and all of it as one image
                clip = segmentation(
                    true.reshape(1, -1, size), grid.expand_as(true).reshape(1, -1, size), num_slots
                )
                found = {name: values.mean() for name, values in found.items()} | {
                    f"video_{name}": clip[name] for name in clip
                }
            for name, values in found.items():
                totals[name] = totals.get(name, 0.0) + float(values.sum())
        done += len(batch.index)
    return {name: total / done for name, total in totals.items()}
