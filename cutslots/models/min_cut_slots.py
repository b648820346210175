"""The paper's model of still images: slots by minimum cuts, with a slot of its own for the background.

image -> encoder -> features + position -> edge weights -> cuts -> masks -> slots -> decoder -> picture and opacity a slot
"""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cutslots.errors import InputError
from cutslots.nn.decoder import BroadcastDecoder, DecoderConfig
from cutslots.nn.encoders import EncoderConfig
from cutslots.nn.init import he_init
from cutslots.nn.position import PositionEncoding
from cutslots.nn.slots import SlotHeads, SlotsConfig
from cutslots.nn.weights import WeightNet, WeightsConfig
from cutslots.options import option
from cutslots.qp import MinCut
from cutslots.qp.solvers import BACK_ENDS


@dataclass(frozen=True)
class CutConfig:
    """The quadratic program (see `cutslots.MinCut`)."""

    gamma: float = option(0.5, "regularisation, > 0", low=1e-6)
    gamma_edge: float | None = option(
        None, "regularisation of neighbour edges; none: gamma", low=1e-6
    )
    gamma_terminal: float | None = option(
        None, "regularisation of terminal edges; none: gamma", low=1e-6
    )
    gamma_vertex: float | None = option(None, "regularisation of potentials; none: gamma", low=1e-6)
    reach: float | None = option(
        None,
        "pixels that potentials are smoothed over, in place of gamma_terminal and gamma_vertex; none: by the gammas",
        low=0.01,
    )
    beta: float = option(1.0, "least drop of the potential from s to t")
    solver: str = option("auto", "back end of the cut layer", choices=("auto", *BACK_ENDS))

    def check(self) -> None:
        """Raise InputError where two options say the same."""
        if self.reach is not None and (
            self.gamma_terminal is not None or self.gamma_vertex is not None
        ):
            raise InputError(
                f"cut.reach is {self.reach:g} beside gamma_terminal {self.gamma_terminal} and gamma_vertex {self.gamma_vertex}, "
                "which say the same. Set these two to none, or leave cut.reach at none."
            )

    def build(self, height: int, width: int) -> MinCut:
        self.check()
        terminal, vertex = self._pixel_gammas()
        return MinCut(
            height,
            width,
            self.gamma,
            gamma_edge=self.gamma_edge,
            gamma_terminal=terminal,
            gamma_vertex=vertex,
            beta=self.beta,
            solver=self.solver,
        )

    def _pixel_gammas(self) -> tuple[float | None, float | None]:
        """gamma_terminal and gamma_vertex: equal ones where the reach is given, by the layer's formula for it."""
        if self.reach is None:
            return self.gamma_terminal, self.gamma_vertex
        edge = self.gamma if self.gamma_edge is None else self.gamma_edge
        each = edge / (2 * self.reach**2)
        return each, each


@dataclass(frozen=True)
class TemperatureConfig:
    """Temperatures of the softmaxes that turn cuts into masks; smaller is sharper."""

    object: float = option(0.5, "over the object cuts of a pixel", low=1e-6)
    foreground: float = option(1.0, "over the two terminal edges of the foreground cut", low=1e-6)
    combined: float = option(0.1, "over background and foreground * object", low=1e-6)


@dataclass(frozen=True)
class Config:
    """The model's sizes; the defaults are the paper's for CLEVR."""

    image_size: int = option(128, "side of the square images, even", low=2)
    num_slots: int = option(12, "slots, the background's included", low=2)
    init: str = option(
        "torch",
        "initial weights: torch's own, or He's with an undecided foreground cut",
        choices=("torch", "he"),
    )
    object_content: float = option(
        1.0,
        "weight of the features beside positions in what the object cuts see (paper: 1)",
        low=0.0,
    )
    foreground_position: bool = option(
        True, "whether the foreground cut sees positions too (paper), or the features alone"
    )
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    weights: WeightsConfig = field(default_factory=WeightsConfig)
    cut: CutConfig = field(default_factory=CutConfig)
    temperature: TemperatureConfig = field(default_factory=TemperatureConfig)
    slots: SlotsConfig = field(default_factory=SlotsConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)

    def build(self) -> "MinCutSlots":
        return MinCutSlots(self)


@dataclass(frozen=True)
class Partition:
    """Everything on the way from an image to its slots. Slot 0 is the background; h, w is the cut grid.

    Attributes:
        object_weights, foreground_weights: edge weights >= 0 of the cuts.
        object_potentials, foreground_potentials: potentials of the cuts.
        object_masks: softmax of the object potentials over cuts.
        foreground_mask: how much a pixel is on the source's side of the foreground cut, in (0, 1).
        masks: the cut masks, summing to 1 over slots.
        slots: one vector a slot.
    """

    object_weights: Float[Tensor, "batch cuts 6 h w"]
    foreground_weights: Float[Tensor, "batch 1 6 h w"]
    object_potentials: Float[Tensor, "batch cuts h w"]
    foreground_potentials: Float[Tensor, "batch 1 h w"]
    object_masks: Float[Tensor, "batch cuts h w"]
    foreground_mask: Float[Tensor, "batch 1 h w"]
    masks: Float[Tensor, "batch slots h w"]
    slots: Float[Tensor, "batch slots size"]


