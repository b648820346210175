"""Slots tracked through a clip: which slot of one frame is which slot of the next.

Adjacent frames are matched by the one-to-one assignment of slots with the largest sum of
similarities (Hungarian algorithm), so identities are a permutation of the slots: the slot numbers
of the first frame. The similarity depends on the model:

- a video model gives it: its `assignment` of the pair (t, t + 1), a softmax;
- for an image model it is the inner products of the slots of adjacent frames (paper, section 6.3);
- an image model whose outputs have no `slots` keeps their numbers.

All other outputs of frame t come from the pair (t, t + 1); the last frame is paired with itself.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from cutslots.errors import InputError
from cutslots.train.callbacks import Sample
from cutslots.train.inputs import is_video, label_maps


@dataclass(frozen=True)
class Clips(Sample):
    """Evaluated clips on the CPU: images are `(clips, T, 3, size, size)`; the outputs are the
    `reconstruction` and the tracked `masks` and, if the model cuts, `cut_masks`."""


def track(model: nn.Module, frames: Tensor) -> tuple[Any, dict[str, Tensor]]:
    """Track a model's slots through the frames of one clip, `(T, 3, size, size)` in [-1, 1].

    Returns:
        The outputs as for T images, `(T, ...)`, slots in each frame's order; and their
        `label_maps`, `(T, size, size)`, with identities in place of slot numbers.
    """
    if is_video(model):
        pairs = torch.stack([frames, torch.cat([frames[1:], frames[-1:]])], dim=1)
        outputs, similarity = first_frames(model, pairs)
        similarity = similarity[:-1]
    else:
        outputs = model(frames)
        similarity = torch.eye(outputs.alpha.shape[1]).expand(len(frames) - 1, -1, -1)
        if hasattr(outputs, "slots"):
            similarity = outputs.slots[:-1] @ outputs.slots[1:].mT
    return outputs, with_identities(label_maps(outputs, frames.shape[-1]), similarity)


def first_frames(model: nn.Module, pairs: Tensor) -> tuple[Any, Tensor]:
    """A video model's outputs for the first frame of each pair, and the similarity of the slots
    of the two frames, `(batch, k, k)`."""
    outputs = model(pairs)
    first = {name: value[:, 0] for name, value in vars(outputs).items() if name != "assignment"}
    return SimpleNamespace(**first), outputs.assignment


def with_identities(maps: Mapping[str, Tensor], similarity: Tensor) -> dict[str, Tensor]:
    """Label maps of a clip's frames, `(T, size, size)`, with identities for slots; see `chain`."""
    identities = torch.from_numpy(chain(similarity.double().cpu().numpy()))
    return {
        name: identities.to(labels.device).gather(1, labels.flatten(1).long()).view_as(labels)
        for name, labels in maps.items()
    }


def chain(similarity: np.ndarray) -> np.ndarray:
    """The identity of each slot of T frames, `(T, k)`: permutations of 0 to k - 1, first sorted.

    Args:
        similarity: `(T - 1, k, k)`, of slot i of frame t and slot j of frame t + 1. InputError if
            it is not finite.
    """
    if not np.isfinite(similarity).all():
        raise InputError(
            "the model's slots must be finite, got NaN or infinity: it has diverged. "
            "Use an earlier checkpoint."
        )
    identities = [np.arange(similarity.shape[-1])]
    for frame in similarity:
        partner = linear_sum_assignment(frame, maximize=True)[1]
        identities.append(identities[-1][np.argsort(partner)])
    return np.stack(identities)
