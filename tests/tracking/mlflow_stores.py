"""Helpers for real MLflow stores."""

import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FAST = {"pause": (0.2, 0.5), "gather": 0.05}


def client(store: str | Path) -> Any:
    """A client of the store at a URI, or of the database in a home folder."""
    from mlflow import MlflowClient

    return MlflowClient(store if isinstance(store, str) else f"sqlite:///{store / 'mlflow.db'}")


def runs_of(store: Any, experiment: str = "e") -> list[Any]:
    return store.search_runs([store.get_experiment_by_name(experiment).experiment_id])


def points(store: Any, run_id: str | None, name: str) -> list[tuple[int, float]]:
    return sorted((metric.step, metric.value) for metric in store.get_metric_history(run_id, name))


def wait_until(condition: Callable[[], Any], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not true after {seconds} s"
        time.sleep(0.05)


@contextmanager
def dead_server(listening: bool = False) -> Iterator[str]:
    """The URI of a port that refuses connections, or with `listening` never answers."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        if listening:
            bound.listen()
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"


def kill(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_for_server(uri: str) -> None:
    def answers() -> bool:
        try:
            with urllib.request.urlopen(f"{uri}/health", timeout=1) as answer:
                return answer.status == 200
        except OSError:
            return False

    wait_until(answers, 60)
