"""The study of a sweep: which trial is next, and that a new driver continues where one died."""

import math

import pytest
from optuna.trial import TrialState

from cutslots.errors import InputError
from cutslots.sweep import ASHA, Baseline, Sweep, choice, loguniform, randint, uniform
from cutslots.sweep.study import PlannedTrial, Study

SPACE = {"cut.gamma": loguniform(0.05, 5.0), "num_slots": randint(3, 6)}

RECORDED = [
    [0.341204, 5],
    [0.050026, 4],
    [0.098284, 3],
    [0.163144, 3],
    [2.318027, 3],
    [4.385549, 3],
]


def make(**changes) -> Sweep:
    settings = {
        "name": "t",
        "dataset": "scenes",
        "preset": "small",
        "space": SPACE,
        "trials": 4,
        "halving": None,
    }
    return Sweep(**{**settings, **changes})


def following(study: Study) -> PlannedTrial:
    """The next trial, which there must be."""
    planned = study.next()
    assert planned is not None
    return planned


def drain(study: Study, value=lambda planned: planned.number / 10):
    """Run all trials at once; what was planned, in order."""
    found = []
    while planned := study.next():
        found.append(planned)
        study.end(planned.number, "finished", {"ari_fg": value(planned)})
    return found


def test_baselines_then_samples_then_the_best_with_other_seeds(tmp_path):
    first = {
        "known": Baseline(overrides=("cut.gamma=0.3",)),
        "baseline": Baseline("slot-attention-small"),
    }
    study = Study(make(baselines=first, seeds=(1, 2, 3), reseed_best=1), tmp_path)
    found = drain(study)
    assert [planned.kind for planned in found] == ["first"] * 6 + ["search"] * 4 + ["confirm"] * 2
    assert len(found) == study.total
    assert study.exhausted
    assert found[0].config.model.cut.gamma == 0.3
    assert found[1].config.model_name == "slot_attention"
    assert [planned.config.train.seed for planned in found[:6]] == [1, 1, 2, 2, 3, 3]
    best = found[9]  # the last sample has the largest value
    assert [planned.config.train.seed for planned in found[10:]] == [2, 3]
    for planned in found[10:]:
        assert planned.config.model == best.config.model
    assert all(planned.config.train.best_metric == "ari_fg" for planned in found)


def test_sampler_learns_from_baselines_of_its_preset_only(tmp_path):
    first = {
        "known": Baseline(overrides=("cut.gamma=0.3",)),
        "outside": Baseline(overrides=("cut.gamma=50",)),
        "other": Baseline("slot-attention-small"),
    }
    study = Study(make(baselines=first, trials=0), tmp_path)
    drain(study)
    assert [trial.params for trial in study.trials()] == [
        {"model.cut.gamma": 0.3, "model.num_slots": 4},
        {"model.num_slots": 4},
        {},
    ]


def test_same_seed_samples_the_same_trials(tmp_path):
    one, two = (drain(Study(make(trials=12), tmp_path / name)) for name in "ab")
    assert [planned.label for planned in one] == [planned.label for planned in two]
    other = drain(Study(make(trials=12, seeds=(5,)), tmp_path / "c"))
    assert [planned.label for planned in one] != [planned.label for planned in other]


def test_new_driver_continues_open_trials_and_repeats_none(tmp_path):
    sweep = make(baselines={"known": Baseline()}, trials=5)
    study = Study(sweep, tmp_path)
    begun = [following(study) for _ in range(3)]
    study.end(begun[0].number, "finished", {"ari_fg": 0.4})
    again = Study(sweep, tmp_path)  # the first one died with two trials open
    found = drain(again)
    assert [planned.number for planned in found] == [1, 2, 3, 4, 5]
    assert [planned.config for planned in found[:2]] == [planned.config for planned in begun[1:]]
    assert again.exhausted
    assert len({planned.label for planned in found}) == 5, "a resumed sampler repeats samples"
    assert Study(sweep, tmp_path).next() is None


