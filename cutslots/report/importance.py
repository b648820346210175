"""What Optuna tells of a sweep's settings, as those have it who write and draw it; `cutslots.report.importance` asks Optuna."""

from __future__ import annotations

import ast
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, TrialState, create_trial

if TYPE_CHECKING:
    from cutslots.report.sweep import SweepRuns


@dataclass(frozen=True)
class Slice:
    """The objective over one setting of the space.

    Attributes:
        setting: its whole name.
        logarithmic: whether it was sampled so.
        choices: of a setting that is no number, in the space's order; None of numbers.
        range: the smallest and the largest number of the space; 0 and 0 of choices.
        finished: value and objective of each finished run, best first.
        pruned: value and last reading of each run that the sweep ended early.
    """

    setting: str
    logarithmic: bool
    choices: list[Any] | None
    range: tuple[float, float]
    finished: list[tuple[Any, float]]
    pruned: list[tuple[Any, float]]


@dataclass(frozen=True)
class Analysis:
    """What came of the settings.

    Attributes:
        importance: the share of the objective's variance by setting, largest first, summing to 1; empty where nothing is told.
        about: how that was found and from how many runs, or why nothing is told; a sentence or two.
        slices: a slice a setting, the most important first; without those of which only one value was tried.
    """

    importance: dict[str, float]
    about: str
    slices: list[Slice] = field(default_factory=list)


FEWEST = 10  # finished runs; what is told from fewer is chance
_KINDS = {
    kind.__name__: kind for kind in (CategoricalDistribution, FloatDistribution, IntDistribution)
}


def analysis(sweep: SweepRuns) -> Analysis:
    """Importance and slices of the settings of a sweep's space.

    Optuna's trials are made anew of the runs: of finished ones with their best objective, of pruned ones with their last reading.
    Settings outside the space, such as those of another model, are in none of it.
    """
    space = {
        name: found
        for name, text in sweep.space.items()
        if (found := distribution(text)) is not None
    }
    finished = [
        as_trial(space, trial.run.params, sweep.value(trial), TrialState.COMPLETE)
        for trial in sweep.ranked
    ]
    last = f"val/{sweep.objectives[0]}"
    pruned = [
        as_trial(space, trial.run.params, trial.run.metrics.get(last, math.nan), TrialState.PRUNED)
        for trial in sweep.unfinished
        if trial.state == "pruned"
    ]
    whole = [trial for trial in finished if len(trial.params) == len(space)]
    found = importance(whole)
    slices = [
        _slice(name, space[name], finished, pruned)
        for name in [*found, *(name for name in space if name not in found)]
    ]
    return Analysis(
        found, _about(found, len(whole), len(finished)), [each for each in slices if _varies(each)]
    )


def as_trial(
    space: Mapping[str, BaseDistribution],
    params: Mapping[str, str],
    objective: float,
    state: TrialState = TrialState.COMPLETE,
) -> FrozenTrial:
    """A run as a trial, with those of its parameters that the space holds."""
    values = {name: _value(each, params[name]) for name, each in space.items() if name in params}
    known = {name: value for name, value in values.items() if value is not _OUTSIDE}
    value = objective if math.isfinite(objective) else None  # only a pruned run comes without
    return create_trial(
        state=state, params=known, distributions={name: space[name] for name in known}, value=value
    )


def importance(trials: Sequence[FrozenTrial]) -> dict[str, float]:
    """The share of the objective's variance that each setting explains (fANOVA), largest first.

    Args:
        trials: finished ones that have all settings of the space.

    Returns: shares that sum to 1; nothing for fewer than `FEWEST` trials, or where none differs.
    """
    if len(trials) < FEWEST or len({trial.value for trial in trials}) < 2:
        return {}
    if all(len({str(trial.params[name]) for trial in trials}) < 2 for name in trials[0].params):
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        level = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        try:
            study = optuna.create_study()
            study.add_trials(trials)
            # Seeded: a report of the same runs is the same.
            found = optuna.importance.get_param_importances(
                study, evaluator=optuna.importance.FanovaImportanceEvaluator(seed=0)
            )
        finally:
            optuna.logging.set_verbosity(level)
    return {name: round(share, 6) for name, share in found.items()}


def _about(found: Mapping[str, float], whole: int, finished: int) -> str:
    without = (
        f" Outside the space, as another model's settings are, lie {finished - whole} more."
        if finished > whole
        else ""
    )
    if not found:
        runs = f"{whole} finished run{'s' * (whole != 1)}"
        return f"Nothing is told of importance from {runs} in the space: it takes {FEWEST} that differ.{without}"
    return (
        f"The share of the objective's variance that each setting explains over n = {whole} finished runs of the space, by "
        f"Optuna's fANOVA (a random forest, so a share is an estimate; what was pruned is not in it).{without}"
    )


def _slice(
    name: str,
    each: BaseDistribution,
    finished: Sequence[FrozenTrial],
    pruned: Sequence[FrozenTrial],
) -> Slice:
    def points(trials: Sequence[FrozenTrial]) -> list[tuple[Any, float]]:
        return [
            (trial.params[name], trial.value)
            for trial in trials
            if name in trial.params and trial.value is not None
        ]

    if isinstance(each, FloatDistribution | IntDistribution):
        return Slice(name, each.log, None, (each.low, each.high), points(finished), points(pruned))
    assert isinstance(each, CategoricalDistribution)
    return Slice(name, False, list(each.choices), (0, 0), points(finished), points(pruned))


def _varies(each: Slice) -> bool:
    return (
        bool(each.finished) and len({str(value) for value, _ in [*each.finished, *each.pruned]}) > 1
    )


def distribution(text: str) -> BaseDistribution | None:
    """The distribution that prints itself as `text`; None for what is none."""
    try:
        call = ast.parse(text, mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
            return None
        return _KINDS[call.func.id](
            **{each.arg or "": ast.literal_eval(each.value) for each in call.keywords}
        )
    except (SyntaxError, ValueError, TypeError, KeyError):
        return None


_OUTSIDE = object()


def _value(each: BaseDistribution, text: str) -> Any:
    """A parameter's value from its text; `_OUTSIDE` for one that the distribution does not hold."""
    if isinstance(each, CategoricalDistribution):
        return next((choice for choice in each.choices if str(choice) == text), _OUTSIDE)
    try:
        value = float(text)
    except ValueError:
        return _OUTSIDE
    if not each._contains(value):
        return _OUTSIDE
    return int(value) if isinstance(each, IntDistribution) else value
