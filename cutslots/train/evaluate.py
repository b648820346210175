"""Scores of a model on a split."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cutslots.data.batches import Batch, Batches
from cutslots.errors import InputError
from cutslots.metrics import mse, segmentation
from cutslots.train.observer import Sample
from cutslots.train.ranks import Ranks

SAMPLE_IMAGES = 8
Scored = Callable[[np.ndarray, Mapping[str, Tensor]], None]


def pick_device(name: str | torch.device | None) -> torch.device:
    """The device of a name such as "cpu", "cuda" or "cuda:1"; None: the current GPU, else the CPU.

    Raises:
        InputError: no such device, or none on this machine.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise InputError(f"device {str(name)!r} is unknown. Use cpu or cuda.")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device is {str(name)!r}, but this machine has no usable CUDA device. Use cpu.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"device is {str(name)!r}, but the last CUDA device is cuda:{torch.cuda.device_count() - 1}.")
    return device


def to_model(images: Tensor, size: int, device: torch.device) -> Tensor:
    """Stored images as the model takes them: uint8 `(batch, H, W, 3)` -> float `(batch, 3, size, size)` in [-1, 1], on `device`.

    Pairs of frames and clips have one more axis after the batch. Images travel as uint8 and stay in channels-last memory order;
    larger ones are box-averaged down by a whole factor.
    """
    axes = images.shape[:-3]
    images = images.to(device, non_blocking=True).flatten(0, -4).permute(0, 3, 1, 2).float()
    factor = reduction((images.shape[-2], images.shape[-1]), size)
    if factor > 1:
        images = nn.functional.avg_pool2d(images, factor)
    return images.mul_(1 / 127.5).sub_(1).unflatten(0, axes)


def masks_to_model(masks: Tensor, size: int, device: torch.device) -> Tensor:
    """Stored instance ids at the model's size: the pixel nearest to each block's centre."""
    factor = reduction((masks.shape[-2], masks.shape[-1]), size)
    return masks[:, factor // 2 :: factor, factor // 2 :: factor].to(device)


def reduction(stored: tuple[int, int], size: int) -> int:
    """The whole factor between stored (height, width) and model size.

    Raises:
        InputError: there is none.
    """
    height, width = stored
    if height != width or height % size:
        raise InputError(
            f"the images are {height} x {width} and the model takes {size} x {size}, which is no whole fraction. "
            f"Prepare the data with --size {size}, or set model.image_size."
        )
    return height // size


def image_size(model: nn.Module) -> int:
    """The side of the images that a model takes, in pixels."""
    return int(model.config.image_size)  # type: ignore[union-attr, arg-type]


def is_video(model: nn.Module) -> bool:
    """Whether a model takes pairs of frames in place of images."""
    return getattr(model.config, "frames", 1) > 1


def check_data(model: nn.Module, batches: Batches) -> None:
    """Refuse data that the model cannot be scored on.

    Raises:
        InputError: the stored images are no whole multiple of the model's size, or the model takes pairs of frames and they are of
            no clip.
    """
    reduction(batches.image_size, image_size(model))
    if is_video(model) and batches.num_frames is None:
        raise InputError("the model takes pairs of frames, but the data are single images. Use data with clips, such as movi_a.")


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
        from cutslots.train.track import evaluate_clips  # which imports this module

        if watch:
            raise InputError("watch is given, but the data are clips, whose frames are not shown to it. Leave it out.")
        return evaluate_clips(model, batches, device, max_images, progress, ranks, scored)
    if max_images is not None and max_images < 1:
        raise InputError(f"the number of images is {max_images}; give at least 1, or leave it out for all images.")
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
                sample = _sample(images, true, outputs)
            done += len(images)
            progress(done)
    scores, count = means(totals, done, ranks)
    return scores | {"num_images": float(count)}, sample or Sample(torch.empty(0), torch.empty(0), None)


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
            batch = Batch(batch.images[torch.from_numpy(kept)], batch.masks[torch.from_numpy(kept)], batch.index[kept])
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
    """The scores that `evaluate` averages, each image's."""
    error = mse((images + 1) / 2, (outputs.reconstruction.float() + 1) / 2)
    scores = {"mse": error, "mse_mean": error / images[0].numel()}
    for name, labels in label_maps(outputs, images.shape[-1]).items():
        found = segmentation(true, labels, outputs.alpha.shape[1])
        scores |= {f"{name.removesuffix('masks')}{score}": values for score, values in found.items()}
    return scores


@torch.no_grad()
def sample_of(model: nn.Module, batch: Batch, device: torch.device) -> Sample:
    """The sample that `evaluate` gives of a batch of images, or of whole clips."""
    size = image_size(model)
    if batch.images.ndim > 4:
        from cutslots.train.track import sample_clips  # which imports this module

        return sample_clips(model, batch, device)
    with evaluating(model):
        images = to_model(batch.images, size, device)
        return _sample(images, masks_to_model(batch.masks, size, device), model(images))


def _sample(images: Tensor, true: Tensor, outputs) -> Sample:
    few = {name: value[:SAMPLE_IMAGES].float().cpu() for name, value in vars(outputs).items() if isinstance(value, Tensor)}
    return Sample(images[:SAMPLE_IMAGES].cpu(), true[:SAMPLE_IMAGES].cpu(), type(outputs)(**few))
