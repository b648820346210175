"""Importance of settings from the texts that a tracking store has."""

import random

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial

from cutslots.report.importance import FEWEST, as_trial, distribution, importance

SPACE = {
    "model.gamma": FloatDistribution(0.1, 2.0, log=True),
    "model.layers": IntDistribution(1, 4),
    "model.norm": CategoricalDistribution((None, True, "batch", 0.5)),
}
TEXTS = {name: str(each) for name, each in SPACE.items()}


@pytest.mark.parametrize("name", SPACE)
def test_a_distribution_is_read_as_it_prints_itself(name):
    assert distribution(TEXTS[name]) == SPACE[name]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0.5",
        "FloatDistribution(",
        "Other(low=1)",
        "FloatDistribution(low=2, high=1)",
        "open('x')",
    ],
)
def test_other_texts_are_no_distributions(text):
    assert distribution(text) is None


def trials(count: int) -> list[FrozenTrial]:
    """Objectives that gamma decides alone, but for the layers a little."""
    draw = random.Random(0)
    found = []
    for _ in range(count):
        gamma, layers, norm = (
            draw.uniform(0.1, 2.0),
            draw.randint(1, 4),
            draw.choice(["None", "True", "batch", "0.5"]),
        )
        params = {
            "model.gamma": repr(gamma),
            "model.layers": str(layers),
            "model.norm": norm,
            "train.seed": "0",
        }
        found.append(as_trial(SPACE, params, gamma + 0.1 * layers))
    return found


def test_the_setting_that_decides_is_the_most_important():
    found = importance(trials(60))
    assert list(found)[:2] == ["model.gamma", "model.layers"]
    assert found["model.gamma"] > 0.7
    assert sum(found.values()) == pytest.approx(1, abs=1e-5)
    assert importance(trials(60)) == found, "the same runs, the same shares"


def test_nothing_is_said_from_too_little():
    assert importance(trials(FEWEST - 1)) == {}
    alike = as_trial(SPACE, {"model.gamma": "0.5", "model.layers": "2", "model.norm": "batch"}, 1.0)
    assert importance([alike] * 60) == {}


def test_a_setting_outside_the_space_is_left_out():
    trial = as_trial(SPACE, {"model.gamma": "None", "model.layers": "9", "model.norm": "True"}, 1.0)
    assert trial.params == {"model.norm": True}
