"""Slots followed through a clip: which slot of one frame is which of the next, and the scores of whole clips.

Every frame is matched with the one after it by the one-to-one assignment of slots with the largest sum of similarities (Hungarian
algorithm), so identities stay a permutation of the slots; they are the slot numbers of the first frame. What similarity is depends
on the model:

- a model of video matches by itself: its `assignment` of the pair (t, t + 1), which a softmax leaves short of a permutation;
- an image model sees the frames one by one, and the inner products of its slots are taken (section 6.3 of the paper);
- an image model whose outputs have no `slots` keeps their numbers.

Everything else that is read of frame t is of the pair (t, t + 1), frame t being the first; the last frame is paired with itself.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from cutslots.data.batches import Batch, Batches
from cutslots.errors import InputError
from cutslots.metrics import segmentation
from cutslots.train.callbacks import Sample
from cutslots.train.inputs import image_size, is_video, masks_to_model, to_model
from cutslots.train.ranks import Ranks
from cutslots.train.scoring import Scored, evaluating, first_items, image_scores, label_maps, means

SAMPLE_CLIPS = 3


@dataclass(frozen=True)
class Tracked:
    """What a model makes of a clip of T frames.

    Attributes:
        outputs: the model's outputs that have a picture a frame, `(T, ...)`, slots in each frame's own order.
        maps: the label maps of `label_maps`, `(T, size, size)`, with identities in place of slot numbers.
    """

    outputs: Any
    maps: dict[str, Tensor]


@dataclass(frozen=True)
class Clips(Sample):
    """A few evaluated clips, on the CPU: `images` is `(clips, T, 3, size, size)`, `true` `(clips, T, size, size)`.

    Attributes:
        outputs: has `reconstruction` and the tracked label maps, `masks` and, where the model cuts, `cut_masks`; shapes as above.
    """


def chain(similarity: np.ndarray) -> np.ndarray:
    """Identities of slots over time.

    Args:
        similarity: `(T - 1, k, k)`; entry t, i, j says how alike slot i of frame t and slot j of frame t + 1 are.

    Returns:
        `(T, k)`, the identity of each slot of each frame, a permutation of 0 to k - 1 in every row; the first row counts up.

    Raises:
        InputError: a similarity is not finite.
    """
    if not np.isfinite(similarity).all():
        raise InputError(
            "the model's slots are not finite numbers, so it has diverged. Use a checkpoint from before that."
        )
    identities = [np.arange(similarity.shape[-1])]
    for frame in similarity:
        partner = linear_sum_assignment(frame, maximize=True)[1]
        following = np.empty_like(partner)
        following[partner] = identities[-1]
        identities.append(following)
    return np.stack(identities)


def track(model: nn.Module, frames: Tensor) -> Tracked:
    """Follow the slots of a model through the frames of one clip, `(T, 3, size, size)` in [-1, 1].

    Raises:
        InputError: see `chain`.
    """
    outputs, similarity = _frame_by_frame(model, frames)
    return Tracked(outputs, renamed(label_maps(outputs, frames.shape[-1]), similarity))


def renamed(maps: Mapping[str, Tensor], similarity: Tensor) -> dict[str, Tensor]:
    """Label maps of the frames of a clip, `(T, size, size)`, with identities in place of slot numbers; see `chain`."""
    identities = torch.from_numpy(chain(similarity.double().cpu().numpy()))
    return {
        name: identities.to(labels.device).gather(1, labels.flatten(1).long()).view_as(labels)
        for name, labels in maps.items()
    }


def first_frames(model: nn.Module, pairs: Tensor) -> tuple[Any, Tensor]:
    """What a model of video makes of the first frames of pairs, and how alike the slots of a pair's frames are, `(batch, k, k)`."""
    outputs = model(pairs)
    first = {name: value[:, 0] for name, value in vars(outputs).items() if name != "assignment"}
    return SimpleNamespace(**first), outputs.assignment


def _frame_by_frame(model: nn.Module, frames: Tensor) -> tuple[Any, Tensor]:
    """Outputs with a frame in place of an image, and how alike the slots of adjacent frames are, `(T - 1, k, k)`."""
    if is_video(model):
        outputs, similarity = first_frames(
            model, torch.stack([frames, torch.cat([frames[1:], frames[-1:]])], dim=1)
        )
        return outputs, similarity[:-1]
    outputs = model(frames)
    if hasattr(outputs, "slots"):
        return outputs, outputs.slots[:-1] @ outputs.slots[1:].mT
    num_slots = outputs.alpha.shape[1]
    return outputs, torch.eye(num_slots).expand(len(frames) - 1, -1, -1)


