"""The study of a sweep: which trial is next, and that a new driver continues where one died."""

import math

import pytest
from optuna.trial import TrialState

from cutslots.errors import InputError
from cutslots.sweep import ASHA, Baseline, Sweep, choice, loguniform, randint, uniform
from cutslots.sweep.study import Study, Trial

SPACE = {"cut.gamma": loguniform(0.05, 5.0), "num_slots": randint(3, 6)}
KNOWN = {"known": Baseline(overrides=("cut.gamma=0.3",))}
OTHER = {"other": Baseline("slot-attention-small")}
# Samples of the first version: the same seed must sample the same trials.
RECORDED = [
    [0.341204, 5],
    [0.050026, 4],
    [0.098284, 3],
    [0.163144, 3],
    [2.318027, 3],
    [4.385549, 3],
]


def make(**changes) -> Sweep:
    settings = {"name": "t", "dataset": "scenes", "preset": "small", "space": SPACE, "trials": 4}
    more = {"halving": None, "overrides": ("train.steps=2000",)}
    return Sweep(**{**settings, **more, **changes})


def following(study: Study) -> Trial:
    """The next trial, which must exist."""
    trial = study.next()
    assert trial is not None
    return trial


def drain(study: Study) -> list[Trial]:
    """Finish all remaining trials; later ones are better."""
    trials = []
    while trial := study.next():
        trials.append(trial)
        study.end(trial.number, "finished", {"ari_fg": trial.number / 10})
    return trials


def test_baselines_then_samples_then_the_best_with_other_seeds(tmp_path):
    sweep = make(baselines=KNOWN | OTHER, seeds=(1, 2, 3), reseed_best=1)
    study = Study(sweep, tmp_path)
    trials = drain(study)
    assert [trial.kind for trial in trials] == ["first"] * 6 + ["search"] * 4 + ["confirm"] * 2
    assert len(trials) == study.total == sweep.total
    assert study.exhausted
    assert trials[0].config.model.cut.gamma == 0.3
    assert trials[1].config.model_name == "slot_attention"
    assert [trial.config.train.seed for trial in trials[:6]] == [1, 1, 2, 2, 3, 3]
    assert [trial.config.train.seed for trial in trials[10:]] == [2, 3]
    assert all(trial.config.model == trials[9].config.model for trial in trials[10:])
    assert all(trial.config.train.best_metric == "ari_fg" for trial in trials)


def test_sampler_learns_from_baselines_of_its_preset_only(tmp_path):
    outside = {"outside": Baseline(overrides=("cut.gamma=50",))}
    study = Study(make(baselines=KNOWN | outside | OTHER, trials=0), tmp_path)
    drain(study)
    assert [trial.params for trial in study.trials()] == [
        {"model.cut.gamma": 0.3, "model.num_slots": 4},
        {"model.num_slots": 4},
        {},
    ]


def test_samples_are_those_of_the_first_version(tmp_path):
    drain(Study(make(trials=3, seeds=(1,)), tmp_path))
    study = Study(make(trials=6, seeds=(1,)), tmp_path)
    drain(study)
    values = [[round(value, 6) for value in trial.params.values()] for trial in study.trials()]
    assert values == RECORDED


def test_new_driver_continues_open_trials_and_repeats_none(tmp_path):
    sweep = make(baselines=KNOWN, trials=5)
    study = Study(sweep, tmp_path)
    begun = [following(study) for _ in range(3)]
    study.end(begun[0].number, "finished", {"ari_fg": 0.4})
    again = Study(sweep, tmp_path)  # the first driver died with two trials open
    trials = drain(again)
    assert [trial.number for trial in trials] == [1, 2, 3, 4, 5]
    assert [trial.config for trial in trials[:2]] == [trial.config for trial in begun[1:]]
    assert again.exhausted
    assert len({trial.label for trial in trials}) == 5, "a resumed sampler repeats samples"
    assert Study(sweep, tmp_path).next() is None


def test_trial_without_values_is_sampled_by_the_next_driver(tmp_path):
    Study(make(trials=2), tmp_path).optuna.ask()  # no kind, no values
    study = Study(make(trials=2), tmp_path)
    trials = drain(study)
    assert [(trial.number, trial.kind) for trial in trials] == [(0, "search"), (1, "search")]
    assert all(len(trial.params) == 2 for trial in study.trials())


