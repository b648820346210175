"""The command line of sweep files without Ray, and a dry run of every file in sweeps/."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from cutslots.data import Manifest, prepare, sources
from cutslots.errors import InputError
from cutslots.files import home
from cutslots.runs.lookup import runs_dir
from cutslots.sweep import Baseline, Sweep, choice, loguniform
from cutslots.sweep.cli import find_or_make, main, parse
from cutslots.sweep.driver import COMPLETE
from cutslots.sweep.study import Study
from cutslots.tracking import events

ROOT = Path(__file__).parents[2]
FILES = sorted(
    path.stem for path in (ROOT / "sweeps").glob("*.py") if "SWEEP = " in path.read_text()
)
TRAIN = ("train.steps=4", "train.eval_every=2", "train.eval_images=8", "batch_size=4")
TINY = ("model.image_size=16", *TRAIN)
CPU = ("--gpus-per-trial", "0")


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


@pytest.fixture
def study(sweep: Sweep) -> Study:
    """The study of the sweep, with one finished and one failed trial."""
    study = Study(sweep, home() / "sweeps" / "ask")
    for state in ("finished", "failed"):
        trial = study.next()
        assert trial is not None
        study.end(trial.number, state, {"ari_fg": 0.5})
    return study


def test_dry_run_starts_and_writes_nothing(sweep, capsys):
    assert main(sweep, arguments=["--dry-run", *CPU]) == 0
    output = capsys.readouterr().out
    for part in ("model.cut.gamma", "3 | 4", "known", "cut.gamma=0.2", "3 trials by tpe"):
        assert part in output
    for part in ("5 trials in all", "0.1 to 1.0, logarithmic", "not prepared", "nowhere", "1 CPU"):
        assert part in output
    assert not home().exists() or not list(home().iterdir())


def test_dry_run_shows_progress(sweep, study, capsys):
    before = (home() / "sweeps/ask/study.log").read_bytes()
    more = ["--trials", "9", "--workers-per-trial", "2", "--gpus-per-trial", "1"]
    assert main(sweep, arguments=["--dry-run", *more]) == 0
    output = capsys.readouterr().out
    for part in ("1 finished, 1 failed", "11 trials in all", "2 workers with 2 CPU, 1 GPU"):
        assert part in output
    assert (home() / "sweeps/ask/study.log").read_bytes() == before
    storage = "mysql://me:secret@nowhere/study"
    assert main(sweep, arguments=["--dry-run", *CPU, "--storage", storage]) == 0
    output = capsys.readouterr().out
    assert "mysql://me@nowhere/study" in output
    assert "secret" not in output


def test_options_of_all_trials_apply_to_baselines(sweep, capsys):
    overrides = ["--set", "train.steps=7", "--set", "cut.beta=2"]
    assert main(sweep, arguments=["--dry-run", *CPU, *overrides]) == 0
    captured = capsys.readouterr()
    assert "7 steps" in captured.out
    assert f"slot-attention-small {' '.join(TINY)} train.steps=7," in captured.out
    assert "cut.beta=2 does not apply to baseline" in captured.err


def test_seeds_are_words_or_repeated_options():
    words = ["--seeds", "3", "1", "2", "--trials", "4", "--set", "a=1", "--set", "b=2", "--smoke"]
    chosen = parse(words)
    assert (chosen.seeds, chosen.trials, chosen.set) == ((3, 1, 2), 4, ("a=1", "b=2"))
    assert (chosen.smoke, chosen.resume, chosen.name) == (True, False, None)
    assert parse(["--seeds", "3", "--seeds", "1"]).seeds == (3, 1)


@pytest.mark.parametrize("name", FILES)
def test_every_sweep_file_is_valid(name):
    """Checks the whole space and all baselines."""
    for smoke in ((), ("--smoke",)):
        command = [sys.executable, f"sweeps/{name}.py", "--dry-run", *CPU, *smoke]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert "trials in all" in done.stdout
    text = (ROOT / "sweeps" / f"{name}.py").read_text()
    assert all(part in text for part in ("Cost:", "Expected", f"python sweeps/{name}.py"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "cut.gama=1"], "cut.gamma"),
        (["--set", "train.steps=many"], "train.steps"),
        (["--trials", "-1"], "trials must be at least 0, got -1"),
        (["--seeds", "1", "1"], "seeds"),
        (["--retries", "-1"], "--retries"),
        (["--gpus-per-trial", "1.5"], "--gpus-per-trial"),
        (["--workers-per-trial", "2", "--gpus-per-trial", "0.5"], "--gpus-per-trial"),
        (["--cpus-per-trial", "0", *CPU], "--cpus-per-trial"),
        (["--workers-per-trial", "3", *CPU], "--workers-per-trial must divide"),
        (["--name", "a/b"], "a/b"),
        (["--data", "nowhere"], "nowhere"),
        (["--trails", "2"], "--trials"),
        (["--debug-trial", "7"], "--debug-trial 7"),
        (["--debug-trial", "knwon"], "known"),
        (["--only", "aks"], "ask"),
    ],
)
def test_errors_are_one_line_with_status_2(sweep, scenes, arguments, message, capsys):
    assert main(sweep, arguments=arguments) == 2
    errors = capsys.readouterr().err
    assert message in errors.splitlines()[-1]
    assert "Traceback" not in errors


def test_file_with_several_sweeps(sweep, capsys):
    both = (sweep, replace(sweep, name="more"))
    assert main(*both, arguments=["--dry-run", *CPU]) == 0
    assert capsys.readouterr().out.count("trials in all") == 2
    assert main(*both, arguments=["--dry-run", *CPU, "--only", "more"]) == 0
    assert capsys.readouterr().out.startswith("sweep more:")
    for option in ("--name", "--data", "--debug-trial", "--storage"):
        assert main(*both, arguments=[option, "0"]) == 2
        assert option in capsys.readouterr().err


def test_sweep_is_resumed_only_on_request_and_prints_its_table_when_finished(
    sweep, scenes, study, capsys
):
    assert main(sweep, arguments=CPU) == 2
    errors = capsys.readouterr().err
    assert all(part in errors for part in ("1 finished", "--resume", "--name"))
    while trial := study.next():
        study.end(trial.number, "finished", {"ari_fg": 0.5})
    study.optuna.set_user_attr(COMPLETE, True)
    (home() / "sweeps" / "ask" / "table.md").write_text("# Sweep ask\n\n| the table |\n")
    assert main(sweep, arguments=CPU) == 0
    assert "| the table |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("reference", "gamma", "model"),
    [
        ("cut.gamma=0.7, num_slots=3", 0.7, "min_cut_slots"),
        ("known", 0.2, "min_cut_slots"),
        ("baseline", None, "slot_attention"),
        ("2", None, "min_cut_slots"),
    ],
)
def test_debug_trial_runs_in_this_process(sweep, scenes, study, reference, gamma, model):
    if reference == "2":
        trial = study.next()
        assert trial is not None
        gamma = trial.config.model.cut.gamma
    before = study.counts()
    sys.modules.pop("cutslots.sweep.ray_backend", None)
    assert main(sweep, arguments=["--debug-trial", reference]) == 0
    assert "cutslots.sweep.ray_backend" not in sys.modules
    (run_dir,) = runs_dir().glob("debug-*")
    config = json.loads((run_dir / "config.json").read_text())
    assert config["model_name"] == model
    assert gamma is None or config["model"]["cut"]["gamma"] == gamma
    statuses = [event["status"] for event in events(run_dir) if event["kind"] == "status"]
    assert statuses[-1] == "FINISHED"
    assert study.counts() == before
    if reference == "known":
        assert main(sweep, arguments=["--debug-trial", reference]) == 0
        assert len(list(runs_dir().glob("debug-*"))) == 2, "a second run starts again"


def test_dataset_with_other_options_is_refused(sweep, scenes):
    assert find_or_make(sweep, None) == scenes
    other = replace(sweep, dataset_options={**sweep.dataset_options, "style": "textured"})
    with pytest.raises(InputError, match="'style': 'plain'.*'textured'.*--data"):
        find_or_make(other, None)
    assert find_or_make(other, str(scenes)) == scenes


def test_scenes_are_generated_and_other_datasets_requested(sweep):
    made = find_or_make(sweep, None)
    assert isinstance(made, Path)
    assert Manifest.load(made).split("train").count == 32
    with pytest.raises(InputError, match="cutslots prepare .* --data"):
        find_or_make(Sweep("x", "clevr", "small", {}), None)
    video = Sweep("x", "movi_a", "small-video", {}, objective="video_ari_fg")
    with pytest.raises(InputError, match="movi_a"):
        find_or_make(video, None, smoke=True)


def test_smoke_test_of_a_grid_is_two_trials():
    space = {"cut.gamma": choice(0.1, 0.5, 1.0), "num_slots": choice(3, 4)}
    sweep = Sweep("g", "scenes", "small", space, search="grid")
    assert (sweep.total, sweep.smoke().total) == (6, 2)
    color = sweep.smoke().base.model.color
    assert color.steps + color.ramp < sweep.smoke().base.train.steps, "the decoder must run"
