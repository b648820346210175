"""GENESIS-V2 on still images: masks grown around random seed pixels, one Gaussian latent a slot, and a learned prior.

image -> U-Net -> embedding -> masks, one after another -> masked means -> latent slots -> decoder -> picture and opacity a slot

Source: Engelcke, Parker Jones and Posner, GENESIS-V2: Inferring Unordered Object Representations without Iterative Refinement
(2021); sizes after the authors' published code.
"""

import itertools
import math
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Normal

from cutslots.errors import InputError
from cutslots.nn import shares
from cutslots.nn.noise import drawn
from cutslots.options import option

GROUPS = 8  # of every group normalisation


@dataclass(frozen=True)
class GecoConfig:
    """The loss: as little divergence from the prior as a bound on the reconstruction error allows.

    Source: GECO, in Rezende and Viola, Taming VAEs (2018).
    """

    goal: float = option(
        0.5655, "negative log-likelihood of a colour value that reconstruction shall reach"
    )
    rate: float = option(
        0.12288,
        "how fast the multiplier follows the distance from the goal (published: 1e-5 * 3 * 64 * 64)",
        low=0.0,
    )
    speedup: float = option(10.0, "factor of the rate while the goal is met", low=0.0)
    momentum: float = option(0.99, "of the running mean of the error", low=0.0, high=1.0)
    start: float = option(1.0, "weight of the divergence at the start", low=0.0)


@dataclass(frozen=True)
class Config:
    """The model's sizes; the defaults are the published ones."""

    image_size: int = option(128, "side of the square images, a power of two", low=16)
    num_slots: int = option(12, "slots; the last one has the pixels that are left", low=2)
    size: int = option(
        64, f"numbers in a slot, and feature maps; a multiple of {GROUPS}", low=GROUPS
    )
    colours: int = option(
        8,
        "dimensions of the embedding in which masks grow, the two of the pixel's place included",
        low=2,
    )
    deviation: float = option(
        0.7,
        "standard deviation of a colour value around its reconstruction, images in [0, 1]",
        low=1e-6,
    )
    geco: GecoConfig = field(default_factory=GecoConfig)

    def build(self) -> "GenesisV2":
        return GenesisV2(self)


@dataclass(frozen=True)
class Outputs:
    """Everything on the way from an image to its reconstruction.

    Attributes:
        attention: the masks grown around the seeds, summing to 1 over slots.
        slots: one latent vector a slot: sampled in training, the posterior's mean in evaluation.
        divergence: log posterior minus log prior of all slots of an image, in nats.
        reconstructions: a picture a slot, in [-1, 1].
        log_alpha, alpha: opacities and their logarithms, summing to 1 over slots; these are the masks that are scored.
        reconstruction: the pictures under their opacities.
    """

    attention: Float[Tensor, "batch slots height width"]
    slots: Float[Tensor, "batch slots size"]
    divergence: Float[Tensor, " batch"]
    reconstructions: Float[Tensor, "batch slots 3 height width"]
    log_alpha: Float[Tensor, "batch slots height width"]
    alpha: Float[Tensor, "batch slots height width"]
    reconstruction: Float[Tensor, "batch 3 height width"]


