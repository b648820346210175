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


class Scored(NamedTuple):
    """A batch of images, or the frames of one clip, with the model's outputs and their scores."""

    index: np.ndarray  # pyright: ignore[reportIncompatibleMethodOverride] # in the split
    images: Tensor  # (n, 3, size, size) in [-1, 1]
    true: Tensor  # their instance ids
    outputs: Any
    maps: dict[str, Tensor] | None  # the tracked label maps of a clip, None for images
    scores: dict[str, Tensor]  # a number per image, or one for the clip


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Batches,
    device: torch.device,
    max_images: int | None = None,
    progress: Callable[[int], None] = lambda done: None,
    watch: Callable[[Scored], None] | None = None,
    ranks: Ranks = Ranks(),  # noqa: B008 (it is frozen)
) -> tuple[dict[str, float], Sample]:
    """Mean scores over the items of `batches`, images or whole clips, and a sample of them.

    Scores: `ari_fg`, `ari`, `miou`, `miou_fg` by the alpha masks, `cut_*` by the cuts of models
    that have them; `mse` summed over an image in [0, 1] at the model's size, `mse_mean` its mean
    over values; `num_images`. On clips these are means over frames, and `video_*` and `video_cut_*`
    score all pixels of a clip as one label map, in which an object has to keep its identity.

    Args:
        max_images: images or frames to score, from the first on (whole clips); None: all.
        progress: called with the number of images done by this rank.
        watch: called with every batch of images, or clip, on this rank.
        ranks: processes that evaluate together, each on its part of the batches. All return the
            same scores, and a sample of their part, which may be empty.

    Raises:
        InputError: wrong arguments, data that the model does not take, or diverged slots.
    """
    check_data(model, batches)
    if max_images is not None and max_images < 1:
        raise InputError(f"max_images must be at least 1, or None for all, got {max_images}.")
    assert (batches.rank, batches.world_size) == (ranks.rank, ranks.size)
    frames = batches.num_frames or 1
    limit = math.inf if max_images is None else -(-max_images // frames)
    totals: dict[str, float] = defaultdict(float)
    parts: list[Scored] = []
    done = 0
    with ranks.agreed(), _evaluation_mode(model):
        for batch in batches.epoch(0):
            kept: Any = batch.index < limit
            if not kept.any():
                if batches.shuffle:
                    continue
                break
            chosen = Batch(batch.images[kept], batch.masks[kept], batch.index[kept])
            for scored in _forward(model, chosen, device):
                for name, values in scored.scores.items():
                    totals[name] += float(values.sum())
                if watch:
                    watch(scored)
                if len(parts) < (1 if scored.maps is None else SAMPLE_CLIPS):
                    parts.append(scored)
                done += len(scored.index)
                progress(done * frames)
    sums = ranks.sum({**totals, "done": done})
    count = sums.pop("done")
    means = {name: total / count for name, total in sums.items()}
    return means | {"num_images": float(count * frames)}, _sample(parts)


class ItemScores:
    """One score of every item of a split; passed to `evaluate` as `watch`.

    Attributes:
        values: by the item's index in the split, on this rank.
    """

    def __init__(self, score: str) -> None:
        self.score = score
        self.values: dict[int, float] = {}

    def __call__(self, scored: Scored) -> None:
        values = scored.scores[self.score].tolist()
        self.values |= dict(zip(scored.index.tolist(), values, strict=True))

    def extremes(self, ranks: Ranks) -> dict[int, str]:
        """The items with the best, median and worst finite value over all ranks, and their role.

        An item has one role. `values` are those of all ranks afterwards.
        """
        values = [pair for values in ranks.gather(self.values) for pair in values.items()]
        self.values = {item: value for item, value in values if math.isfinite(value)}
        sign = -1 if higher_is_better(self.score) else 1
        order = sorted(self.values, key=lambda item: (sign * self.values[item], item))
        last = len(order) - 1
        roles = {last // 2: "median", last: "worst", 0: "best"} if order else {}
        return {order[position]: roles[position] for position in sorted(roles)}

    @torch.no_grad()
    def examples(
        self, model: nn.Module, batches: Batches, device: torch.device, ranks: Ranks
    ) -> Examples | None:
        """The `extremes` with the model's outputs, by a forward pass that draws nothing; None on
        all ranks but the first, or without finite values."""
        roles = self.extremes(ranks)
        index = np.array(list(roles), np.int64)
        with ranks.agreed(), _evaluation_mode(model):
            if not (ranks.is_first and roles):
                return None
            sample = _sample(list(_forward(model, batches.items(index), device)))
            ids, values = batches.ids(index), [self.values[item] for item in roles]
            return Examples(self.score, list(roles.values()), ids, values, sample)


class _Tiles(nn.Module):
    """A model whose masks are `metrics.tiles` for every image."""

    def __init__(self, num_slots: int, size: int) -> None:
        super().__init__()
        self.config = SimpleNamespace(image_size=size)
        self.alpha = nn.functional.one_hot(tiles(num_slots, size), num_slots).permute(2, 0, 1)

    def forward(self, images: Tensor) -> SimpleNamespace:
        alpha = self.alpha.expand(len(images), -1, -1, -1)
        return SimpleNamespace(alpha=alpha, reconstruction=images)


def tiles_scores(
    batches: Batches, num_slots: int, size: int, max_images: int | None = None
) -> dict[str, float]:
    """The scores of masks, and on clips `video_*`, that `evaluate` gives `metrics.tiles`.

    Args:
        num_slots, size: of the model that is compared with the tiles.
        max_images: see `evaluate`.
    """
    scores, _ = evaluate(_Tiles(num_slots, size), batches, torch.device("cpu"), max_images)
    return {name: value for name, value in scores.items() if "ari" in name or "miou" in name}


@contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _forward(model: nn.Module, batch: Batch, device: torch.device) -> Iterator[Scored]:
    """The images of a batch at once, or its clips one by one."""
    size, are_clips = image_size(model), batch.images.ndim == 5
    clips = zip(batch.images, batch.masks, batch.index[:, None], strict=True)
    for stored, masks, index in clips if are_clips else [batch]:
        images, true = to_model(stored, size, device), masks_to_model(masks, size, device)
        outputs, maps = track(model, images) if are_clips else (model(images), None)
        num_slots = outputs.alpha.shape[1]
        error = mse((images + 1) / 2, (outputs.reconstruction.float() + 1) / 2)
        scores = {"mse": error, "mse_mean": error / images[0].numel()}
        scores |= _by_masks(label_maps(outputs, size), true, num_slots)
        if maps is not None:  # means over the frames, and all pixels of the clip as one label map
            scores = {name: values.mean()[None] for name, values in scores.items()}
            joint = {name: labels.flatten(0, 1)[None] for name, labels in maps.items()}
            scores |= _by_masks(joint, true.flatten(0, 1)[None], num_slots, "video_")
        yield Scored(index, images, true, outputs, maps, scores)


def _by_masks(
    maps: Mapping[str, Tensor], true: Tensor, num_slots: int, prefix: str = ""
) -> dict[str, Tensor]:
    """The scores of all label maps: `ari_fg` and others by alpha, `cut_ari_fg` by the cuts."""
    return {
        f"{prefix}{name.removesuffix('masks')}{score}": values
        for name, labels in maps.items()
        for score, values in segmentation(true, labels, num_slots).items()
    }


def _sample(parts: Sequence[Scored]) -> Sample:
    """Images (of one part) or clips with their outputs, on the CPU."""
    if not parts:
        return Sample(torch.empty(0), torch.empty(0), None)
    if parts[0].maps is None:
        _, images, true, outputs, *_ = parts[0]
        shown = {name: x.float() for name, x in vars(outputs).items() if isinstance(x, Tensor)}
        few = {name: x[:SAMPLE_IMAGES].cpu() for name, x in shown.items()}
        images, true = images[:SAMPLE_IMAGES].cpu(), true[:SAMPLE_IMAGES].cpu()
        return Sample(images, true, SimpleNamespace(**few))
    clips = [
        {"images": part.images, "true": part.true, **(part.maps or {})}
        | {"reconstruction": part.outputs.reconstruction.float()}
        for part in parts
    ]
    shown = {name: torch.stack([clip[name] for clip in clips]).cpu() for name in clips[0]}
    return Clips(shown.pop("images"), shown.pop("true"), SimpleNamespace(**shown))
