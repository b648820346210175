"""Delivery to a store: once, in spite of crashes, rejections and outages."""

import math
import signal
import sqlite3
import subprocess
import sys
import time

import pytest
from mlflow_stores import client, dead_server, points, runs_of, wait_until

from cutslots.errors import InputError
from cutslots.tracking import children, events, find_runs, sync, undelivered


def test_repeated_delivery_leaves_no_duplicates(store, tmp_path, open_log):
    log = open_log()
    log.params({"lr": 0.1})
    for step in range(20):
        log.metrics(step, {"loss": step / 7, "nan": math.nan})
    log.dataset("d", "1", "/d", {}, {})
    assert log.close() == 0
    (tmp_path / "run" / "mlflow.json").unlink()  # the machine died before it was written
    assert sync(tmp_path / "run") == 0
    (run,) = runs_of(store)
    assert (run.info.run_id, run.info.status) == (log.run_id, "FINISHED")
    assert points(store, log.run_id, "loss") == [(step, step / 7) for step in range(20)]
    assert len(store.get_metric_history(log.run_id, "nan")) == 20
    assert len(run.inputs.dataset_inputs) == 1


def test_rejected_events_block_nothing(store, tmp_path, open_log):
    messages = []
    log = open_log(say=messages.append)
    log.params({"lr": 0.1})
    log.params({"lr": 0.2, "new": 1})  # a changed parameter; the other one must arrive
    log.artifact(tmp_path / "run" / "missing.png")
    with open(tmp_path / "run" / "journal.jsonl", "a") as journal:
        journal.write("{torn\n")
    log.metrics(1, {"loss": 2.0})
    assert log.close() == 0
    run = store.get_run(log.run_id)
    assert run.data.params == {"lr": "0.1", "new": "1"}
    assert run.data.metrics == {"loss": 2.0}
    assert run.info.status == "FINISHED"
    rejected = ("params 'lr'", "artifact 'missing.png'", "a line", "3 events")
    assert len(messages) == len(rejected)
    assert all(part in text for part, text in zip(rejected, messages, strict=True)), messages


def test_sync_waits_for_the_process_that_delivers(tmp_path, open_log):
    log = open_log()
    wait_until(lambda: log.run_id is not None)
    messages = []
    sync(tmp_path / "run", say=messages.append, timeout=2.0)
    assert "another process is delivering" in messages[0]
    assert log.close() == 0
    with pytest.raises(InputError, match="nothing"):
        sync(tmp_path / "nothing")


def test_unreachable_store_costs_the_training_nothing(home, store, tmp_path, open_log):
    messages = []
    with dead_server() as uri:
        log = open_log(uri=uri, say=messages.append)
        worst = 0.0
        for step in range(200):
            start = time.perf_counter()
            log.metrics(step, {"loss": step})
            worst = max(worst, time.perf_counter() - start)
            time.sleep(0.02)
        start = time.monotonic()
        assert log.close(timeout=2) == 202
        assert time.monotonic() - start < 3
        assert worst < 0.2
        assert log.run_id is None
        wait_until(lambda: not log._uploader.is_alive(), 30)
        assert len(messages) == 2
        assert f"{uri} unreachable: [Errno 111] Connection refused" in messages[0]
        assert f"cutslots sync {tmp_path / 'run'}" in messages[1]
        with pytest.raises(InputError, match="unreachable"):
            find_runs(tracking_uri=uri)
    assert sync(tmp_path / "run", tracking_uri=f"sqlite:///{home / 'mlflow.db'}") == 0
    (run,) = runs_of(store)
    assert len(points(store, run.info.run_id, "loss")) == 200
    assert (run.info.status, run.info.run_name) == ("FINISHED", "run")


def test_database_of_an_older_mlflow_is_upgraded(home, open_log):
    from alembic import command
    from mlflow.store.db import utils

    def version(name):
        with sqlite3.connect(home / name) as database:
            return database.execute("SELECT version_num FROM alembic_version").fetchone()[0]

    newest, uri = version("mlflow.db"), f"sqlite:///{home / 'mlflow.db'}"
    engine = utils.create_sqlalchemy_engine_with_retry(uri)
    settings = utils._get_alembic_config(uri)
    with engine.begin() as connection:
        settings.attributes["connection"] = connection
        command.downgrade(settings, "-1")
    engine.dispose()
    older = version("mlflow.db")
    assert older != newest
    assert open_log().close(timeout=60) == 0
    assert version("mlflow.db") == newest
    assert version(f"mlflow.db.{older}") == older


LOGGING = """
import os, signal, sys, time
from pathlib import Path
from cutslots.tracking import RunLog, uploader
uploader.GATHER_SECONDS = 0.05
mode, run_dir, uri, parent = sys.argv[1:]
if uri:
    os.environ["MLFLOW_TRACKING_URI"] = uri
name = Path(run_dir).name
log = RunLog(Path(run_dir), experiment="e", run_name=name, parent_run_id=parent or None)
log.tags({"state": "running"})
for step in range(100_000 if mode == "endless" else 50):
    log.metrics(step, {"loss": step / 3})
    if mode == "endless":
        print(step, flush=True)
    time.sleep(0.002)
if mode == "trial":
    log.tags({"state": "finished"})
    sys.exit(log.close(timeout=120))
while not uri and log.pending():
    time.sleep(0.05)
os.kill(os.getpid(), signal.SIGKILL)
"""