class GenesisV2(nn.Module):
    """The auto-encoder with its prior. In evaluation the seeds of all images are drawn alike (see `cutslots.nn.noise`)."""

    multiplier: Tensor
    mean_error: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        size = config.size
        if config.image_size & (config.image_size - 1):
            raise InputError(
                f"model.image_size is {config.image_size}; GENESIS-V2 halves it down to 4, so give a power of two."
            )
        if size % GROUPS:
            raise InputError(f"model.size is {size}; give a multiple of {GROUPS}.")
        self.config = config
        self.encoder = UNet(config.image_size, size)
        self.embedding = _block(size, size)
        self.colouring = InstanceColouring(config)
        self.features = nn.Sequential(_block(size, size), nn.Conv2d(size, 2 * size, 1))
        self.posterior = nn.Sequential(
            nn.LayerNorm(2 * size),
            nn.Linear(2 * size, 2 * size),
            nn.ReLU(inplace=True),
            nn.Linear(2 * size, 2 * size),
        )
        self.prior, self.prior_head = (
            nn.LSTM(size, 4 * size, batch_first=True),
            nn.Linear(4 * size, 2 * size),
        )
        self.decoder = Decoder(config.image_size, size)
        # What the loss carries from step to step lies in buffers, so that checkpoints keep it.
        self.register_buffer("multiplier", torch.tensor(config.geco.start))
        self.register_buffer("mean_error", torch.tensor(math.nan))

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Outputs:
        """Images in [-1, 1] to every intermediate by name."""
        found = self.encoder(images)
        rank = drawn(
            torch.rand,
            images.shape[0],
            *images.shape[-2:],
            fresh=self.training,
            device=images.device,
        )
        attention = self.colouring(self.embedding(found), rank).exp()
        pooled = attention.flatten(2) @ self.features(found).float().flatten(2).mT
        pooled = pooled / (attention.sum((2, 3))[:, :, None] + 1e-5)
        mean, spread = self.posterior(pooled).float().chunk(2, dim=-1)
        deviation = nn.functional.softplus(spread + 0.5) + 1e-8
        slots = mean
        if self.training:
            slots = mean + deviation * drawn(
                torch.randn, *mean.shape, fresh=True, device=mean.device
            )
        reconstructions, opacity = self.decoder(slots)
        log_alpha = torch.log_softmax(opacity.float(), dim=1)
        alpha = log_alpha.exp()
        return Outputs(
            attention=attention,
            slots=slots,
            # Unchecked: a run that diverged shall end with fit's message, which names the step and the images.
            divergence=self._divergence(slots, Normal(mean, deviation, validate_args=False)),
            reconstructions=reconstructions,
            log_alpha=log_alpha,
            alpha=alpha,
            reconstruction=(alpha[:, :, None] * reconstructions).sum(1),
        )

    def _divergence(self, slots: Tensor, posterior: Normal) -> Tensor:
        """One sample's estimate; each slot's prior is predicted from the slots before it, the first one's is standard."""
        mean, spread = self.prior_head(self.prior(slots[:, :-1])[0]).float().chunk(2, dim=-1)
        first = torch.zeros_like(slots[:, :1])
        means, deviations = (
            torch.cat([first, mean.tanh()], 1),
            torch.cat([first + 1, torch.sigmoid(spread + 4) + 1e-4], 1),
        )
        prior = Normal(means, deviations, validate_args=False)
        return (posterior.log_prob(slots) - prior.log_prob(slots)).sum((1, 2))

    def loss(
        self, outputs: Outputs, images: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, ""]:
        """Negative log-likelihood of a colour value under the mixture of slots, plus the weighted divergence shared among them.

        In training every call moves the weight, by the error of the batch over all ranks: down while it is above its goal, up while
        it is below.
        """
        distance = (images[:, None] - outputs.reconstructions.float()) / (
            2 * self.config.deviation
        )  # on [0, 1]
        log_density = -0.5 * distance.square() - math.log(
            self.config.deviation * math.sqrt(2 * math.pi)
        )
        error = -torch.logsumexp(outputs.log_alpha[:, :, None] + log_density, dim=1).mean()
        loss = error + self.multiplier.clone() * outputs.divergence.mean() / images[0].numel()
        if self.training:
            self._move_multiplier(shares.current().mean(error.detach()))
        return loss

    def _move_multiplier(self, error: Tensor) -> None:
        geco, mean = self.config.geco, self.mean_error
        mean.copy_(
            torch.where(mean.isnan(), error, geco.momentum * mean + (1 - geco.momentum) * error)
        )
        left = geco.goal - mean
        rate = torch.where(left > 0, geco.rate * geco.speedup, geco.rate)
        self.multiplier.mul_(torch.exp(rate * left)).clamp_(1e-10, 1e10)


