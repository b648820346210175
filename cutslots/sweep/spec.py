"""The declaration of a sweep: one frozen value per question, in a file in sweeps/.

    SWEEP = Sweep(
        name="clevrtex",
        dataset="clevrtex",
        preset="paper-clevrtex",
        space={"cut.gamma": loguniform(0.05, 5.0), "num_slots": randint(9, 14)},
        baselines={"paper": Baseline(), "slot-attention": Baseline("slot-attention-clevrtex")},
    )

    if __name__ == "__main__":
        main(SWEEP)

Options are named as in `--set`, in full or by an unambiguous suffix. Every trial is a preset with
such assignments, so `cutslots train` can repeat it.
"""

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, get_args

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from cutslots import options
from cutslots.errors import InputError, nearest
from cutslots.metrics.registry import METRICS
from cutslots.train.config import RunConfig, preset

Search = Literal["tpe", "random", "grid"]
SMOKE = ("steps=30", "log_every=5", "eval_every=10", "eval_images=16", "checkpoint_every=10")


def uniform(low: float, high: float, step: float | None = None) -> FloatDistribution:
    """A float in [low, high]; with `step`, one of low, low + step, ... (a grid needs a step)."""
    return FloatDistribution(low, high, step=step)


def loguniform(low: float, high: float) -> FloatDistribution:
    """A positive float in [low, high] whose logarithm is uniformly distributed."""
    return FloatDistribution(low, high, log=True)


def randint(low: int, high: int, step: int = 1) -> IntDistribution:
    """An integer in [low, high]. Unlike in Ray Tune, `high` is included."""
    return IntDistribution(low, high, step=step)


def choice(*values: str | float | bool | None) -> CategoricalDistribution:
    """One of these values."""
    return CategoricalDistribution(list(values))


@dataclass(frozen=True)
class Baseline:
    """A known configuration, run before the search.

    Attributes:
        preset: None for the sweep's preset.
        overrides: assignments such as "cut.gamma=0.5". With the sweep's preset they come after the
            sweep's overrides, otherwise the sweep's overrides do not apply.
    """

    preset: str | None = None
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class ASHA:
    """Asynchronous successive halving: only the best trials of every rung are continued.

    Attributes:
        grace_period: the first rung, as a share of a training, in (0, 1).
        reduction_factor: 1 in this many trials continues, and each rung has this many times the
            steps of the previous one.
    """

    grace_period: float = 0.1
    reduction_factor: int = 3


