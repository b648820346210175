"""Scores of a model on a split of images or clips, and its best, median and worst items."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from cutslots.data.batches import Batch, Batches
from cutslots.errors import InputError
from cutslots.metrics import mse, segmentation, tiles
from cutslots.metrics.registry import higher_is_better
from cutslots.train.callbacks import Examples, Sample
from cutslots.train.inputs import check_data, image_size, label_maps, masks_to_model, to_model
from cutslots.train.ranks import Ranks
from cutslots.train.video import Clips, track

SAMPLE_IMAGES, SAMPLE_CLIPS = 8, 3


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Batches,
    device: torch.device,
    max_images: int | None = None,
    progress: Callable[[int], None] = lambda done: None,
    watch: Callable[[np.ndarray, Tensor, Any], None] | None = None,
    ranks: Ranks = Ranks(),  # noqa: B008 (it is frozen)
    scored: Callable[[np.ndarray, Mapping[str, Tensor]], None] | None = None,
) -> tuple[dict[str, float], Sample]:
    """Mean scores over the items of `batches`, images or whole clips, and a sample of them.

    Scores: `ari_fg`, `ari`, `miou` by the alpha masks, `cut_*` by the cuts of models that have
    them; `mse` summed over an image in [0, 1] at the model's size, `mse_mean` its mean over values;
    `num_images`. On clips these are means over frames, and `video_*` and `video_cut_*` score all
    pixels of a clip as one label map, in which an object has to keep its identity.

    Args:
        max_images: images or frames to score, from the first on (whole clips); None: all.
        progress: called with the number of images done by this rank.
        watch: called for each batch of images (not for clips) with its indices in the split, the
            true masks at the model's size and the outputs.
        ranks: processes that evaluate together, each on its part of the batches. All return the
            same scores, and a sample of their part, which may be empty.
        scored: called with the indices of items in the split and their scores, on this rank.

    Raises:
        InputError: wrong arguments, data that the model does not take, or diverged slots.
    """
    check_data(model, batches)
    if max_images is not None and max_images < 1:
        raise InputError(f"max_images must be at least 1, or None for all, got {max_images}.")
    if watch and batches.num_frames is not None:
        raise InputError("watch must be None for clips: their frames are not shown to it.")
    assert (batches.rank, batches.world_size) == (ranks.rank, ranks.size)
    totals: dict[str, float] = defaultdict(float)
    samples: list[Sample] = []
    frames, done = batches.num_frames or 1, 0
    with ranks.agreed(), _evaluation_mode(model):
        for batch in _first(batches, max_images):
            for part in _forward(model, batch, device):
                scores = _scores(part)
                for name, values in scores.items():
                    totals[name] += float(values.sum())
                if scored:
                    scored(part.index, scores)
                if watch:
                    watch(part.index, part.true, part.outputs)
                if len(samples) < (1 if batches.num_frames is None else SAMPLE_CLIPS):
                    samples.append(_sample(part))
                done += len(part.index)
                progress(done * frames)
    sums = ranks.sum({**totals, "done": done})
    count = sums.pop("done")
    means = {name: total / count for name, total in sums.items()}
    return means | {"num_images": float(count * frames)}, _joined(samples)


def tiles_scores(
    batches: Batches, num_slots: int, size: int, max_images: int | None = None
) -> dict[str, float]:
    """The `ari_fg`, `ari`, `miou` and, on clips, `video_*` that `evaluate` gives `metrics.tiles`.

    Args:
        num_slots, size: of the model that is compared with the tiles.
        max_images: see `evaluate`.
    """
    grid, totals, done = tiles(num_slots, size), defaultdict(float), 0
    for batch in _first(batches, max_images):
        for masks in [batch.masks] if batches.num_frames is None else batch.masks:
            true = masks_to_model(masks, size, torch.device("cpu"))
            pred = grid.expand_as(true)
            scores = segmentation(true, pred, num_slots)
            if batches.num_frames is not None:
                scores = _clip_scores(scores, {"masks": pred}, true, num_slots)
            for name, values in scores.items():
                totals[name] += float(values.sum())
        done += len(batch.index)
    return {name: total / done for name, total in totals.items()}


class ItemScores:
    """One score of every item of a split; passed to `evaluate` as `scored`.

    Attributes:
        values: by the item's index in the split, on this rank.
    """

    def __init__(self, score: str) -> None:
        self.score = score
        self.values: dict[int, float] = {}

    def __call__(self, index: np.ndarray, scores: Mapping[str, Tensor]) -> None:
        self.values |= dict(zip(index.tolist(), scores[self.score].tolist(), strict=True))

    def extremes(self, ranks: Ranks) -> dict[int, str]:
        """The items with the best, median and worst finite value over all ranks, and their role.

        An item has one role. `values` are those of all ranks afterwards.
        """
        self.values = {
            item: value
            for values in ranks.gather(self.values)
            for item, value in values.items()
            if math.isfinite(value)
        }
        sign = -1 if higher_is_better(self.score) else 1
        order = sorted(self.values, key=lambda item: (sign * self.values[item], item))
        last = len(order) - 1
        roles = {last // 2: "median", last: "worst", 0: "best"} if order else {}
        return {order[position]: roles[position] for position in sorted(roles)}

    @torch.no_grad()
    def examples(
        self, roles: Mapping[int, str], model: nn.Module, batches: Batches, device: torch.device
    ) -> Examples:
        """The items of `extremes` with the model's outputs: a forward pass that draws nothing."""
        index = np.array(list(roles), np.int64)
        with _evaluation_mode(model):
            parts = _forward(model, batches.items(index), device)
            sample = _joined([_sample(part) for part in parts])
        values = [self.values[item] for item in roles]
        return Examples(self.score, list(roles.values()), batches.ids(index), values, sample)


