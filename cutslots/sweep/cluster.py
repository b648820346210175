"""Ray for a sweep: the cluster at RAY_ADDRESS, or one on this machine that ends with the sweep."""

import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from cutslots.errors import InputError
from cutslots.files import home
from cutslots.tracking import default_uri

CLUSTER = "CUTSLOTS_CLUSTER"  # what an autoscaling cluster can grow to: "GPU=8,CPU=64"
# Ray settings that save time or output; the user's environment takes priority.
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # prints its banner at any verbosity
    "RAY_DEDUP_LOGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # every report waits for one interval
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "2592000",  # waiting for spot nodes is not a failure
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # MLflow has the results
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # the driver stops its trials itself
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "60",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # Tune's own state is never read
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


@dataclass(frozen=True)
class Resources:
    """What a trial needs.

    Attributes:
        workers: processes that train it together.
        cpus, gpus: per worker; fractions share a device.
    """

    workers: int = 1
    cpus: float = 1
    gpus: float = 0

    @property
    def train(self) -> bool:
        """Whether it runs on Ray Train workers, else in one Tune function."""
        return self.workers > 1 or self.gpus > 0

    def __str__(self) -> str:
        worker = f"{self.cpus:g} CPU" + (f", {self.gpus:g} GPU" if self.gpus else "")
        return worker if self.workers == 1 else f"{self.workers} workers with {worker} each"


def resources(
    workers: int, cpus: float | None, gpus: float | None, start: bool = True
) -> Resources:
    """What a trial needs, from the command line; by default one GPU if there is one.

    Args:
        start: refuse resources that this machine lacks, unless RAY_ADDRESS is set.

    Raises:
        InputError: an amount that is impossible or cannot be met.
    """
    gpus = float(has_gpus()) if gpus is None else gpus
    cpus = (2.0 if gpus else 1.0) if cpus is None else cpus
    if not 0 <= gpus <= 1 or (workers > 1 and 0 < gpus < 1):
        raise InputError(
            f"--gpus-per-trial must be 0, 1 or, with one worker, a fraction, got {gpus:g}. "
            "Use several GPUs with --workers-per-trial."
        )
    if cpus <= 0:
        raise InputError(f"--cpus-per-trial must be positive, got {cpus:g}.")
    need = Resources(workers, cpus, gpus)
    if start and not os.environ.get("RAY_ADDRESS"):
        fitting(need, [{"CPU": os.cpu_count() or 1, "GPU": torch.cuda.device_count()}])
    return need


def has_gpus() -> bool:
    """Whether this machine, or the cluster at RAY_ADDRESS, has GPUs."""
    if not os.environ.get("RAY_ADDRESS"):
        return torch.cuda.is_available()
    if _limit().get("GPU"):
        return True
    with connected() as nodes:
        return any(node.get("GPU", 0) > 0 for node in nodes)


@contextlib.contextmanager
def connected(dashboard: bool = False) -> Iterator[list[dict[str, float]]]:
    """Connect to Ray or start it; yields the resources of every node.

    Args:
        dashboard: start one with Ray on this machine: Ray Train queries it after a worker dies.

    Raises:
        InputError: Ray cannot be reached or started.
    """
    os.environ.update(SETTINGS | dict(os.environ))  # before the import of Ray, which reads some
    import ray

    joined, address = ray.is_initialized(), os.environ.get("RAY_ADDRESS")
    if not joined:
        names = ("CUTSLOTS_DATA", "PYTHONBREAKPOINT", *SETTINGS)
        variables = {name: os.environ[name] for name in names if name in os.environ}
        # Absolute paths: the processes of trials have another working directory.
        variables |= {"CUTSLOTS_HOME": str(home()), "MLFLOW_TRACKING_URI": default_uri()}
        options: dict[str, Any] = {"address": address}
        if not address:
            options = {
                "address": "local",  # or Ray would join any cluster left on this machine
                "num_cpus": os.cpu_count(),
                "include_dashboard": dashboard,
                "dashboard_host": "127.0.0.1",
                "object_store_memory": 128 << 20,  # for configurations and scores only
            }
        handler = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(
                **options,
                log_to_driver=False,
                logging_level=logging.ERROR,
                runtime_env={"env_vars": variables},
            )
        except (ConnectionError, ValueError, RuntimeError) as error:
            at = f"reach the cluster at RAY_ADDRESS={address}" if address else "start Ray"
            raise InputError(f"cannot {at}: {error}") from None
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # Ray replaces it
    try:
        yield [node["Resources"] for node in ray.nodes() if node["Alive"]]
    finally:
        if not joined:
            ray.shutdown()


