"""The content of a run log in MLflow: a SQLite database."""

import math
import subprocess
import sys
import time

import pytest
from mlflow_stores import points, wait_until

from cutslots.tracking import SystemMetrics, events, sync


def test_params_tags_and_metrics_arrive(store, open_log):
    before = time.time_ns() // 1_000_000
    log = open_log(parent_run_id="f" * 32)
    log.params({"model.cut.gamma": 0.5, "seeds": (0, 1), "long": "x" * 7000, "none": None})
    log.params({f"many.{index}": index for index in range(250)})
    log.tags({"mlflow.source.git.commit": "abc", "signature": "s1"})
    for step in range(3):
        log.metrics(step, {"train/loss": 1 / (step + 1), "iou[0]": step, "../up": 1.0})
    log.metrics(3, {"nan": math.nan, "inf": math.inf, "minus": -math.inf})
    log.metrics(4, {f"wide/{index}": index for index in range(1500)})
    assert log.close() == 0
    after = time.time_ns() // 1_000_000

    run = store.get_run(log.run_id)
    params, tags, metrics = run.data.params, run.data.tags, run.data.metrics
    assert run.info.status == "FINISHED"
    assert before <= run.info.start_time <= run.info.end_time <= after
    assert (params["model.cut.gamma"], params["seeds"], params["none"]) == ("0.5", "(0, 1)", "None")
    assert (params["long"], params["many.249"]) == ("x" * 6000, "249")
    assert (tags["signature"], tags["mlflow.parentRunId"]) == ("s1", "f" * 32)
    assert points(store, log.run_id, "train/loss") == [(0, 1.0), (1, 0.5), (2, 1 / 3)]
    assert points(store, log.run_id, "iou_0_") == [(0, 0.0), (1, 1.0), (2, 2.0)]
    assert len(points(store, log.run_id, "up")) == 3
    assert math.isnan(metrics["nan"])
    assert metrics["minus"] < -1e308 < 1e308 < metrics["inf"]
    assert metrics["wide/1499"] == 1499
    history = store.get_metric_history(log.run_id, "train/loss")
    assert all(before <= metric.timestamp <= after for metric in history)


def test_datasets_and_artifacts_arrive(home, store, tmp_path, open_log):
    from mlflow.data import get_source

    log = open_log()
    log.dataset("clevr", "d" * 64, "/data/clevr", {"image": "uint8"}, {"train": 700})
    (tmp_path / "run" / "figure.txt").write_text("figure")
    log.artifact(tmp_path / "run" / "figure.txt", "figures")
    (tmp_path / "folder" / "deep").mkdir(parents=True)
    (tmp_path / "folder" / "deep" / "a.txt").write_text("a")
    log.artifact(tmp_path / "folder", "model")
    assert log.close() == 0
    (dataset,) = store.get_run(log.run_id).inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.dataset.digest) == ("clevr", "d" * 36)
    assert [(tag.key, tag.value) for tag in dataset.tags] == [("mlflow.data.context", "training")]
    assert get_source(dataset).to_dict() == {"uri": "/data/clevr"}
    artifacts = home / "artifacts" / "e" / log.run_id / "artifacts"
    assert (artifacts / "figures" / "figure.txt").read_text() == "figure"
    assert (artifacts / "model" / "deep" / "a.txt").read_text() == "a"


def test_resume_continues_journal_and_run(store, open_log):
    first = open_log()
    first.metrics(10, {"loss": 1.0})
    assert first.close("FAILED") == 0
    assert store.get_run(first.run_id).info.status == "FAILED"
    second = open_log()
    wait_until(lambda: store.get_run(first.run_id).info.status == "RUNNING")
    second.metrics(10, {"loss": 0.9})
    second.metrics(11, {"loss": 0.8})
    assert second.started == pytest.approx(first.started, abs=0.01)
    assert second.close() == 0
    assert second.run_id == first.run_id
    assert points(store, first.run_id, "loss") == [(10, 0.9), (10, 1.0), (11, 0.8)]
    assert store.get_run(first.run_id).info.status == "FINISHED"
    with pytest.raises(ValueError, match="after close"):
        second.metrics(12, {"loss": 0.7})


def test_scores_of_an_ended_run_keep_its_status(store, tmp_path, open_log):
    log = open_log()
    assert log.close("FAILED") == 0
    with open(tmp_path / "run" / "journal.jsonl", "a") as journal:
        journal.write('{"time":1,"ki')  # of a crash or of a living process: it is kept
    messages = []
    assert sync(tmp_path / "run", metrics={"test/ari": 0.5}, step=1, say=messages.append) == 0
    run = store.get_run(log.run_id)
    assert (run.info.status, run.data.metrics) == ("FAILED", {"test/ari": 0.5})
    assert [event["kind"] for event in events(tmp_path / "run")] == ["open", "status", "metrics"]
    assert "rejected a line" in messages[0]


def test_scores_of_a_living_run_do_not_wait_for_it(store, tmp_path, open_log):
    training = open_log()
    wait_until(lambda: training.run_id is not None)
    messages = []
    start = time.monotonic()
    sync(tmp_path / "run", metrics={"test/ari": 0.5}, say=messages.append)
    assert time.monotonic() - start < 1
    assert len(messages) == 1
    assert store.get_run(training.run_id).info.status == "RUNNING"
    assert training.close("KILLED") == 0
    run = store.get_run(training.run_id)
    assert (run.info.status, run.data.metrics) == ("KILLED", {"test/ari": 0.5})


@pytest.mark.parametrize(
    ("error", "status"), [(RuntimeError(), "FAILED"), (KeyboardInterrupt(), "KILLED")]
)
def test_status_after_an_exception(error, status, store, open_log):
    with pytest.raises(type(error)), open_log() as log:
        raise error
    assert store.get_run(log.run_id).info.status == status


def test_password_is_neither_written_nor_shown(tmp_path, open_log):
    messages = []
    log = open_log(uri="http://me:secret@127.0.0.1:1", say=messages.append)
    wait_until(lambda: messages)
    log.close(timeout=0)
    assert "http://me@127.0.0.1:1" in messages[0]
    files = [path.read_text() for path in (tmp_path / "run").iterdir()]
    assert not any("secret" in text for text in [*messages, *files])


def test_import_loads_neither_mlflow_nor_torch():
    code = "import sys, cutslots.tracking; sys.exit(bool({'mlflow', 'torch'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_system_metrics(store, open_log):
    log = open_log()
    system = SystemMetrics(log, interval=0.1)
    time.sleep(0.5)
    system.close()
    assert log.close() == 0
    load = {
        name.removeprefix("system/"): value
        for name, value in store.get_run(log.run_id).data.metrics.items()
    }
    assert load["process_rss_megabytes"] > 10
    assert load["system_memory_usage_megabytes"] > 10
    assert 0 <= load["cpu_utilization_percentage"] <= 100
    assert 0 < load["system_memory_usage_percentage"] <= 100
