"""What of a whole training run is not the model's forward, backward and optimiser: data, metrics, logging, checkpoints."""

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from cutslots import options
from cutslots.bench._timing import machine
from cutslots.data import prepare, sources
from cutslots.errors import InputError
from cutslots.runs.train import train_run
from cutslots.tracking import events
from cutslots.train.config import preset

SHARES = ("images_per_second", "model_share", "data_wait_share")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--preset", default="small", help="whose step (default small)")
    parser.add_argument(
        "--steps",
        type=int,
        default=1000,
        help="steps to time (default 1000); the preset's checkpoints fall among them",
    )


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train through the run log and the terminal as `cutslots train` does, then read the shares from the journal."""
    config = options.override(preset(arguments.preset), f"train.steps={arguments.steps}")
    with tempfile.TemporaryDirectory(prefix="cutslots-bench-") as folder:
        os.environ["CUTSLOTS_HOME"] = folder
        data, run_dir = Path(folder) / "data", Path(folder) / "run"
        prepare("scenes", None, data, sources.load("scenes").Options(count=1000))
        start = time.perf_counter()
        train_run(config, data, run_dir, experiment="bench", device="cpu")
        seconds = time.perf_counter() - start
        logged = [event["values"] for event in events(run_dir) if event["kind"] == "metrics"]
    readings = [values for values in logged if "train/model_share" in values]
    if len(readings) < 4:
        raise InputError(
            f"--steps is {arguments.steps}; give at least {4 * config.train.log_every} for a reading."
        )
    kept = readings[len(readings) // 2 :]  # the first half holds the warm-up of the process
    mean = {name: sum(values[f"train/{name}"] for values in kept) / len(kept) for name in SHARES}
    outside, waiting, threads = (
        1 - mean["model_share"],
        mean["data_wait_share"],
        machine()["threads"],
    )
    print(
        f"{arguments.preset}, batch {config.optim.batch_size}, {threads} threads: {mean['images_per_second']:.0f} images/s"
    )
    print(
        f"outside forward, backward and optimiser: {100 * outside:.2f} % of the steps, evaluation and checkpoints apart"
    )
    print(
        f"waiting for data: {100 * waiting:.2f} %; the whole run with evaluation, figures and MLflow: {seconds:.1f} s"
    )
    return {"machine": machine(), **mean, "share_outside_model": outside, "seconds": seconds}
