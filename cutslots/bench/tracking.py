"""MLflow's part in a sweep: reading 1,000 trials back, and what logging costs a training step."""

import argparse
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import torch

from cutslots import options
from cutslots.bench._timing import machine, median_seconds
from cutslots.errors import InputError
from cutslots.tracking import RunLog, children, default_uri, find_runs, ready
from cutslots.tracking.client import Store
from cutslots.tracking.journal import latest
from cutslots.train.config import RunConfig, preset

# What `cutslots train` logs: of a reading of the training, of an evaluation, and of the machine.
TRAIN = (
    "loss",
    "grad_norm",
    "learning_rate",
    "epoch",
    "images_per_second",
    "model_share",
    "data_wait_share",
)
SCORES = (
    "ari_fg",
    "ari",
    "miou",
    "cut_ari_fg",
    "cut_ari",
    "cut_miou",
    "mse",
    "mse_mean",
    "num_images",
)
SYSTEM = tuple(f"number_{number}" for number in range(10))
TAGS = (
    "dataset",
    "model",
    "commit",
    "label",
    "signature",
    "rank",
    "cause",
    "checkpoints",
    "cutslots.version",
    "cutslots.device",
)
READINGS, EVALUATIONS = 20, 5
STEPS = 150


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--trials", type=int, default=1000, help="trials of the sweep that is read (default 1000)"
    )
    parser.add_argument(
        "--preset",
        default="small",
        help="whose training step logging is compared with (default small)",
    )


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Print and return the figures.

    Raises:
        InputError: --trials is less than 1.
    """
    if arguments.trials < 1:
        raise InputError(f"--trials is {arguments.trials}; give at least 1.")
    config = preset(arguments.preset)
    with tempfile.TemporaryDirectory(prefix="cutslots-bench-") as folder:
        os.environ["CUTSLOTS_HOME"] = folder
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        ready()
        figures = {
            "machine": machine(),
            **_logging(config, Path(folder) / "run"),
            **_reading(config, arguments.trials),
        }
    threads, batch = figures["machine"]["threads"], config.optim.batch_size
    each, step = figures["metrics_call_seconds"], figures["step_seconds"]
    print(
        f"{arguments.trials} trials in SQLite, {figures['log_trial_seconds']:.3f} s to write each:"
    )
    print(f"  children                           {figures['children_seconds']:8.2f} s")
    print(f"  a table of the best 100            {figures['table_seconds']:8.2f} s")
    print(
        f"training step of {arguments.preset}, batch {batch}, {threads} threads: {step * 1e3:.1f} ms"
    )
    print(
        f"  RunLog.metrics in its thread       {each * 1e6:8.0f} us = {100 * figures['metrics_call_share']:.3f} % of a step"
    )
    print(f"  the mean of all calls              {100 * figures['metrics_mean_share']:8.3f} %")
    print(
        f"  the delivery beside it, a call a step {100 * figures['delivery_share']:5.2f} % of a processor"
    )
    print(f"  a look at the run's journal        {figures['latest_seconds'] * 1e3:8.2f} ms")
    return figures


def _logging(config: RunConfig, run_dir: Path) -> dict[str, float]:
    """Steps with a call after each; a training calls once in `log_every` steps."""
    model = config.model.build()
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    images = (
        torch.rand(config.optim.batch_size, 3, config.model.image_size, config.model.image_size) * 2
        - 1
    )

    def step() -> None:
        loss = model.loss(model(images), images)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    values = {f"train/{name}": 0.123456789 for name in TRAIN}
    calls, steps = [], []
    with RunLog(run_dir, experiment="bench", run_name="logging") as log:
        while log.run_id is None:  # MLflow is imported and connected to once a run
            time.sleep(0.05)
        median_seconds(step, repeats=1)
        before = _delivering(run_dir)
        for number in range(STEPS):
            start = time.perf_counter()
            step()
            between = time.perf_counter()
            log.metrics(number, values)
            calls.append(time.perf_counter() - between)
            steps.append(between - start)
        delivering = _delivering(run_dir) - before
        looking = median_seconds(lambda: latest(run_dir))
    each, whole = median(calls), median(steps)
    return {
        "step_seconds": whole,
        "metrics_call_seconds": each,
        "metrics_call_share": each / whole,
        "metrics_mean_share": sum(calls) / sum(steps),
        "delivery_share": delivering / sum(steps),
        "latest_seconds": looking,
    }


def _delivering(run_dir: Path) -> float:
    """Seconds of a processor that the thread of a run log has taken."""
    (number,) = [
        thread.native_id
        for thread in threading.enumerate()
        if thread.name == f"run log of {run_dir.name}"
    ]
    return sum(
        thread.user_time + thread.system_time
        for thread in psutil.Process().threads()
        if thread.id == number
    )


def _reading(config: RunConfig, trials: int) -> dict[str, float]:
    start = time.perf_counter()
    parent = _written(config, trials)
    writing = time.perf_counter() - start
    assert len(children(parent)) == trials
    order = ['metrics."best/ari_fg" DESC']
    return {
        "trials": trials,
        "log_trial_seconds": writing / trials,
        "children_seconds": median_seconds(lambda: children(parent), repeats=3, warmup=0),
        "table_seconds": median_seconds(
            lambda: find_runs("tags.sweep = 'bench' and tags.state = 'finished'", order, limit=100),
            repeats=3,
            warmup=1,
        ),
    }


def _written(config: RunConfig, trials: int) -> str:
    """A sweep in the tracking store, as its trials would have logged it; the id of its run."""
    store, now = Store(default_uri()), time.time_ns() // 1_000_000
    params = {name: str(value) for name, value in options.flat(config).items()}

    def opened(name: str, parent: str | None) -> str:
        about = {
            "experiment": "bench",
            "run_name": name,
            "run_dir": f"/runs/{name}",
            "user": "bench",
            "parent_run_id": parent,
        }
        return store.find_or_create({**about, "log_id": name, "time": now})[1]

    sweep = opened("sweep", None)
    for number in range(trials):
        run_id = opened(f"trial-{number}", sweep)
        tags = {
            **dict.fromkeys(TAGS, str(number)),
            "sweep": "bench",
            "sweep.bench": str(number),
            "state": "finished",
        }
        for kind, values in (("params", params), ("tags", tags)):
            store.send(run_id, [{"kind": kind, "values": values}], Path())
        store.send(run_id, list(_curves(number, now)), Path())
        store.send(
            run_id,
            [{"kind": "status", "status": "FINISHED", "time": now + 1000 * READINGS}],
            Path(),
        )
    return sweep


def _curves(number: int, now: int) -> Iterator[dict[str, Any]]:
    for step in range(READINGS):
        kinds = [("train", TRAIN), ("system", SYSTEM)]
        kinds += [("val", SCORES)] if step % (READINGS // EVALUATIONS) == 0 else []
        kinds += [("best", SCORES)] if step == READINGS - 1 else []
        for kind, names in kinds:
            values = {f"{kind}/{name}": number / (1 + step) for name in names}
            yield {"kind": "metrics", "time": now + 1000 * step, "step": step, "values": values}
