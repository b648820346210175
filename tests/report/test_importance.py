"""Importance of parameters, from the texts in MLflow."""

import random

import pytest
from optuna.distributions import (
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
)
from optuna.trial import FrozenTrial

from cutslots.report.importance import MIN_RUNS, as_trial, distribution, importance, study_of

SPACE = {
    "model.gamma": FloatDistribution(0.1, 2.0, log=True),
    "model.layers": IntDistribution(1, 4),
    "model.norm": CategoricalDistribution((None, True, "batch", 0.5)),
}


@pytest.mark.parametrize("name", SPACE)
def test_distributions_are_read_as_json_and_in_their_old_form(name):
    assert distribution(distribution_to_json(SPACE[name])) == SPACE[name]
    assert distribution(str(SPACE[name])) == SPACE[name]


@pytest.mark.parametrize(
    "text",
    ["", "0.5", "FloatDistribution(", "Other(low=1)", "FloatDistribution(low=2, high=1)", "{}"],
)
def test_other_texts_are_not_distributions(text):
    assert distribution(text) is None


def trials(count: int) -> list[FrozenTrial]:
    """Objectives that depend on gamma and a little on the layers."""
    draw = random.Random(0)
    results: list[FrozenTrial] = []
    for _ in range(count):
        gamma, layers = draw.uniform(0.1, 2.0), draw.randint(1, 4)
        norm = draw.choice(["None", "True", "batch", "0.5"])
        params = {"model.gamma": repr(gamma), "model.layers": str(layers), "model.norm": norm}
        trial = as_trial(SPACE, params | {"train.seed": "0"}, gamma + 0.1 * layers)
        assert trial is not None
        results.append(trial)
    return results


def test_the_decisive_parameter_is_the_most_important():
    shares = importance(study_of(trials(60)))
    assert list(shares)[:2] == ["model.gamma", "model.layers"]
    assert shares["model.gamma"] > 0.7
    assert sum(shares.values()) == pytest.approx(1, abs=1e-5)
    assert importance(study_of(trials(60))) == shares


def test_few_or_equal_runs_give_no_importance():
    assert importance(study_of(trials(MIN_RUNS - 1))) == {}
    params = {"model.gamma": "0.5", "model.layers": "2", "model.norm": "batch"}
    trial = as_trial(SPACE, params, 1.0)
    assert trial is not None
    assert importance(study_of([trial] * 60)) == {}


@pytest.mark.parametrize(
    "changes",
    [{"model.gamma": "None"}, {"model.gamma": "nan"}, {"model.layers": "9"}, {"model.norm": "b"}],
)
def test_a_run_outside_the_space_is_not_a_trial(changes):
    params = {"model.gamma": "0.5", "model.layers": "2", "model.norm": "True"}
    trial = as_trial(SPACE, params, 1.0)
    assert trial is not None
    assert trial.params == {"model.gamma": 0.5, "model.layers": 2, "model.norm": True}
    assert as_trial(SPACE, params | changes, 1.0) is None
    del params["model.gamma"]
    assert as_trial(SPACE, params, 1.0) is None
