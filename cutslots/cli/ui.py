"""Serve the MLflow UI."""

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
@click.option("--host", default="127.0.0.1", help="address to bind to")
@click.option("--port", type=click.IntRange(1, 65535), default=5000)
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
    try:  # before MLflow takes seconds to find out
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        socket.create_server((host, port), family=family).close()
    except (OSError, UnicodeError) as error:
        raise InputError(
            f"--host {host} --port {port} is not available ({error}). --host must be an address of "
            "this machine; give another --port if that one is taken, or below 1024 without root."
        ) from None
    click.echo("MLflow is starting, about ten seconds", err=True)
    ready()  # upgrades the database of an older MLflow, which its server would refuse
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    server = subprocess.Popen(
        [
            *(sys.executable, "-m", "mlflow", "server", "--host", host, "--port", str(port)),
            *("--workers", "1", "--artifacts-destination", str(home() / "artifacts")),
            *("--uvicorn-opts", "--log-level=warning --timeout-graceful-shutdown=3"),
        ],
        # By the environment: other users can see arguments, and the URI may hold a password.
        env={**os.environ, **SETTINGS, "MLFLOW_BACKEND_STORE_URI": uri},
        start_new_session=True,  # Ctrl-C reaches this process only, which then ends the group
    )
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
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
        server.wait()
