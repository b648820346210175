"""A tracking server: one that dies in mid-run and comes back, and a sweep through one."""

import math
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stores import client, kill, wait_for_server, wait_until

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
    server: Callable[[], Any],
    tmp_path: Path,
    opened: Callable[..., RunLog],
    capfd: pytest.CaptureFixture[str],
) -> None:
    first = server()
    uri = first.uri
    wait_for_server(uri)
    said: list[str] = []
    log = opened(tracking_uri=uri, say=said.append)
    worst, step = 0.0, 0

    def train_until(condition: Callable[[], Any], seconds: float) -> None:
        nonlocal worst, step
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, said
            start = time.perf_counter()
            log.metrics(step, {"loss": step / 3, "nan": math.nan, "inf": math.inf})
            worst = max(worst, time.perf_counter() - start)
            step += 1
            time.sleep(0.02)

    log.params({"lr": 0.1})
    train_until(lambda: log._delivery.state.position > 5000, 20)
    assert log.url() == f"{uri}/#/experiments/{log._delivery.state.experiment_id}/runs/{log.run_id}"
    kill(first)
    train_until(lambda: said, 30)
    (tmp_path / "run" / "figure.txt").write_text("figure")
    log.artifact(tmp_path / "run" / "figure.txt", "figures")
    log.dataset("d", "1", "/d", {"image": "uint8"}, {})
    server()
    train_until(lambda: len(said) > 1, 60)
    assert log.close() == 0

    assert said[0].startswith(f"tracking store {uri} unreachable: ")
    assert said[1] == f"tracking store {uri} is back; what it missed is being delivered"
    assert len(said) == 2
    assert worst < 0.2
    output = capfd.readouterr()
    assert (
        output.out + output.err == ""
    )  # no retry warnings, no links, no progress bars beside what is said
    store = client(uri)
    run = store.get_run(log.run_id)
    assert run.info.status == "FINISHED"
    with sqlite3.connect(tmp_path / "server" / "mlflow.db") as database:
        rows = database.execute(
            "SELECT step, value FROM metrics WHERE key = 'loss' ORDER BY step"
        ).fetchall()
    assert rows == [(number, number / 3) for number in range(step)]
    assert math.isnan(run.data.metrics["nan"])
    assert [entry.path for entry in store.list_artifacts(log.run_id, "figures")] == [
        "figures/figure.txt"
    ]
    assert run.inputs.dataset_inputs[0].dataset.name == "d"


@pytest.mark.slow
def test_a_sweep_through_a_server(
    server: Callable[[], Any],
    tmp_path: Path,
    opened: Callable[..., RunLog],
    tracked: Callable[[str], None],
) -> None:
    import mlflow.pyfunc

    settings = config.small()
    export.save_model(settings.model.build().state_dict(), settings, tmp_path / "export")
    folder = package_model(tmp_path / "export", tmp_path / "packaged", size=32)
    uri = server().uri
    wait_for_server(uri)
    ready(uri)
    with opened("sweep", tracking_uri=uri) as parent:
        wait_until(lambda: parent.run_id is not None)
        for number in range(3):
            with opened(f"trial {number}", tracking_uri=uri, parent_run_id=parent.run_id) as log:
                log.tags({"signature": f"s{number}", "state": "finished"})
                log.metrics(1, {"best/ari_fg": number / 10})
                log.artifact(folder, "model")
    assert parent.run_id is not None
    trials = children(parent.run_id, uri)
    assert [run.name for run in trials] == ["trial 2", "trial 1", "trial 0"]
    assert trials[0].metrics == {"best/ari_fg": 0.2}
    again = finished_run("s1", uri)
    assert again is not None
    assert again.run_id == trials[1].run_id
    assert (
        tag_runs(
            {run.run_id: {"rank": rank} for rank, run in enumerate(trials, 1)}
            | {"0" * 32: {"rank": 4}},
            uri,
        )
        == 1
    )
    assert [run.tags["rank"] for run in children(parent.run_id, uri)] == ["1", "2", "3"]

    assert register("cutslots-e", trials[1].run_id, "ari_fg", 0.1, tracking_uri=uri) == Registered(
        1, True
    )
    assert register("cutslots-e", trials[2].run_id, "ari_fg", 0.0, tracking_uri=uri) == Registered(
        2, False
    )
    assert register("cutslots-e", trials[0].run_id, "ari_fg", 0.2, tracking_uri=uri) == Registered(
        3, True
    )
    images = np.zeros((2, 32, 32, 3), np.uint8)
    tracked(uri)
    assert mlflow.pyfunc.load_model("models:/cutslots-e@champion").predict(images).shape == (
        2,
        32,
        32,
    )
