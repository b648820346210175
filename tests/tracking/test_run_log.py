"""What a run logs is in MLflow: a SQLite file."""

import math
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from stores import local, points, wait_until

from cutslots.tracking import RunLog, events, find_run


def test_everything_arrives(home: Path, tmp_path: Path, opened: Callable[..., RunLog]) -> None:
    before = time.time_ns() // 1_000_000
    log = opened(parent_run_id="f" * 32)
    log.params({"model.cut.gamma": 0.5, "seeds": (0, 1), "long": "x" * 7000, "none": None})
    log.params({f"many.{index}": index for index in range(250)})
    log.tags({"mlflow.source.git.commit": "abc", "signature": "s1"})
    for step in range(3):
        log.metrics(step, {"train/loss": 1 / (step + 1), "iou[0]": step, "../up": 1.0})
    log.metrics(3, {"nan": math.nan, "inf": math.inf, "minus": -math.inf})
    log.metrics(4, {f"wide/{index}": index for index in range(1500)})
    log.dataset(
        "clevr", "d" * 64, "/data/clevr", {"image": "uint8"}, {"train": 700}, context="training"
    )
    figure = tmp_path / "run" / "figure.txt"
    figure.write_text("figure")
    log.artifact(figure, "figures")
    (tmp_path / "folder" / "deep").mkdir(parents=True)
    (tmp_path / "folder" / "deep" / "a.txt").write_text("a")
    log.artifact(tmp_path / "folder", "model")
    assert log.close() == 0
    after = time.time_ns() // 1_000_000

    assert log.run_id is not None
    assert log.url() is None
    store = local(home)
    run = store.get_run(log.run_id)
    assert run.info.status == "FINISHED"
    assert before <= run.info.start_time <= run.info.end_time <= after
    assert run.data.params["model.cut.gamma"] == "0.5"
    assert run.data.params["seeds"] == "(0, 1)"
    assert run.data.params["none"] == "None"
    assert len(run.data.params["long"]) == 6000
    assert run.data.params["long"].endswith("x…")
    assert run.data.params["many.249"] == "249"
    assert run.data.tags["signature"] == "s1"
    assert run.data.tags["mlflow.parentRunId"] == "f" * 32
    assert points(store, log.run_id, "train/loss") == [(0, 1.0), (1, 0.5), (2, 1 / 3)]
    assert points(store, log.run_id, "iou_0_") == [(0, 0.0), (1, 1.0), (2, 2.0)]
    assert len(points(store, log.run_id, "up")) == 3
    assert math.isnan(run.data.metrics["nan"])
    assert run.data.metrics["inf"] > 1e308
    assert run.data.metrics["minus"] < -1e308
    assert run.data.metrics["wide/1499"] == 1499
    assert all(
        before <= metric.timestamp <= after
        for metric in store.get_metric_history(log.run_id, "train/loss")
    )

    (dataset,) = run.inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.dataset.digest) == ("clevr", "d" * 36)
    assert [(tag.key, tag.value) for tag in dataset.tags] == [("mlflow.data.context", "training")]
    from mlflow.data import get_source

    assert get_source(dataset).to_dict() == {"uri": "/data/clevr"}

    artifacts = home / "artifacts" / "e" / log.run_id / "artifacts"
    assert (artifacts / "figures" / "figure.txt").read_text() == "figure"
    assert (artifacts / "model" / "deep" / "a.txt").read_text() == "a"

    found = find_run(log.run_id)
    assert found is not None
    assert found.run_dir == tmp_path / "run"
    assert (found.name, found.status, found.params["many.0"]) == ("run", "FINISHED", "0")
    assert find_run("0" * 32) is None


def test_no_store_is_made_by_looking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUTSLOTS_HOME", str(tmp_path / "none"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert find_run("0" * 32) is None
    assert not (tmp_path / "none").exists()


