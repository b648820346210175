"""Questions to MLflow, and what is written to runs without their folder."""

import http.server
import math
import re
import sqlite3
import threading
import time

import pytest
from mlflow_stores import dead_server

from cutslots.errors import InputError
from cutslots.files import lock
from cutslots.tracking import (
    Record,
    add_metrics,
    children,
    experiments,
    find_run,
    find_runs,
    finished_run,
    import_records,
    last_artifact,
    metric_histories,
    queries,
    ready,
    tag_runs,
)


@pytest.fixture
def make(home, tmp_path, make_run):
    return lambda name, **options: make_run(tmp_path / name, **options)


def names(runs):
    return [run.name for run in runs]


def test_find_run(make, tmp_path):
    run = find_run(make("run", params={"lr": 0.1}, tags={"a": 1}, metrics={"loss": 2.0}))
    assert run is not None
    assert (run.name, run.status, run.run_dir) == ("run", "FINISHED", tmp_path / "run")
    assert (run.params, run.tags["a"], run.metrics) == ({"lr": "0.1"}, "1", {"loss": 2.0})
    assert run.ended is not None
    assert time.time() - 60 < run.started <= run.ended <= time.time()
    assert find_run("0" * 32) is None


def test_children(make, store, monkeypatch):
    parent = make("parent")
    for number in range(5):
        make(f"trial {number}", parent=parent)
    make("in another experiment", experiment="other", parent=parent)
    make("of another parent", parent="f" * 32)
    store.delete_run(make("deleted", parent=parent))
    expected = ["in another experiment", *(f"trial {number}" for number in reversed(range(5)))]
    assert names(children(parent)) == expected
    monkeypatch.setattr(queries, "PAGE", 2)
    assert names(children(parent)) == expected
    assert names(find_runs(f"tags.mlflow.parentRunId = '{parent}'", limit=3)) == expected[:3]
    assert children("0" * 32) == []
    assert list(experiments()) == ["other", "e"]


def test_finished_run(make, store):
    def run_id_of(run_hash):
        run = finished_run(run_hash)
        return run and run.run_id

    a = {"signature": "a"}
    assert run_id_of("a") is None
    make("pruned", tags={**a, "state": "pruned"}, metrics={"best/ari_fg": 0.9})
    make("killed", tags={**a, "state": "finished"}, status="KILLED")
    make("without scores", tags=a, metrics={"val/ari_fg": 0.9})
    store.delete_run(make("deleted", tags={**a, "state": "finished"}))
    assert run_id_of("a") is None
    first = make("outside sweeps", tags=a, metrics={"best/ari_fg": 0.5})
    assert run_id_of("a") == first
    second = make("another sweep", tags={**a, "state": "finished"}, experiment="another")
    make("another hash", tags={"signature": "b", "state": "finished"})
    assert run_id_of("a") == second


def test_documented_searches(make):
    """All of them are accepted, and those with an answer here return it."""
    parent = make("parent", tags={"sweep": "clevrtex", "dataset": "clevrtex"})
    tags = {"sweep": "clevrtex", "dataset": "clevrtex", "state": "finished"}
    for name, number, score in (("best", "17", 0.9), ("good", "3", 0.7)):
        of_sweep = {**tags, "sweep.clevrtex": number}
        make(name, tags=of_sweep, metrics={"best/ari_fg": score}, parent=parent)
    make("reused", tags={"sweep": "older", "sweep.clevrtex": "5"})
    failure = {**tags, "state": "failed", "cause": "out of memory"}
    make("failed", status="FAILED", tags=failure, parent=parent)
    expected = {
        "tags.sweep = 'clevrtex'": ["failed", "good", "best", "parent"],
        "tags.sweep = 'clevrtex' and tags.state = 'finished'": ["good", "best"],
        "tags.`sweep.clevrtex` LIKE '%'": ["reused", "good", "best"],
        "tags.`sweep.clevrtex` = '17'": ["best"],
        "tags.dataset = 'clevrtex' and metrics.\"best/ari_fg\" > 0.8": ["best"],
        "attributes.status = 'FAILED' and tags.cause LIKE '%memory%'": ["failed"],
    }
    lines = [line for line in (queries.__doc__ or "").splitlines() if line.startswith("    ")]
    documented = [re.split(r"  +", line.strip())[0] for line in lines]
    assert len(documented) == 10
    assert set(expected) < set(documented)
    for where in documented:
        assert names(find_runs(where)) == expected.get(where, []), where
    where, order = "tags.state = 'finished'", ['metrics."best/ari_fg" DESC']
    assert names(find_runs(where, order)) == ["best", "good"]
    assert names(find_runs(where, order, limit=1)) == ["best"]
    with pytest.raises(InputError, match="tags.sweep : 1"):
        find_runs("tags.sweep : 1")


