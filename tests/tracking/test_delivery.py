"""Delivery to a store: once, in spite of crashes, refusals and absence."""

import math
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from stores import FAST, local, points, wait_until

from cutslots.errors import InputError
from cutslots.tracking import RunLog, find_run, sync


def test_repeated_delivery_leaves_no_duplicates(
    home: Path, tmp_path: Path, opened: Callable[..., RunLog]
) -> None:
    log = opened()
    log.params({"lr": 0.1})
    for step in range(20):
        log.metrics(step, {"loss": step / 7, "nan": math.nan})
    log.dataset("d", "1", "/d", {}, {})
    assert log.close() == 0
    (
        tmp_path / "run" / "mlflow.json"
    ).unlink()  # as if the machine died before any position was noted
    assert sync(tmp_path / "run") == 0

    store = local(home)
    (run,) = store.search_runs([store.get_experiment_by_name("e").experiment_id])
    assert run.info.run_id == log.run_id
    assert points(store, log.run_id, "loss") == [(step, step / 7) for step in range(20)]
    assert len(store.get_metric_history(log.run_id, "nan")) == 20
    assert len(run.inputs.dataset_inputs) == 1
    assert run.info.status == "FINISHED"


def test_refused_events_block_nothing(
    home: Path, tmp_path: Path, opened: Callable[..., RunLog]
) -> None:
    said: list[str] = []
    log = opened(say=said.append)
    log.params({"lr": 0.1})
    log.params(
        {"lr": 0.2, "new": 1}
    )  # a changed parameter; the other one in the same call must arrive
    log.artifact(tmp_path / "run" / "vanished.png")
    with open(tmp_path / "run" / "journal.jsonl", "a") as journal:
        journal.write("{torn\n")
    log.metrics(1, {"loss": 2.0})
    assert log.close() == 0
    run = local(home).get_run(log.run_id)
    assert run.data.params == {"lr": "0.1", "new": "1"}
    assert run.data.metrics == {"loss": 2.0}
    assert run.info.status == "FINISHED"
    assert [line.split(" for good")[0] for line in said[:3]] == [
        "tracking store refused params 'lr'",
        "tracking store refused artifact 'vanished.png'",
        "tracking store refused a line",
    ]
    assert said[3].startswith("3 events were refused")
    assert len(said) == 4


def test_lost_store_gets_the_run_again(
    home: Path, made_home: Path, tmp_path: Path, opened: Callable[..., RunLog]
) -> None:
    log = opened()
    log.metrics(1, {"loss": 1.0})
    assert log.close() == 0
    other = tmp_path / "other"
    other.mkdir()
    shutil.copyfile(made_home / "mlflow.db", other / "mlflow.db")
    assert sync(tmp_path / "run", tracking_uri=f"sqlite:///{other / 'mlflow.db'}") == 0
    (run,) = local(other).search_runs([local(other).get_experiment_by_name("e").experiment_id])
    assert run.data.metrics == {"loss": 1.0}
    assert (run.info.status, run.info.run_name) == ("FINISHED", "run")


def test_sync_waits_for_the_process_that_delivers(
    home: Path, tmp_path: Path, opened: Callable[..., RunLog]
) -> None:
    log = opened()
    wait_until(lambda: log.run_id is not None)
    said: list[str] = []
    sync(tmp_path / "run", say=said.append, timeout=0.3)
    assert "another process is delivering" in said[0]
    assert log.close() == 0
    with pytest.raises(InputError, match="has no run log"):
        sync(tmp_path / "nothing")


def test_never_reachable(home: Path, tmp_path: Path, opened: Callable[..., RunLog]) -> None:
    with socket.socket() as nobody:  # bound and not listening: connections are refused
        nobody.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        said: list[str] = []
        log = opened(tracking_uri=uri, say=said.append)
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
        wait_until(lambda: not log._delivery.is_alive(), 30)
        assert len(said) == 2
        why = "[Errno 111] Connection refused; training goes on, the journal keeps everything"
        assert said[0] == f"tracking store {uri} unreachable: {why}"
        assert said[1].endswith(f"To deliver them: cutslots sync {tmp_path / 'run'}")
        with pytest.raises(InputError, match="unreachable"):
            find_run("0" * 32, uri)
    assert sync(tmp_path / "run", tracking_uri=f"sqlite:///{home / 'mlflow.db'}") == 0
    (run,) = local(home).search_runs([local(home).get_experiment_by_name("e").experiment_id])
    assert len(points(local(home), run.info.run_id, "loss")) == 200


def test_database_of_an_older_mlflow_is_migrated(home: Path, opened: Callable[..., RunLog]) -> None:
    from alembic import command
    from mlflow.store.db import utils

    def version(name: str) -> str:
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

    assert opened().close() == 0
    assert version("mlflow.db") == newest
    assert version(f"mlflow.db.{older}") == older


CRASHING = """
import sys
import time
from pathlib import Path
from cutslots.tracking import RunLog
log = RunLog(Path(sys.argv[1]), experiment="e", run_name="r", gather=0.05)
step = 0
while True:
    log.metrics(step, {"loss": step / 3})
    print(step, flush=True)
    step += 1
    time.sleep(0.002)
"""


@pytest.mark.parametrize("death", [signal.SIGKILL, signal.SIGTERM])
def test_killed_process_loses_nothing(death: signal.Signals, home: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-c", CRASHING, str(run_dir)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    printed = [process.stdout.readline()]
    while not (run_dir / "mlflow.json").exists():  # until delivery is under way
        printed.append(process.stdout.readline())
    process.send_signal(death)
    printed += process.stdout.readlines()
    process.wait()
    last = int([line for line in printed if line.endswith("\n")][-1])

    log = RunLog(run_dir, experiment="e", run_name="r", **FAST)
    log.metrics(0, {"resumed": 1.0})
    assert log.close(timeout=60) == 0
    store = local(home)
    (run,) = store.search_runs([store.get_experiment_by_name("e").experiment_id])
    with sqlite3.connect(
        home / "mlflow.db"
    ) as database:  # faster than a history of this length through the client
        rows = database.execute(
            "SELECT step, value FROM metrics WHERE key = 'loss' ORDER BY step"
        ).fetchall()
    assert rows[: last + 1] == [(step, step / 3) for step in range(last + 1)]
    assert len(rows) <= last + 2  # the one written between its print and the signal
    assert run.info.status == "FINISHED"
    assert run.info.run_id == log.run_id
