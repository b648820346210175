"""`cutslots ui`: it serves MLflow and ends with all its processes."""

import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil
import pytest

from cutslots.cli import main
from cutslots.files import home
from cutslots.tracking import ready


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.mark.slow
@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_serves_until_a_signal(ending: signal.Signals, tmp_path: Path) -> None:
    ready()
    port = free_port()
    command = [sys.executable, "-m", "cutslots", "ui", "--port", str(port)]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, cwd=tmp_path, start_new_session=True
    )
    assert process.stderr is not None
    try:
        lines = [process.stderr.readline()]
        while lines[-1] and f"http://127.0.0.1:{port}" not in lines[-1]:
            lines.append(process.stderr.readline())
        assert lines[-1], lines
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10) as page:
            assert page.status == 200
            assert b"<title>MLflow</title>" in page.read()
        started = psutil.Process(process.pid).children(recursive=True)
        assert started
        assert not any("sqlite" in " ".join(each.cmdline()) for each in started), (
            "an address may hold a password"
        )
        process.send_signal(ending)
        assert process.wait(15) == 0
        assert "Traceback" not in process.stderr.read()
        assert not psutil.wait_procs(started, timeout=2)[1]
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), 1)
        assert not list(tmp_path.iterdir())  # nothing is left where it was started
    finally:
        if process.poll() is None:
            process.kill()


def test_store_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'runs.db'}")
    assert main(["ui"]) == 2
    assert str(tmp_path / "runs.db") in capsys.readouterr().err
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:secret@example.org/mlflow")
    assert main(["ui"]) == 0
    assert "https://me@example.org/mlflow" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--port", "70000"),
        ("--port", "taken"),
        ("--host", "no.such.host.invalid"),
        ("--host", "192.0.2.1"),
    ],
)
def test_bad_address_is_refused_at_once(
    option: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    home().mkdir(exist_ok=True)
    (home() / "mlflow.db").touch()
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        value = str(other.getsockname()[1]) if value == "taken" else value
        start = time.monotonic()
        assert main(["ui", option, value]) == 2
    assert time.monotonic() - start < 10
    error = capsys.readouterr().err
    assert option in error
    assert value in error
