"""What a sweep asks of MLflow: which runs there are, and which are finished."""

import http.server
import itertools
import re
import socket
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from stores import local

from cutslots.errors import InputError
from cutslots.tracking import (
    RunLog,
    children,
    find_runs,
    finished_run,
    queries,
    ready,
    tag_runs,
)


@pytest.fixture
def made(opened: Callable[..., RunLog]) -> Callable[..., str]:
    """Makes a run, and gives its id."""

    def made(
        name: str,
        status: Any = "FINISHED",
        tags: dict | None = None,
        metrics: dict | None = None,
        **options: Any,
    ) -> str:
        log = opened(name, **options)
        log.tags(tags or {})
        log.metrics(1, metrics or {})
        assert log.close(status) == 0
        assert log.run_id is not None
        return log.run_id

    return made


def names(runs: list[Any]) -> list[str]:
    return [run.name for run in runs]


def test_children(
    home: Path, made: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    parent = made("parent")
    for number in range(5):
        made(f"trial {number}", metrics={"best/ari_fg": number / 10}, parent_run_id=parent)
    made("of another experiment", experiment="other", parent_run_id=parent)
    made("of another parent", parent_run_id="f" * 32)
    local(home).delete_run(made("deleted", parent_run_id=parent))
    expected = ["of another experiment", *(f"trial {number}" for number in reversed(range(5)))]
    runs = children(parent)
    assert names(runs) == expected
    assert runs[1].metrics == {"best/ari_fg": 0.4}
    assert runs[1].run_dir == tmp_path / "trial 4"
    assert (
        runs[1].artifact_uri == f"{(home / 'artifacts' / 'e').as_uri()}/{runs[1].run_id}/artifacts"
    )
    assert runs[1].ended is not None
    assert time.time() - 60 < runs[1].started <= runs[1].ended <= time.time()
    monkeypatch.setattr(queries, "PAGE", 2)
    assert names(children(parent)) == expected
    assert children("0" * 32) == []


def test_a_thousand_children_take_two_seconds(home: Path, made: Callable[..., str]) -> None:
    parent = made("parent")
    tags = dict.fromkeys(
        (
            "dataset",
            "model",
            "signature",
            "state",
            "cause",
            "rank",
            "commit",
            "label",
            "checkpoints",
        ),
        "x",
    )
    metrics = {
        f"{kind}/{number}": number
        for kind in ("train", "val", "best", "system")
        for number in range(9)
    }
    first = made("trial", tags=tags, metrics=metrics, parent_run_id=parent)
    with sqlite3.connect(home / "mlflow.db") as database:
        for table in ("runs", "tags", "latest_metrics"):
            columns = [
                row[1]
                for row in database.execute(f"PRAGMA table_info({table})")
                if row[1] != "run_uuid"
            ]
            kept = ", ".join(columns)
            database.executemany(
                f"INSERT INTO {table} (run_uuid, {kept}) SELECT ?, {kept} FROM {table} WHERE run_uuid = ?",
                [(f"{number:032x}", first) for number in range(1, 1000)],
            )
        values = [
            (f"p{index}", "0.0004", f"{run:032x}") for run in range(1, 1000) for index in range(45)
        ]
        database.executemany("INSERT INTO params (key, value, run_uuid) VALUES (?, ?, ?)", values)
    runs, seconds = [], []
    for _ in range(3):
        start = (
            time.process_time()
        )  # the processor's time: what else the machine does is not counted
        runs = children(parent)
        seconds.append(time.process_time() - start)
    assert len({run.run_id for run in runs}) == 1000
    assert all(len(run.metrics) == 36 for run in runs)
    assert min(seconds) < 2


def test_finished_run(home: Path, made: Callable[..., str]) -> None:
    def run(signature: str, state: str | None = None, **options: Any) -> str:
        tags = {"signature": signature} | ({"state": state} if state else {})
        return made(f"run {next(number)}", tags=tags, **options)

    number = itertools.count()

    assert finished_run("a") is None
    run("a", "pruned", metrics={"best/ari_fg": 0.9})
    run("a", "finished", status="KILLED")
    run("a", metrics={"val/ari_fg": 0.9})
    local(home).delete_run(run("a", "finished"))
    assert finished_run("a") is None
    first = run("a", metrics={"best/ari_fg": 0.5})
    found = finished_run("a")
    assert found is not None
    assert (found.run_id, found.metrics) == (first, {"best/ari_fg": 0.5})
    second = run("a", "finished", experiment="another sweep")
    run("b", "finished")
    found = finished_run("a")
    assert found is not None
    assert found.run_id == second


def test_the_searches_that_users_are_told_of(home: Path, made: Callable[..., str]) -> None:
    """All of them run, and the ones with an answer here have the right one."""
    parent = made("parent", tags={"sweep": "clevrtex", "dataset": "clevrtex"})
    mine = {"sweep": "clevrtex", "dataset": "clevrtex"}
    made(
        "best",
        tags={**mine, "state": "finished", "sweep.clevrtex": "17"},
        metrics={"best/ari_fg": 0.9},
        parent_run_id=parent,
    )
    made(
        "good",
        tags={**mine, "state": "finished", "sweep.clevrtex": "3"},
        metrics={"best/ari_fg": 0.7},
        parent_run_id=parent,
    )
    made("taken over", tags={"sweep": "older", "sweep.clevrtex": "5"})
    made(
        "failed",
        "FAILED",
        tags={**mine, "state": "failed", "cause": "out of memory"},
        parent_run_id=parent,
    )
    expected = {
        "tags.sweep = 'clevrtex'": ["failed", "good", "best", "parent"],
        "tags.sweep = 'clevrtex' and tags.state = 'finished'": ["good", "best"],
        "tags.`sweep.clevrtex` LIKE '%'": ["taken over", "good", "best"],
        "tags.`sweep.clevrtex` = '17'": ["best"],
        "tags.dataset = 'clevrtex' and metrics.\"best/ari_fg\" > 0.8": ["best"],
        "attributes.status = 'FAILED' and tags.cause LIKE '%memory%'": ["failed"],
    }
    listed = [
        re.split(r"  +", line.strip())[0]
        for line in (queries.__doc__ or "").splitlines()
        if line.startswith("    ")
    ]
    assert len(listed) == 10
    assert set(expected) < set(listed)
    for where in listed:
        assert names(find_runs(where)) == expected.get(where, []), where
    where, order = (
        "tags.sweep = 'clevrtex' and tags.state = 'finished'",
        ['metrics."best/ari_fg" DESC'],
    )
    assert names(find_runs(where, order)) == ["best", "good"]
    assert names(find_runs(where, order, limit=1)) == ["best"]
    with pytest.raises(InputError, match="refuses to search for 'tags.sweep : 1'"):
        find_runs("tags.sweep : 1")


def test_tag_runs(home: Path, made: Callable[..., str], tmp_path: Path) -> None:
    first, second, other = made("first"), made("second"), made("other")
    many = {f"t{number}": number for number in range(130)}
    local(home).delete_run(other)
    assert (
        tag_runs(
            {
                first: {"rank": 1, "sweep.clevr": 4},
                "0" * 32: {"rank": 2},
                other: {"rank": 3},
                second: many,
            }
        )
        == 2
    )
    tags = local(home).get_run(first).data.tags
    assert (tags["rank"], tags["sweep.clevr"]) == ("1", "4")
    assert local(home).get_run(second).data.tags["t129"] == "129"
    nowhere = tmp_path / "nowhere"
    assert tag_runs({first: {"rank": 1}}, f"sqlite:///{nowhere / 'mlflow.db'}") == 1
    assert not nowhere.exists()


def test_looking_makes_no_store(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'none' / 'mlflow.db'}"
    assert children("0" * 32, uri) == []
    assert finished_run("a", uri) is None
    assert not (tmp_path / "none").exists()


def test_ready_makes_the_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUTSLOTS_HOME", str(tmp_path / "fresh"))
    ready()
    with sqlite3.connect(tmp_path / "fresh" / "mlflow.db") as database:
        assert database.execute("SELECT count(*) FROM runs").fetchone() == (0,)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="unreachable"):
        ready(f"sqlite:///{tmp_path / 'file' / 'mlflow.db'}")


def test_a_dead_store_is_said_within_seconds() -> None:
    with socket.socket() as nobody:  # bound and not listening: connections are refused
        nobody.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        start = time.monotonic()
        for question in (
            lambda: ready(uri),
            lambda: children("0" * 32, uri),
            lambda: finished_run("a", uri),
        ):
            with pytest.raises(
                InputError,
                match=rf"tracking store {uri} unreachable: .*refused. Check MLFLOW_TRACKING_URI",
            ):
                question()
        assert tag_runs({str(number): {"rank": number} for number in range(500)}, uri) == 500
        assert time.monotonic() - start < 15


def test_a_store_that_never_answers_is_said_within_the_timeout() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        start = time.monotonic()
        with pytest.raises(InputError, match="no answer within 0.5 s"):
            ready(f"http://127.0.0.1:{silent.getsockname()[1]}", timeout=0.5)
        assert time.monotonic() - start < 10  # of which the import of MLflow is the most


def test_a_server_of_something_else_is_no_store(tmp_path: Path) -> None:
    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), http.server.BaseHTTPRequestHandler
    ) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        with pytest.raises(InputError, match="unreachable"):
            ready(f"http://127.0.0.1:{other.server_port}")
        other.shutdown()