def test_resume_continues_journal_and_run(
    home: Path, tmp_path: Path, opened: Callable[..., RunLog]
) -> None:
    first = opened()
    first.metrics(10, {"loss": 1.0})
    assert first.close("FAILED") == 0
    store = local(home)
    assert store.get_run(first.run_id).info.status == "FAILED"

    second = opened()
    wait_until(lambda: store.get_run(first.run_id).info.status == "RUNNING")
    second.metrics(10, {"loss": 0.9})
    second.metrics(11, {"loss": 0.8})
    assert second.started == pytest.approx(first.started, abs=0.01)
    assert second.close() == 0
    assert second.run_id == first.run_id
    assert points(store, first.run_id, "loss") == [(10, 0.9), (10, 1.0), (11, 0.8)]
    assert store.get_run(first.run_id).info.status == "FINISHED"


def test_annotating_leaves_the_runs_state(
    home: Path, tmp_path: Path, opened: Callable[..., RunLog]
) -> None:
    first = opened()
    assert first.close("FAILED") == 0
    with open(tmp_path / "run" / "journal.jsonl", "a") as journal:
        journal.write(
            '{"time":1,"ki'
        )  # the half line of a crash; or of a living process, so it is not cut off
    said: list[str] = []
    with opened(annotate=True, say=said.append) as log:
        log.metrics(1, {"test/ari": 0.5})
        log.metrics(1, {"test/miou": 0.4})
    run = local(home).get_run(first.run_id)
    assert run.info.status == "FAILED"
    assert run.data.metrics == {"test/ari": 0.5, "test/miou": 0.4}
    assert [event["kind"] for event in events(tmp_path / "run")] == [
        "open",
        "status",
        "metrics",
        "metrics",
    ]
    assert "refused a line" in said[0]


def test_annotating_a_living_run_does_not_wait(home: Path, opened: Callable[..., RunLog]) -> None:
    training = opened()
    wait_until(lambda: training.run_id is not None)
    said: list[str] = []
    start = time.monotonic()
    with opened(annotate=True, say=said.append) as log:
        log.metrics(1, {"test/ari": 0.5})
    assert time.monotonic() - start < 1
    assert len(said) == 1
    assert "another process is delivering" in said[0]
    assert local(home).get_run(training.run_id).info.status == "RUNNING"
    assert training.close("KILLED") == 0
    run = local(home).get_run(training.run_id)
    assert (run.info.status, run.data.metrics) == ("KILLED", {"test/ari": 0.5})


def test_annotating_gives_an_absent_store_up_soon(
    home: Path, opened: Callable[..., RunLog]
) -> None:
    assert opened().close() == 0
    said: list[str] = []
    log = opened(annotate=True, tracking_uri="http://127.0.0.1:9", say=said.append)
    log.metrics(1, {"test/ari": 0.5})
    assert log.close() == 3  # that store has nothing of the run
    assert len(said) == 1
    assert "cutslots sync" in said[0]


def test_context_manager_says_how_it_ended(home: Path, opened: Callable[..., RunLog]) -> None:
    def train(folder: str, error: BaseException) -> RunLog:
        with pytest.raises(type(error)), opened(folder) as log:
            raise error
        return log

    store = local(home)
    assert store.get_run(train("a", RuntimeError()).run_id).info.status == "FAILED"
    assert store.get_run(train("b", KeyboardInterrupt()).run_id).info.status == "KILLED"


def test_password_is_neither_written_nor_said(
    home: Path, tmp_path: Path, opened: Callable[..., RunLog]
) -> None:
    said: list[str] = []
    log = opened(tracking_uri="http://me:secret@127.0.0.1:1", say=said.append)
    wait_until(lambda: said)
    log.close(timeout=0)
    assert "http://me@127.0.0.1:1" in said[0]
    files = [path.read_text() for path in (tmp_path / "run").iterdir()]
    assert not any("secret" in text for text in [*said, *files])


def test_importing_leaves_mlflow_alone() -> None:
    code = "import sys, cutslots.tracking; print('mlflow' in sys.modules)"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout
        == "False\n"
    )