def start_logging(mode, run_dir, uri="", parent=""):
    """A process that logs 50 steps and then closes ("trial") or is killed, or logs "endless"."""
    command = [sys.executable, "-c", LOGGING, mode, str(run_dir), uri, parent]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("death", [signal.SIGKILL, signal.SIGTERM])
def test_killed_process_loses_nothing(death, home, store, tmp_path, open_log):
    process = start_logging("endless", tmp_path / "run")
    assert process.stdout is not None
    printed = [process.stdout.readline()]
    while not (tmp_path / "run" / "mlflow.json").exists():  # until delivery is under way
        printed.append(process.stdout.readline())
    process.send_signal(death)
    printed += process.stdout.readlines()
    process.wait()
    last = int([line for line in printed if line.endswith("\n")][-1])
    log = open_log()
    log.metrics(0, {"resumed": 1.0})
    assert log.close(timeout=60) == 0
    (run,) = runs_of(store)
    with sqlite3.connect(home / "mlflow.db") as database:
        query = "SELECT step, value FROM metrics WHERE key = 'loss' ORDER BY step"
        rows = database.execute(query).fetchall()
    assert rows[: last + 1] == [(step, step / 3) for step in range(last + 1)]
    assert len(rows) <= last + 2  # the one written between its print and the signal
    assert (run.info.run_id, run.info.status) == (log.run_id, "FINISHED")


def test_status_of_a_dead_process_waits_for_an_absent_store(home, store, tmp_path, open_log):
    runs, run_dir = tmp_path / "runs", tmp_path / "runs" / "run"
    tags = {"state": "failed", "cause": "killed by signal 9"}
    with dead_server() as uri:
        assert start_logging("killed", run_dir, uri).wait() == -signal.SIGKILL
        start = time.monotonic()
        assert sync(run_dir, say=lambda _: None, status="FAILED", tags=tags, timeout=2) == 54
        assert time.monotonic() - start < 8
        assert [event["kind"] for event in events(run_dir)][-2:] == ["tags", "status"]
        assert undelivered(runs) == [run_dir]
    uri = f"sqlite:///{home / 'mlflow.db'}"
    for status in (None, "FAILED"):  # a repetition changes nothing
        assert sync(run_dir, tracking_uri=uri, status=status) == 0
        (run,) = runs_of(store)
        assert (run.info.status, run.data.metrics["loss"]) == ("FAILED", 49 / 3)
        assert run.data.tags.items() >= tags.items()
    assert undelivered(runs) == []
    log = open_log("runs/run")
    assert log.close() == 0
    assert (log.run_id, store.get_run(log.run_id).info.status) == (run.info.run_id, "FINISHED")


def test_undelivered(tmp_path, open_log):
    runs = tmp_path / "runs"
    for name in ("a", "b", "sweep", "sweep/c"):
        assert open_log(f"runs/{name}").close() == 0
    (runs / "torn").mkdir()
    (runs / "torn" / "journal.jsonl").write_text('{"time":1,"kind":"met\n{"time":2')
    with open(runs / "a" / "journal.jsonl", "a") as journal:
        journal.write('{"time":1,"kind":"metrics","step":2,"values":{"los')
    assert undelivered(runs) == []
    (runs / "b" / "mlflow.json").unlink()
    with open(runs / "sweep" / "journal.jsonl", "a") as journal:
        journal.write('{"time":1,"kind":"metrics","step":2,"values":{"loss":2.0}}\n')
    (runs / "sweep" / "c" / "mlflow.json").write_text("{")
    assert undelivered(runs) == [runs / "b", runs / "sweep", runs / "sweep" / "c"]
    assert undelivered(runs / "b") == [runs / "b"]
    for folder in undelivered(runs):
        assert sync(folder) == 0
    assert undelivered(runs) == undelivered(tmp_path / "nowhere") == []


@pytest.mark.slow
def test_trials_share_a_new_database(tmp_path, monkeypatch):
    monkeypatch.setenv("CUTSLOTS_HOME", str(tmp_path / "home"))
    trials = [tmp_path / f"trial{number}" for number in range(4)]
    processes = [start_logging("trial", trial, parent="f" * 32) for trial in trials]
    errors = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, errors
    assert errors == [""] * 4
    store = client(tmp_path / "home")
    runs = runs_of(store)
    assert sorted(run.info.run_name for run in runs) == [trial.name for trial in trials]
    assert {run.name for run in children("f" * 32)} == {trial.name for trial in trials}
    for run in runs:
        assert (run.info.status, run.data.tags["state"]) == ("FINISHED", "finished")
        assert points(store, run.info.run_id, "loss") == [(step, step / 3) for step in range(50)]
