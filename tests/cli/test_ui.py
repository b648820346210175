"""`cutslots ui`: it serves MLflow and ends with all its processes."""

import signal
import socket
import subprocess
import sys
import time
import urllib.request

import psutil
import pytest

from cutslots.cli import main
from cutslots.files import home


@pytest.mark.slow
@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_serves_until_a_signal(ending, tmp_path, copy_database):
    copy_database(home())
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "cutslots", "ui", "--port", str(port)]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, cwd=tmp_path, start_new_session=True
    )
    assert process.stderr
    try:
        assert any(f"http://127.0.0.1:{port}" in line for line in process.stderr)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10) as page:
            assert b"<title>MLflow</title>" in page.read()
        started = psutil.Process(process.pid).children(recursive=True)
        assert started
        arguments = [" ".join(child.cmdline()) for child in started]
        assert not any("sqlite" in line for line in arguments), "an address may hold a password"
        process.send_signal(ending)
        assert process.wait(15) == 0
        assert "Traceback" not in process.stderr.read()
        assert not psutil.wait_procs(started, timeout=2)[1]
        assert not list(tmp_path.iterdir())  # nothing is left where it was started
    finally:
        if process.poll() is None:
            process.kill()


def test_store_of_the_environment(tmp_path, monkeypatch, capsys):
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
def test_bad_address_is_refused_at_once(option, value, capsys):
    home().mkdir(exist_ok=True)
    (home() / "mlflow.db").touch()
    with socket.create_server(("127.0.0.1", 0)) as other:
        value = str(other.getsockname()[1]) if value == "taken" else value
        start = time.monotonic()
        assert main(["ui", option, value]) == 2
    assert time.monotonic() - start < 10
    error = capsys.readouterr().err
    assert option in error
    assert value in error
