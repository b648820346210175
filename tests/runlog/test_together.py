"""Many processes on one store."""

import subprocess
import sys
from pathlib import Path

import pytest
from stores import local, points

ONE_OF_MANY = """
import sys
from pathlib import Path
from cutslots.runlog import RunLog
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
        subprocess.Popen([sys.executable, "-c", ONE_OF_MANY, str(tmp_path / f"run{n}")], stderr=subprocess.PIPE, text=True)
        for n in range(4)
    ]
    errors = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, errors
    assert errors == [""] * 4
    store = local(tmp_path / "home")
    runs = store.search_runs([store.get_experiment_by_name("together").experiment_id])
    assert sorted(run.info.run_name for run in runs) == list("0123")
    assert all(len(points(store, run.info.run_id, "loss")) == 30 for run in runs)