def test_trials_and_seeds_and_baselines_can_be_added_but_the_rest_not_changed(tmp_path):
    drain(Study(make(baselines=KNOWN, trials=2), tmp_path))
    more = {"baselines": KNOWN | OTHER, "trials": 3, "seeds": (0, 7), "reseed_best": 0}
    trials = drain(Study(make(**more), tmp_path))
    assert [(trial.kind, trial.label.split(",")[0], trial.config.train.seed) for trial in trials][
        :3
    ] == [("first", "other", 0), ("first", "known", 7), ("first", "other", 7)]
    assert [trial.kind for trial in trials[3:]] == ["search"]
    for changes, message in (
        ({"space": {"cut.gamma": loguniform(0.1, 1.0)}, "baselines": KNOWN}, "space was .* --name"),
        ({"baselines": {}}, "first was"),
        ({"baselines": {"known": Baseline(overrides=("cut.gamma=0.4",))}}, "first was"),
    ):
        with pytest.raises(InputError, match=message):
            Study(make(**changes), tmp_path)
    Study(make(**more), tmp_path, digest="0123")
    with pytest.raises(InputError, match="digest 0123, .* 4567"):
        Study(make(**more), tmp_path, digest="4567")


def test_grid_has_every_combination_with_every_seed(tmp_path):
    space = {
        "cut.gamma": choice(0.1, 1.0),
        "num_slots": randint(3, 5, 2),
        "temperature.object": uniform(0.2, 0.4, 0.2),
    }
    study = Study(make(space=space, search="grid", seeds=(0, 1)), tmp_path)
    models = [(trial.config.model, trial.config.train.seed) for trial in drain(study)]
    assert len(models) == len(set(models)) == 2 * 2 * 2 * 2 == study.total
    assert len({model for model, _ in models}) == 8


def test_waiting_trial_has_its_values(tmp_path):
    study = Study(make(space={"num_slots": choice(3, 4)}, search="grid"), tmp_path)
    following(study)
    assert study.trials()[1].state == TrialState.WAITING
    assert study.planned(1).config.model.num_slots == 4


def test_poor_trials_stop_early_and_baselines_do_not(tmp_path):
    study = Study(make(baselines=KNOWN, trials=9, halving=ASHA(0.25, 3)), tmp_path)
    stopped = {}
    while trial := study.next():
        scores = {"ari_fg": 0.0 if trial.kind == "first" else 1 / trial.number}
        steps = (s for s in range(250, 2001, 250) if study.report(trial.number, s, scores))
        stopped[trial.number] = next(steps, None)
        study.end(trial.number, "pruned" if stopped[trial.number] else "finished", scores)
    assert stopped.pop(0) is None
    assert stopped.pop(1) is None, "the best so far continues"
    assert set(stopped.values()) == {500}
    assert {trial.state for trial in study.trials()[2:]} == {TrialState.PRUNED}


def test_next_driver_knows_earlier_evaluations(tmp_path):
    sweep = make(trials=3, halving=ASHA(0.25, 3))
    study = Study(sweep, tmp_path)
    number = following(study).number
    assert not study.report(number, 500, {"ari_fg": 0.9})
    again = Study(sweep, tmp_path)
    assert following(again).number == number
    assert not again.report(number, 500, {"ari_fg": 0.1}), "a repeated evaluation changes nothing"
    assert again.report(following(again).number, 500, {"ari_fg": 0.5})


def test_nan_objective_fails_the_trial_and_failed_trials_are_retried_once(tmp_path):
    study = Study(make(trials=2), tmp_path)
    first = following(study)
    assert not study.report(first.number, 10, {"ari_fg": math.nan})
    assert study.end(first.number, "finished", {"ari_fg": math.nan}) == "failed"
    assert study.trials()[0].state == TrialState.FAIL
    drain(study)
    assert study.exhausted
    study.retry_failed()
    study.retry_failed()
    assert [trial.config for trial in drain(study)] == [first.config]
    assert study.exhausted


def test_several_objectives_have_a_pareto_front_and_errors_are_minimized(tmp_path):
    study = Study(make(objective=("ari_fg", "mse"), trials=3), tmp_path)
    for ari, mse in ((0.9, 50.0), (0.5, 10.0), (0.4, 40.0)):
        trial = following(study)
        assert not study.report(trial.number, 500, {"ari_fg": ari, "mse": mse})
        study.end(trial.number, "finished", {"ari_fg": ari, "mse": mse})
    assert [trial.number for trial in study.ranked()] == [0, 1, 2]
    assert study.front() == {0, 1}
    study = Study(make(objective="mse", trials=3), tmp_path / "errors")
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
