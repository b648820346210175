"""How much of a sweep's outcome each setting of its space explains, by Optuna, from what the tracking store knows of the sweep."""

import ast
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import create_trial

from cutslots.report.sweep_runs import SweepRuns

FEWEST = 10  # finished runs; what is told from fewer is chance
_KINDS = {kind.__name__: kind for kind in (CategoricalDistribution, FloatDistribution, IntDistribution)}


def importance(sweep: SweepRuns) -> dict[str, float]:
    """The share of the objective's variance that each setting explains (fANOVA), largest first.

    Returns: shares that sum to 1; nothing for fewer than `FEWEST` finished runs that the space holds, or where none differs.
    """
    return shares(sweep.space, [(trial.run.params, sweep.value(trial)) for trial in sweep.ranked])


def shares(space: Mapping[str, str], runs: Sequence[tuple[Mapping[str, str], float]]) -> dict[str, float]:
    """As `importance`, from a space's distributions as they print themselves, and the runs' parameters and objectives."""
    distributions = {name: found for name, text in space.items() if (found := distribution(text)) is not None}
    trials = []
    for params, objective in runs:
        values = {name: _value(each, params[name]) for name, each in distributions.items() if name in params}
        known = {name: value for name, value in values.items() if value is not _OUTSIDE}
        if len(known) == len(distributions) and math.isfinite(objective):
            trials.append(create_trial(params=known, distributions=distributions, value=objective))
    differs = len({trial.value for trial in trials}) > 1 and any(len({str(t.params[name]) for t in trials}) > 1 for name in space)
    if len(trials) < FEWEST or not differs:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        level = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        try:
            study = optuna.create_study()
            study.add_trials(trials)
            # Seeded: a report of the same runs is the same.
            found = optuna.importance.get_param_importances(study, evaluator=optuna.importance.FanovaImportanceEvaluator(seed=0))
        finally:
            optuna.logging.set_verbosity(level)
    return {name: round(share, 6) for name, share in found.items()}


def distribution(text: str) -> BaseDistribution | None:
    """The distribution that prints itself as `text`; None for what is none."""
    try:
        call = ast.parse(text, mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
            return None
        return _KINDS[call.func.id](**{each.arg or "": ast.literal_eval(each.value) for each in call.keywords})
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
