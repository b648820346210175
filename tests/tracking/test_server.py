"""A tracking server that dies during a run and returns, and a sweep on a server."""

import math
import sqlite3
import time

import numpy as np
import pytest
from mlflow_stores import client, kill, wait_for_server

from cutslots.tracking import children, fetch_model, ready, register


@pytest.mark.slow
def test_server_dies_and_returns(start_server, tmp_path, open_log, capfd):
    first = start_server()
    uri = first.uri
    wait_for_server(uri)
    messages = []
    log = open_log(uri=uri, say=messages.append)
    worst, step = 0.0, 0

    def train_until(condition, seconds):
        nonlocal worst, step
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, messages
            start = time.perf_counter()
            log.metrics(step, {"loss": step / 3, "nan": math.nan, "inf": math.inf})
            worst = max(worst, time.perf_counter() - start)
            step += 1
            time.sleep(0.02)

    log.params({"lr": 0.1})
    train_until(lambda: step - log.pending() > 50, 20)
    kill(first)
    train_until(lambda: messages, 30)
    (tmp_path / "run" / "figure.txt").write_text("figure")
    log.artifact(tmp_path / "run" / "figure.txt", "figures")
    log.dataset("d", "1", "/d", {"image": "uint8"}, {})
    start_server()
    train_until(lambda: len(messages) > 1, 60)
    assert log.close() == 0

    assert f"{uri} unreachable" in messages[0]
    assert f"{uri} is back" in messages[1]
    assert len(messages) == 2
    assert worst < 0.2
    output = capfd.readouterr()
    assert output.out + output.err == ""  # no retry warnings, links or progress bars
    store = client(uri)
    run = store.get_run(log.run_id)
    assert run.info.status == "FINISHED"
    with sqlite3.connect(tmp_path / "server" / "mlflow.db") as database:
        query = "SELECT step, value FROM metrics WHERE key = 'loss' ORDER BY step"
        rows = database.execute(query).fetchall()
    assert rows == [(number, number / 3) for number in range(step)]
    assert math.isnan(run.data.metrics["nan"])
    files = [entry.path for entry in store.list_artifacts(log.run_id, "figures")]
    assert files == ["figures/figure.txt"]
    assert run.inputs.dataset_inputs[0].dataset.name == "d"


@pytest.mark.slow
def test_sweep_on_a_server(start_server, tmp_path, make_run, exported, use_store, monkeypatch):
    import mlflow.pyfunc

    uri = start_server().uri
    use_store(uri)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    wait_for_server(uri)
    ready()
    parent = make_run(tmp_path / "sweep")
    for number in range(2):
        make_run(
            tmp_path / f"trial {number}",
            metrics={"best/ari_fg": number / 10},
            artifacts={"model": exported.with_name("mlflow")},
            parent=parent,
        )
    trials = children(parent)
    assert [run.name for run in trials] == ["trial 1", "trial 0"]
    assert trials[0].metrics == {"best/ari_fg": 0.1}
    for trial, expected in ((trials[1], (1, True)), (trials[0], (2, True))):
        value = trial.metrics["best/ari_fg"]
        assert register("cutslots-e", trial.run_id, "ari_fg", value) == expected
    assert (fetch_model("models:/cutslots-e@champion") / "fetched.json").is_file()
    loaded = mlflow.pyfunc.load_model("models:/cutslots-e@champion")
    assert loaded.predict(np.zeros((2, 32, 32, 3), np.uint8)).shape == (2, 32, 32)
