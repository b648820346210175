"""GENESIS-V2 on still images: masks around random seed pixels, Gaussian latents, a learned prior.

image -> U-Net -> embedding -> masks, one after another -> masked means -> latent slots -> decoder
                                                              -> image and opacity per slot

Source: Engelcke, Parker Jones and Posner, GENESIS-V2: Inferring Unordered Object Representations
without Iterative Refinement (2021); sizes as in the authors' published code.
"""

import itertools
import math
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Normal

from cutslots.errors import InputError
from cutslots.nn.batch_shard import current_shard
from cutslots.nn.noise import drawn
from cutslots.options import option

GROUPS = 8  # of every group normalisation


@dataclass(frozen=True)
class GecoConfig:
    """The loss: the least divergence from the prior under a bound on the reconstruction error.

    Source: GECO, in Rezende and Viola, Taming VAEs (2018).
    """

    goal: float = option(0.5655, "bound on the negative log-likelihood per colour value")
    rate: float = option(
        0.12288, "rate of the multiplier's updates (published: 1e-5 * 3 * 64 * 64)", low=0.0
    )
    speedup: float = option(10.0, "factor of the rate while the goal is met", low=0.0)
    momentum: float = option(0.99, "of the running mean of the error", low=0.0, high=1.0)
    start: float = option(1.0, "initial weight of the divergence", low=0.0)


@dataclass(frozen=True)
class Config:
    """The model's sizes; the defaults are the published ones."""

    image_size: int = option(128, "side of the square images, a power of two", low=16)
    num_slots: int = option(12, "slots; the last one takes the remaining pixels", low=2)
    size: int = option(64, f"numbers in a slot and feature maps, multiple of {GROUPS}", low=GROUPS)
    colours: int = option(8, "dimensions of the embedding, two of them pixel coordinates", low=2)
    deviation: float = option(
        0.7, "standard deviation of a colour value around its reconstruction, in [0, 1]", low=1e-6
    )
    geco: GecoConfig = field(default_factory=GecoConfig)

    def build(self) -> "GenesisV2":
        return GenesisV2(self)


@dataclass(frozen=True)
class Outputs:
    """All intermediates from images to reconstructions.

    Attributes:
        attention: the masks grown around the seeds, summing to 1 over slots.
        slots: a latent vector per slot: sampled in training, the posterior's mean in evaluation.
        divergence: log posterior minus log prior of all slots of an image, in nats.
        reconstructions: an image per slot, in [-1, 1].
        log_alpha, alpha: (log) opacities; alpha sums to 1 over slots: the masks that are scored.
        reconstruction: the slots' images blended by alpha.
    """

    attention: Float[Tensor, "batch slots height width"]
    slots: Float[Tensor, "batch slots size"]
    divergence: Float[Tensor, " batch"]
    reconstructions: Float[Tensor, "batch slots 3 height width"]
    log_alpha: Float[Tensor, "batch slots height width"]
    alpha: Float[Tensor, "batch slots height width"]
    reconstruction: Float[Tensor, "batch 3 height width"]


