"""The configuration of a run (model, optimization, training), its presets, JSON form and hash."""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from cutslots import models, options
from cutslots.errors import InputError, nearest
from cutslots.metrics.registry import SCORES
from cutslots.models import genesis_v2, min_cut_slots, min_cut_video, slot_attention
from cutslots.models.min_cut_slots import ColorConfig, CutConfig, WindowConfig
from cutslots.models.slot_attention import AttentionConfig
from cutslots.nn.decoder import DecoderConfig
from cutslots.nn.encoders import EncoderConfig
from cutslots.nn.slots import SlotsConfig
from cutslots.nn.weights import WeightsConfig
from cutslots.options import option


@dataclass(frozen=True)
class OptimConfig:
    """Adam and its learning rate:

    `learning_rate * min(1, (step + 1) / warmup_steps) * decay ** (step / (decay_share * steps))`.
    """

    learning_rate: float = option(4e-4, "Adam's learning rate before warm-up and decay", low=0.0)
    batch_size: int = option(64, "images (or pairs of frames) per step over all workers", low=1)
    warmup_steps: int = option(0, "steps in which the rate rises from zero", low=0)
    decay: float = option(0.8, "factor of the exponential decay", low=1e-6, high=1.0)
    decay_share: float = option(0.2, "share of all steps that one such decay takes", low=1e-6)
    clip_norm: float | None = option(None, "maximum gradient norm; none: no clipping", low=1e-12)

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of one step, counted from 0."""
        warm = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        return self.learning_rate * warm * self.decay ** (step / (self.decay_share * steps))


@dataclass(frozen=True)
class TrainConfig:
    """Length of a run, how often it logs, evaluates and saves, and what it keeps."""

    steps: int = option(312_500, "optimisation steps", low=1)
    seed: int = option(0, "seed of the weights and of the order of images", low=0)
    precision: str = option(
        "auto", "auto: bfloat16 autocast if supported", choices=("auto", "float32", "bfloat16")
    )
    log_every: int = option(50, "steps between training metrics", low=1)
    eval_every: int = option(5_000, "steps between evaluations on the validation split", low=1)
    eval_images: int = option(1_000, "maximum number of validation images per evaluation", low=1)
    checkpoint_every: int = option(2_000, "steps between checkpoints", low=1)
    keep_last: int = option(2, "checkpoints kept in addition to the best", low=1)
    best_metric: str = option(
        "ari_fg",
        "validation score that selects the best checkpoint; video_* needs clips",
        choices=(*SCORES, *(f"video_{score}" for score in SCORES if score != "mse")),
    )


@dataclass(frozen=True)
class RunConfig:
    """Everything that determines a run's numbers."""

    model: Any = field(default_factory=min_cut_slots.Config)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    @property
    def model_name(self) -> str:
        """The model's file in cutslots/models."""
        return type(self.model).__module__.rpartition(".")[2]


# Options that a resumed run may change: none of them affects the steps already taken.
_RESUMABLE = ("steps", "log_every", "eval_every", "eval_images", "checkpoint_every", "keep_last")
RESUMABLE = tuple(f"train.{name}" for name in _RESUMABLE)

# Options added after the first recorded runs, with the values that these runs had in effect. The
# hash omits an option that has this value, so the hashes of old runs stay valid.
HASH_EXEMPT: dict[str, Any] = {
    "model.cut.reach": None,
    "model.cut.terminal_slack": True,
    "model.cut.interior_edges": False,
    "model.foreground_side": "source",
    "model.slots.hidden_after": None,
    "model.weights.dilated": False,
    "model.composition": "decoder",
    "model.mask_floor": 0.01,
    "model.color.steps": 0,
    "model.color.ramp": 0,
    "model.color.hidden": 64,
    "model.window.kind": "none",
    "model.window.smallest": 0.03,
    "model.window.largest": 0.15,
    "model.window.hidden": 64,
}
_PAPER_SLOTS = SlotsConfig(hidden_after=128)


def paper_clevr() -> RunConfig:
    """The paper's model and schedule for CLEVR (section 6.1, appendix D)."""
    return RunConfig(model=min_cut_slots.Config(slots=_PAPER_SLOTS))


def paper_clevrtex() -> RunConfig:
    """The paper's model and schedule for ClevrTex: a ResNet of 4 blocks and 100 feature maps."""
    encoder = EncoderConfig(kind="resnet", channels=100)
    return RunConfig(model=min_cut_slots.Config(encoder=encoder, slots=_PAPER_SLOTS))


def published_clevrtex() -> RunConfig:
    """`paper-clevrtex` where the code published with the paper differs from its text."""
    base = paper_clevrtex()
    model = replace(
        base.model,
        foreground_side="sink",
        weights=WeightsConfig(num_layers=2),
        cut=CutConfig(beta=10.0, terminal_slack=False, interior_edges=True),
    )
    return replace(base, model=model)


def small() -> RunConfig:
    """32 x 32 images, 16 x 16 cuts: learns scenes of 2 or 3 objects on 2 CPU cores in 2 minutes.

    Where it differs from the paper's model, cutslots/models/README.md says why.
    """
    return RunConfig(
        model=min_cut_slots.Config(
            image_size=32,
            num_slots=4,
            init="he",
            object_content=0.3,
            foreground_position=False,
            composition="cut",
            encoder=EncoderConfig(channels=24, num_layers=3),
            weights=WeightsConfig(hidden=32, num_layers=4, dilated=True, norm=True),
            cut=CutConfig(reach=2.236),
            slots=SlotsConfig(size=32, hidden=64),
            decoder=DecoderConfig(start=4, channels=24, num_refine=0),
            color=ColorConfig(steps=600, ramp=600),
            window=WindowConfig(kind="slot"),
        ),
        optim=OptimConfig(learning_rate=3e-3, batch_size=16, warmup_steps=100, clip_norm=1.0),
        train=TrainConfig(
            steps=2_500,
            seed=1,
            log_every=25,
            eval_every=500,
            eval_images=200,
            checkpoint_every=250,
            best_metric="miou",
        ),
    )


