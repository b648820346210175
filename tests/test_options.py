"""Options: paths, types, ranges, and what a person is told about a wrong one."""

import pytest

from cutslots import options
from cutslots.errors import InputError
from cutslots.train.config import PRESETS, from_json, preset, run_hash, to_json


def test_shortened_paths_and_types():
    config = preset("small")
    for assignment in (
        "cut.gamma=0.3",
        "optim.clip_norm=none",
        "train.steps=7",
        "encoder.kind=resnet",
    ):
        config = options.override(config, assignment)
    assert config.model.cut.gamma == 0.3
    assert config.optim.clip_norm is None
    assert config.train.steps == 7
    assert config.model.encoder.kind == "resnet"
    assert preset("small").model.cut.gamma == 0.5, "presets are values, not shared state"


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("cut.gama=1", "Did you mean 'cut.gamma'"),
        ("hidden=3", "ambiguous: model.weights.hidden, model.slots.hidden"),
        ("cut.gamma", "has no value"),
        ("train.steps=many", "expected int"),
        ("train.steps=1.5", "expected int"),
        ("cut.gamma=-1", "must be >= 1e-06"),
        ("cut.gamma=nan", "must be >= 1e-06"),
        ("encoder.kind=vit", "cnn | resnet|Choices: cnn, resnet"),
    ],
)
def test_wrong_ones_are_refused_with_the_nearest_right_one(assignment, message):
    with pytest.raises(InputError, match=message):
        options.check(options.override(preset("small"), assignment))


def test_unknown_preset():
    with pytest.raises(InputError, match="Did you mean 'paper-clevr'"):
        preset("paper_clevr")


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_valid_and_survive_json(name):
    config = preset(name)
    options.check(config)
    assert from_json(to_json(config)) == config


def test_a_stored_config_with_unknown_options_is_refused():
    with pytest.raises(InputError, match=r"unknown option 'model.num_slot'"):
        from_json(to_json(preset("small")).replace('"num_slots"', '"num_slot"'))
    with pytest.raises(InputError, match="not a run's configuration"):
        from_json("{}")


def test_signature_is_of_what_changes_numbers():
    config = preset("small")
    same = options.override(config, "train.log_every=7")
    other = options.override(config, "cut.gamma=0.3")
    assert run_hash(config, "data") == run_hash(same, "data")
    assert (
        len({run_hash(config, "data"), run_hash(other, "data"), run_hash(config, "other data")})
        == 3
    )


def test_every_option_says_what_it_is():
    for option in options.describe(preset("small")):
        assert option.help, f"{option.path} has no help"
