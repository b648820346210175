"""A whole sweep without any environment variable, in the current folder."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cutslots import tracking
from cutslots.data import prepare, sources

FILE = Path(__file__).parent / "sweep_files" / "tiny.py"


@pytest.mark.slow
def test_a_sweep_without_any_setting(tmp_path: Path) -> None:
    prepare("scenes", None, tmp_path / "data", sources.load("scenes").Options(count=60, size=32))
    unset = ("CUTSLOTS_", "MLFLOW_", "RAY_ADDRESS")
    env = {name: value for name, value in os.environ.items() if not name.startswith(unset)}

    def run(*arguments: str) -> str:
        command = [sys.executable, str(FILE), "--data", "data", *arguments]
        done = subprocess.run(
            command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=400
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stderr

    output = run()
    home = tmp_path / "cutslots-home"
    store = f"sqlite:///{home / 'mlflow.db'}"
    (parent,) = tracking.find_runs("tags.kind = 'sweep'", tracking_uri=store)
    trials = tracking.children(parent.run_id, tracking_uri=store)
    assert parent.status == "FINISHED"
    assert len(trials) == len(list((home / "runs").iterdir())) >= 3
    assert all(
        trial.tags["state"] in ("finished", "pruned") and trial.status == "FINISHED"
        for trial in trials
    ), output
    finished = sorted(
        (trial for trial in trials if trial.tags["state"] == "finished"),
        key=lambda trial: int(trial.tags["rank"]),
    )
    scores = [trial.metrics["best/ari_fg"] for trial in finished]
    assert scores == sorted(scores, reverse=True)
    assert "(champion)" in output
    assert (home / "sweeps" / "tiny" / "table.md").read_text().count("| finished") == len(finished)
    assert all((home / "runs" / trial.name / "log.txt").stat().st_size for trial in trials)
    # The same sweep under another name finds the finished run.
    before = {path: path.stat().st_mtime for path in (home / "runs").glob("*/checkpoints/*")}
    output = run("--name", "again", "--trials", "0")
    assert "trial 0 (small) is not repeated" in output
    assert {
        path: path.stat().st_mtime for path in (home / "runs").glob("*/checkpoints/*")
    } == before
    # A tracking store that was lost gets the run from its journal.
    (home / "mlflow.db").unlink()
    output = run("--name", "later", "--trials", "0")
    assert "trial 0 (small) is not repeated" in output
    assert "(champion)" in output
    (found,) = tracking.find_runs(
        "tags.state = 'finished' and tags.label = 'small'", tracking_uri=store
    )
    assert found.metrics["best/ari_fg"] in scores
    assert found.tags["rank"] == "1"
    assert "has no run" not in output
