"""Ray for a sweep: the cluster that RAY_ADDRESS names, or one of this machine that lives as long as the sweep."""

import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass

from cutslots.errors import InputError
from cutslots.files import home
from cutslots.tracking import default_uri
from cutslots.tracking.client import absolute

CLUSTER = "CUTSLOTS_CLUSTER"  # what a cluster that grows may grow to: "GPU=8,CPU=64"
# What the driver sees of these, every worker process sees too.
PASSED = ("CUTSLOTS_DATA", "PYTHONBREAKPOINT")
# Ray's own choices that cost a sweep time or quiet; what the user has set stays.
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # its banner comes at any verbosity
    "RAY_DEDUP_LOGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # every report of Ray Train waits for one such interval: 2 s by default
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "2592000",  # spot nodes may be long in coming, and waiting is no failure
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # MLflow has the results
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # the driver ends its trials itself
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "60",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # Tune's own state is not read again
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


@dataclass(frozen=True)
class Resources:
    """What a trial takes.

    Attributes:
        workers: processes that share it.
        cpus, gpus: of each; fractions share a device.
        train: whether it runs on Ray Train workers, which come back one by one, or in one Tune function.
    """

    workers: int = 1
    cpus: float = 1
    gpus: float = 0

    @property
    def train(self) -> bool:
        return self.workers > 1 or self.gpus > 0

    def __str__(self) -> str:
        each = f"{self.cpus:g} CPU" + (f", {self.gpus:g} GPU" if self.gpus else "")
        return each if self.workers == 1 else f"{self.workers} workers of {each}"


def check_here(need: Resources) -> None:
    """Refuse at once what this machine can never give; a cluster that RAY_ADDRESS names is asked when it is connected.

    Raises:
        InputError: the resources can never be met.
    """
    if not os.environ.get("RAY_ADDRESS"):
        torch = sys.modules.get("torch") or __import__("torch")
        fitting(
            need,
            [{"CPU": os.cpu_count() or 1, "GPU": torch.cuda.device_count()}],
            os.environ.get(CLUSTER),
        )