class _Part(NamedTuple):
    """What one forward pass scores: a batch of images, or the frames of one clip.

    `maps` are the tracked label maps of a clip, None for images.
    """

    index: np.ndarray  # pyright: ignore[reportIncompatibleMethodOverride]
    images: Tensor
    true: Tensor
    outputs: Any
    maps: dict[str, Tensor] | None


@contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _first(batches: Batches, max_images: int | None) -> Iterator[Batch]:
    """The batches of an epoch without items beyond the first `max_images` images of the split."""
    limit = math.inf if max_images is None else -(-max_images // (batches.num_frames or 1))
    for batch in batches.epoch(0):
        kept = batch.index < limit
        if not kept.all():
            chosen = torch.from_numpy(kept)
            batch = Batch(batch.images[chosen], batch.masks[chosen], batch.index[kept])
        if len(batch.index):
            yield batch
        elif not batches.shuffle:
            return


def _forward(model: nn.Module, batch: Batch, device: torch.device) -> Iterator[_Part]:
    size = image_size(model)
    if batch.images.ndim == 4:
        images = to_model(batch.images, size, device)
        true = masks_to_model(batch.masks, size, device)
        yield _Part(batch.index, images, true, model(images), None)
        return
    for item, clip, masks in zip(batch.index, batch.images, batch.masks, strict=True):
        frames, true = to_model(clip, size, device), masks_to_model(masks, size, device)
        tracked = track(model, frames)
        yield _Part(item[None], frames, true, tracked.outputs, tracked.maps)


def _scores(part: _Part) -> dict[str, Tensor]:
    """The scores of each item."""
    images, num_slots = part.images, part.outputs.alpha.shape[1]
    error = mse((images + 1) / 2, (part.outputs.reconstruction.float() + 1) / 2)
    scores = {"mse": error, "mse_mean": error / images[0].numel()}
    for name, labels in label_maps(part.outputs, images.shape[-1]).items():
        kind = name.removesuffix("masks")
        for score, values in segmentation(part.true, labels, num_slots).items():
            scores[f"{kind}{score}"] = values
    return scores if part.maps is None else _clip_scores(scores, part.maps, part.true, num_slots)


def _clip_scores(
    frame_scores: Mapping[str, Tensor], maps: Mapping[str, Tensor], true: Tensor, num_slots: int
) -> dict[str, Tensor]:
    """Scores of one clip: means over frames, and `video_*` of all pixels as one label map."""
    scores = {name: values.mean()[None] for name, values in frame_scores.items()}
    for name, labels in maps.items():
        joint = segmentation(true.flatten(0, 1)[None], labels.flatten(0, 1)[None], num_slots)
        kind = name.removesuffix("masks")
        scores |= {f"video_{kind}{score}": values for score, values in joint.items()}
    return scores


def _sample(part: _Part) -> Sample:
    if part.maps is not None:
        made = {"reconstruction": part.outputs.reconstruction.float(), **part.maps}
        outputs = SimpleNamespace(**{name: value[None].cpu() for name, value in made.items()})
        return Clips(part.images[None].cpu(), part.true[None].cpu(), outputs)
    few = {
        name: value[:SAMPLE_IMAGES].float().cpu()
        for name, value in vars(part.outputs).items()
        if isinstance(value, Tensor)
    }
    images, true = part.images[:SAMPLE_IMAGES].cpu(), part.true[:SAMPLE_IMAGES].cpu()
    return Sample(images, true, type(part.outputs)(**few))


def _joined(samples: Sequence[Sample]) -> Sample:
    if len(samples) < 2:
        return samples[0] if samples else Sample(torch.empty(0), torch.empty(0), None)
    outputs = {
        name: torch.cat([vars(sample.outputs)[name] for sample in samples])
        for name in vars(samples[0].outputs)
    }
    images, true = (torch.cat([getattr(s, name) for s in samples]) for name in ("images", "true"))
    return Clips(images, true, SimpleNamespace(**outputs))
