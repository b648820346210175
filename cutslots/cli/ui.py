"""Serve the MLflow UI."""

import errno
import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress

import click

from cutslots.errors import InputError
from cutslots.files import home

SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # Jobs need eight more processes and fifteen more seconds; cutslots has none.
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "PYTHONWARNINGS": "ignore",
}


@click.command
@click.option("--host", default="127.0.0.1", show_default=True, help="address to bind to")
@click.option("--port", type=click.IntRange(1, 65535), default=5000, show_default=True)
def command(host: str, port: int) -> int:
    """Serve the MLflow UI for the runs on this machine, until Ctrl-C."""
    from cutslots.tracking import database_of, default_uri, experiments, ready, without_password

    uri = default_uri()
    if uri.startswith("http"):
        click.echo(f"the tracking server is {without_password(uri)}")
        return 0
    database = database_of(uri)
    if database is not None and not database.exists():
        raise InputError(f"no tracking store {database} yet. Train first: cutslots train scenes")
    _check_address(host, port)
    click.echo("MLflow is starting, about ten seconds", err=True)
    ready()  # upgrades the database of an older MLflow, which its server would refuse
    server = subprocess.Popen(
        [
            *(sys.executable, "-m", "mlflow", "server", "--host", host, "--port", str(port)),
            *("--workers", "1", "--uvicorn-opts", "--log-level=warning"),
            *("--artifacts-destination", str(home() / "artifacts")),
        ],
        # By the environment: other users can see arguments, and the URI may hold a password.
        env={**os.environ, **SETTINGS, "MLFLOW_BACKEND_STORE_URI": uri},
        start_new_session=True,  # Ctrl-C reaches this process only, which then ends the group
    )

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        while server.poll() is None:
            with suppress(OSError):
                socket.create_connection((host, port), 1.0).close()
                break
            time.sleep(0.2)
        else:
            return server.returncode
        address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        click.echo(f"MLflow is on {address}; Ctrl-C ends it", err=True)
        for name, number in itertools.islice(experiments().items(), 5):
            link = f"{address}/#/experiments/{number}/runs?workflowType=machine_learning"
            click.echo(f"runs of {name}: {link}", err=True)
        click.echo('In the MLflow UI, select "Model training" (top left).', err=True)
        return server.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not leave processes
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                server.wait(5.0)
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _check_address(host: str, port: int) -> None:
    """Refuse an address that cannot be served, before MLflow takes seconds to find out."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as test:
            test.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a server just ended
            test.bind(address)
    except (socket.gaierror, UnicodeError):
        raise InputError(f"--host must be an address of this machine, got {host!r}.") from None
    except OSError as error:
        if error.errno == errno.EADDRNOTAVAIL:
            raise InputError(f"--host must be an address of this machine, got {host!r}.") from None
        raise InputError(
            f"--port {port} is not available on {host} ({error.strerror}). Give another port; "
            "ports below 1024 need root."
        ) from None
