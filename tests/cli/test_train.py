"""`cutslots train`: data by name, refusals, Ctrl-C, the printed score."""

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cutslots import options
from cutslots.cli import main
from cutslots.data import Manifest, prepare, sources
from cutslots.files import home, write_text
from cutslots.train import checkpoint
from cutslots.train.config import preset, to_json

TRAIN = ["train", "scenes", "--data", "plain"]


@pytest.fixture
def plain() -> Path:
    folder = home() / "data" / "plain"
    prepare("scenes", None, folder, sources.load("scenes").Options(count=10, size=32))
    return folder


def test_data_may_be_a_dataset_name(plain, capsys):
    assert main(["train", "clevr", "--data", "plain"]) == 2
    assert str(plain) in capsys.readouterr().err
    assert main(["train", "scenes", "--data", "plane"]) == 2
    assert "plane" in capsys.readouterr().err


@pytest.mark.parametrize("assignment", ["cut.gamma_vertex=3", "image_size=31"])
def test_refused_run_prints_one_line(assignment, plain, capsys):
    assert main([*TRAIN, "--set", assignment]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert len(output.err.splitlines()) == 1
    assert not (home() / "runs").exists()


@pytest.mark.slow
def test_ctrl_c_keeps_a_checkpoint_and_prints_how_to_resume(plain):
    arguments = [*TRAIN, "--steps", "100000", "--name", "a run", "--set", "batch_size=4"]
    arguments += ["--set", "log_every=1", "--set", "train.eval_every=100000"]
    process = subprocess.Popen(
        [sys.executable, "-m", "cutslots", *arguments],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "MLFLOW_TRACKING_URI": (home() / "store").as_uri()},
        start_new_session=True,
    )
    assert process.stderr
    for line in process.stderr:
        if line.startswith("step "):
            break
    os.killpg(process.pid, signal.SIGINT)
    output = process.communicate(timeout=120)[1]
    assert process.returncode == 130
    assert "Traceback" not in output
    state = checkpoint.newest(home() / "runs" / "a run" / "checkpoints")
    assert state
    assert state["step"] > 0
    (resume,) = re.findall(r"cutslots (train scenes --resume .*)", output)
    assert main([*shlex.split(resume), "--steps", str(state["step"] + 1)]) == 0


def test_training_that_ends_before_the_decoder_is_announced(plain, capsys):
    few = ["--set", "color.steps=3", "--set", "color.ramp=2", "--set", "batch_size=4"]
    for steps, printed in (("4", True), ("5", False)):
        assert main([*TRAIN, *few, "--steps", steps, "--name", steps]) == 0
        message = f"train.steps ({steps}) is less than color.steps + color.ramp (5)"
        assert (message in capsys.readouterr().err) == printed


def test_best_metric_is_printed(plain, capsys):
    config = options.override(preset("small"), "best_metric=miou")
    best = {"ari_fg": 0.75, "miou": 0.5, "mse": 12.0, "step": 500.0}
    state = {"step": config.train.steps, "best": best, "data_digest": Manifest.load(plain).digest}
    run = home() / "runs" / "done"
    checkpoint.save(checkpoint.path_of(run / "checkpoints", config.train.steps), state, 1)
    write_text(run / "config.json", to_json(config))
    assert main([*TRAIN, "--name", "done", "--set", "best_metric=miou"]) == 0
    assert "best miou 0.5000 at step 500 of 2500\n" in capsys.readouterr().out
