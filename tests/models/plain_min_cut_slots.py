"""The image model written a second time, plainly, after the paper: one operation after the other.

Its parameters have the names of the package's model, so it takes that model's weights.
"""

import torch
from torch import Tensor, nn

from cutslots.models import min_cut_slots
from cutslots.models.min_cut_slots import Config
from cutslots.nn.decoder import DecoderConfig
from cutslots.nn.encoders import EncoderConfig
from cutslots.nn.slots import SlotsConfig
from cutslots.nn.weights import WeightsConfig


class PlainSlots(nn.Module):
    """Algorithms 1 and 2 with the background slot of section 4; the cuts are the package's."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        grid, channels = config.image_size // 2, config.encoder.channels
        self.encoder = _encoder(config.encoder)
        self.position = Position(channels, grid)
        self.object_weights = Weights(config.weights, channels, config.num_slots - 1)
        self.foreground_weights = Weights(config.weights, channels, 1)
        self.cut = config.cut.build(grid, grid)
        self.slot_heads = Heads(config.slots, channels)
        self.decoder = Decoder(config.decoder, config.slots.size, config.image_size)
        if config.color.steps:
            self.color = mlp(config.slots.size, config.color.hidden, 3)
        if config.window.kind == "slot":
            self.window = mlp(config.slots.size, config.window.hidden, 4)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """`masks`, `alpha` and `reconstruction` of images `(batch, 3, H, W)` in [-1, 1], after the
        ramp of the decoder's detail."""
        config, temperature = self.config, self.config.temperature
        batch, grid = len(images), config.image_size // 2
        content = self.encoder(images)
        features = self.position(content)
        object_weights = self.object_weights(config.object_content * content + (features - content))
        foreground_weights = self.foreground_weights(
            features if config.foreground_position else content
        )

        potentials = self.cut(object_weights.reshape(-1, 6, grid, grid)).potentials.reshape(
            batch, -1, grid, grid
        )
        objects = torch.softmax(potentials / temperature.object, dim=1)
        edges = self.cut(foreground_weights.reshape(-1, 6, grid, grid)).edges()
        # Pixel -> t is cut on the source's side, s -> pixel on the sink's.
        order = [5, 4] if config.foreground_side == "source" else [4, 5]
        sides = edges[:, order]
        foreground = torch.softmax(sides / temperature.foreground, dim=1)[:, :1]
        masks = torch.softmax(
            torch.cat([1 - foreground, foreground * objects], dim=1) / temperature.combined, dim=1
        )

        slots = self.slot_heads(features, masks)
        decoded = self.decoder(slots.reshape(batch * config.num_slots, -1))
        decoded = decoded.reshape(batch, config.num_slots, 4, config.image_size, config.image_size)
        colors, opacity = decoded[:, :, :3], decoded[:, :, 3:]
        if config.color.steps:
            colors = colors + self.color(slots)[:, :, :, None, None]
        if config.window.kind == "slot":
            opacity = opacity + self.log_windows(slots)
        if config.composition == "cut":
            prior = torch.log(masks + config.mask_floor)
            prior = nn.functional.interpolate(prior, scale_factor=2, mode="bilinear")
            opacity = opacity + prior[:, :, None]
        colors, alpha = torch.tanh(colors), torch.softmax(opacity, dim=1)
        return {
            "masks": masks,
            "alpha": alpha[:, :, 0],
            "reconstruction": (alpha * colors).sum(dim=1),
        }

    def log_windows(self, slots: Tensor) -> Tensor:
        """A Gaussian around a center for every slot but the first, `(batch, k, 1, H, W)`."""
        size, options = self.config.image_size, self.config.window
        line = torch.linspace(0, 1, size, dtype=slots.dtype)
        y, x = torch.meshgrid(line, line, indexing="ij")
        values = self.window(slots)[..., None, None]
        row, column = torch.sigmoid(3 * values[:, :, 0]), torch.sigmoid(3 * values[:, :, 1])
        share = torch.sigmoid(values[:, :, 2] + 1)
        deviation = options.smallest + (options.largest - options.smallest) * share
        distance = (y - row) ** 2 + (x - column) ** 2
        windows = values[:, :, 3] + 2 - distance / (2 * deviation**2)
        windows = torch.cat([torch.zeros_like(windows[:, :1]), windows[:, 1:]], dim=1)
        return windows[:, :, None]


def build(config: Config) -> PlainSlots:
    """The plain model with the weights of a new model of `config`."""
    weights = min_cut_slots.MinCutSlots(config).state_dict()
    model = PlainSlots(config)
    weights.pop("detail._extra_state", None)  # the number of steps
    model.load_state_dict(weights)
    return model


def mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs))


