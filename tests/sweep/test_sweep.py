"""A whole sweep without any environment variable, in the current folder."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cutslots import tracking
from cutslots.tracking.queries import FoundRun

FILE = Path(__file__).parent / "sweep_files" / "tiny.py"


@pytest.mark.slow
def test_a_sweep_without_any_setting(scenes: Path, tmp_path: Path) -> None:
    unset = ("CUTSLOTS_", "MLFLOW_", "RAY_ADDRESS")
    env = {name: value for name, value in os.environ.items() if not name.startswith(unset)}
    home = tmp_path / "cutslots-home"
    data = os.path.relpath(scenes, tmp_path)

    def run(*arguments: str) -> str:
        command = [sys.executable, str(FILE), "--data", data, *arguments]
        done = subprocess.run(
            command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=400
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stderr

    def find(search: str) -> list[FoundRun]:
        return tracking.find_runs(search, tracking_uri=f"sqlite:///{home / 'mlflow.db'}")

    output = run()
    (parent,) = find("tags.kind = 'sweep'")
    trials = find(f"tags.mlflow.parentRunId = '{parent.run_id}'")
    assert parent.status == "FINISHED"
    assert len(trials) == len(list((home / "runs").iterdir())) == 3
    assert {(trial.status, trial.tags["state"]) for trial in trials} == {("FINISHED", "finished")}
    ranked = sorted(trials, key=lambda trial: int(trial.tags["rank"]))
    scores = [trial.metrics["best/ari_fg"] for trial in ranked]
    assert scores == sorted(scores, reverse=True)
    assert "(champion)" in output
    assert (home / "sweeps" / "tiny" / "table.md").read_text().count("| finished") == 3
    assert all((home / "runs" / trial.name / "log.txt").stat().st_size for trial in trials)
    # The same sweep under another name reuses the finished run.
    before = {path: path.stat().st_mtime for path in (home / "runs").glob("*/checkpoints/*")}
    assert "trial 0 (small) is not repeated" in run("--name", "again", "--trials", "0")
    after = {path: path.stat().st_mtime for path in (home / "runs").glob("*/checkpoints/*")}
    assert after == before
    # A tracking store that was lost gets the run from its journal.
    (home / "mlflow.db").unlink()
    output = run("--name", "later", "--trials", "0")
    assert "trial 0 (small) is not repeated" in output
    assert "(champion)" in output
    (reused,) = find("tags.state = 'finished' and tags.label = 'small'")
    assert reused.metrics["best/ari_fg"] in scores
    assert reused.tags["rank"] == "1"
