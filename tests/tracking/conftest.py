"""Real MLflow stores: SQLite files made in advance, and a server that a test can kill."""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from stores import FAST, kill

from cutslots.tracking import RunLog


@pytest.fixture(scope="session")
def made_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home whose database is made; making one takes seconds, copying one does not."""
    home = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUTSLOTS_HOME", str(home))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        assert RunLog(home / "run", experiment="first", run_name="first").close(timeout=60) == 0
    return home


@pytest.fixture
def home(made_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "home"
    home.mkdir()
    shutil.copyfile(made_home / "mlflow.db", home / "mlflow.db")
    monkeypatch.setenv("CUTSLOTS_HOME", str(home))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return home


@pytest.fixture
def opened(home: Path, tmp_path: Path) -> Callable[..., RunLog]:
    def opened(folder: str = "run", **options: Any) -> RunLog:
        return RunLog(
            tmp_path / folder, **{"experiment": "e", "run_name": folder, **FAST, **options}
        )

    return opened


@pytest.fixture
def tracked() -> Iterator[Callable[[str], None]]:
    """Tells MLflow's own functions which store to use, until the test ends: they keep it, in the environment too."""
    import mlflow

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield mlflow.set_tracking_uri
        mlflow.set_tracking_uri(None)  # type: ignore[arg-type]


@pytest.fixture
def server(tmp_path: Path, home: Path) -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    """Starts an MLflow server, always on the same port and store."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started: list[subprocess.Popen[bytes]] = []
    folder = tmp_path / "server"
    folder.mkdir()
    shutil.copyfile(home / "mlflow.db", folder / "mlflow.db")

    def start() -> subprocess.Popen[bytes]:
        command = [
            sys.executable,
            "-m",
            "mlflow",
            "server",
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "--workers",
            "1",
        ]
        command += ["--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"]
        command += ["--artifacts-destination", str(folder / "artifacts")]
        with open(folder / "log", "ab") as log:
            # Without the processes for jobs, which take longer to start than the server.
            env = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
            process = subprocess.Popen(
                command, stdout=log, stderr=log, cwd=folder, env=env, start_new_session=True
            )
        process.uri = f"http://127.0.0.1:{port}"  # type: ignore[attr-defined]
        started.append(process)
        return process

    yield start
    for process in started:
        kill(process)
