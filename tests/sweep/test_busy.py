"""A trial waits for another process in its folder and never writes to its log."""

from pathlib import Path

import pytest

from cutslots import options
from cutslots.sweep import trial
from cutslots.sweep.driver import end_log
from cutslots.sweep.trial import STOP_ALL, TrialSpec
from cutslots.tracking import RunLog, events
from cutslots.train import Ranks
from cutslots.train.checkpoint import LOCK, exclusive, held
from cutslots.train.config import preset, to_json


@pytest.mark.parametrize("ended", ["stopped", "out of patience"])
def test_waiting_trial_leaves_the_log_alone(
    scenes: Path, tmp_path: Path, ended: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = options.override(options.override(preset("small"), "train.steps=2"), "batch_size=4")
    folder, stops = tmp_path / "run", tmp_path / "stops"
    stops.mkdir()
    spec = TrialSpec(
        number=0,
        label="waits",
        sweep="b",
        config=to_json(config),
        data=str(scenes),
        run_dir=str(folder),
        experiment="e",
        parent_run_id="0" * 32,
        stops=str(stops),
        device="cpu",
    )
    if ended == "stopped":
        monkeypatch.setattr(trial.time, "sleep", lambda _: (stops / STOP_ALL).touch())
    else:
        monkeypatch.setattr(trial, "BUSY_SECONDS", 0.0)
    with RunLog(folder, experiment="e", run_name="the other") as log:
        log.tags({"state": "running"})
        before = list(events(folder))
        with exclusive(folder):
            assert held(folder)
            result = trial.run(spec, lambda step, scores: None, Ranks())
            end_log(folder, "interrupted", None, print)
        assert result.state == ("interrupted" if ended == "stopped" else "failed")
        assert list(events(folder)) == before
    end_log(folder, "interrupted", None, print)
    tags = [event["values"] for event in events(folder) if event["kind"] == "tags"]
    assert tags[-1]["state"] == "interrupted"


def test_folder_without_a_lock_is_not_held(tmp_path: Path) -> None:
    assert not held(tmp_path / "nowhere")
    (tmp_path / LOCK).touch()
    assert not held(tmp_path)