class GenesisV2(nn.Module):
    """The auto-encoder with its prior. In evaluation all images have the same seeds."""

    multiplier: Tensor
    mean_error: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        size, side = config.size, config.image_size
        if side & (side - 1):
            raise InputError(f"model.image_size must be a power of two, got {side}.")
        if size % GROUPS:
            raise InputError(f"model.size must be a multiple of {GROUPS}, got {size}.")
        self.config = config
        self.encoder = UNet(side, size)
        self.embedding = _block(size, size)
        self.colouring = InstanceColouring(config)
        self.features = nn.Sequential(_block(size, size), nn.Conv2d(size, 2 * size, 1))
        self.posterior = nn.Sequential(
            nn.LayerNorm(2 * size),
            nn.Linear(2 * size, 2 * size),
            nn.ReLU(inplace=True),
            nn.Linear(2 * size, 2 * size),
        )
        self.prior = nn.LSTM(size, 4 * size, batch_first=True)
        self.prior_head = nn.Linear(4 * size, 2 * size)
        self.decoder = Decoder(side, size)
        # The state of the loss is in buffers, so that checkpoints save it.
        self.register_buffer("multiplier", torch.tensor(config.geco.start))
        self.register_buffer("mean_error", torch.tensor(math.nan))

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Outputs:
        encoded = self.encoder(images)
        batch, (height, width), device = images.shape[0], images.shape[-2:], images.device
        rank = drawn(torch.rand, batch, height, width, fresh=self.training, device=device)
        attention = self.colouring(self.embedding(encoded), rank).exp()
        pooled = attention.flatten(2) @ self.features(encoded).float().flatten(2).mT
        pooled = pooled / (attention.sum((2, 3))[:, :, None] + 1e-5)
        mean, spread = self.posterior(pooled).float().chunk(2, dim=-1)
        deviation = nn.functional.softplus(spread + 0.5) + 1e-8
        slots = mean
        if self.training:
            slots = mean + deviation * drawn(torch.randn, *mean.shape, fresh=True, device=device)
        reconstructions, opacity = self.decoder(slots)
        log_alpha = torch.log_softmax(opacity.float(), dim=1)
        alpha = log_alpha.exp()
        return Outputs(
            attention=attention,
            slots=slots,
            # Unchecked: if a run diverges, fit's error names the step and the images.
            divergence=self._divergence(slots, Normal(mean, deviation, validate_args=False)),
            reconstructions=reconstructions,
            log_alpha=log_alpha,
            alpha=alpha,
            reconstruction=(alpha[:, :, None] * reconstructions).sum(1),
        )

    def _divergence(self, slots: Tensor, posterior: Normal) -> Tensor:
        """A one-sample estimate; the first slot's prior is standard, the others follow from it."""
        mean, spread = self.prior_head(self.prior(slots[:, :-1])[0]).float().chunk(2, dim=-1)
        first = torch.zeros_like(slots[:, :1])
        means = torch.cat([first, mean.tanh()], 1)
        deviations = torch.cat([first + 1, torch.sigmoid(spread + 4) + 1e-4], 1)
        prior = Normal(means, deviations, validate_args=False)
        return (posterior.log_prob(slots) - prior.log_prob(slots)).sum((1, 2))

    def loss(
        self, outputs: Outputs, images: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, ""]:
        """Negative log-likelihood per colour value under the slots, plus weighted divergence.

        In training every call updates the weight from the error over all ranks: down while the
        error is above its goal, up while it is below.
        """
        deviation = self.config.deviation  # on [0, 1]
        distance = (images[:, None] - outputs.reconstructions.float()) / (2 * deviation)
        log_density = -0.5 * distance.square() - math.log(deviation * math.sqrt(2 * math.pi))
        error = -torch.logsumexp(outputs.log_alpha[:, :, None] + log_density, dim=1).mean()
        loss = error + self.multiplier.clone() * outputs.divergence.mean() / images[0].numel()
        if self.training:
            self._update_multiplier(current_shard().mean(error.detach()))
        return loss

    def _update_multiplier(self, error: Tensor) -> None:
        geco, mean = self.config.geco, self.mean_error
        moved = geco.momentum * mean + (1 - geco.momentum) * error
        mean.copy_(torch.where(mean.isnan(), error, moved))
        left = geco.goal - mean
        rate = torch.where(left > 0, geco.rate * geco.speedup, geco.rate)
        self.multiplier.mul_(torch.exp(rate * left)).clamp_(1e-10, 1e10)


