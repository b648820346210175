"""Importance of parameters, from the texts in MLflow."""

import random

import pytest
from optuna import create_study
from optuna.distributions import (
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
)
from optuna.trial import create_trial

from cutslots.report.importance import MIN_RUNS, as_trial, distribution, importance

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


def shares(count: int) -> dict[str, float]:
    """Importance for objectives that depend on gamma and a little on the layers."""
    draw, study = random.Random(0), create_study()
    for _ in range(count):
        gamma, layers = draw.uniform(0.1, 2.0), draw.randint(1, 4)
        norm = draw.choice(["None", "True", "batch", "0.5"])
        params = {"model.gamma": repr(gamma), "model.layers": str(layers), "model.norm": norm}
        trial = as_trial(SPACE, params | {"train.seed": "0"}, gamma + 0.1 * layers)
        assert trial is not None
        study.add_trial(trial)
    return importance(study)


def test_the_decisive_parameter_is_the_most_important():
    first = shares(60)
    assert list(first)[:2] == ["model.gamma", "model.layers"]
    assert first["model.gamma"] > 0.7
    assert sum(first.values()) == pytest.approx(1, abs=1e-5)
    assert shares(60) == first


def test_few_or_equal_runs_give_no_importance():
    assert shares(MIN_RUNS - 1) == {}
    study = create_study()
    study.add_trials([create_trial(params={}, distributions={}, value=1.0)] * 60)
    assert importance(study) == {}


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
    assert as_trial(SPACE, {"model.gamma": "0.5"}, 1.0) is None
