"""Real MLflow stores: SQLite databases, and a server that a test can kill."""

import os
import shutil
import socket
import subprocess
import sys

import pytest
from mlflow_stores import client, kill

from cutslots.tracking import RunLog, package_model, uploader
from cutslots.train import config, export


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    """Logs are delivered at once."""
    monkeypatch.setattr(uploader, "PAUSES", (0.2, 0.5))
    monkeypatch.setattr(uploader, "GATHER_SECONDS", 0.05)


@pytest.fixture
def home(copy_database, tmp_path, monkeypatch):
    """A home folder with an empty database."""
    monkeypatch.setenv("CUTSLOTS_HOME", str(copy_database(tmp_path / "home")))
    return tmp_path / "home"


@pytest.fixture
def store(home):
    """MLflow's client of the database in `home`."""
    return client(home)


@pytest.fixture
def open_log(home, tmp_path, monkeypatch):
    """Opens a log, of the store `uri` if given; the folder names the run."""

    def open_log(name="run", uri=None, **options):
        with monkeypatch.context() as patch:
            if uri:
                patch.setenv("MLFLOW_TRACKING_URI", uri)
            return RunLog(tmp_path / name, experiment="e", run_name=name, **options)

    return open_log


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """An exported model; `mlflow` beside it is the model as MLflow stores it."""
    folder = tmp_path_factory.mktemp("exported") / "export"
    settings = config.small()
    export.save_model(settings.model.build().state_dict(), settings, folder)
    package_model(folder, folder.with_name("mlflow"), size=32)
    return folder


@pytest.fixture
def use_store():
    """Sets the store of MLflow's own functions until the test ends; they keep it in os.environ."""
    import mlflow

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield mlflow.set_tracking_uri
        mlflow.set_tracking_uri(None)  # type: ignore[arg-type]


@pytest.fixture
def start_server(tmp_path, home):
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
    processes = []

    def start():
        with open(folder / "log", "ab") as log:
            process = subprocess.Popen(
                command.split(), stdout=log, stderr=log, cwd=folder, env=env, start_new_session=True
            )
        process.uri = f"http://127.0.0.1:{port}"  # pyright: ignore
        processes.append(process)
        return process

    yield start
    for process in processes:
        kill(process)
