"""MLflow's page: it starts, and leaves nothing behind."""

import os
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
def test_serves_until_it_is_told_to_end(ending: signal.Signals, tmp_path: Path) -> None:
    ready()
    port = free_port()
    command = [sys.executable, "-m", "cutslots", "ui", "--port", str(port)]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, cwd=tmp_path, start_new_session=True
    )
    assert process.stderr is not None
    try:
        said = [process.stderr.readline() for _ in range(2)]
        while said[-1] and "http" not in said[-1]:
            said.append(process.stderr.readline())
        assert said[-1] == f"MLflow on http://127.0.0.1:{port}, Ctrl-C ends it\n", said
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


def test_the_store_that_is_named_is_the_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'runs.db'}")
    assert main(["ui"]) == 2
    assert f"it would be {tmp_path / 'runs.db'}" in capsys.readouterr().err
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:secret@example.org/mlflow")
    assert main(["ui"]) == 0
    assert capsys.readouterr().out == "the tracking server is https://me@example.org/mlflow\n"


def test_a_taken_port_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    home().mkdir(exist_ok=True)
    (home() / "mlflow.db").touch()
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        start = time.monotonic()
        assert main(["ui", "--port", str(port)]) == 2
        assert time.monotonic() - start < 3
    said = capsys.readouterr().err
    assert (
        said
        == f"error: --port {port} is taken on 127.0.0.1, maybe by another `cutslots ui`. Give a free one.\n"
    )


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--port", "70000"], "--port is 70000; give one from 1024 to 65535"),
        (
            ["--host", "no.such.host.invalid"],
            "--host is 'no.such.host.invalid', which is no address.",
        ),
        (["--host", "192.0.2.1"], "--host is '192.0.2.1', which is no address of this machine"),
    ],
)
def test_an_address_that_cannot_be_served_is_said(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    home().mkdir(exist_ok=True)
    (home() / "mlflow.db").touch()
    assert main(["ui", *arguments]) == 2
    assert expected in capsys.readouterr().err


def test_a_server_is_only_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(os.environ, "MLFLOW_TRACKING_URI", "http://tracking.example:5000")
    assert main(["ui"]) == 0
    assert capsys.readouterr().out == "the tracking server is http://tracking.example:5000\n"