def fitting(need: Resources, nodes: Sequence[dict[str, float]]) -> int:
    """How many trials fit at once.

    Args:
        nodes: CPUs and GPUs of every node; CUTSLOTS_CLUSTER raises their total to the limit of an
            autoscaling cluster.

    Raises:
        InputError: not one trial fits, or CUTSLOTS_CLUSTER is malformed.
    """
    limit = _limit()
    amounts = {name: amount for name, amount in (("GPU", need.gpus), ("CPU", need.cpus)) if amount}
    total = {
        name: max(sum(node.get(name, 0) for node in nodes), limit.get(name, 0)) for name in amounts
    }
    for name, amount in amounts.items():
        if amount * need.workers > total[name]:
            option = f"--{name.lower()}s-per-trial"
            option += " or --workers-per-trial" if need.workers > 1 else ""
            size = f"at its limit ({CLUSTER}) " if limit else ""
            raise InputError(
                f"A trial needs {amount * need.workers:g} {name} ({need}); the cluster {size}has "
                f"{total[name]:g}. Lower {option}."
            )

    def count(node: dict[str, float]) -> int:
        """How many workers fit on a node; a fractional worker uses one device."""
        fits = []
        for name, amount in amounts.items():
            available, per_device = node.get(name, 0), int(1 / amount + 1e-9)
            fits.append(int(available) * per_device if amount < 1 else int(available / amount))
        return min(fits)

    # Only the total is known of nodes that have not started.
    workers = count(total) if limit else sum(map(count, nodes))
    if not limit and workers < need.workers:
        largest = max(nodes, key=lambda node: (node.get("GPU", 0), node.get("CPU", 0)), default={})
        raise InputError(
            f"No node can run a worker, or too few nodes can ({need}); the largest has "
            f"{largest.get('CPU', 0):g} CPUs and {largest.get('GPU', 0):g} GPUs. "
            "Lower --cpus-per-trial or --gpus-per-trial."
        )
    return max(1, workers // need.workers)


def room(address: str) -> str:
    """Describe the resources of a cluster; exits with the reason if it is unreachable."""
    import ray

    try:
        ray.init(address=address, logging_level=logging.CRITICAL, log_to_driver=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        sys.exit(f"{type(error).__name__}: {' '.join(str(error).split())}")
    nodes, total = sum(node["Alive"] for node in ray.nodes()), ray.cluster_resources()
    amounts = f"CPUs: {total.get('CPU', 0):g}, GPUs: {total.get('GPU', 0):g}"
    memory = f"memory {total.get('memory', 0) / 1e9:.1f} GB"
    return f"nodes: {nodes}, {amounts}, {memory}, Ray {ray.__version__}"


def _limit() -> dict[str, float]:
    """CUTSLOTS_CLUSTER by resource; empty if it is not set."""
    text = os.environ.get(CLUSTER) or ""
    try:
        pairs = [part.partition("=") for part in text.split(",") if part]
        return {name.strip().upper(): float(amount) for name, _, amount in pairs}
    except ValueError:
        raise InputError(f'{CLUSTER} must look like "GPU=8,CPU=64", got {text!r}.') from None