@dataclass(frozen=True)
class Sweep:
    """A search over the options of a preset.

    Attributes:
        name: of the sweep, its folder and its runs' tag in MLflow.
        dataset: name of a prepared dataset in CUTSLOTS_DATA or CUTSLOTS_HOME/data.
        preset: the configuration that all trials start from.
        space: option -> range; see `uniform`, `loguniform`, `randint`, `choice`.
        overrides: assignments for all trials of the preset.
        baselines: configurations that run before the search and are never stopped early.
        seeds: random seeds. The search uses the first; baselines, a grid and the `reseed_best` best
            configurations run with all of them.
        objective: validation score to optimise, or several for a Pareto front.
        search: "tpe", "random", or "grid" (every combination of a finite space).
        trials: number of configurations to sample; a grid ignores it.
        halving: early stopping of poor trials, or None. A grid or several objectives ignore it.
        reseed_best: how many of the best sampled configurations run again with the other seeds.
        test_datasets: datasets whose test split every trial scores at its end with its best
            weights. Those that are not prepared are skipped with a message.
        dataset_options: options of the built-in scenes, which are generated if they are missing.
        smoke_preset: the preset of `--smoke`; it must have the options of the space.
    """

    name: str
    dataset: str
    preset: str
    space: Mapping[str, BaseDistribution]
    overrides: tuple[str, ...] = ()
    baselines: Mapping[str, Baseline] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0,)
    objective: str | tuple[str, ...] = "ari_fg"
    search: Search = "tpe"
    trials: int = 40
    halving: ASHA | None = ASHA()
    reseed_best: int = 1
    test_datasets: tuple[str, ...] = ()
    dataset_options: Mapping[str, Any] = field(default_factory=dict)
    smoke_preset: str = "small"

    @property
    def objectives(self) -> tuple[str, ...]:
        """The scores to optimise; the first one chooses the best checkpoint of a run."""
        return (self.objective,) if isinstance(self.objective, str) else tuple(self.objective)

    @property
    def asha(self) -> ASHA | None:
        """Early stopping; None with a grid or several objectives."""
        return self.halving if len(self.objectives) == 1 and self.search != "grid" else None

    @property
    def num_samples(self) -> int:
        """How many configurations are sampled; none for a grid."""
        return 0 if self.search == "grid" else self.trials

    @property
    def total(self) -> int:
        """How many trials the complete sweep has."""
        reseeded = min(self.reseed_best, self.num_samples) * (len(self.seeds) - 1)
        fixed = (len(self.baselines) + len(self.grid)) * len(self.seeds)
        return fixed + self.num_samples + reseeded

    @cached_property
    def base(self) -> RunConfig:
        """The configuration that all trials of the search start from."""
        return self.config(Baseline())

    def config(
        self, baseline: Baseline, assignments: Sequence[str] = (), seed: int | None = None
    ) -> RunConfig:
        """The configuration of one trial; InputError if an assignment or the result is invalid."""
        config = preset(baseline.preset or self.preset)
        shared = self.overrides if baseline.preset is None else ()
        seeds = [] if seed is None else [f"train.seed={seed}"]
        metric = f"train.best_metric={self.objectives[0]}"
        try:
            for assignment in (metric, *shared, *baseline.overrides, *assignments, *seeds):
                config = options.override(config, assignment)
            options.check(config)
        except InputError as error:
            raise InputError(f"sweep {self.name!r}: {error}") from None
        return config

    @cached_property
    def full_space(self) -> dict[str, BaseDistribution]:
        """The space with full option names.

        Raises:
            InputError: the preset does not have an option, or `overrides` sets it too.
        """
        names = {text: text.partition("=")[0].strip() for text in self.overrides}
        fixed = {options.resolve(self.base, name).path: text for text, name in names.items()}
        space = {}
        for name, distribution in self.space.items():
            try:
                path = options.resolve(self.base, name).path
            except InputError as error:
                raise InputError(f"sweep {self.name!r}, space: {error}") from None
            if path in fixed:
                raise InputError(
                    f"sweep {self.name!r}: {name} is in the space and also fixed by "
                    f"{fixed[path]}. Remove one of them."
                )
            space[path] = distribution
        return space

    @cached_property
    def grid(self) -> list[dict[str, Any]]:
        """Every combination of the values of the space; empty unless the search is a grid.

        Raises:
            InputError: a range has infinitely many values.
        """
        if self.search != "grid":
            return []
        values: list[list[Any]] = []
        for path, distribution in self.full_space.items():
            choices, step = (getattr(distribution, name, None) for name in ("choices", "step"))
            if isinstance(distribution, IntDistribution | FloatDistribution) and step:
                count = round((distribution.high - distribution.low) / step) + 1
                choices = [distribution.low + step * index for index in range(count)]
            if choices is None:
                raise InputError(
                    f"sweep {self.name!r}: {path} must have finitely many values in a grid, "
                    f"got {distribution}. Use choice(...) or a step."
                )
            values.append(list(choices))
        return [dict(zip(self.full_space, row, strict=True)) for row in itertools.product(*values)]

    def check(self) -> None:
        """Raise InputError unless every field, baseline and end of a range is valid."""

        def require(holds: Any, text: str) -> None:
            if not holds:
                raise InputError(f"sweep {self.name!r}: {text}")

        seeds, asha, searches = self.seeds, self.halving or ASHA(), get_args(Search)
        text = f"name must consist of letters, digits, - _ and ., got {self.name!r}."
        require(re.fullmatch(r"[\w.-]+", self.name), text)
        distinct = bool(seeds) and len(set(seeds)) == len(seeds)
        require(distinct, f"seeds must be one or more different integers, got {seeds}.")
        require(self.trials >= 0, f"trials must be at least 0, got {self.trials}.")
        require(self.reseed_best >= 0, f"reseed_best must be at least 0, got {self.reseed_best}.")
        names = ", ".join(searches)
        require(self.search in searches, f"search must be one of {names}, got {self.search!r}.")
        valid = 0 < asha.grace_period < 1 and asha.reduction_factor >= 2
        require(valid, f"halving must have grace_period in (0, 1), reduction_factor >= 2: {asha}.")
        for name in self.objectives:
            hint = nearest(name, list(METRICS))
            require(name in METRICS, f"objective must be a validation score, got {name!r}. {hint}")
        for baseline in self.baselines.values():
            self.config(baseline)
        for path, distribution in self.full_space.items():
            ends = getattr(distribution, "choices", None)
            for value in (distribution.low, distribution.high) if ends is None else ends:  # pyright: ignore[reportAttributeAccessIssue]
                self.config(Baseline(), [f"{path}={options.text(value)}"])
        _ = self.grid  # raises if it is infinite

    def smoke(self) -> "Sweep":
        """A sweep that takes minutes: a small preset, 30 steps, one seed, at most three trials."""
        same = self.smoke_preset == self.preset
        own = [(name, b) for name, b in self.baselines.items() if b.preset is None][:1]
        # With its own color.steps, a smoke of `small` would end before the decoder runs.
        color = getattr(preset(self.smoke_preset).model, "color", None)
        short = ("color.steps=10", "color.ramp=10") if color and color.steps else ()
        kept = [text for text in self.overrides if same and not text.startswith("train.")]
        return replace(
            self,
            name=f"{self.name}-smoke",
            preset=self.smoke_preset,
            overrides=(*kept, *(f"train.{option}" for option in SMOKE), *short),
            baselines={name: baseline if same else Baseline() for name, baseline in own},
            seeds=self.seeds[:1],
            search="random" if self.search == "grid" else self.search,
            trials=min(self.trials, 2),
            reseed_best=0,
        )
