"""Helpers around real MLflow stores."""

import os
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

FAST = {"pause": (0.2, 0.5), "gather": 0.05}


def client(uri: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(uri)


def local(home: Path) -> Any:
    return client(f"sqlite:///{home / 'mlflow.db'}")


def points(store: Any, run_id: str | None, name: str) -> list[tuple[int, float]]:
    return sorted((metric.step, metric.value) for metric in store.get_metric_history(run_id, name))


def wait_until(condition: Callable[[], Any], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"still not so after {seconds} s"
        time.sleep(0.05)


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