def test_metric_histories(make, store):
    one = make("one", history={step: {"val/ari": step / 10} for step in (3, 1, 2)})
    store.log_metric(one, "val/ari", 0.9, timestamp=2**41, step=2)  # logged again by a resumed run
    expected = {one: [(1, 0.1), (2, 0.9), (3, 0.3)], "0" * 32: []}
    assert metric_histories([one, "0" * 32], "val/ari") == expected
    assert metric_histories([one], "val/other") == {one: []}


def test_last_artifact(make, tmp_path):
    for number in (1, 2):
        (tmp_path / f"step-{number}.txt").write_text(str(number))
    run_id = make("run", artifacts={"figures": tmp_path / "step-2.txt"})
    make("run", artifacts={"figures": tmp_path / "step-1.txt"})  # the run again, resumed
    assert last_artifact(run_id, "figures") == b"2"
    assert last_artifact(run_id, "examples") is None
    assert last_artifact("0" * 32, "figures") is None


def test_tag_runs_counts_the_runs_without_their_tags(make, store):
    first, second, deleted = make("first"), make("second"), make("deleted")
    store.delete_run(deleted)
    many = {f"t{number}": number for number in range(130)}
    tags = {first: {"rank": 1, "sweep.clevr": 4}, "0" * 32: {"rank": 2}, deleted: {"rank": 3}}
    assert tag_runs({**tags, second: many}) == 2
    assert store.get_run(first).data.tags.items() >= {("rank", "1"), ("sweep.clevr", "4")}
    assert store.get_run(second).data.tags["t129"] == "129"


def test_add_metrics_keeps_the_status(make, store):
    run_id = make("run", status="FAILED")
    assert add_metrics(run_id, 3, {"test/ari": 0.5, "test/mse": math.inf})
    run = store.get_run(run_id)
    assert (run.info.status, run.data.metrics["test/ari"]) == ("FAILED", 0.5)
    assert not add_metrics("0" * 32, 1, {"test/ari": 0.75})


def test_import_records(home):
    record = Record("k", "a paper", {"method": "m"}, {"best/ari": 0.5})
    assert import_records("published", [record]) == {"added": 1}
    assert import_records("published", [record]) == {"unchanged": 1}
    changed = Record("k", "a paper", {"method": "n"}, {"best/ari": 0.5})
    assert import_records("published", [changed]) == {"changed": 1}
    (run,) = find_runs()
    assert (run.name, run.status, run.tags["method"]) == ("a paper", "FINISHED", "n")
    assert run.metrics == {"best/ari": 0.5}


def test_questions_create_no_store(tmp_path, monkeypatch):
    monkeypatch.setenv("CUTSLOTS_HOME", str(tmp_path / "none"))
    assert find_run("0" * 32) is finished_run("a") is last_artifact("0" * 32, "a") is None
    assert children("0" * 32) == []
    assert experiments() == {}
    assert metric_histories(["0" * 32], "loss") == {"0" * 32: []}
    assert not (tmp_path / "none").exists()


def test_ready_creates_the_database(tmp_path):
    ready(f"sqlite:///{tmp_path}/new/mlflow.db")
    with sqlite3.connect(tmp_path / "new" / "mlflow.db") as database:
        assert database.execute("SELECT count(*) FROM runs").fetchone() == (0,)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="unreachable"):
        ready(f"sqlite:///{tmp_path}/file/mlflow.db")


def test_dead_server_is_reported_within_seconds(monkeypatch):
    with dead_server() as uri:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        start = time.monotonic()
        for question in (ready, find_runs, experiments):
            with pytest.raises(InputError, match=rf"{uri} unreachable: .*refused"):
                question()
        assert tag_runs({str(number): {"rank": number} for number in range(500)}) == 500
        assert time.monotonic() - start < 15


def test_silent_and_foreign_servers_are_reported(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    start = time.monotonic()
    with dead_server(listening=True) as uri, pytest.raises(InputError, match="unreachable"):
        ready(uri)
    assert time.monotonic() - start < 10
    address = ("127.0.0.1", 0)
    with http.server.ThreadingHTTPServer(address, http.server.BaseHTTPRequestHandler) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        with pytest.raises(InputError, match="unreachable"):
            ready(f"http://127.0.0.1:{other.server_port}")
        other.shutdown()


def test_lock_of_a_hanging_process_is_reported(home, monkeypatch):
    monkeypatch.setattr("cutslots.tracking.client.LOCK_SECONDS", 0.2)
    with lock(home / "mlflow.db.lock"), pytest.raises(InputError, match=r"mlflow\.db\.lock"):
        find_runs()
    assert find_runs() == []
