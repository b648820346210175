"""Many processes on one store."""

import fcntl
import subprocess
import sys
import time
from pathlib import Path

import pytest
from stores import local, points

from cutslots.errors import InputError
from cutslots.tracking import RunLog, children, find_runs, ready

ONE_OF_MANY = """
import sys
from pathlib import Path
from cutslots.tracking import RunLog
log = RunLog(Path(sys.argv[1]), experiment="together", run_name=sys.argv[1][-1], gather=0.05)
for step in range(30):
    log.metrics(step, {"loss": step})
sys.exit(log.close(timeout=120))
"""


@pytest.mark.slow
def test_four_processes_on_a_fresh_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUTSLOTS_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", ONE_OF_MANY, str(tmp_path / f"run{n}")],
            stderr=subprocess.PIPE,
            text=True,
        )
        for n in range(4)
    ]
    errors = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, errors
    assert errors == [""] * 4
    store = local(tmp_path / "home")
    runs = store.search_runs([store.get_experiment_by_name("together").experiment_id])
    assert sorted(run.info.run_name for run in runs) == list("0123")
    assert all(len(points(store, run.info.run_id, "loss")) == 30 for run in runs)


TRIAL = """
import sys, time
from pathlib import Path
from cutslots.tracking import RunLog
with RunLog(Path(sys.argv[1]), experiment="sweep", run_name=sys.argv[1][-1], parent_run_id=sys.argv[2], gather=0.05) as log:
    log.tags({"sweep": "s", "sweep.s": sys.argv[1][-1], "state": "running"})
    for step in range(60):
        log.metrics(step, {"train/loss": step / 7, "train/norm": step})
        time.sleep(0.05)
    log.tags({"state": "finished"})
    left = log.close(timeout=120)
sys.exit(left)
"""


@pytest.mark.slow
def test_six_trials_of_a_sweep_on_a_fresh_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUTSLOTS_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    ready()
    with RunLog(tmp_path / "sweep", experiment="sweep", run_name="s", gather=0.05) as parent:
        while parent.run_id is None:
            time.sleep(0.05)
        command = [sys.executable, "-c", TRIAL]
        processes = [
            subprocess.Popen(
                [*command, str(tmp_path / f"trial{n}"), parent.run_id],
                stderr=subprocess.PIPE,
                text=True,
            )
            for n in range(6)
        ]
        errors = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * 6, errors
    assert errors == [""] * 6
    store = local(tmp_path / "home")
    trials = children(parent.run_id)
    assert sorted(run.name for run in trials) == list("012345")
    for run in trials:
        assert (run.status, run.tags["state"], run.tags["sweep.s"]) == (
            "FINISHED",
            "finished",
            run.name,
        )
        assert run.tags["mlflow.parentRunId"] == parent.run_id
        assert run.run_dir == tmp_path / f"trial{run.name}"
        assert points(store, run.run_id, "train/loss") == [(step, step / 7) for step in range(60)]
        assert points(store, run.run_id, "train/norm") == [(step, step) for step in range(60)]
    assert store.get_run(parent.run_id).info.status == "FINISHED"


def test_nobody_waits_without_end_for_a_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that is suspended, or hangs, while it makes the database."""
    monkeypatch.setenv("CUTSLOTS_HOME", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    ready()
    monkeypatch.setattr("cutslots.tracking.client.LOCK_SECONDS", 0.2)
    with open(tmp_path / "mlflow.db.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(InputError, match=r"another process has held .*mlflow\.db\.lock"):
            find_runs("tags.kind = 'sweep'")
    assert find_runs("tags.kind = 'sweep'") == []