def _encoder(config: EncoderConfig) -> nn.Sequential:
    stem, size = config.stem_channels, config.channels
    kernel, pad = config.kernel, config.kernel // 2
    if config.kind == "resnet":
        first = nn.Conv2d(3, stem, kernel, stride=2, padding=pad, bias=False)
        blocks = [Block(size if block else stem, size) for block in range(config.num_layers)]
        return nn.Sequential(first, nn.BatchNorm2d(stem), nn.ReLU(), *blocks)
    layers: list[nn.Module] = [nn.Conv2d(3, size, kernel, stride=2, padding=pad), nn.ReLU()]
    for _ in range(config.num_layers - 1):
        layers += [nn.Conv2d(size, size, kernel, padding=pad), nn.ReLU()]
    return nn.Sequential(*layers)


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if inputs != outputs:
            project = nn.Conv2d(inputs, outputs, 1, bias=False)
            self.shortcut = nn.Sequential(project, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class Position(nn.Module):
    def __init__(self, channels: int, side: int) -> None:
        super().__init__()
        self.project = nn.Linear(4, channels)
        y, x = torch.meshgrid(torch.linspace(0, 1, side), torch.linspace(0, 1, side), indexing="ij")
        self.register_buffer("grid", torch.stack([x, y, 1 - x, 1 - y], dim=-1), persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        return features + self.project(self.grid).permute(2, 0, 1).contiguous()


class Weights(nn.Module):
    def __init__(self, config: WeightsConfig, channels: int, num_cuts: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for layer in range(config.num_layers - 1):
            inputs, dilation = channels if layer == 0 else config.hidden, 1
            if config.dilated:
                dilation = 2**layer
            pad = dilation * (config.kernel // 2)
            layers += [
                nn.Conv2d(inputs, config.hidden, config.kernel, padding=pad, dilation=dilation),
                nn.LeakyReLU(),
            ]
        if config.norm:
            layers.append(nn.InstanceNorm2d(config.hidden))
        self.layers = nn.Sequential(*layers)
        inputs = channels if config.num_layers == 1 else config.hidden
        self.last = nn.Conv2d(inputs, 6 * num_cuts, config.kernel, padding=config.kernel // 2)

    def forward(self, features: Tensor) -> Tensor:
        return torch.relu(self.last(self.layers(features)))


class Heads(nn.Module):
    def __init__(self, config: SlotsConfig, channels: int) -> None:
        super().__init__()
        hidden, size = config.hidden, config.size
        after = config.hidden if config.hidden_after is None else config.hidden_after
        self.norm = nn.LayerNorm(channels)
        self.before = nn.Linear(channels, config.num_heads * hidden)
        self.project = nn.ModuleList(nn.Linear(hidden, size) for _ in range(config.num_heads))
        self.after = nn.ModuleList(
            nn.Sequential(nn.Linear(size, after), nn.ReLU(), nn.Linear(after, size))
            for _ in range(config.num_heads)
        )

    def forward(self, features: Tensor, masks: Tensor) -> Tensor:
        """Per head an MLP on pixels, means under the masks, an MLP; plus the first head's means."""
        x = self.norm(features.flatten(2).transpose(1, 2))
        hidden = torch.relu(self.before(x)).chunk(len(self.project), dim=-1)
        masks, total = masks.flatten(2), torch.zeros(())
        parts = zip(self.project, hidden, self.after, strict=True)
        for head, (project, part, mlp) in enumerate(parts):
            slot = torch.bmm(masks, project(part)) / masks.shape[-1]
            total = total + mlp(slot) + (0 if head else slot)
        return total


class Decoder(nn.Module):
    def __init__(self, config: DecoderConfig, slot_size: int, image_size: int) -> None:
        super().__init__()
        self.start = config.start
        self.position = Position(slot_size, config.start)
        size, kernel, pad = config.channels, config.kernel, config.kernel // 2
        layers: list[nn.Module] = []
        inputs, side = slot_size, config.start
        while side < image_size:
            layers.append(nn.ConvTranspose2d(inputs, size, kernel, 2, pad, output_padding=1))
            layers.append(nn.LeakyReLU())
            inputs, side = size, 2 * side
        for _ in range(config.num_refine):
            layers += [nn.Conv2d(inputs, size, kernel, padding=pad), nn.LeakyReLU()]
            inputs = size
        self.layers = nn.Sequential(*layers, nn.Conv2d(inputs, 4, 3, padding=1))

    def forward(self, slots: Tensor) -> Tensor:
        """`(n, size)` to `(n, 4, H, W)`: colours before tanh and opacity."""
        grid = slots[:, :, None, None].repeat(1, 1, self.start, self.start)
        return self.layers(self.position(grid))