@torch.no_grad()
def evaluate_clips(
    model: nn.Module,
    batches: Batches,
    device: torch.device,
    max_images: int | None = None,
    progress: Callable[[int], None] = lambda done: None,
    ranks: Ranks = Ranks(),  # noqa: B008 (it is frozen)
    scored: Scored | None = None,
) -> tuple[dict[str, float], Clips]:
    """`evaluate` on batches of whole clips: every frame's scores as an image's, and those of the clips.

    Scores: `ari_fg`, `ari`, `miou`, `mse`, `mse_mean` and `cut_*` are means over frames, each frame by itself; `video_ari_fg`,
    `video_ari`, `video_miou` and `video_cut_*` take all pixels of a clip as one label map, so that an object has to keep its
    identity, and are means over clips. `num_images` counts frames.

    Args:
        max_images: frames, at most; rounded up to whole clips.
        ranks, scored: see `evaluate`; each has its share of the clips.

    Raises:
        InputError: `max_images` is less than 1, the frames are no whole multiple of the model's size, or see `chain`.
    """
    if max_images is not None and max_images < 1:
        raise InputError(
            f"the number of images is {max_images}; give at least 1, or leave it out for all images."
        )
    assert batches.num_frames is not None
    assert (batches.rank, batches.world_size) == (ranks.rank, ranks.size)
    num_clips = None if max_images is None else -(-max_images // batches.num_frames)
    size = image_size(model)
    totals: dict[str, float] = {}
    shown: list[dict[str, Tensor]] = []
    done = 0
    with ranks.agreed(), evaluating(model):
        for batch in first_items(batches, num_clips):
            for item, clip, ids in zip(batch.index, batch.images, batch.masks, strict=True):
                frames, true = to_model(clip, size, device), masks_to_model(ids, size, device)
                tracked = track(model, frames)
                each = {
                    name: scores.mean() for name, scores in _scores(tracked, frames, true).items()
                }
                for name, score in each.items():
                    totals[name] = totals.get(name, 0.0) + float(score)
                if scored:
                    scored(item[None], {name: score[None] for name, score in each.items()})
                if len(shown) < SAMPLE_CLIPS:
                    shown.append(_shown(tracked, frames, true))
                done += 1
                progress(done * batches.num_frames)
    scores, count = means(totals, done, ranks)
    return scores | {"num_images": float(count * batches.num_frames)}, _sample(shown)


@torch.no_grad()
def sample_clips(model: nn.Module, batch: Batch, device: torch.device) -> Clips:
    """The sample that `evaluate_clips` gives of these clips."""
    size, shown = image_size(model), []
    with evaluating(model):
        for clip, ids in zip(batch.images, batch.masks, strict=True):
            frames = to_model(clip, size, device)
            shown.append(_shown(track(model, frames), frames, masks_to_model(ids, size, device)))
    return _sample(shown)


def _shown(tracked: Tracked, frames: Tensor, true: Tensor) -> dict[str, Tensor]:
    return {
        "images": frames,
        "true": true,
        "reconstruction": tracked.outputs.reconstruction.float(),
        **tracked.maps,
    }


def _sample(shown: Sequence[Mapping[str, Tensor]]) -> Clips:
    if not shown:
        return Clips(torch.empty(0), torch.empty(0), None)
    stacked = {name: torch.stack([clip[name] for clip in shown]).cpu() for name in shown[0]}
    return Clips(stacked.pop("images"), stacked.pop("true"), SimpleNamespace(**stacked))


def _scores(tracked: Tracked, frames: Tensor, true: Tensor) -> dict[str, Tensor]:
    scores = image_scores(tracked.outputs, frames, true)
    num_slots = tracked.outputs.alpha.shape[1]
    for name, labels in tracked.maps.items():
        found = segmentation(
            true.reshape(1, -1, true.shape[-1]), labels.reshape(1, -1, true.shape[-1]), num_slots
        )
        scores |= {
            f"video_{name.removesuffix('masks')}{score}": value for score, value in found.items()
        }
    return scores
