"""open MLflow on this machine's runs"""

import argparse
import errno
import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress

from cutslots.errors import InputError
from cutslots.files import home

ENDING_SECONDS = 5.0
MOST_LINKS = 5
LIMITS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # Eight more processes, and fifteen seconds more to start, for jobs that runs of cutslots never ask for.
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "PYTHONWARNINGS": "ignore",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where to serve."""
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to bind to (default 127.0.0.1: this machine only)",
    )
    parser.add_argument("--port", type=int, default=5000)


def run(chosen: argparse.Namespace) -> int:
    """Serve until Ctrl-C, or say where the server is."""
    from cutslots.tracking import database_of, default_uri, experiments, ready, without_password

    uri = default_uri()
    if uri.startswith("http"):
        print(f"the tracking server is {without_password(uri)}")
        return 0
    database = database_of(uri)
    if database is not None and not database.exists():
        raise InputError(
            f"there is no tracking store yet, it would be {database}. Train something first: cutslots train scenes"
        )
    _check_free(chosen.host, chosen.port)
    print("MLflow starts, which takes about ten seconds", file=sys.stderr)
    ready(uri)  # an older MLflow's database is brought up to date, which its server would refuse
    command = [sys.executable, "-m", "mlflow", "server", "--host", chosen.host]
    command += [
        "--port",
        str(chosen.port),
        "--workers",
        "1",
        "--uvicorn-opts",
        "--log-level=warning",
    ]
    command += [
        "--artifacts-destination",
        str(home() / "artifacts"),
    ]  # not below the working directory
    # By the environment: all of this machine's users see a command's arguments, and the address may hold a password.
    return _serve(command, uri, chosen.host, chosen.port, experiments(uri))


def _check_free(host: str, port: int) -> None:
    """Refuse an address that cannot be served before MLflow takes its seconds to find out."""
    if not 1 <= port <= 65535:
        raise InputError(f"--port is {port}; give one from 1024 to 65535.")
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as ours:
            ours.setsockopt(
                socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
            )  # one that ended a moment ago is not there any more
            ours.bind(address)
    except (socket.gaierror, UnicodeError):
        raise InputError(
            f"--host is {host!r}, which is no address. Leave it out, or give one of this machine."
        ) from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise InputError(
                f"--port {port} is taken on {host}, maybe by another `cutslots ui`. Give a free one."
            ) from None
        if error.errno == errno.EADDRNOTAVAIL:
            raise InputError(
                f"--host is {host!r}, which is no address of this machine. Leave it out, or give one."
            ) from None
        raise InputError(
            f"--port {port} cannot be served on {host}: {error.strerror}. Give one from 1024 to 65535."
        ) from None


def _serve(
    command: Sequence[str], uri: str, host: str, port: int, experiments: Mapping[str, str]
) -> int:
    """Run the server, and leave none of its processes behind."""
    server = None

    def end(*_: object) -> None:
        raise KeyboardInterrupt

    # The server's processes are a group of their own: a Ctrl-C reaches this one alone, which then ends all of them in order.
    caught = [
        number
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) != signal.SIG_IGN
    ]
    before = {number: signal.signal(number, end) for number in caught}
    try:
        server = subprocess.Popen(
            command,
            env={**os.environ, **LIMITS, "MLFLOW_BACKEND_STORE_URI": uri},
            start_new_session=True,
        )
        if _answers(server, host, port):
            _say(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}", experiments)
        return server.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        for number in before:
            signal.signal(number, signal.SIG_IGN)  # a second Ctrl-C leaves nothing half ended
        if server:
            _end(server)
        for number, handler in before.items():
            signal.signal(number, handler)


def _say(address: str, experiments: Mapping[str, str]) -> None:
    """Where it is, and where runs are: MLflow leads to those of language models unless the address asks for others."""
    print(f"MLflow on {address}, Ctrl-C ends it", file=sys.stderr)
    for name, number in itertools.islice(experiments.items(), MOST_LINKS):
        print(
            f"runs of {name}: {address}/#/experiments/{number}/runs?workflowType=machine_learning",
            file=sys.stderr,
        )
    if experiments:
        print(
            'its own pages lead to them once "Model training" is chosen, top left', file=sys.stderr
        )


def _answers(server: subprocess.Popen, host: str, port: int) -> bool:
    """Wait for the server; False when it ended instead."""
    while server.poll() is None:
        try:
            socket.create_connection((host, port), 1.0).close()
            return True
        except OSError:
            time.sleep(0.2)
    return False


def _end(server: subprocess.Popen) -> None:
    with suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            server.wait(ENDING_SECONDS)
        os.killpg(server.pid, signal.SIGKILL)  # what is left of the group
    server.wait()
