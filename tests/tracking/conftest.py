"""Real MLflow stores: SQLite databases, and a server that a test can kill."""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow_stores import FAST, client, kill

from cutslots.tracking import RunLog


@pytest.fixture
def home(
    copy_database: Callable[[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A home folder with an empty database."""
    monkeypatch.setenv("CUTSLOTS_HOME", str(copy_database(tmp_path / "home")))
    return tmp_path / "home"


@pytest.fixture
def store(home: Path) -> Any:
    """MLflow's client of the database in `home`."""
    return client(home)


@pytest.fixture
def open_log(home: Path, tmp_path: Path) -> Callable[..., RunLog]:
    """Opens a log that is delivered at once; the folder names the run."""

    def open_log(name: str = "run", **options: Any) -> RunLog:
        return RunLog(tmp_path / name, **{"experiment": "e", "run_name": name, **FAST, **options})

    return open_log


@pytest.fixture
def use_store() -> Iterator[Callable[[str], None]]:
    """Sets the store of MLflow's own functions until the test ends; they keep it in os.environ."""
    import mlflow

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield mlflow.set_tracking_uri
        mlflow.set_tracking_uri(None)  # type: ignore[arg-type]


@pytest.fixture
def start_server(tmp_path: Path, home: Path) -> Iterator[Callable[[], Any]]:
    """Starts an MLflow server, always on the same port and store; `uri` of the process is its."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path / "server"
    folder.mkdir()
    shutil.copyfile(home / "mlflow.db", folder / "mlflow.db")
    command = f"{sys.executable} -m mlflow server --host 127.0.0.1 --port {port} --workers 1"
    command += f" --backend-store-uri sqlite:///{folder}/mlflow.db"
    command += f" --artifacts-destination {folder}/artifacts"
    # The processes for jobs take longer to start than the server.
    env = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    processes: list[Any] = []

    def start() -> Any:
        with open(folder / "log", "ab") as log:
            process: Any = subprocess.Popen(
                command.split(), stdout=log, stderr=log, cwd=folder, env=env, start_new_session=True
            )
        process.uri = f"http://127.0.0.1:{port}"
        processes.append(process)
        return process

    yield start
    for process in processes:
        kill(process)
