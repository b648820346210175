"""A trial waits for another process in its folder and never writes to its log."""

from pathlib import Path

import pytest

from cutslots import data, options
from cutslots.data.sources import scenes
from cutslots.sweep import trial
from cutslots.sweep.driver import end_log
from cutslots.sweep.trial import STOP_ALL, TrialSpec
from cutslots.tracking import RunLog, events
from cutslots.train import Ranks
from cutslots.train.checkpoint import LOCK, exclusive, held
from cutslots.train.config import preset, to_json


@pytest.fixture
def task(tmp_path: Path) -> TrialSpec:
    data.prepare("scenes", None, tmp_path / "scenes", scenes.Options(count=20, size=32))
    config = options.override(options.override(preset("small"), "train.steps=2"), "batch_size=4")
    (tmp_path / "stops").mkdir()
    return TrialSpec(
        number=0,
        label="the one that waits",
        sweep="b",
        config=to_json(config),
        data=str(tmp_path / "scenes"),
        run_dir=str(tmp_path / "run"),
        experiment="e",
        parent_run_id="0" * 32,
        stops=str(tmp_path / "stops"),
        tests=(),
        threads=1,
        device="cpu",
    )


@pytest.mark.parametrize("ended", ["stopped", "out of patience"])
def test_waiting_trial_leaves_the_log_alone(
    task: TrialSpec, ended: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(task.run_dir)
    monkeypatch.setattr(trial, "BUSY_SECONDS", 0.0 if ended == "out of patience" else 60.0)
    with RunLog(folder, experiment="e", run_name="the other") as log:
        log.tags({"state": "running"})
        before = list(events(folder))
        with exclusive(folder):
            assert held(folder)
            if ended == "stopped":
                monkeypatch.setattr(
                    trial.time, "sleep", lambda _: (Path(task.stops) / STOP_ALL).touch()
                )
            ending = trial.run(task, lambda step, scores: None, Ranks())
            end_log(folder, "interrupted", None, print)
        assert ending.state == ("interrupted" if ended == "stopped" else "failed")
        assert list(events(folder)) == before
    assert not held(folder)
    end_log(folder, "interrupted", None, print)
    assert [event for event in events(folder) if event["kind"] == "tags"][-1]["values"][
        "state"
    ] == "interrupted"


def test_folder_without_a_lock_is_not_held(tmp_path: Path) -> None:
    assert not held(tmp_path / "nowhere")
    (tmp_path / LOCK).touch()
    assert not held(tmp_path)
