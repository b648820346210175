"""The paper's model of moving objects: slots of two frames are matched, and decoded as pairs.

frame 1 ──► slots s_i ────────────────────► pair (s_i, r_i) ──► MLP ──► slot i of frame 1 ──► image
              └─► costs -<s_i, t_j> ──► M ─┐   ▲                    └─► slot i of frame 2 ──► image
frame 2 ──► slots t_j ─────────────────────┴─► r_i = sum_j M_ij t_j

Slot i is the same object in both frames. Encoder, cuts and decoder are those of `min_cut_slots`,
shared by the frames.
"""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cutslots.models import min_cut_slots
from cutslots.models.min_cut_slots import MinCutSlots
from cutslots.options import option
from cutslots.qp import Matching


@dataclass(frozen=True)
class MatchingConfig:
    """The matching program and the MLP on pairs."""

    gamma: float = option(0.5, "regularisation; only gamma * temperature matters", low=1e-6)
    temperature: float = option(0.1, "of the softmax over the second frame's slots", low=1e-6)
    hidden: int = option(256, "hidden units of the MLP on pairs of slots", low=1)


@dataclass(frozen=True)
class Config(min_cut_slots.Config):
    """The options of the image model, and those of the matching."""

    frames: ClassVar[int] = 2
    distance: int = option(
        1, "frames between the two of a training pair (paper: 1; frames 5 and 20: 15)", low=1
    )
    matching: MatchingConfig = field(default_factory=MatchingConfig)

    def build(self) -> "MinCutVideo":  # pyright: ignore[reportIncompatibleMethodOverride]
        return MinCutVideo(self)


@dataclass(frozen=True)
class Outputs:
    """All intermediates from two frames to reconstructions.

    Except in `masks` and `slots`, slot i is one object in both frames.

    Attributes:
        masks: the cut masks of each frame, summing to 1 over slots, in that frame's slot order.
        slots: a vector per slot of each frame, in that frame's slot order.
        assignment: M, the share of the second frame's slot j in slot i; rows sum to 1.
        paired: the decoded slots of both frames, in the first frame's order.
        reconstructions: an image per slot, in [-1, 1].
        alpha: opacities, summing to 1 over slots: the masks that are scored.
        reconstruction: the slots' images blended by alpha.
    """

    masks: Float[Tensor, "batch 2 slots h w"]
    slots: Float[Tensor, "batch 2 slots size"]
    assignment: Float[Tensor, "batch slots slots"]
    paired: Float[Tensor, "batch 2 slots size"]
    reconstructions: Float[Tensor, "batch 2 slots 3 height width"]
    alpha: Float[Tensor, "batch 2 slots height width"]
    reconstruction: Float[Tensor, "batch 2 3 height width"]


class Pairing(nn.Module):
    """Slots of two frames to pairs of slots.

    Source: Algorithm 3, steps 2 to 6.
    """

    def __init__(self, config: MatchingConfig) -> None:
        super().__init__()
        self.matching = Matching(config.gamma, config.temperature)

    def forward(
        self, first: Float[Tensor, "batch slots size"], second: Float[Tensor, "batch slots size"]
    ) -> tuple[Float[Tensor, "batch 2 slots size"], Float[Tensor, "batch slots slots"]]:
        """The pairs (s_i, r_i), and the assignment M in r = M t."""
        assignment = self.matching(-(first @ second.mT)).assignment
        return torch.stack([first, assignment.to(second.dtype) @ second], dim=1), assignment


class MinCutVideo(nn.Module):
    """The image model on two frames; slots are paired before decoding (section 4).

    The paper transforms the pairs "by MLP transformations" without details. Here one MLP sees both
    slots of a pair, and its result is added to them.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.image = MinCutSlots(config)
        self.pairing = Pairing(config.matching)
        size, hidden = config.slots.size, config.matching.hidden
        self.mlp = nn.Sequential(
            nn.Linear(2 * size, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, 2 * size)
        )

    def forward(self, images: Float[Tensor, "batch 2 3 height width"]) -> Outputs:
        frames = images.shape[:2]
        partition = self.image.partition(images.flatten(0, 1))
        slots = partition.slots.unflatten(0, frames)
        paired, assignment = self.pairing(slots[:, 0], slots[:, 1])
        moved = self.mlp(paired.transpose(1, 2).flatten(2)).unflatten(2, (2, -1)).transpose(1, 2)
        paired = paired + moved
        masks = partition.masks.unflatten(0, frames)
        second = (assignment.to(masks.dtype) @ masks[:, 1].flatten(2)).view_as(masks[:, 1])
        ordered = torch.stack([masks[:, 0], second], dim=1)  # in the first frame's order
        decoded = self.image.decode(paired.flatten(0, 1), ordered.flatten(0, 1))
        decoded = (values.unflatten(0, frames) for values in decoded)
        return Outputs(masks, slots, assignment, paired, *decoded)

    def loss(
        self, outputs: Outputs, images: Float[Tensor, "batch 2 3 height width"]
    ) -> Float[Tensor, ""]:
        """The sum over the two frames of the mean squared error per element, on [-1, 1]."""
        if self.image.detail is not None:
            self.image.detail.advance()
        return (outputs.reconstruction.float() - images).square().mean((0, 2, 3, 4)).sum()
