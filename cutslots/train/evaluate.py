"""Scores of a model on a split."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cutslots.data.batches import Batch, Batches
from cutslots.errors import InputError
from cutslots.train.callbacks import Sample
from cutslots.train.inputs import check_data, image_size, masks_to_model, to_model
from cutslots.train.ranks import Ranks
from cutslots.train.scoring import (
    Scored,
    evaluating,
    first_images,
    first_items,
    image_scores,
    means,
)
from cutslots.train.video import evaluate_clips, sample_clips


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Batches,
    device: torch.device,
    max_images: int | None = None,
    progress: Callable[[int], None] = lambda done: None,
    watch: Callable[[np.ndarray, Tensor, Any], None] | None = None,
    ranks: Ranks = Ranks(),  # noqa: B008 (it is frozen)
    scored: Scored | None = None,
) -> tuple[dict[str, float], Sample]:
    """Mean scores over the images of `batches` and a sample of them; whole clips go to `track.evaluate_clips`.

    Scores: `ari_fg`, `ari`, `miou` on alpha masks (argmax, ties to the lowest slot); for models with cut masks `cut_ari_fg`,
    `cut_ari`, `cut_miou`, the same on those, enlarged to the image by repetition; `mse` summed over an image in [0, 1] at the
    model's size, `mse_mean` the mean of an element; `num_images`.

    Args:
        max_images: how many at most, from the split's first on; None: all.
        progress: is told how many images are done, of this rank's.
        watch: is shown every batch of images: their numbers in the split, true masks at the model's size, and the outputs. Not of
            clips.
        ranks: those that evaluate together, each with its share of the batches. All get the scores of all images, and a sample of
            their own share, which is empty where the share is.
        scored: is told the numbers of items in the split, images or whole clips, and their scores; of this rank's share.

    Raises:
        InputError: `max_images` is less than 1, `watch` for clips, or see `check_data`.
    """
    check_data(model, batches)
    if batches.num_frames is not None:
        if watch:
            raise InputError(
                "watch is given, but the data are clips, whose frames are not shown to it. Leave it out."
            )
        return evaluate_clips(model, batches, device, max_images, progress, ranks, scored)
    if max_images is not None and max_images < 1:
        raise InputError(
            f"the number of images is {max_images}; give at least 1, or leave it out for all images."
        )
    assert (batches.rank, batches.world_size) == (ranks.rank, ranks.size)
    size = image_size(model)
    totals: dict[str, float] = {}
    sample, done = None, 0
    with ranks.agreed(), evaluating(model):
        for batch in first_items(batches, max_images):
            images = to_model(batch.images, size, device)
            true = masks_to_model(batch.masks, size, device)
            outputs = model(images)
            each = image_scores(outputs, images, true)
            for name, scores in each.items():
                totals[name] = totals.get(name, 0.0) + float(scores.sum())
            if scored:
                scored(batch.index, each)
            if watch:
                watch(batch.index, true, outputs)
            if sample is None:
                sample = first_images(images, true, outputs)
            done += len(images)
            progress(done)
    scores, count = means(totals, done, ranks)
    return scores | {"num_images": float(count)}, sample or Sample(
        torch.empty(0), torch.empty(0), None
    )


@torch.no_grad()
def sample_of(model: nn.Module, batch: Batch, device: torch.device) -> Sample:
    """The sample that `evaluate` gives of a batch of images, or of whole clips."""
    size = image_size(model)
    if batch.images.ndim > 4:
        return sample_clips(model, batch, device)
    with evaluating(model):
        images = to_model(batch.images, size, device)
        return first_images(images, masks_to_model(batch.masks, size, device), model(images))
