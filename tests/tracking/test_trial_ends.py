"""Trials that ended without a word, and runs that their store has not got."""

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from stores import FAST, local

from cutslots.errors import InputError
from cutslots.tracking import RunLog, events, sync, undelivered

DYING = """
import os, signal, sys, time
from pathlib import Path
from cutslots.tracking import RunLog
log = RunLog(Path(sys.argv[1]), experiment="e", run_name="dying", tracking_uri=sys.argv[2] or None, gather=0.01)
log.tags({"state": "running"})
for step in range(50):
    log.metrics(step, {"loss": step})
if not sys.argv[2]:
    while log._delivery.pending():
        time.sleep(0.05)
os.kill(os.getpid(), signal.SIGKILL)
"""


def killed(run_dir: Path, uri: str = "") -> None:
    """Leaves the folder of a run whose process died."""
    process = subprocess.run(
        [sys.executable, "-c", DYING, str(run_dir), uri], stderr=subprocess.PIPE, text=True
    )
    assert process.returncode == -signal.SIGKILL, process.stderr


@pytest.mark.slow
def test_the_end_of_a_dead_process_is_told(home: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    killed(run_dir)
    store = local(home)
    (run,) = store.search_runs([store.get_experiment_by_name("e").experiment_id])
    assert run.info.status == "RUNNING"
    for _ in range(2):
        assert end_run(run_dir, "FAILED", {"state": "failed", "cause": "killed by signal 9"}) == 0
        ended = store.get_run(run.info.run_id)
        assert ended.info.status == "FAILED"
        assert (ended.data.tags["state"], ended.data.tags["cause"]) == (
            "failed",
            "killed by signal 9",
        )
    assert store.get_run(run.info.run_id).data.metrics["loss"] == 49
    log = RunLog(run_dir, experiment="e", run_name="dying", **FAST)  # the trial is taken up again
    assert log.close() == 0
    assert (log.run_id, store.get_run(log.run_id).info.status) == (run.info.run_id, "FINISHED")
    with pytest.raises(InputError, match="has no run log"):
        end_run(tmp_path / "nothing", "FAILED")


def test_the_end_waits_in_the_journal_for_an_absent_store(home: Path, tmp_path: Path) -> None:
    runs, said = tmp_path / "runs", []
    with socket.socket() as nobody:  # bound and not listening: connections are refused
        nobody.bind(("127.0.0.1", 0))
        killed(runs / "deep" / "run", f"http://127.0.0.1:{nobody.getsockname()[1]}")
        start = time.monotonic()
        assert (
            end_run(
                runs / "deep" / "run", "FAILED", {"cause": "killed"}, say=said.append, timeout=2
            )
            == 54
        )
        assert time.monotonic() - start < 8
        assert [event["kind"] for event in events(runs / "deep" / "run")][-2:] == ["tags", "status"]
        assert undelivered(runs) == [runs / "deep" / "run"]
    assert sync(runs / "deep" / "run", tracking_uri=f"sqlite:///{home / 'mlflow.db'}") == 0
    assert undelivered(runs) == []
    (run,) = local(home).search_runs([local(home).get_experiment_by_name("e").experiment_id])
    assert (run.info.status, run.data.tags["cause"], run.data.metrics["loss"]) == (
        "FAILED",
        "killed",
        49,
    )


def test_undelivered(home: Path, tmp_path: Path, opened: Callable[..., RunLog]) -> None:
    for name in ("runs/a", "runs/b", "runs/sweep", "runs/sweep/c"):
        log = opened(name)
        log.metrics(1, {"loss": 1.0})
        assert log.close() == 0
    runs = tmp_path / "runs"
    (runs / "empty").mkdir()
    (runs / "torn").mkdir()
    (runs / "torn" / "journal.jsonl").write_text(
        '{"time":1,"kind":"met\n{"time":2'
    )  # no run was ever opened here
    assert undelivered(runs) == []
    with open(runs / "a" / "journal.jsonl", "a") as journal:
        journal.write('{"time":1,"kind":"metrics","step":2,"values":{"los')
    assert undelivered(runs) == []  # half a line is nothing
    (runs / "b" / "mlflow.json").unlink()
    with open(runs / "sweep" / "journal.jsonl", "a") as journal:
        journal.write('{"time":1,"kind":"metrics","step":2,"values":{"loss":2.0}}\n')
    (runs / "sweep" / "c" / "mlflow.json").write_text("{")
    assert undelivered(runs) == [runs / "b", runs / "sweep", runs / "sweep" / "c"]
    assert undelivered(runs / "b") == [runs / "b"]
    for folder in undelivered(runs):
        assert sync(folder) == 0
    assert undelivered(runs) == []
    assert undelivered(tmp_path / "nowhere") == []
