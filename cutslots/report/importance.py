"""Importance of a sweep's parameters, by Optuna, from the texts in MLflow."""

import ast
import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    json_to_distribution,
)
from optuna.trial import FrozenTrial, create_trial

from cutslots.report.sweep import SweepRuns

MIN_RUNS = 10  # importance from fewer runs is chance


@dataclass(frozen=True)
class Analysis:
    """How a sweep's parameters affect its objective.

    Attributes:
        importance: as `importance` returns it.
        about: how importance was estimated, or why it was not.
        study: the finished runs inside the search space, best first.
        varied: the parameters with more than one value, the most important first.
    """

    importance: dict[str, float]
    about: str
    study: optuna.Study
    varied: list[str]


def analysis(sweep: SweepRuns) -> Analysis:
    """Importance of the search space's parameters over the finished runs inside it."""
    params = sweep.parent.params
    texts = {n.removeprefix("space/"): v for n, v in params.items() if n.startswith("space/")}
    space = {name: d for name in sorted(texts) if (d := distribution(texts[name])) is not None}
    trials = [as_trial(space, t.params, sweep.value(t)) for t in sweep.ranked] if space else []
    inside = [trial for trial in trials if trial is not None]
    with quiet():
        study = optuna.create_study()
        study.add_trials(inside)
        shares = importance(study)
    count, outside = len(inside), len(trials) - len(inside)
    if shares:
        about = (
            f"Share of the objective's variance by parameter over n = {count} finished runs, from"
            " Optuna's fANOVA: an estimate by a random forest, without pruned runs."
        )
    else:
        about = (
            f"Importance needs at least {MIN_RUNS} finished runs with different scores; there"
            f" {'is' if count == 1 else 'are'} {count}."
        )
    if outside:
        more = "1 more run is" if outside == 1 else f"{outside} more runs are"
        about += f" {more} outside the search space (for example, other models)."
    values = {name: {str(trial.params[name]) for trial in inside} for name in space}
    varied = [n for n in dict.fromkeys([*shares, *space]) if len(values[n]) > 1]
    return Analysis(shares, about, study, varied)


def distribution(text: str) -> BaseDistribution | None:
    """A distribution from its JSON or, of older runs, from its `str`; None for other texts."""
    try:
        if not text.startswith("{"):  # such as IntDistribution(high=4, log=False, low=1, step=1)
            call = ast.parse(text, mode="eval").body
            assert isinstance(call, ast.Call)
            assert isinstance(call.func, ast.Name)
            attributes = {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}
            text = json.dumps({"name": call.func.id, "attributes": attributes})
        return json_to_distribution(text)
    except (AssertionError, SyntaxError, ValueError, TypeError, KeyError):
        return None


def as_trial(
    space: Mapping[str, BaseDistribution], params: Mapping[str, str], objective: float
) -> FrozenTrial | None:
    """A run as an Optuna trial, from MLflow's texts; None if it is outside the space."""
    values = {}
    try:
        for name, d in space.items():
            if isinstance(d, CategoricalDistribution):
                values[name] = {str(choice): choice for choice in d.choices}[params[name]]
            else:
                assert isinstance(d, FloatDistribution | IntDistribution)
                values[name] = type(d.low)(params[name])
        return create_trial(params=values, distributions=dict(space), value=objective)
    except (KeyError, ValueError):
        return None


def importance(study: optuna.Study) -> dict[str, float]:
    """The share of the objective's variance that each parameter explains (fANOVA), largest first.

    Returns: shares with sum 1; empty for fewer than `MIN_RUNS` trials or if nothing differs.
    """
    trials = study.trials
    params = {str(trial.params) for trial in trials}
    if len(trials) < MIN_RUNS or len({trial.value for trial in trials}) < 2 or len(params) < 2:
        return {}
    # Seeded: the same runs give the same report.
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    shares = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {name: round(share, 6) for name, share in shares.items()}


@contextmanager
def quiet() -> Iterator[None]:
    """Without Optuna's log messages and warnings."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(level)
