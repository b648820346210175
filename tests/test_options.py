"""Options and run configurations: paths, types, ranges, JSON, and the hash of a run."""

import functools
import json

import pytest
from fixtures_runs import EARLIER_SMALL

from cutslots import options
from cutslots.errors import InputError
from cutslots.train.config import HASH_EXEMPT, PRESETS, from_json, preset, run_hash, to_json


def changed(config, *assignments):
    for assignment in assignments:
        config = options.override(config, assignment)
    return config


def test_paths_are_shortened_and_values_typed():
    changes = "cut.gamma=0.3", "optim.clip_norm=none", "train.steps=7", "encoder.kind=resnet"
    config = changed(preset("small"), *changes)
    values = options.flat(config)
    assert values["model.cut.gamma"] == 0.3
    assert values["optim.clip_norm"] is None
    assert values["train.steps"] == 7
    assert values["model.encoder.kind"] == "resnet"
    assert preset("small").model.cut.gamma == 0.5  # presets share no state


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("cut.gama=1", "Did you mean 'cut.gamma'"),
        ("hidden=3", "ambiguous: model.weights.hidden, model.slots.hidden"),
        ("cut.gamma", "has no value"),
        ("train.steps=many", "train.steps must be int, got 'many'"),
        ("train.steps=1.5", "train.steps must be int, got '1.5'"),
        ("cut.gamma=-1", "model.cut.gamma must be >= 1e-06, got -1.0"),
        ("cut.gamma=nan", "model.cut.gamma must be >= 1e-06, got nan"),
        ("encoder.kernel=4", "model.encoder.kernel must be >= 1, odd, got 4"),
        ("encoder.kind=vit", "model.encoder.kind must be cnn | resnet, got 'vit'"),
    ],
)
def test_wrong_assignments_are_refused(assignment, message):
    with pytest.raises(InputError, match=message.replace("|", r"\|")):
        options.check(changed(preset("small"), assignment))


def test_unknown_preset_is_refused():
    with pytest.raises(InputError, match="'paper_clevr'. Did you mean 'paper-clevr'"):
        preset("paper_clevr")


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_valid_documented_and_survive_json(name):
    config = preset(name)
    options.check(config)
    assert all(option.help for option in options.describe(config))
    assert from_json(to_json(config)) == config


def test_unreadable_configurations_are_refused():
    with pytest.raises(InputError, match=r"unknown option 'model.num_slot'"):
        from_json(to_json(preset("small")).replace('"num_slots"', '"num_slot"'))
    with pytest.raises(InputError, match="not a run's configuration"):
        from_json("{}")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("paper-clevr", "6bd864aff5ff"),
        ("paper-clevrtex", "71bcb1026770"),
        ("small", "5dd18148dc6f"),
    ],
)
def test_run_hashes_stay(name, expected):
    """Later versions must find a finished run. Presets have changed since, options have not."""
    earlier = ("hidden_after=none",) if name != "small" else (*EARLIER_SMALL, "train.steps=2000")
    assert run_hash(changed(preset(name), *earlier), "data") == expected


def test_configurations_without_newer_options_mean_what_they_meant():
    config = changed(preset("paper-clevr"), "hidden_after=none")
    values = json.loads(to_json(config))
    for path in HASH_EXEMPT:
        *parents, name = path.split(".")
        del functools.reduce(dict.__getitem__, parents, values)[name]
    assert from_json(json.dumps(values)) == config


def test_run_hash_covers_what_changes_numbers():
    config = preset("small")
    assert run_hash(config, "data") == run_hash(changed(config, "train.log_every=7"), "data")
    hashes = {run_hash(preset(name), "data") for name in PRESETS}
    hashes |= {run_hash(changed(config, "cut.gamma=0.3"), "data"), run_hash(config, "other data")}
    assert len(hashes) == len(PRESETS) + 2