def paper_movi() -> RunConfig:
    """The paper's video model for MOVi-A (section 6.3): 8 slots, adjacent frames."""
    return RunConfig(
        model=min_cut_video.Config(num_slots=8, slots=_PAPER_SLOTS),
        train=TrainConfig(best_metric="video_ari_fg"),
    )


def small_video() -> RunConfig:
    """The video model in the sizes of `small`: 8 slots, 32 x 32 frames."""
    base, matching = small(), min_cut_video.MatchingConfig(hidden=64)
    model = min_cut_video.Config(**{**vars(base.model), "num_slots": 8}, matching=matching)
    optim = replace(base.optim, batch_size=8)
    return RunConfig(model, optim, replace(base.train, best_metric="video_ari_fg"))


def slot_attention_clevr() -> RunConfig:
    """Slot Attention for CLEVR with encoder and decoder of `paper-clevr`, on its own schedule."""
    optim = OptimConfig(warmup_steps=10_000, decay=0.5)  # the rate halves every 100,000 steps
    return RunConfig(slot_attention.Config(), optim, TrainConfig(steps=500_000))


def slot_attention_clevrtex() -> RunConfig:
    """Slot Attention for ClevrTex with encoder and decoder of `paper-clevrtex`."""
    model = slot_attention.Config(encoder=EncoderConfig(kind="resnet", channels=100))
    return replace(slot_attention_clevr(), model=model)


def slot_attention_small() -> RunConfig:
    """Slot Attention with images, encoder, decoder, slots, batches and steps of `small`."""
    base = small()
    model = slot_attention.Config(
        image_size=32,
        num_slots=4,
        encoder=base.model.encoder,
        attention=AttentionConfig(size=32, hidden=64),
        decoder=base.model.decoder,
    )
    return RunConfig(model, replace(base.optim, learning_rate=1e-3), base.train)


def genesis_v2_clevr() -> RunConfig:
    """GENESIS-V2 for CLEVR, with the published sizes and schedule."""
    optim = OptimConfig(learning_rate=1e-4, batch_size=32, decay=1.0)
    return RunConfig(genesis_v2.Config(), optim, TrainConfig(steps=500_000))


def genesis_v2_small() -> RunConfig:
    """GENESIS-V2 with images, number of slots, batches and steps of `small`."""
    base = small()
    # A narrower likelihood (the goal is still a squared error of 0.003) and a lighter prior than
    # published, which learn faster.
    geco = genesis_v2.GecoConfig(goal=-0.653, start=0.01)
    model = genesis_v2.Config(image_size=32, num_slots=4, size=16, deviation=0.2, geco=geco)
    return RunConfig(model, replace(base.optim, learning_rate=2e-3, decay=0.64), base.train)


_MIN_CUTS = (paper_clevr, paper_clevrtex, published_clevrtex, small, paper_movi, small_video)
_BASELINES = (slot_attention_clevr, slot_attention_clevrtex, slot_attention_small)
PRESETS: dict[str, Callable[[], RunConfig]] = {
    function.__name__.replace("_", "-"): function
    for function in (*_MIN_CUTS, *_BASELINES, genesis_v2_clevr, genesis_v2_small)
}


def preset(name: str) -> RunConfig:
    """A preset by name; InputError if there is none."""
    if name not in PRESETS:
        raise InputError(f"unknown preset {name!r}. {nearest(name, list(PRESETS))}")
    return PRESETS[name]()


def to_json(config: RunConfig) -> str:
    """A config as indented JSON."""
    values = {"model_name": config.model_name, **dataclasses.asdict(config)}
    return json.dumps(values, indent=2) + "\n"


def from_json(text: str) -> RunConfig:
    """The config in a text of `to_json`; InputError if it is not one, or has unknown options."""
    try:
        values = json.loads(text)
        name = values.pop("model_name")
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise InputError(f"this is not a run's configuration: {error!r}.") from None
    return options.restore(RunConfig(model=models.load(name).Config()), values)


def run_hash(config: RunConfig, data_digest: str) -> str:
    """Twelve hexadecimal digits of the options that change a run's numbers, and of its data.

    How often a run logs, evaluates and saves does not change them; neither does the hardware.
    """
    ignored = {name for name in RESUMABLE if name != "train.steps"}
    flat = options.flat(config)
    values = {
        path: value
        for path, value in flat.items()
        if path not in ignored and not (path in HASH_EXEMPT and value == HASH_EXEMPT[path])
    }
    text = json.dumps([config.model_name, values, data_digest], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def differences(old: RunConfig, new: RunConfig) -> dict[str, tuple[Any, Any]]:
    """The options that differ between two configs, `{path: (old, new)}`."""
    before, after = options.flat(old), options.flat(new)
    pairs = {path: (before.get(path), after.get(path)) for path in {**before, **after}}
    return {path: pair for path, pair in pairs.items() if pair[0] != pair[1]}