class InstanceColouring(nn.Module):
    """Masks by stick breaking.

    The next seed is the highest-ranked pixel not yet taken; its mask decreases with the distance
    from it in a learned embedding. The last mask is the rest.

    Source: section 3.2 (IC-SBP with the Gaussian kernel); as in the published code, the embedding
    starts as the pixels' coordinates.
    """

    coordinates: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.num_slots = config.num_slots
        self.colour = nn.Conv2d(config.size, config.colours, 1)
        self.gate = nn.Parameter(torch.zeros(()))
        self.log_width = nn.Parameter(torch.tensor(1 / (config.num_slots * math.log(2))).log())
        padding = (0, 0, 0, 0, config.colours - 2, 0)
        padded = nn.functional.pad(_coordinates(config.image_size), padding)
        self.register_buffer("coordinates", padded, persistent=False)

    def forward(
        self,
        features: Float[Tensor, "batch channels height width"],
        rank: Float[Tensor, "batch height width"],
    ) -> Float[Tensor, "batch slots height width"]:
        """Logarithms of masks that sum to 1 over slots; `rank` is a random number per pixel."""
        colours = self.gate * self.colour(features).float() + self.coordinates
        log_scope, log_masks = torch.zeros_like(rank), []
        for _ in range(self.num_slots - 1):
            pixel = (rank * log_scope.exp()).flatten(1).argmax(1)[:, None, None]
            pixel = pixel.expand(-1, colours.shape[1], 1)
            seed = colours.flatten(2).gather(2, pixel)[..., None]
            near = torch.exp(-(colours - seed).square().sum(1) / self.log_width.exp())
            # Away from 0 and 1, where a logarithm would be infinite; the gradient ignores this.
            near = near + (near.clamp(0.01, 0.99) - near).detach()
            log_masks.append(log_scope + near.log())
            log_scope = log_scope + (1 - near).log()
        return torch.stack([*log_masks, log_scope], dim=1)


class UNet(nn.Module):
    """Features per pixel: halved to 4 x 4, an MLP over the whole image, and skip connections."""

    def __init__(self, image_size: int, channels: int) -> None:
        super().__init__()
        num_blocks, wide = image_size.bit_length() - 2, 2 * channels
        down = [channels] * (num_blocks - 3) + [wide] * 3
        up = [wide, wide] + [channels] * (num_blocks - 2)
        flat = 4 * 4 * wide
        self.down = nn.ModuleList(
            _block(inputs, outputs) for inputs, outputs in itertools.pairwise([3, *down])
        )
        self.middle = nn.Sequential(
            nn.Linear(flat, 128),
            nn.ReLU(inplace=True),
            nn.Linear(128, 128),
            nn.ReLU(inplace=True),
            nn.Linear(128, flat),
            nn.ReLU(),
        )
        self.up = nn.ModuleList(
            _block(below + skipped, outputs)
            for below, skipped, outputs in zip([wide, *up[:-1]], reversed(down), up, strict=True)
        )

    def forward(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        x, skipped = images, []
        for level, block in enumerate(self.down):
            x = block(x if level == 0 else x[:, :, ::2, ::2])
            skipped.append(x)
        x = self.middle(x.flatten(1)).unflatten(1, x.shape[1:])
        for level, block in enumerate(self.up):
            x = x if level == 0 else nn.functional.interpolate(x, scale_factor=2.0)
            x = block(torch.cat([x, skipped.pop()], dim=1))
        return x


class Decoder(nn.Module):
    """Spatial broadcast with coordinates as channels, and four doublings with group norm."""

    grid: Tensor

    def __init__(self, image_size: int, size: int) -> None:
        super().__init__()
        self.register_buffer("grid", _coordinates(image_size // 16), persistent=False)
        layers: list[nn.Module] = []
        for inputs in (size + 2, size, size, size):
            double = nn.ConvTranspose2d(inputs, size, 5, 2, 2, output_padding=1)
            layers += [double, nn.GroupNorm(GROUPS, size), nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(size, 4, 1))

    def forward(
        self, slots: Float[Tensor, "batch slots size"]
    ) -> tuple[Float[Tensor, "batch slots 3 h w"], Float[Tensor, "batch slots h w"]]:
        """An image in [-1, 1] per slot, and its opacity before the softmax over slots."""
        flat, side = slots.flatten(0, 1), self.grid.shape[-1]
        broadcast = flat[:, :, None, None].expand(-1, -1, side, side)
        grid = self.grid.expand(flat.shape[0], -1, -1, -1)
        decoded = self.layers(torch.cat([broadcast, grid], dim=1)).unflatten(0, slots.shape[:2])
        return 2 * torch.sigmoid(decoded[:, :, :3]) - 1, decoded[:, :, 3]


def _block(inputs: int, outputs: int) -> nn.Module:
    convolution = nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False)
    return nn.Sequential(convolution, nn.GroupNorm(GROUPS, outputs), nn.ReLU(inplace=True))


def _coordinates(side: int) -> Tensor:
    """`(2, side, side)`: row and column of each pixel in [-1, 1]."""
    line = torch.linspace(-1, 1, side)
    return torch.stack(torch.meshgrid(line, line, indexing="ij"))