class InstanceColouring(nn.Module):
    """Masks by breaking sticks: the next seed is the highest-ranked pixel not yet taken, its mask falls off with the distance from
    it in a learned embedding, and the last mask is what is left.

    Source: section 3.2 (IC-SBP with the Gaussian kernel); the embedding starts as the pixels' places, as in the published code.
    """

    place: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.num_slots = config.num_slots
        self.colour = nn.Conv2d(config.size, config.colours, 1)
        self.gate = nn.Parameter(torch.zeros(()))
        self.log_width = nn.Parameter(torch.tensor(1 / (config.num_slots * math.log(2))).log())
        place = _coordinates(config.image_size)
        self.register_buffer(
            "place", nn.functional.pad(place, (0, 0, 0, 0, config.colours - 2, 0)), persistent=False
        )

    def forward(
        self,
        features: Float[Tensor, "batch channels height width"],
        rank: Float[Tensor, "batch height width"],
    ) -> Float[Tensor, "batch slots height width"]:
        """Logarithms of masks that sum to 1 over slots.

        Args:
            rank: a random number in [0, 1) a pixel.
        """
        colours = self.gate * self.colour(features).float() + self.place
        log_scope, log_masks = torch.zeros_like(rank), []
        for _ in range(self.num_slots - 1):
            pixel = (
                (rank * log_scope.exp())
                .flatten(1)
                .argmax(1)[:, None, None]
                .expand(-1, colours.shape[1], 1)
            )
            seed = colours.flatten(2).gather(2, pixel)[..., None]
            near = torch.exp(-(colours - seed).square().sum(1) / self.log_width.exp())
            # Kept off 0 and 1, where a logarithm below would be infinite, while the gradient passes as if it were not.
            near = near + (near.clamp(0.01, 0.99) - near).detach()
            log_masks.append(log_scope + near.log())
            log_scope = log_scope + (1 - near).log()
        return torch.stack([*log_masks, log_scope], dim=1)


class UNet(nn.Module):
    """Features of every pixel: halved down to 4 x 4, an MLP over the whole image there, and back with skip connections."""

    def __init__(self, image_size: int, channels: int) -> None:
        super().__init__()
        num_blocks, wide = image_size.bit_length() - 2, 2 * channels
        down = [channels] * (num_blocks - 3) + [wide] * 3
        up = [wide, wide] + [channels] * (num_blocks - 2)
        whole = 4 * 4 * wide
        self.down = nn.ModuleList(
            _block(inputs, outputs) for inputs, outputs in itertools.pairwise([3, *down])
        )
        self.middle = nn.Sequential(
            nn.Linear(whole, 128),
            nn.ReLU(inplace=True),
            nn.Linear(128, 128),
            nn.ReLU(inplace=True),
            nn.Linear(128, whole),
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
    """Spatial broadcast with the pixels' places as channels, and four doublings with group normalisation."""

    grid: Tensor

    def __init__(self, image_size: int, size: int) -> None:
        super().__init__()
        self.register_buffer("grid", _coordinates(image_size // 16), persistent=False)
        layers: list[nn.Module] = []
        for inputs in (size + 2, size, size, size):
            layers += [
                nn.ConvTranspose2d(inputs, size, 5, 2, 2, output_padding=1),
                nn.GroupNorm(GROUPS, size),
                nn.ReLU(inplace=True),
            ]
        self.layers = nn.Sequential(*layers, nn.Conv2d(size, 4, 1))

    def forward(
        self, slots: Float[Tensor, "batch slots size"]
    ) -> tuple[
        Float[Tensor, "batch slots 3 height width"], Float[Tensor, "batch slots height width"]
    ]:
        """A picture in [-1, 1] for each slot, and its opacity before the softmax over slots."""
        flat, side = slots.flatten(0, 1), self.grid.shape[-1]
        broadcast = flat[:, :, None, None].expand(-1, -1, side, side)
        grid = self.grid.expand(flat.shape[0], -1, -1, -1)
        painted = self.layers(torch.cat([broadcast, grid], dim=1)).unflatten(0, slots.shape[:2])
        return 2 * torch.sigmoid(painted[:, :, :3]) - 1, painted[:, :, 3]


def _block(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False),
        nn.GroupNorm(GROUPS, outputs),
        nn.ReLU(inplace=True),
    )


def _coordinates(side: int) -> Tensor:
    """`(2, side, side)`: row and column of each pixel in [-1, 1]."""
    line = torch.linspace(-1, 1, side)
    return torch.stack(torch.meshgrid(line, line, indexing="ij"))