def test_trial_without_values_is_sampled_by_the_next_driver(tmp_path):
    study = Study(make(trials=2), tmp_path)
    study.optuna.ask()  # no kind, no values
    found = drain(Study(make(trials=2), tmp_path))
    assert [(planned.number, planned.kind) for planned in found] == [(0, "search"), (1, "search")]
    assert all(len(trial.params) == 2 for trial in study.trials())


def test_trials_and_seeds_can_be_added_but_the_space_not_changed(tmp_path):
    drain(Study(make(baselines={"known": Baseline()}, trials=2), tmp_path))
    more = Study(
        make(
            baselines={"known": Baseline(), "second": Baseline(overrides=("num_slots=5",))},
            trials=3,
            seeds=(0, 7),
            reseed_best=0,
        ),
        tmp_path,
    )
    assert [(planned.kind, planned.config.train.seed) for planned in drain(more)] == [
        ("first", 0),
        ("first", 7),
        ("first", 7),
        ("search", 0),
    ]
    with pytest.raises(InputError, match="space was .* --name"):
        Study(make(space={"cut.gamma": loguniform(0.1, 1.0)}), tmp_path)


def test_grid_has_every_combination_with_every_seed(tmp_path):
    space = {
        "cut.gamma": choice(0.1, 1.0),
        "num_slots": randint(3, 5, 2),
        "temperature.object": uniform(0.2, 0.4, 0.2),
    }
    study = Study(make(space=space, search="grid", seeds=(0, 1)), tmp_path)
    found = drain(study)
    assert len(found) == 2 * 2 * 2 * 2 == study.total
    settings = {
        (
            planned.config.model.cut.gamma,
            planned.config.model.num_slots,
            planned.config.model.temperature.object,
        )
        for planned in found
    }
    assert len(settings) == 8
    assert {planned.config.train.seed for planned in found} == {0, 1}


def test_poor_trials_stop_early_and_baselines_do_not(tmp_path):
    study = Study(make(baselines={"known": Baseline()}, trials=9, halving=ASHA(0.25, 3)), tmp_path)
    stopped = {}
    while planned := study.next():
        quality = 0.0 if planned.kind == "first" else 1 / planned.number
        stopped[planned.number] = next(
            (
                step
                for step in range(250, 2001, 250)
                if study.report(planned.number, step, {"ari_fg": quality})
            ),
            None,
        )
        study.end(
            planned.number, "pruned" if stopped[planned.number] else "finished", {"ari_fg": quality}
        )
    assert stopped[0] is None
    assert stopped[1] is None, "the best so far continues"
    assert all(step == 500 for number, step in stopped.items() if number > 1)
    assert {trial.state for trial in study.trials()[2:]} == {TrialState.PRUNED}


def test_next_driver_knows_earlier_evaluations(tmp_path):
    sweep = make(trials=3, halving=ASHA(0.25, 3))
    study = Study(sweep, tmp_path)
    planned = following(study)
    assert not study.report(planned.number, 500, {"ari_fg": 0.9})
    again = Study(sweep, tmp_path)
    assert following(again).number == planned.number
    assert not again.report(planned.number, 500, {"ari_fg": 0.1}), (
        "a repeated evaluation changes nothing"
    )
    other = following(again)
    assert again.report(other.number, 500, {"ari_fg": 0.5})


def test_nan_objective_fails_the_trial(tmp_path):
    study = Study(make(trials=1), tmp_path)
    planned = following(study)
    assert not study.report(planned.number, 10, {"ari_fg": math.nan})
    assert study.end(planned.number, "finished", {"ari_fg": math.nan}) == "failed"
    assert study.trials()[0].state == TrialState.FAIL
    assert study.exhausted


def test_failed_trials_are_retried_once(tmp_path):
    sweep = make(trials=2)
    study = Study(sweep, tmp_path)
    first = following(study)
    study.end(first.number, "failed", {})
    drain(study)
    study.retry_failed()
    study.retry_failed()
    found = drain(study)
    assert [planned.config for planned in found] == [first.config]
    assert study.exhausted


