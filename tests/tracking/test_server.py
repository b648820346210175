"""A tracking server that dies during a run and returns, and a sweep on a server."""

import math
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow_stores import client, kill, wait_for_server

from cutslots.tracking import (
    Registered,
    RunLog,
    children,
    finished_run,
    package_model,
    ready,
    register,
    tag_runs,
)
from cutslots.train import config, export


@pytest.mark.slow
def test_server_dies_and_returns(
    start_server: Callable[[], Any],
    tmp_path: Path,
    open_log: Callable[..., RunLog],
    capfd: pytest.CaptureFixture[str],
) -> None:
    first = start_server()
    uri = first.uri
    wait_for_server(uri)
    messages: list[str] = []
    log = open_log(tracking_uri=uri, say=messages.append)
    worst, step = 0.0, 0

    def train_until(condition: Callable[[], Any], seconds: float) -> None:
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
def test_sweep_on_a_server(
    start_server: Callable[[], Any],
    tmp_path: Path,
    make_run: Callable[..., str],
    use_store: Callable[[str], None],
) -> None:
    import mlflow.pyfunc

    settings = config.small()
    export.save_model(settings.model.build().state_dict(), settings, tmp_path / "export")
    folder = package_model(tmp_path / "export", tmp_path / "packaged", size=32)
    uri = start_server().uri
    wait_for_server(uri)
    ready(uri)
    parent = make_run(tmp_path / "sweep", tracking_uri=uri)
    for number in range(3):
        make_run(
            tmp_path / f"trial {number}",
            tags={"signature": f"s{number}", "state": "finished"},
            metrics={"best/ari_fg": number / 10},
            artifacts={"model": folder},
            parent=parent,
            tracking_uri=uri,
        )
    trials = children(parent, uri)
    assert [run.name for run in trials] == ["trial 2", "trial 1", "trial 0"]
    assert trials[0].metrics == {"best/ari_fg": 0.2}
    assert finished_run("s1", uri) == trials[1]
    ranks = {run.run_id: {"rank": rank} for rank, run in enumerate(trials, 1)}
    assert tag_runs(ranks | {"0" * 32: {"rank": 4}}, uri) == 1
    assert [run.tags["rank"] for run in children(parent, uri)] == ["1", "2", "3"]
    for trial, value, expected in ((1, 0.1, (1, True)), (2, 0.0, (2, False)), (0, 0.2, (3, True))):
        run_id = trials[trial].run_id
        registered = register("cutslots-e", run_id, "ari_fg", value, tracking_uri=uri)
        assert registered == Registered(*expected)
    use_store(uri)
    masks = mlflow.pyfunc.load_model("models:/cutslots-e@champion").predict(
        np.zeros((2, 32, 32, 3), np.uint8)
    )
    assert masks.shape == (2, 32, 32)
