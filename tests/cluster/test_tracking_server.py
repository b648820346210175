"""cluster/tracking.py with a real MLflow: the safe copy, who owns it, and what outlives what."""

import importlib.util
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import closing
from pathlib import Path
from types import ModuleType

import psutil
import pytest

from cutslots.errors import InputError

SCRIPT = Path(__file__).parents[2] / "cluster" / "tracking.py"


def load() -> ModuleType:
    specification = importlib.util.spec_from_file_location("cluster_tracking", SCRIPT)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules["cluster_tracking"] = module  # dataclasses look themselves up
    specification.loader.exec_module(module)
    return module


tracking = load()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A function that makes a head node of the cluster whose shared folder is `tmp_path / "shared"`."""

    def make(name: str):
        monkeypatch.setenv("CUTSLOTS_HOME", str(tmp_path / "shared"))
        monkeypatch.setenv("CUTSLOTS_LOCAL", str(tmp_path / name))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
        places = tracking.Places.from_environment()
        places.local.mkdir(parents=True)
        return places

    return make


def write(places, value: str) -> None:
    with closing(sqlite3.connect(places.database)) as connection, connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE IF NOT EXISTS said (what TEXT)")
        connection.execute("INSERT INTO said VALUES (?)", [value])


def said(database: Path) -> list[str]:
    with closing(sqlite3.connect(database)) as connection:
        return [what for (what,) in connection.execute("SELECT what FROM said")]


def take(places) -> None:
    tracking.restore(places)
    tracking._claim(places)


def test_a_new_head_starts_from_the_copy(machine):
    first = machine("first")
    take(first)
    write(first, "one")
    tracking.copy(first)
    tracking._release(first)
    second = machine("second")
    take(second)
    assert said(second.database) == ["one"]


def test_the_copy_is_whole_while_somebody_writes(machine):
    head = machine("head")
    take(head)
    write(head, "one")
    with closing(sqlite3.connect(head.database)) as writer:
        writer.execute("INSERT INTO said VALUES ('not committed')")
        tracking.copy(head)
        writer.rollback()
    assert said(head.copy) == ["one"]
    assert not list(head.shared.glob(".*")), "temporary files stay"


def test_the_same_head_keeps_what_the_copy_does_not_have_yet(machine):
    head = machine("head")
    take(head)
    write(head, "one")
    tracking.copy(head)
    write(head, "two")  # and then the machine lost power: no last copy
    take(head)
    assert said(head.database) == ["one", "two"]


def test_a_head_that_was_away_does_not_bring_back_its_old_database(machine):
    first = machine("first")
    take(first)
    write(first, "old")
    tracking.copy(first)
    tracking._release(first)
    second = machine("second")
    take(second)
    write(second, "new")
    tracking.copy(second)
    tracking._release(second)
    take(first)
    assert said(first.database) == ["old", "new"]
    with pytest.raises(InputError, match="now belongs to another tracking server"):
        tracking.copy(second)
    assert said(first.copy) == ["old", "new"]


def test_a_database_of_another_home_is_set_aside(machine, tmp_path):
    head = machine("head")
    take(head)
    write(head, "one")
    (tmp_path / "shared").rename(tmp_path / "moved")
    take(head)
    assert not head.database.exists()
    assert said(head.local / "mlflow.db.old") == ["one"]


@pytest.mark.parametrize("uri", ["sqlite:///mlflow.db", "http://head", "https://head:5000"])
def test_only_http_with_a_port_can_be_served(machine, monkeypatch, uri):
    machine("head")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(InputError, match="http://ADDRESS:PORT"):
        tracking.Places.from_environment()
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with pytest.raises(InputError, match="MLFLOW_TRACKING_URI not set"):
        tracking.Places.from_environment()


def call(action: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, SCRIPT, action], capture_output=True, text=True, timeout=240
    )


def status(url: str, path: str, host: str | None = None, origin: str | None = None) -> int:
    headers = (
        {"Content-Type": "application/json"}
        | ({"Host": host} if host else {})
        | ({"Origin": origin} if origin else {})
    )
    request = urllib.request.Request(f"{url}{path}", data=b'{"max_results": 1}', headers=headers)
    try:
        return (
            urllib.request.build_opener(urllib.request.ProxyHandler({}))
            .open(request, timeout=30)
            .status
        )
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.slow
def test_a_server_lives_dies_and_moves(machine, tmp_path, monkeypatch):
    from mlflow import MlflowClient

    first = machine("first")
    monkeypatch.setenv("CUTSLOTS_TRACKING_NAMES", "head.cluster")
    try:
        assert call("start").returncode == 0
        assert call("start").stdout.startswith(
            f"tracking server: {first.url}"
        )  # once more: nothing happens

        # Who may ask, and from which pages.
        search, name = "/api/2.0/mlflow/experiments/search", f"head.cluster:{first.port}"
        assert status(first.url, search) == 200
        assert (
            status(first.url, search, host="localhost:9999", origin="http://localhost:9999") == 200
        )
        assert status(first.url, search, host=name, origin=f"http://{name}") == 200
        assert status(first.url, search, host="evil.example:80") == 403
        assert status(first.url, search, origin="http://evil.example") == 403
        listening = [
            tuple(each.laddr) for each in psutil.net_connections("tcp") if each.status == "LISTEN"
        ]
        assert [place for place in listening if first.port in place] == [("127.0.0.1", first.port)]

        # Artifacts go through the server to the shared folder.
        client = MlflowClient(first.url)
        run = client.create_run(client.create_experiment("sweep"))
        client.log_text(run.info.run_id, "hello", "note.txt")
        assert [
            path.read_text() for path in (tmp_path / "shared" / "artifacts").rglob("note.txt")
        ] == ["hello"]

        # A dead MLflow is started again.
        keeper = int((first.local / "pid").read_text())
        for child in psutil.Process(keeper).children(recursive=True):
            child.kill()
        wait(lambda: not tracking.answers(first.url))
        wait(lambda: tracking.answers(first.url))
        assert MlflowClient(first.url).get_run(run.info.run_id).info.run_id == run.info.run_id

        # A second server on the same shared folder would overwrite the copy.
        monkeypatch.setenv("CUTSLOTS_LOCAL", str(tmp_path / "other"))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
        refused = call("start")
        assert refused.returncode == 1
        assert f"belongs to the tracking server {first.url}" in refused.stderr
    finally:
        at(first, monkeypatch)
        stopped = call("stop")
    assert "tracking server stopped" in stopped.stdout
    assert not alive(first), "MLflow outlives its keeper"
    assert "url" not in json.loads(first.owner.read_text())

    second = machine("second")
    try:
        assert call("start").returncode == 0
        assert MlflowClient(second.url).get_experiment_by_name("sweep")
        os.kill(int((second.local / "pid").read_text()), signal.SIGKILL)
    finally:
        assert "no tracking server is running" in call("stop").stdout
    assert not alive(second), "MLflow outlives its keeper's violent end"


def at(places, monkeypatch) -> None:
    monkeypatch.setenv("CUTSLOTS_LOCAL", str(places.local.parent))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", places.url)


def wait(condition) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def alive(places) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and str(places.local) in " ".join(
                [process.cwd(), *process.cmdline()]
            ):
                found.append(process)
        except psutil.Error:
            pass
    return found
