"""open MLflow on this machine's runs"""

import argparse
import os
import subprocess
import sys

from cutslots.errors import InputError
from cutslots.files import home


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where to serve."""
    parser.add_argument("--host", default="127.0.0.1", help="address to bind to (default 127.0.0.1: this machine only)")
    parser.add_argument("--port", type=int, default=5000)


def run(chosen: argparse.Namespace) -> int:
    """Serve until Ctrl-C, or say where the server is."""
    from cutslots.runlog import default_uri

    uri = default_uri()
    if uri.startswith("http"):
        print(f"the tracking server is {uri}")
        return 0
    if not (home() / "mlflow.db").exists() and uri.startswith("sqlite"):
        raise InputError(f"there is no tracking store in {home()} yet. Train something first: cutslots train scenes")
    print(f"MLflow on http://{chosen.host}:{chosen.port}, Ctrl-C ends it", file=sys.stderr)
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--backend-store-uri",
        uri,
        "--host",
        chosen.host,
        "--port",
        str(chosen.port),
    ]
    return subprocess.call(command, env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"})