@contextlib.contextmanager
def connected(need: Resources, num_cpus: int | None = None) -> Iterator[int]:
    """Ray, with room for at least one such trial; yields how many fit at once (on a growing cluster, when it has grown).

    Args:
        num_cpus: of a cluster of this machine; None takes its cores.

    Raises:
        InputError: the resources can never be met, or there is no cluster at RAY_ADDRESS.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)  # before Ray is imported, which reads some of them then
    import ray

    mine = not ray.is_initialized()
    if mine:
        _init(need, num_cpus)
    try:
        yield fitting(
            need,
            [node["Resources"] for node in ray.nodes() if node["Alive"]],
            os.environ.get(CLUSTER),
        )
    finally:
        if mine:
            ray.shutdown()


@contextlib.contextmanager
def refused() -> Iterator[None]:
    """Say in our words that Ray cannot be reached or started."""
    try:
        yield
    except (ConnectionError, ValueError, RuntimeError) as error:
        address = os.environ.get("RAY_ADDRESS")
        where = f"RAY_ADDRESS is {address}" if address else "on this machine"
        raise InputError(f"Ray cannot be reached or started ({where}): {error}") from None


def _init(need: Resources, num_cpus: int | None) -> None:
    import ray

    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    address = os.environ.get("RAY_ADDRESS")
    passed = {name: os.environ[name] for name in (*PASSED, *SETTINGS) if name in os.environ}
    # Whole paths: a trial's process has another working directory.
    passed |= {"CUTSLOTS_HOME": str(home()), "MLFLOW_TRACKING_URI": absolute(default_uri())}
    common = {
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "runtime_env": {"env_vars": passed},
    }
    handler = signal.getsignal(signal.SIGTERM)
    with refused():
        if address:
            ray.init(address=address, **common)
        else:
            ray.init(
                # Without it a cluster that somebody left on this machine would be joined.
                address="local",
                num_cpus=num_cpus or os.cpu_count(),
                # Ray Train asks it which placement groups a dead trial has left.
                include_dashboard=need.train,
                dashboard_host="127.0.0.1",
                object_store_memory=128
                << 20,  # configurations and scores; pixels never go through it
                **common,
            )
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)  # Ray has put its own in its place


def fitting(need: Resources, nodes: list[dict[str, float]], cluster: str | None = None) -> int:
    """How many such trials fit at once, by CPUs and GPUs.

    Args:
        nodes: the resources of every node.
        cluster: what the cluster may grow to, as CUTSLOTS_CLUSTER says it.

    Raises:
        InputError: not even one, or `cluster` is not understood.
    """
    grown = _grown(cluster)
    asked = {name: amount for name, amount in (("GPU", need.gpus), ("CPU", need.cpus)) if amount}
    total = {
        name: max(sum(node.get(name, 0) for node in nodes), grown.get(name, 0))
        for name in ("CPU", "GPU")
    }
    for name, amount in asked.items():
        if amount * need.workers > total[name]:
            raise InputError(_too_much(name, amount * need.workers, total[name], need, bool(grown)))
    # A worker lies on one node. Of nodes that are still to come only the sum is known.
    workers = sum(
        min(_shares(node.get(name, 0), amount) for name, amount in asked.items()) for node in nodes
    )
    if not grown and workers < need.workers:
        largest = max(nodes, key=lambda node: (node.get("GPU", 0), node.get("CPU", 0)), default={})
        raise InputError(
            f"a trial takes {need}, which fit on no {'set of nodes' if need.workers > 1 else 'node'} of this cluster; "
            f"its largest has {largest.get('CPU', 0):g} CPU and {largest.get('GPU', 0):g} GPU. Ask for less a worker."
        )
    if grown:
        workers = min(_shares(total[name], amount) for name, amount in asked.items())
    return max(1, workers // need.workers)


def _shares(there: float, amount: float) -> int:
    """How many such amounts there are; a fraction is one of a single device's, which has no part in another."""
    return int(there) * int(1 / amount + 1e-9) if amount < 1 else int(there / amount)


def _too_much(name: str, asked: float, there: float, need: Resources, grows: bool) -> str:
    option = (
        f"--{name.lower()}s-per-trial"
        if need.workers == 1
        else f"--{name.lower()}s-per-trial or --workers-per-trial"
    )
    growing = f" even when grown to all that {CLUSTER} allows" if grows else ""
    return f"a trial takes {asked:g} {name} ({need}), and the cluster has {there:g}{growing}. Lower {option}."


def _grown(text: str | None) -> dict[str, float]:
    if not text:
        return {}
    try:
        return {
            name.strip().upper(): float(amount)
            for name, _, amount in (part.partition("=") for part in text.split(","))
        }
    except ValueError:
        raise InputError(f'{CLUSTER} is {text!r}; write it as "GPU=8,CPU=64".') from None


def has_gpus() -> bool:
    """Whether this machine, or the cluster that RAY_ADDRESS names, has GPUs."""
    if os.environ.get("RAY_ADDRESS"):
        grown = _grown(os.environ.get(CLUSTER))
        if grown.get("GPU"):
            return True
        import ray

        mine = not ray.is_initialized()
        if mine:
            _init(Resources(), None)
        try:
            return ray.cluster_resources().get("GPU", 0) > 0
        finally:
            if mine:
                ray.shutdown()
    torch = sys.modules.get("torch") or __import__("torch")
    return torch.cuda.is_available()


def room(address: str) -> str:
    """Join a cluster, and say in words what it has; ends the process with the reason when it cannot be joined."""
    import ray

    try:
        ray.init(address=address, logging_level=logging.CRITICAL, log_to_driver=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        sys.exit(f"{type(error).__name__}: {' '.join(str(error).split())}")
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cpus, gpus, memory = (
        sum(node.get(kind, 0) for node in nodes) for kind in ("CPU", "GPU", "memory")
    )
    return f"nodes: {len(nodes)}, CPUs: {cpus:g}, GPUs: {gpus:g}, memory {memory / 1e9:.1f} GB, Ray {ray.__version__}"
