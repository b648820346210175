"""What evaluations of images and of clips share: the mode, the items, their scores and means."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from cutslots.data.batches import Batch, Batches
from cutslots.metrics import mse, segmentation
from cutslots.train.callbacks import Sample
from cutslots.train.ranks import Ranks

SAMPLE_IMAGES = 8
Scored = Callable[[np.ndarray, Mapping[str, Tensor]], None]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """A model in evaluation mode for as long as this lasts."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def first_items(batches: Batches, limit: int | None) -> Iterator[Batch]:
    """The batches of an epoch without the items that are not among the split's first `limit`; None: with all."""
    for batch in batches.epoch(0):
        if limit is not None and (batch.index >= limit).any():
            kept = batch.index < limit
            batch = Batch(
                batch.images[torch.from_numpy(kept)],
                batch.masks[torch.from_numpy(kept)],
                batch.index[kept],
            )
        if len(batch.index):
            yield batch
        elif not batches.shuffle:
            return


def means(totals: Mapping[str, float], done: int, ranks: Ranks) -> tuple[dict[str, float], int]:
    """Scores that every rank has summed over its share of items as means over all items, and the number of these."""
    sums = ranks.sum({**totals, "done": done})
    count = sums.pop("done")
    return {name: total / count for name, total in sums.items()}, int(count)


def label_maps(outputs, size: int) -> dict[str, Tensor]:
    """Slots of the pixels, `(batch, size, size)`: `masks` by alpha and, where the model has cut masks, `cut_masks`."""
    maps = {"masks": outputs.alpha.argmax(1)}
    if hasattr(outputs, "masks"):
        cut = outputs.masks.argmax(1)
        factor = size // cut.shape[-1]
        maps["cut_masks"] = cut.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
    return maps


def image_scores(outputs, images: Tensor, true: Tensor) -> dict[str, Tensor]:
    """The scores that an evaluation averages, each image's."""
    error = mse((images + 1) / 2, (outputs.reconstruction.float() + 1) / 2)
    scores = {"mse": error, "mse_mean": error / images[0].numel()}
    for name, labels in label_maps(outputs, images.shape[-1]).items():
        found = segmentation(true, labels, outputs.alpha.shape[1])
        scores |= {
            f"{name.removesuffix('masks')}{score}": values for score, values in found.items()
        }
    return scores


def first_images(images: Tensor, true: Tensor, outputs) -> Sample:
    """The sample of a batch that is kept to be drawn, on the CPU."""
    few = {
        name: value[:SAMPLE_IMAGES].float().cpu()
        for name, value in vars(outputs).items()
        if isinstance(value, Tensor)
    }
    return Sample(images[:SAMPLE_IMAGES].cpu(), true[:SAMPLE_IMAGES].cpu(), type(outputs)(**few))
