"""`cutslots train` without a step taken: where it looks for data, and what it prints of a run."""

import os
import re
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


@pytest.fixture
def plain() -> Path:
    folder = home() / "data" / "plain"
    prepare("scenes", None, folder, sources.load("scenes").Options(count=10, size=32))
    return folder


def test_data_may_be_the_name_of_a_set(plain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "clevr", "--data", "plain"]) == 2
    assert capsys.readouterr().err.startswith(f"error: {plain} holds scenes, not clevr.")
    assert main(["train", "scenes", "--data", "plane"]) == 2
    assert capsys.readouterr().err.startswith("error: data folder plane does not exist")


@pytest.mark.parametrize("assignment", ["cut.reach=3", "image_size=31"])
def test_a_refused_run_is_not_announced(
    assignment: str, plain: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "scenes", "--data", "plain", "--set", assignment]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.splitlines()) == 1
    assert not (home() / "runs").exists()


def test_a_name_is_that_of_a_folder(plain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a/b", "..", ".hidden", "/tmp/x"):
        assert main(["train", "scenes", "--data", "plain", "--name", name]) == 2
        assert f"--name is {name!r}" in capsys.readouterr().err


@pytest.mark.slow
def test_ctrl_c_keeps_what_was_trained_and_says_how_to_go_on(plain: Path) -> None:
    arguments = [
        "train",
        "scenes",
        "--data",
        str(plain),
        "--set",
        "batch_size=4",
        "--steps",
        "100000",
        "--name",
        "a run",
    ]
    command = [
        sys.executable,
        "-m",
        "cutslots",
        *arguments,
        "--set",
        "log_every=1",
        "--set",
        "train.eval_every=100000",
    ]
    environment = {**os.environ, "MLFLOW_TRACKING_URI": (home() / "store").as_uri()}
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )
    assert process.stderr
    for line in process.stderr:
        if line.startswith("step "):
            break
    os.killpg(process.pid, signal.SIGINT)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 130
    assert "Traceback" not in said
    stopped = re.search(r"stopped as asked after step (\d+) of 100000", said)
    assert stopped, said
    state = checkpoint.newest(home() / "runs" / "a run" / "checkpoints")
    assert state
    assert state["step"] == int(stopped[1]) > 0
    assert said.splitlines()[-2:] == [
        "go on: cutslots train scenes --resume 'a run'",
        "interrupted",
    ]
    assert main(["train", "scenes", "--resume", "a run", "--steps", str(int(stopped[1]) + 1)]) == 0


def test_the_score_that_chose_the_best_is_printed(
    plain: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = options.override(preset("small"), "best_metric=miou")
    best = {"ari_fg": 0.75, "miou": 0.5, "mse": 12.0, "step": 500.0}
    state = {"step": config.train.steps, "best": best, "data_digest": Manifest.load(plain).digest}
    run = home() / "runs" / "done"
    checkpoint.save(checkpoint.path_of(run / "checkpoints", config.train.steps), state, 1)
    write_text(run / "config.json", to_json(config))
    assert (
        main(
            ["train", "scenes", "--data", str(plain), "--name", "done", "--set", "best_metric=miou"]
        )
        == 0
    )
    assert "best miou 0.5000 at step 500 of 2000\n" in capsys.readouterr().out
