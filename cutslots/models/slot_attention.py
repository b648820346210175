"""Slot Attention on still images, the baseline of the paper's Table 1: slots compete for pixels.

image -> encoder -> features + position -> MLP -> rounds of attention from sampled slots -> decoder
                                                              -> image and opacity per slot
"""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cutslots.nn.decoder import BroadcastDecoder, DecoderConfig
from cutslots.nn.encoders import EncoderConfig
from cutslots.nn.init import glorot_init, he_init
from cutslots.nn.noise import drawn
from cutslots.nn.position import PositionEncoding
from cutslots.options import option


@dataclass(frozen=True)
class AttentionConfig:
    """The slots and their rounds of attention."""

    size: int = option(64, "numbers in a slot, and in the keys and values", low=1)
    hidden: int = option(128, "hidden units of the residual MLP after the GRU", low=1)
    num_iterations: int = option(3, "rounds of attention", low=1)
    epsilon: float = option(1e-8, "added to the attention before the weighted mean", low=0.0)


@dataclass(frozen=True)
class Config:
    """The published sizes, with the encoder and decoder of `min_cut_slots`."""

    image_size: int = option(128, "side of the square images", low=2)
    num_slots: int = option(12, "slots; none is reserved for the background", low=1)
    init: str = option(
        "glorot", "weights of Glorot (published), torch or He", choices=("glorot", "torch", "he")
    )
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    attention: AttentionConfig = field(default_factory=AttentionConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)

    def build(self) -> "SlotAttentionModel":
        return SlotAttentionModel(self)


@dataclass(frozen=True)
class Outputs:
    """All intermediates from images to reconstructions; h, w is the encoder's grid.

    Attributes:
        attention: the slots' shares of each pixel in the last round, summing to 1 over slots.
        slots: a vector per slot.
        reconstructions: an image per slot, in [-1, 1].
        alpha: opacities, summing to 1 over slots: the masks that are scored.
        reconstruction: the slots' images blended by alpha.
    """

    attention: Float[Tensor, "batch slots h w"]
    slots: Float[Tensor, "batch slots size"]
    reconstructions: Float[Tensor, "batch slots 3 height width"]
    alpha: Float[Tensor, "batch slots height width"]
    reconstruction: Float[Tensor, "batch 3 height width"]


class SlotSampler(nn.Module):
    """Samples the initial slots from one learned Gaussian for all slots."""

    def __init__(self, size: int, num_slots: int) -> None:
        super().__init__()
        self.num_slots = num_slots
        self.mean = nn.Parameter(nn.init.xavier_uniform_(torch.empty(1, size)))
        self.log_deviation = nn.Parameter(nn.init.xavier_uniform_(torch.empty(1, size)))

    def forward(self, batch: int) -> Float[Tensor, "batch slots size"]:
        """In evaluation every image starts from the same slots (see `cutslots.nn.noise`)."""
        size, device = self.mean.shape[-1], self.mean.device
        noise = drawn(torch.randn, batch, self.num_slots, size, fresh=self.training, device=device)
        return self.mean + self.log_deviation.exp() * noise


class SlotAttention(nn.Module):
    """Rounds of attention in which slots compete for the inputs.

    Source: Algorithm 1 of Locatello et al., Object-Centric Learning with Slot Attention (2020).
    """

    def __init__(self, config: AttentionConfig, channels: int) -> None:
        super().__init__()
        size = config.size
        self.num_iterations, self.epsilon = config.num_iterations, config.epsilon
        self.norm_inputs = nn.LayerNorm(channels)
        self.norm_slots = nn.LayerNorm(size)
        self.norm_mlp = nn.LayerNorm(size)
        self.queries = nn.Linear(size, size, bias=False)
        self.keys = nn.Linear(channels, size, bias=False)
        self.values = nn.Linear(channels, size, bias=False)
        self.gru = nn.GRUCell(size, size)
        self.mlp = nn.Sequential(
            nn.Linear(size, config.hidden), nn.ReLU(inplace=True), nn.Linear(config.hidden, size)
        )

    def forward(
        self,
        inputs: Float[Tensor, "batch pixels channels"],
        slots: Float[Tensor, "batch slots size"],
    ) -> tuple[Float[Tensor, "batch slots size"], Float[Tensor, "batch slots pixels"]]:
        """The slots and the attention of the last round, which sums to 1 over slots."""
        inputs = self.norm_inputs(inputs)
        keys, values = self.keys(inputs), self.values(inputs)
        attention = torch.empty(0)
        for _ in range(self.num_iterations):
            queries = self.queries(self.norm_slots(slots)) * slots.shape[-1] ** -0.5
            attention = torch.softmax((queries @ keys.mT).float(), dim=1)
            weights = attention + self.epsilon
            updates = (weights / weights.sum(-1, keepdim=True)).to(values.dtype) @ values
            # In float32: not every device's autocast supports a GRU cell, and errors would
            # accumulate over the rounds.
            state = self.gru(updates.flatten(0, 1).float(), slots.flatten(0, 1).float())
            slots = state.unflatten(0, slots.shape[:2])
            slots = slots + self.mlp(self.norm_mlp(slots))
        return slots, attention


class SlotAttentionModel(nn.Module):
    """The auto-encoder of object discovery: an encoder, slots by attention, and a decoder."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        channels, size = config.encoder.channels, config.attention.size
        grid = (config.image_size + 1) // 2
        self.encoder = config.encoder.build()
        self.position = PositionEncoding(channels, grid, grid)
        self.inputs = nn.Sequential(
            nn.LayerNorm(channels),
            nn.Linear(channels, channels),
            nn.ReLU(inplace=True),
            nn.Linear(channels, channels),
        )
        self.start = SlotSampler(size, config.num_slots)
        self.attention = SlotAttention(config.attention, channels)
        self.decoder = BroadcastDecoder(config.decoder, size, config.image_size)
        if config.init == "glorot":
            glorot_init(self)
        elif config.init == "he":
            he_init(self)

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Outputs:
        features = self.position(self.encoder(images))
        inputs, start = self.inputs(features.flatten(2).mT), self.start(images.shape[0])
        slots, attention = self.attention(inputs, start)
        colors, opacity = self.decoder(slots)
        reconstructions, alpha = torch.tanh(colors), torch.softmax(opacity, dim=1)
        return Outputs(
            attention=attention.unflatten(-1, features.shape[-2:]),
            slots=slots,
            reconstructions=reconstructions,
            alpha=alpha,
            reconstruction=(alpha[:, :, None] * reconstructions).sum(1),
        )

    @staticmethod
    def loss(outputs: Outputs, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, ""]:
        """Mean squared error per element, on [-1, 1]."""
        return nn.functional.mse_loss(outputs.reconstruction.float(), images)
