"""What happens to sweeps: processes, drivers and nodes that die, trials that fail, signals. All of it happens for real."""

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from driven import Driven, assert_same, openings, steps_logged, weights

from cutslots.data import prepare, sources
from cutslots.runlog import RunLog
from cutslots.train import fit
from cutslots.train.config import from_json

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with prepared scenes and with a database, which takes MLflow seconds to make."""
    folder = tmp_path_factory.mktemp("made")
    prepare("scenes", None, folder / "scenes", sources.load("scenes").Options(count=60, size=32))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUTSLOTS_HOME", str(folder / "home"))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        assert RunLog(folder / "home" / "run", experiment="first", run_name="first").close(timeout=120) == 0
    return folder


@pytest.fixture
def sweep(made: Path, tmp_path: Path) -> Iterator[Callable[..., Driven]]:
    """Makes sweeps, each with a home of its own."""
    every: list[Driven] = []

    def make(file: str = "tiny.py", env: dict[str, str] | None = None) -> Driven:
        home = tmp_path / f"home-{len(every)}"
        home.mkdir()
        shutil.copyfile(made / "home" / "mlflow.db", home / "mlflow.db")
        every.append(Driven(home, made / "scenes", file, env))
        return every[-1]

    yield make
    for each in every:
        each.kill_rest()


def undisturbed(sweep: Driven, run: Path, folder: Path) -> dict[str, torch.Tensor]:
    """The last weights of the same run in this process, from its start to its end without a stop."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        fit(from_json((run / "config.json").read_text()), sweep.data, folder, device="cpu")
    finally:
        torch.set_num_threads(threads)
    return weights(folder)


def past_a_checkpoint(sweep: Driven, step: int) -> Path | None:
    """A run that is between two checkpoints, the earlier one of at least `step`; for killing."""
    for run in sweep.runs():
        logged = steps_logged(run)
        if logged and logged[-1] > sweep.steps(run) >= step and logged[-1] < 200:
            return run
    return None


def test_a_killed_trial_goes_on_from_its_checkpoint(sweep: Callable[..., Driven], tmp_path: Path) -> None:
    driven = sweep()
    driven.start("--trials", "0")
    run = driven.wait(lambda: past_a_checkpoint(driven, 40), "a trial past its first checkpoints")
    trainer = driven.trainer(run)
    assert trainer is not None
    trainer.kill()
    assert driven.ended() == 0, driven.said()

    assert openings(run) == 2
    steps = steps_logged(run)
    (again,) = [index for index in range(1, len(steps)) if steps[index] <= steps[index - 1]]
    assert steps[again] > 40, f"it began anew: {steps}"
    assert sorted(set(steps)) == list(range(5, 201, 5))
    assert_same(weights(run), undisturbed(driven, run, tmp_path / "undisturbed"))
    (child,) = driven.children()
    assert (child.status, child.tags["state"], child.tags.get("cause")) == ("FINISHED", "finished", None)
    assert driven.parent().status == "FINISHED"
    assert [each["state"] for each in driven.records()] == ["finished"]
    assert "goes on from its last checkpoint" in driven.log.read_text()
