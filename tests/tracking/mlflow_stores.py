"""Helpers for real MLflow stores."""

import os
import signal
import socket
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def client(store) -> Any:
    """A client of the store at a URI, or of the database in a home folder."""
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{store / 'mlflow.db'}" if isinstance(store, Path) else store)


def runs_of(store) -> Any:
    return store.search_runs([store.get_experiment_by_name("e").experiment_id])


def points(store, run_id, name):
    return sorted((metric.step, metric.value) for metric in store.get_metric_history(run_id, name))


def wait_until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not true after {seconds} s"
        time.sleep(0.05)


@contextmanager
def dead_server(listening=False):
    """The URI of a port that refuses connections, or with `listening` never answers."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        if listening:
            bound.listen()
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"


def kill(process):
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_for_server(uri):
    def answers():
        try:
            with urllib.request.urlopen(f"{uri}/health", timeout=1) as answer:
                return answer.status == 200
        except OSError:
            return False

    wait_until(answers, 60)
