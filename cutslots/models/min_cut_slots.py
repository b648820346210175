"""The paper's model of still images: slots by minimum cuts, with a separate background slot.

image -> encoder -> features + position -> edge weights -> cuts -> masks -> slots -> decoder
                                                              -> image and opacity per slot
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
from cutslots.nn.schedule import Ramp
from cutslots.nn.slots import SlotHeads, SlotsConfig
from cutslots.nn.weights import WeightNet, WeightsConfig
from cutslots.options import option
from cutslots.qp import MinCut
from cutslots.qp.solvers import BACK_ENDS


@dataclass(frozen=True)
class CutConfig:
    """The quadratic program (see `cutslots.MinCut`)."""

    gamma: float = option(0.5, "regularisation, > 0", low=1e-6)
    gamma_edge: float | None = option(None, "of neighbour edges; none: gamma", low=1e-6)
    gamma_terminal: float | None = option(None, "of terminal edges; none: gamma", low=1e-6)
    gamma_vertex: float | None = option(None, "of potentials; none: gamma", low=1e-6)
    reach: float | None = option(
        None, "smoothing in pixels, sets gamma_terminal and gamma_vertex; none: by them", low=0.01
    )
    beta: float = option(1.0, "least drop of the potential from s to t (published code: 10)")
    terminal_slack: bool = option(True, "slack in this drop (published code: no)")
    interior_edges: bool = option(
        False, "neighbour edges start at interior pixels only (published code: yes)"
    )
    solver: str = option("auto", "back end of the cut layer", choices=("auto", *BACK_ENDS))

    def check(self) -> None:
        """Raise InputError if two options contradict each other."""
        terminal, vertex = self.gamma_terminal, self.gamma_vertex
        if self.reach is not None and (terminal, vertex) != (None, None):
            raise InputError(
                f"cut.reach ({self.reach:g}) replaces gamma_terminal ({terminal}) and gamma_vertex "
                f"({vertex}). Set these two to none, or cut.reach to none."
            )

    def build(self, height: int, width: int) -> MinCut:
        self.check()
        terminal, vertex = self.gamma_terminal, self.gamma_vertex
        if self.reach is not None:  # equal gammas, by the layer's formula for the reach
            edge = self.gamma if self.gamma_edge is None else self.gamma_edge
            terminal = vertex = edge / (2 * self.reach**2)
        return MinCut(
            height,
            width,
            self.gamma,
            gamma_edge=self.gamma_edge,
            gamma_terminal=terminal,
            gamma_vertex=vertex,
            interior_edges=self.interior_edges,
            beta=self.beta,
            terminal_slack=self.terminal_slack,
            solver=self.solver,
        )


@dataclass(frozen=True)
class TemperatureConfig:
    """Temperatures of the softmaxes that turn cuts into masks; smaller is sharper."""

    object: float = option(0.5, "over the object cuts of a pixel", low=1e-6)
    foreground: float = option(1.0, "over the two terminal edges of the foreground cut", low=1e-6)
    combined: float = option(0.1, "over background and foreground * object", low=1e-6)


@dataclass(frozen=True)
class ColorConfig:
    """A start of training in which the image of a slot is one color.

    One color cannot show a tile of the ground with an object in it, so the loss prefers slots that
    are objects. Then the decoder adds its detail, which a linear ramp lets in.
    """

    steps: int = option(0, "first steps, in which a slot's image is one color (paper: 0)", low=0)
    ramp: int = option(0, "steps after these in which the decoder's detail comes in", low=0)
    hidden: int = option(64, "hidden units of the MLP from a slot to its color", low=1)


@dataclass(frozen=True)
class WindowConfig:
    """A Gaussian window that limits where an object's slot can be opaque; the background has none.

    Its size is a standard deviation, as a share of the image's side.
    """

    kind: str = option(
        "none",
        "no window (the paper); center and size by an MLP of the slot; center of the cut mask",
        choices=("none", "slot", "cut"),
    )
    smallest: float = option(0.03, "smallest size", low=1e-3)
    largest: float = option(0.15, "largest size", low=1e-3)
    hidden: int = option(64, "hidden units of the MLP", low=1)


@dataclass(frozen=True)
class Config:
    """The model's sizes.

    The defaults give stored configurations that lack an option the model they were trained with;
    `cutslots.train.config` has the paper's presets.
    """

    image_size: int = option(128, "side of the square images, even", low=2)
    num_slots: int = option(12, "slots, including the background", low=2)
    init: str = option(
        "torch", "torch's weights, or He's with an undecided foreground", choices=("torch", "he")
    )
    object_content: float = option(
        1.0, "weight of features beside positions as input of the object cuts (paper: 1)", low=0.0
    )
    foreground_position: bool = option(True, "positions in the foreground cut's input (paper: yes)")
    foreground_side: str = option(
        "source",
        "terminal whose side of the foreground cut is the foreground (published code: sink)",
        choices=("source", "sink"),
    )
    composition: str = option(
        "decoder",
        "alpha: softmax of the decoder's opacity (paper), or with the cut masks as its prior",
        choices=("decoder", "cut"),
    )
    mask_floor: float = option(
        0.01, "added to cut masks in alpha: what a slot can be without its cut", low=1e-8
    )
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    weights: WeightsConfig = field(default_factory=WeightsConfig)
    cut: CutConfig = field(default_factory=CutConfig)
    temperature: TemperatureConfig = field(default_factory=TemperatureConfig)
    slots: SlotsConfig = field(default_factory=SlotsConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    color: ColorConfig = field(default_factory=ColorConfig)
    window: WindowConfig = field(default_factory=WindowConfig)

    def build(self) -> "MinCutSlots":
        return MinCutSlots(self)


@dataclass(frozen=True)
class Partition:
    """Images to slots. Slot 0 is the background; h, w is the cut grid.

    Attributes:
        object_weights, foreground_weights: edge weights >= 0 of the cuts.
        object_potentials, foreground_potentials: potentials of the cuts.
        object_masks: softmax of the object potentials over cuts.
        foreground_mask: degree to which a pixel is on `foreground_side` of the foreground cut.
        masks: the cut masks, summing to 1 over slots.
        slots: a vector per slot.
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
    """All intermediates from images to reconstructions.

    Attributes:
        reconstructions: an image per slot, in [-1, 1].
        alpha: opacities, summing to 1 over slots: the masks that are scored.
        reconstruction: the slots' images blended by alpha.
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
                f"image_size must be even (the encoder halves it), got {config.image_size}."
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
            # Start with almost equal weights to s and t: a random sign would move objects into the
            # background slot in half of all runs.
            last = self.foreground_weights.last
            with torch.no_grad():
                last.weight.mul_(0.1)
                assert last.bias is not None
                last.bias.fill_(0.1)  # above zero, so that the ReLU passes a gradient
        self.color = self.window = self.detail = None
        if config.color.steps or config.color.ramp:
            self.color = _mlp(config.slots.size, config.color.hidden, 3)
            self.detail = Ramp(config.color.steps, config.color.ramp)
        if config.window.kind != "none":
            self.window = _mlp(config.slots.size, config.window.hidden, 4)
            for parameter in self.window[-1].parameters():
                nn.init.zeros_(parameter)  # centered, of medium size

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Outputs:
        partition = self.partition(images)
        reconstructions, alpha, reconstruction = self.decode(partition.slots, partition.masks)
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
        # What objects share against the background is for the foreground cut; the object cuts
        # separate objects from each other.
        object_weights = self.object_weights(features - (1 - self.config.object_content) * content)
        foreground = features if self.config.foreground_position else content
        foreground_weights = self.foreground_weights(foreground)
        temperature = self.config.temperature

        object_cut = self.cut(object_weights.flatten(0, 1))
        object_potentials = object_cut.potentials.unflatten(0, object_weights.shape[:2])
        object_masks = torch.softmax(object_potentials / temperature.object, dim=1)

        foreground_cut = self.cut(foreground_weights.flatten(0, 1))
        near, far = foreground_cut.terminal_edges()
        if self.config.foreground_side == "sink":
            near, far = far, near
        # A softmax over a pixel's two terminal edges: on one terminal's side the other's is cut.
        foreground_mask = torch.sigmoid((far - near) / temperature.foreground)[:, None]

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

    def decode(
        self, slots: Float[Tensor, "batch slots size"], masks: Float[Tensor, "batch slots h w"]
    ) -> tuple[
        Float[Tensor, "batch slots 3 height width"],
        Float[Tensor, "batch slots height width"],
        Float[Tensor, "batch 3 height width"],
    ]:
        """The second half of `forward`: the slots' images, their opacities, and the blend.

        Args:
            masks: cut masks of the slots; used by the options `composition` and `window`.
        """
        detail, size = 1.0 if self.detail is None else self.detail.value, self.config.image_size
        if detail:
            colors, opacity = self.decoder(slots)
        else:
            # The product is zero; DistributedDataParallel needs a gradient of every parameter.
            unused = 0.0 * sum(parameter.sum() for parameter in self.decoder.parameters())
            opacity = slots.new_zeros(*slots.shape[:2], size, size) + unused
            colors = opacity[:, :, None]
        if self.color is not None:
            colors = detail * colors + self.color(slots)[..., None, None]
            opacity = detail * opacity
        if self.window is not None:
            window = self._window(self.window(slots[:, 1:]), masks[:, 1:])
            opacity = torch.cat([opacity[:, :1], opacity[:, 1:] + window], dim=1)
        if self.config.composition == "cut":
            prior = torch.log(_at_least_float32(masks) + self.config.mask_floor)
            opacity = opacity + nn.functional.interpolate(prior, size=size, mode="bilinear")
        alpha, reconstructions = torch.softmax(opacity, dim=1), torch.tanh(colors)
        return reconstructions, alpha, (alpha[:, :, None] * reconstructions).sum(1)

    def _window(
        self, parameters: Float[Tensor, "batch slots 4"], masks: Float[Tensor, "batch slots h w"]
    ) -> Float[Tensor, "batch slots height width"]:
        """The windows' logarithms, from the MLP's row, column, size and height."""
        row, column, size, height = _at_least_float32(parameters).unbind(-1)
        if self.config.window.kind == "slot":
            row, column = torch.sigmoid(3 * row), torch.sigmoid(3 * column)
        else:
            masks = _at_least_float32(masks) + 1e-6  # the center of an empty mask is the image's
            grid = _line(masks.shape[-1], masks)
            mass = masks.sum((-2, -1))
            row, column = masks.sum(-1) @ grid / mass, masks.sum(-2) @ grid / mass
        smallest, largest = self.config.window.smallest, self.config.window.largest
        size = smallest + (largest - smallest) * torch.sigmoid(size + 1)
        line = _line(self.config.image_size, row)
        rows, columns = ((line - center[..., None]).square() for center in (row, column))
        distance = rows[..., :, None] + columns[..., None, :]
        return (height + 2)[..., None, None] - distance / (2 * size.square())[..., None, None]

    def loss(
        self, outputs: Outputs, images: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, ""]:
        """Mean squared error per element, on [-1, 1]. In training, it also counts the step."""
        if self.detail is not None:
            self.detail.advance()
        return nn.functional.mse_loss(outputs.reconstruction.float(), images)


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _line(length: int, like: Tensor) -> Tensor:
    """Evenly spaced positions from 0 to 1."""
    return torch.linspace(0, 1, length, dtype=like.dtype, device=like.device)


def _mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    layers = nn.Linear(inputs, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, outputs)
    return nn.Sequential(*layers)
