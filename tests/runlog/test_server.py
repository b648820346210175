"""A tracking server that dies in mid-run and comes back."""

import math
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from stores import client, kill, wait_for_server

from cutslots.runlog import RunLog


@pytest.mark.slow
def test_server_dies_and_returns(
    server: Callable[[], Any], tmp_path: Path, opened: Callable[..., RunLog], capfd: pytest.CaptureFixture[str]
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
    assert output.out + output.err == ""  # no retry warnings, no links, no progress bars beside what is said
    store = client(uri)
    run = store.get_run(log.run_id)
    assert run.info.status == "FINISHED"
    with sqlite3.connect(tmp_path / "server" / "mlflow.db") as database:
        rows = database.execute("SELECT step, value FROM metrics WHERE key = 'loss' ORDER BY step").fetchall()
    assert rows == [(number, number / 3) for number in range(step)]
    assert math.isnan(run.data.metrics["nan"])
    assert [entry.path for entry in store.list_artifacts(log.run_id, "figures")] == ["figures/figure.txt"]
    assert run.inputs.dataset_inputs[0].dataset.name == "d"
