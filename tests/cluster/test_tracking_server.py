"""cluster/tracking.sh with a real MLflow: hosts, restarts, the copy of the database."""

import os
import signal
import socket
import sqlite3
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import psutil
import pytest
from node_processes import living

SCRIPT = Path(__file__).parents[2] / "cluster" / "tracking.sh"
SEARCH = "/api/2.0/mlflow/experiments/search"


class Head:
    """A head node with its own disk; all heads share `folder / "shared"`."""

    def __init__(self, folder: Path, name: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.shared, self.local = folder / "shared", folder / name / "tracking"
        self.uri, self.database = f"http://127.0.0.1:{self.port}", self.local / "mlflow.db"
        python = SCRIPT.parents[1] / ".venv" / "bin"
        self.env = os.environ | {
            "PATH": f"{python}:{os.environ['PATH']}",
            "CUTSLOTS_HOME": str(self.shared),
            "CUTSLOTS_LOCAL": str(self.local.parent),
            "MLFLOW_TRACKING_URI": self.uri,
            "CUTSLOTS_TRACKING_NAMES": "head.cluster",
        }

    def call(self, action: str) -> str:
        """The output of an action, which must succeed."""
        command = ["bash", SCRIPT, action]
        done = subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def status(self, host: str | None = None, origin: str | None = None) -> int:
        """The HTTP status of a search; 0 if nothing answers."""
        headers = {"Content-Type": "application/json", "Host": host, "Origin": origin}
        request = urllib.request.Request(
            self.uri + SEARCH,
            data=b'{"max_results": 1}',
            headers={name: value for name, value in headers.items() if value},
        )
        try:
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            return opener.open(request, timeout=30).status
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    def processes(self) -> list[psutil.Process]:
        """Living processes of the server and of its keeper."""
        return living("CUTSLOTS_LOCAL", str(self.local.parent))


def wait(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize("uri", ["", "sqlite:///mlflow.db", "http://head", "https://head:5000"])
def test_uri_must_be_http_with_a_port(tmp_path: Path, uri: str) -> None:
    env = Head(tmp_path, "head").env | {"MLFLOW_TRACKING_URI": uri}
    done = subprocess.run(["bash", SCRIPT, "start"], env=env, capture_output=True, text=True)
    assert done.returncode == 1
    assert "MLFLOW_TRACKING_URI" in done.stderr


@pytest.mark.slow
def test_server_restarts_stops_and_moves(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    first, second = Head(tmp_path, "first"), Head(tmp_path, "second")
    try:
        first.call("start")
        assert first.uri in first.call("start")  # the second start changes nothing

        # Allowed hosts and origins.
        name = f"head.cluster:{first.port}"
        assert first.status() == 200
        assert first.status("localhost:9999", "http://localhost:9999") == 200
        assert first.status(name, f"http://{name}") == 200
        assert first.status("evil.example:80") == 403
        assert first.status(origin="http://evil.example") == 403
        connections = psutil.net_connections("tcp")
        listening = [tuple(c.laddr) for c in connections if c.status == "LISTEN"]
        assert [a for a in listening if first.port in a] == [("127.0.0.1", first.port)]

        # Artifacts go through the server to the shared folder.
        client = MlflowClient(first.uri)
        run = client.create_run(client.create_experiment("sweep"))
        client.log_text(run.info.run_id, "hello", "note.txt")
        (note,) = (first.shared / "artifacts").rglob("note.txt")
        assert note.read_text() == "hello"

        # A dead MLflow is started again.
        os.killpg(int((first.local / "server.pid").read_text()), signal.SIGKILL)
        wait(lambda: not first.status())
        wait(first.status)
        assert MlflowClient(first.uri).get_run(run.info.run_id)
    finally:
        first.call("stop")
    wait(lambda: not first.processes())
    copy = first.shared / "tracking" / "mlflow.db"
    with closing(sqlite3.connect(copy)) as connection:
        assert ("sweep",) in connection.execute("SELECT name FROM experiments").fetchall()

    # Another head starts from the copy, and its keeper is killed: nothing survives `stop`.
    try:
        second.call("start")
        client = MlflowClient(second.uri)
        assert client.get_experiment_by_name("sweep")
        client.create_experiment("later")
        os.kill(int((second.local / "pid").read_text()), signal.SIGKILL)
    finally:
        second.call("stop")
    wait(lambda: not second.processes())

    # Without a last copy the same head keeps its newer database; an older one is replaced.
    assert second.database.stat().st_mtime > copy.stat().st_mtime
    for head in (second, first):
        try:
            head.call("start")
            assert MlflowClient(head.uri).get_experiment_by_name("later")
        finally:
            head.call("stop")
    assert (first.local / "mlflow.db.old").exists()


@pytest.mark.slow
def test_copy_is_consistent_while_mlflow_writes(tmp_path: Path) -> None:
    head = Head(tmp_path, "head")
    head.env["CUTSLOTS_COPY_SECONDS"] = "1"
    copy = head.shared / "tracking" / "mlflow.db"
    try:
        head.call("start")
        with closing(sqlite3.connect(head.database)) as writer:
            writer.execute("CREATE TABLE extra (word TEXT)")
            writer.commit()
            writer.execute("INSERT INTO extra VALUES ('not committed')")
            begun = time.time()
            wait(lambda: copy.exists() and copy.stat().st_mtime > begun)
            writer.rollback()
        with closing(sqlite3.connect(copy)) as connection:
            assert connection.execute("SELECT * FROM extra").fetchall() == []
    finally:
        head.call("stop")
    wait(lambda: not head.processes())