def test_several_objectives_have_a_pareto_front(tmp_path):
    study = Study(make(objective=("ari_fg", "mse"), trials=3), tmp_path)
    for scores in (
        {"ari_fg": 0.9, "mse": 50.0},
        {"ari_fg": 0.5, "mse": 10.0},
        {"ari_fg": 0.4, "mse": 40.0},
    ):
        planned = following(study)
        assert not study.report(planned.number, 500, scores)
        study.end(planned.number, "finished", scores)
    assert [trial.number for trial in study.ranked()] == [0, 1, 2]
    assert {trial.number for trial in study.optuna.best_trials} == {0, 1}


def test_errors_are_minimized(tmp_path):
    study = Study(make(objective="mse", trials=3), tmp_path)
    for value in (30.0, 10.0, 20.0):
        study.end(following(study).number, "finished", {"mse": value})
    assert [trial.value for trial in study.ranked()] == [10.0, 20.0, 30.0]


def test_database_storage(tmp_path):
    url = f"sqlite:///{tmp_path / 'study.db'}"
    drain(Study(make(trials=3), tmp_path, url))
    assert Study(make(trials=3), tmp_path, url).exhausted
    with pytest.raises(InputError, match="cannot be opened"):
        Study(make(), tmp_path, "nonsense://nowhere/at/all")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "a/b"}, "name .*a/b"),
        ({"space": {"cut.gama": loguniform(0.1, 1)}}, "cut.gamma"),
        ({"space": {"cut.gamma": uniform(-1.0, 1.0)}}, "model.cut.gamma.*-1.0"),
        ({"space": {"num_slots": randint(1, 4)}}, "num_slots.* 1"),
        ({"seeds": ()}, r"seeds .*\(\)"),
        ({"seeds": (1, 1)}, r"seeds .*\(1, 1\)"),
        ({"overrides": ("gamma=0.3",)}, "cut.gamma .* gamma=0.3"),
        ({"objective": ("ari_fg", "miuo")}, "objective .*'miuo'. Did you mean 'miou'"),
        ({"objective": "accuracy"}, "objective .*'accuracy'"),
        ({"trials": -1}, "trials .* -1"),
        ({"reseed_best": -1}, "reseed_best .* -1"),
        ({"search": "bayes"}, "search .*'bayes'"),
        ({"search": "grid"}, "model.cut.gamma .*Use choice"),
        ({"preset": "smal"}, "small"),
        ({"baselines": {"x": Baseline(overrides=("nothing=1",))}}, "nothing"),
        ({"halving": ASHA(0.0)}, "grace_period .*0.0"),
    ],
)
def test_invalid_sweeps_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        make(**changes).check()


def test_baselines_cannot_change(tmp_path):
    Study(make(baselines={"known": Baseline(overrides=("cut.gamma=0.3",))}), tmp_path)
    for first in ({}, {"known": Baseline(overrides=("cut.gamma=0.4",))}, {"other": Baseline()}):
        with pytest.raises(InputError, match="first was"):
            Study(make(baselines=first), tmp_path)


def test_waiting_trial_has_its_values(tmp_path):
    space = {"num_slots": choice(3, 4), "cut.gamma": choice(0.1, 0.5)}
    study = Study(make(space=space, search="grid"), tmp_path)
    first = following(study)
    study.optuna.enqueue_trial(
        {"model.num_slots": 4, "model.cut.gamma": 0.5}, user_attrs={"kind": "grid"}
    )
    number = len(study.trials()) - 1
    assert study.trials()[number].state == TrialState.WAITING
    planned = study.planned(number)
    assert (planned.config.model.num_slots, planned.config.model.cut.gamma) == (4, 0.5)
    assert study.planned(first.number).config == first.config


def test_data_cannot_change(tmp_path):
    Study(make(), tmp_path).claim_data("0123", "there")
    Study(make(), tmp_path).claim_data("0123", "elsewhere")
    with pytest.raises(InputError, match="digest 0123, and other has 4567"):
        Study(make(), tmp_path).claim_data("4567", "other")


def test_samples_are_those_of_the_first_version(tmp_path):
    """Recorded with the first version: the same seed must sample the same trials."""
    study = Study(make(trials=3, seeds=(1,)), tmp_path)
    drain(study)
    study = Study(make(trials=6, seeds=(1,)), tmp_path)
    drain(study)
    values = [[round(value, 6) for value in trial.params.values()] for trial in study.trials()]
    assert values == RECORDED