@dataclass(frozen=True)
class Outputs(Partition):
    """Everything on the way from an image to its reconstruction.

    Attributes:
        reconstructions: a picture a slot, in [-1, 1].
        alpha: opacities, summing to 1 over slots; these are the masks that are scored.
        reconstruction: the pictures under their opacities.
    """

    reconstructions: Float[Tensor, "batch slots 3 height width"]
    alpha: Float[Tensor, "batch slots height width"]
    reconstruction: Float[Tensor, "batch 3 height width"]


class MinCutSlots(nn.Module):
    """Slots by minimum s-t cuts (Algorithms 1 and 2 with the background slot of section 4)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        if config.image_size % 2:
            raise InputError(
                f"image_size is {config.image_size}; the encoder halves it, so it must be even."
            )
        self.config = config
        grid, channels = config.image_size // 2, config.encoder.channels
        self.encoder = config.encoder.build()
        self.position = PositionEncoding(channels, grid, grid)
        self.object_weights = WeightNet(config.weights, channels, config.num_slots - 1)
        self.foreground_weights = WeightNet(config.weights, channels, 1)
        self.cut = config.cut.build(grid, grid)
        self.slot_heads = SlotHeads(config.slots, channels)
        self.decoder = BroadcastDecoder(config.decoder, config.slots.size, config.image_size)
        if config.init == "he":
            he_init(self)
            self._leave_foreground_undecided()

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Outputs:
        """Images in [-1, 1] to every intermediate by name."""
        partition = self.partition(images)
        reconstructions, alpha, reconstruction = self.paint(partition.slots)
        return Outputs(
            **vars(partition),
            reconstructions=reconstructions,
            alpha=alpha,
            reconstruction=reconstruction,
        )

    def partition(self, images: Float[Tensor, "batch 3 height width"]) -> Partition:
        """The first half of `forward`: images to slots."""
        content = self.encoder(images)
        features = self.position(content)
        # What objects have in common against the ground is for the foreground cut; the object cuts are to tell objects apart.
        object_weights = self.object_weights(features - (1 - self.config.object_content) * content)
        foreground_weights = self.foreground_weights(
            features if self.config.foreground_position else content
        )
        temperature = self.config.temperature

        object_cut = self.cut(object_weights.flatten(0, 1))
        object_potentials = object_cut.potentials.unflatten(0, object_weights.shape[:2])
        object_masks = torch.softmax(object_potentials / temperature.object, dim=1)

        foreground_cut = self.cut(foreground_weights.flatten(0, 1))
        to_source, to_sink = foreground_cut.terminal_edges()
        # The softmax over the two terminal edges of a pixel: on the source's side the edge to the sink is the one that is cut.
        foreground_mask = torch.sigmoid((to_sink - to_source) / temperature.foreground)[:, None]

        split = torch.cat([1 - foreground_mask, foreground_mask * object_masks], dim=1)
        masks = torch.softmax(split / temperature.combined, dim=1)
        return Partition(
            object_weights=object_weights,
            foreground_weights=foreground_weights,
            object_potentials=object_potentials,
            foreground_potentials=foreground_cut.potentials[:, None],
            object_masks=object_masks,
            foreground_mask=foreground_mask,
            masks=masks,
            slots=self.slot_heads(features, masks),
        )

    def paint(
        self, slots: Float[Tensor, "batch slots size"]
    ) -> tuple[
        Float[Tensor, "batch slots 3 height width"],
        Float[Tensor, "batch slots height width"],
        Float[Tensor, "batch 3 height width"],
    ]:
        """The second half of `forward`: a picture a slot, their opacities, and the picture they make together."""
        reconstructions, opacity = self.decoder(slots)
        alpha = torch.softmax(opacity, dim=1)
        return reconstructions, alpha, (alpha[:, :, None] * reconstructions).sum(1)

    @torch.no_grad()
    def _leave_foreground_undecided(self) -> None:
        """Start with nearly equal weights to s and t: a random sign puts objects into the background slot in half of all runs."""
        last = self.foreground_weights.last
        last.weight.mul_(0.1)
        assert last.bias is not None
        last.bias.fill_(0.1)  # above zero, so that the ReLU passes a gradient

    @staticmethod
    def loss(outputs: Outputs, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, ""]:
        """Mean squared error of an element, on [-1, 1]."""
        return nn.functional.mse_loss(outputs.reconstruction.float(), images)
