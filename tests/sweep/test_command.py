"""The command line of sweep files, as far as it starts no Ray; and every file in sweeps/ by a dry run."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from cutslots.sweep.sets import find_or_make

from cutslots.data import Manifest, find_dataset, prepare, sources
from cutslots.errors import InputError
from cutslots.files import home
from cutslots.runs.lookup import runs_dir
from cutslots.sweep import Baseline, Sweep, choice, loguniform
from cutslots.sweep.cli import main
from cutslots.sweep.driver import OVER
from cutslots.sweep.study import PlannedTrial, Study
from cutslots.tracking import events

ROOT = Path(__file__).parents[2]
FILES = sorted(
    path.stem for path in (ROOT / "sweeps").glob("*.py") if "SWEEP = " in path.read_text()
)
TINY = (
    "model.image_size=16",
    "train.steps=4",
    "train.eval_every=2",
    "train.eval_images=8",
    "batch_size=4",
)


def following(study: Study) -> PlannedTrial:
    """The next trial, which there must be."""
    planned = study.next()
    assert planned is not None
    return planned


@pytest.fixture
def sweep() -> Sweep:
    return Sweep(
        name="ask",
        dataset="scenes",
        preset="small",
        overrides=TINY,
        space={"cut.gamma": loguniform(0.1, 1.0), "num_slots": choice(3, 4)},
        baselines={
            "known": Baseline(overrides=("cut.gamma=0.2",)),
            "baseline": Baseline("slot-attention-small", TINY),
        },
        trials=3,
        test_datasets=("scenes", "nowhere"),
        dataset_options={"count": 40, "size": 32},
    )


@pytest.fixture
def scenes() -> Path:
    out = home() / "data" / "scenes"
    prepare("scenes", None, out, sources.load("scenes").Options(count=40, size=32))
    return out


def test_a_dry_run_says_what_would_be_done_and_does_nothing(sweep, capsys):
    assert main(sweep, arguments=["--dry-run", "--gpus-per-trial", "0"]) == 0
    said = capsys.readouterr().out
    for part in (
        "model.cut.gamma",
        "0.1 to 1.0, logarithmic",
        "3 | 4",
        "first: known (preset small, cut.gamma=0.2)",
        "3 settings sampled by tpe",
        "5 trials in all",
        "data: not prepared yet",
        "scored on the test split of nowhere: not prepared, left out",
        "each trial takes 1 CPU, in a Tune function",
        "finished so far: nothing",
    ):
        assert part in said, said
    assert not home().exists() or not list(home().iterdir())


def test_a_dry_run_says_how_far_a_sweep_has_come(sweep, capsys):
    folder = home() / "sweeps" / "ask"
    study = Study(sweep, folder)
    study.end(following(study).number, "finished", {"ari_fg": 0.5})
    study.end(following(study).number, "failed", {})
    before = (folder / "study.log").read_bytes()
    assert (
        main(
            sweep,
            arguments=[
                "--dry-run",
                "--trials",
                "9",
                "--workers-per-trial",
                "2",
                "--gpus-per-trial",
                "1",
            ],
        )
        == 0
    )
    said = capsys.readouterr().out
    assert "so far: 1 finished, 1 failed" in said
    assert "11 trials in all" in said
    assert "2 workers of 2 CPU, 1 GPU, in Ray Train workers" in said
    assert (folder / "study.log").read_bytes() == before


def test_options_of_the_command_line_are_for_first_settings_too(sweep, capsys):
    arguments = [
        "--dry-run",
        "--gpus-per-trial",
        "0",
        "--set",
        "train.steps=7",
        "--set",
        "cut.beta=2",
    ]
    assert main(sweep, arguments=arguments) == 0
    said = capsys.readouterr()
    assert "7 steps a trial" in said.out
    assert (
        f"first: baseline (preset slot-attention-small, {' '.join(TINY)} train.steps=7)" in said.out
    )
    assert (
        said.err
        == "--set cut.beta=2 is not for baseline: preset slot-attention-small has no such option\n"
    )
    assert main(sweep, arguments=["--dry-run", "--set", "train.steps=many"]) == 2
    assert "no such option" not in capsys.readouterr().err, "it has it, with another value"


def test_a_study_in_a_database_is_not_called_empty(sweep, capsys):
    storage = "mysql://me:secret@nowhere/study"
    assert main(sweep, arguments=["--dry-run", "--gpus-per-trial", "0", "--storage", storage]) == 0
    said = capsys.readouterr().out
    assert "what is finished stands in mysql://me@nowhere/study" in said
    assert "nothing" not in said


@pytest.mark.parametrize("name", FILES)
def test_every_sweep_of_the_project_can_be_begun(name, tmp_path):
    """Whole spaces and all first settings are checked: a typing error is found here and not after a night."""
    command = [sys.executable, f"sweeps/{name}.py", "--dry-run", "--gpus-per-trial", "0"]
    for smoke in ((), ("--smoke",)):
        done = subprocess.run(
            [*command, *smoke], cwd=ROOT, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        assert "trials in all" in done.stdout
    text = (ROOT / "sweeps" / f"{name}.py").read_text()
    assert 20 <= len(text.splitlines()) <= 60
    for part in ("Cost:", "Expected:", f"python sweeps/{name}.py"):
        assert part in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "cut.gama=1"], "cut.gamma"),
        (["--trials", "-1"], "at least 0"),
        (["--seeds", "1", "1"], "each once"),
        (["--retries", "-1"], "at least 0 and 1"),
        (["--concurrent", "0"], "at least 0 and 1"),
        (["--gpus-per-trial", "1.5"], "a worker uses one GPU"),
        (["--workers-per-trial", "2", "--gpus-per-trial", "0.5"], "a worker uses one GPU"),
        (["--workers-per-trial", "0"], "at least one worker"),
        (["--name", "a/b"], "use letters"),
        (["--data", "nowhere"], "nowhere"),
        (["--debug-trial", "7"], "has not begun"),
        (["--debug-trial", "somebody"], "no run 'somebody'"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_status_2(sweep, scenes, arguments, message, capsys):
    assert main(sweep, arguments=arguments) == 2
    said = capsys.readouterr().err
    assert message in said.splitlines()[-1]
    assert "Traceback" not in said


def test_a_file_with_several_sweeps(sweep, capsys):
    both = (sweep, replace(sweep, name="more"))
    assert main(*both, arguments=["--dry-run", "--gpus-per-trial", "0"]) == 0
    assert re.findall(r"^sweep (\w+):", capsys.readouterr().out, re.MULTILINE) == ["ask", "more"]
    assert (
        main(
            *both,
            arguments=["--dry-run", "--gpus-per-trial", "0", "--only", "more", "--name", "other"],
        )
        == 0
    )
    assert re.findall(r"^sweep (\w+):", capsys.readouterr().out, re.MULTILINE) == ["other"]
    assert main(*both, arguments=["--only", "moree"]) == 2
    assert "Did you mean 'more'" in capsys.readouterr().err
    assert main(*both, arguments=["--name", "other"]) == 2
    assert "--only ask or more" in capsys.readouterr().err


def test_a_begun_sweep_is_not_begun_again_by_accident(sweep, scenes, capsys):
    study = Study(sweep, home() / "sweeps" / "ask")
    study.end(following(study).number, "finished", {"ari_fg": 0.5})
    assert main(sweep, arguments=["--gpus-per-trial", "0"]) == 2
    said = capsys.readouterr().err
    assert "1 finished" in said
    assert "--resume" in said
    assert "--name" in said


def test_a_finished_sweep_prints_its_table_and_starts_nothing(sweep, scenes, capsys):
    study = Study(sweep, home() / "sweeps" / "ask")
    while planned := study.next():
        study.end(planned.number, "finished", {"ari_fg": 0.5})
    study.optuna.set_user_attr(OVER, True)
    (home() / "sweeps" / "ask" / "table.md").write_text("# Sweep ask\n\n| the table |\n")
    assert main(sweep, arguments=["--gpus-per-trial", "0"]) == 0
    assert "| the table |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("reference", "gamma", "model"),
    [
        ("cut.gamma=0.7, num_slots=3", 0.7, "min_cut_slots"),
        ("known", 0.2, "min_cut_slots"),
        ("baseline", None, "slot_attention"),
        ("2", "trial", "min_cut_slots"),
    ],
)
def test_one_trial_in_this_process(sweep, scenes, reference, gamma, model, monkeypatch):
    study = Study(sweep, home() / "sweeps" / "ask")
    planned = [following(study) for _ in range(3)][2]
    before = study.counts()
    monkeypatch.delitem(sys.modules, "cutslots.sweep.ray_backend", raising=False)
    assert main(sweep, arguments=["--debug-trial", reference]) == 0
    assert "cutslots.sweep.ray_backend" not in sys.modules, "Ray has no part in it"
    (run_dir,) = runs_dir().glob("debug-*")
    config = json.loads((run_dir / "config.json").read_text())
    assert config["model_name"] == model
    if gamma is not None:
        wanted = planned.config.model.cut.gamma if gamma == "trial" else gamma
        assert config["model"]["cut"]["gamma"] == wanted
    assert [event for event in events(run_dir) if event["kind"] == "status"][-1][
        "status"
    ] == "FINISHED"
    assert Study(sweep, home() / "sweeps" / "ask").counts() == before
    assert main(sweep, arguments=["--debug-trial", run_dir.name]) == 0, (
        "by its own name, from the start again"
    )
    assert len(list(runs_dir().glob("debug-*"))) == 2


def test_sets_are_found_by_name(scenes, tmp_path, monkeypatch):
    assert find_dataset("scenes") == scenes
    assert find_dataset("clevr") is None
    elsewhere = tmp_path / "prepared"
    prepare("scenes", None, elsewhere / "clevr", sources.load("scenes").Options(count=20, size=16))
    monkeypatch.setenv("CUTSLOTS_DATA", str(elsewhere))
    assert find_dataset("clevr") == elsewhere / "clevr"
    assert find_dataset("scenes") == scenes, "what is not there is looked for at home"
    monkeypatch.setenv("CUTSLOTS_DATA", f"file://{elsewhere}/")
    assert find_dataset("clevr") == f"file://{elsewhere}/clevr"


def test_scenes_that_were_made_otherwise_are_not_taken(sweep, scenes, tmp_path):
    assert find_or_make(sweep, None, smoke=False) == scenes
    other = replace(sweep, dataset_options={**sweep.dataset_options, "style": "textured"})
    with pytest.raises(
        InputError, match="style is plain, not textured. Take it nevertheless: --data"
    ):
        find_or_make(other, None, smoke=False)
    assert find_or_make(other, str(scenes), smoke=False) == scenes


def test_a_smoke_test_of_a_grid_is_two_trials(tmp_path):
    sweep = Sweep(
        "g",
        "scenes",
        "small",
        {"cut.gamma": choice(0.1, 0.5, 1.0), "num_slots": choice(3, 4)},
        search="grid",
    )
    assert Study(sweep, tmp_path / "whole").total == 6
    assert Study(sweep.smoke(), tmp_path / "smoke").total == 2


def test_built_in_scenes_are_made_and_others_asked_for(sweep):
    made = find_or_make(sweep, None, smoke=False)
    assert isinstance(made, Path)
    assert Manifest.load(made).split("train").count == 32
    other = Sweep("x", "clevr", "small", {})
    with pytest.raises(InputError, match="cutslots prepare .* --data"):
        find_or_make(other, None, smoke=False)
    video = Sweep("x", "movi_a", "small-video", {}, objective="video_ari_fg")
    with pytest.raises(InputError, match="movi_a"):
        find_or_make(video, None, smoke=True)
