"""What a sweep is: the question it asks, as one frozen value that a file in sweeps/ declares.

    SWEEP = Sweep(
        name="clevrtex",
        dataset="clevrtex",
        preset="paper-clevrtex",
        space={"cut.gamma": log_uniform(0.05, 5.0), "num_slots": integers(9, 14)},
        first={"paper": Setting(), "slot-attention": Setting(preset="slot-attention-clevrtex")},
    )

    if __name__ == "__main__":
        main(SWEEP)

Paths are those of `--set`, whole or shortened to an unambiguous ending. What a trial is made of, its settings, is a list of such
assignments on a preset, so that `cutslots train` can repeat it by hand.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

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
OBJECTIVES = tuple(METRICS)


def uniform(low: float, high: float, step: float | None = None) -> FloatDistribution:
    """A number between two bounds, both included; on multiples of `step` above `low` when it is given (a grid needs one)."""
    return FloatDistribution(low, high, step=step)


def log_uniform(low: float, high: float) -> FloatDistribution:
    """A number between two positive bounds, whose logarithm is uniform."""
    return FloatDistribution(low, high, log=True)


def integers(low: int, high: int, step: int = 1) -> IntDistribution:
    """A whole number between two bounds, both included."""
    return IntDistribution(low, high, step=step)


def choices(*values: str | float | bool | None) -> CategoricalDistribution:
    """One of these values."""
    return CategoricalDistribution(list(values))


@dataclass(frozen=True)
class Setting:
    """A known setting that runs before the search: the sweep's preset or another one, and what is changed in it.

    Attributes:
        preset: None takes the sweep's.
        set: assignments such as "cut.gamma=0.5"; the sweep's own `set` comes before them where the preset is the sweep's.
    """

    preset: str | None = None
    set: tuple[str, ...] = ()


@dataclass(frozen=True)
class Halving:
    """Asynchronous successive halving (ASHA): at every rung only the best share of trials goes on.

    Attributes:
        first: share of a training at which the first rung lies, in (0, 1).
        factor: a rung keeps one trial in so many, and the next rung lies so many times later.
    """

    first: float = 0.1
    factor: int = 3


@dataclass(frozen=True)
class Sweep:
    """A search over options of a preset.

    Attributes:
        name: of the sweep, its folder, and in MLflow.
        dataset: name of the prepared set, in CUTSLOTS_DATA or CUTSLOTS_HOME/data; its first word is the source.
        preset: what all trials start from.
        space: option -> distribution; see `uniform`, `log_uniform`, `integers`, `choices`.
        set: assignments that hold for all trials of the preset.
        first: settings that run before the search and are never stopped early: known good ones, and baselines.
        seeds: the search runs with the first; what runs `first`, a grid, and the `confirm` best run with all of them.
        objective: validation score to optimise, or several for a Pareto front; "mse" is made small, others large.
        search: "tpe", "random", or "grid" (every combination of a finite space).
        trials: settings that are sampled.
        halving: when hopeless trials end; None: never. Not used with several objectives or a grid.
        confirm: how many of the best settings found are run again with the other seeds.
        evaluate: sets whose test split is scored with the best weights of every trial that is not stopped early; one that is not
            prepared is left out, and said.
        make: options of the built-in scenes, which are made when they are missing.
        smoke: what `--smoke` starts from in place of `preset`; it must have the options of the space.
    """

    name: str
    dataset: str
    preset: str
    space: Mapping[str, BaseDistribution]
    set: tuple[str, ...] = ()
    first: Mapping[str, Setting] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0,)
    objective: str | tuple[str, ...] = "ari_fg"
    search: Search = "tpe"
    trials: int = 40
    halving: Halving | None = Halving()
    confirm: int = 1
    evaluate: tuple[str, ...] = ()
    make: Mapping[str, Any] = field(default_factory=dict)
    smoke: str = "small"

    @property
    def objectives(self) -> tuple[str, ...]:
        """The scores to optimise; the first one names the best checkpoint of a run."""
        return (self.objective,) if isinstance(self.objective, str) else tuple(self.objective)

    @property
    def base(self) -> RunConfig:
        """What the trials of the search have in common."""
        return self.config(Setting())

    def config(
        self, setting: Setting, changes: Sequence[str] = (), seed: int | None = None
    ) -> RunConfig:
        """The configuration of one run."""
        own = setting.preset is None
        config = preset(setting.preset or self.preset)
        try:
            config = options.override(config, f"train.best_metric={self.objectives[0]}")
            for assignment in (*(self.set if own else ()), *setting.set, *changes):
                config = options.override(config, assignment)
            if seed is not None:
                config = options.override(config, f"train.seed={seed}")
            options.check(config)
        except InputError as error:
            raise InputError(f"sweep {self.name!r}: {error}") from None
        return config

    def resolved(self) -> dict[str, BaseDistribution]:
        """The space with whole paths.

        Raises:
            InputError: a path that the preset does not have, or that `set` fixes.
        """
        found = {}
        fixed = {
            options.resolve(self.base, assignment.partition("=")[0].strip()).path: assignment
            for assignment in self.set
        }
        for path, distribution in self.space.items():
            try:
                option = options.resolve(self.base, path)
            except InputError as error:
                raise InputError(f"sweep {self.name!r}, space: {error}") from None
            if option.path in fixed:
                raise InputError(
                    f"sweep {self.name!r}: {fixed[option.path]} holds for all trials, and {path} is in the space. Leave one out."
                )
            found[option.path] = distribution
        return found

    def changes(self, values: Mapping[str, Any]) -> list[str]:
        """Values of the space as assignments."""
        return [f"{path}={options.text(value)}" for path, value in values.items()]

    def grid(self) -> list[dict[str, Any]]:
        """Every combination of the space.

        Raises:
            InputError: a distribution without a finite number of values.
        """
        space = self.resolved()
        return [
            dict(zip(space, values, strict=True))
            for values in itertools.product(*map(self._values, space, space.values()))
        ]

    def _values(self, path: str, distribution: BaseDistribution) -> list[Any]:
        match distribution:
            case CategoricalDistribution():
                return list(distribution.choices)
            case IntDistribution():
                return list(range(distribution.low, distribution.high + 1, distribution.step))
            case FloatDistribution(step=float(step)):
                return [
                    distribution.low + step * index
                    for index in range(round((distribution.high - distribution.low) / step) + 1)
                ]
        raise InputError(
            f"sweep {self.name!r}: a grid needs finitely many values, {path} has a range. Use choices(...) or a step."
        )

    def check(self) -> None:
        """Refuse what cannot run: every edge of the space, every first setting, every number.

        Raises:
            InputError: says what, and what to use.
        """
        if not self.name or not all(letter.isalnum() or letter in "-_." for letter in self.name):
            raise InputError(f"the sweep's name is {self.name!r}; use letters, digits, - _ and .")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise InputError(
                f"sweep {self.name!r}: seeds are {self.seeds}; give at least one, each once."
            )
        if self.trials < 0 or self.confirm < 0:
            raise InputError(
                f"sweep {self.name!r}: trials is {self.trials} and confirm {self.confirm}; they are at least 0."
            )
        if self.search not in ("tpe", "random", "grid"):
            raise InputError(
                f"sweep {self.name!r}: search is {self.search!r}. {nearest(self.search, ['tpe', 'random', 'grid'])}"
            )
        if self.halving and not (0 < self.halving.first < 1 and self.halving.factor >= 2):
            raise InputError(
                f"sweep {self.name!r}: halving.first is within 0 and 1, factor at least 2; got {self.halving}."
            )
        for objective in self.objectives:
            if objective not in OBJECTIVES:
                raise InputError(
                    f"sweep {self.name!r}: objective {objective!r} is no score. {nearest(objective, OBJECTIVES)}"
                )
        for setting in self.first.values():
            self.config(setting)
        for path, distribution in self.resolved().items():
            for value in _edges(distribution):
                self.config(Setting(), self.changes({path: value}))
        if self.search == "grid":
            self.grid()

    def smaller(self) -> "Sweep":
        """The same question in minutes: the small preset, 30 steps, one seed, two trials besides the first setting."""
        first = dict(
            itertools.islice(
                ((name, each) for name, each in self.first.items() if each.preset is None), 1
            )
        )
        brief = (
            "train.steps=30",
            "train.log_every=5",
            "train.eval_every=10",
            "train.eval_images=16",
            "train.checkpoint_every=10",
        )
        kept = tuple(each for each in self.set if not each.startswith("train."))
        return replace(
            self,
            name=f"{self.name}-smoke",
            preset=self.smoke,
            set=(*(kept if self.smoke == self.preset else ()), *brief),
            first=first if self.smoke == self.preset else {name: Setting() for name in first},
            seeds=self.seeds[:1],
            search="random" if self.search == "grid" else self.search,
            trials=min(self.trials, 2),
            confirm=0,
        )


def _edges(distribution: BaseDistribution) -> list[Any]:
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    return [distribution.low, distribution.high]
