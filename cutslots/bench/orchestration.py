"""What a sweep costs besides its trainings: seconds and memory of trials that do nothing, seconds to the first step."""

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import psutil

from cutslots.bench._timing import machine
from cutslots.data import prepare, sources
from cutslots.errors import InputError
from cutslots.sweep.cluster import Resources, connected
from cutslots.sweep.driver import SweepContext, SweepDriver
from cutslots.sweep.spec import Sweep, loguniform
from cutslots.sweep.study import Study
from cutslots.sweep.trial import Report, TrialResult, TrialSpec
from cutslots.tracking import events
from cutslots.train.ranks import Ranks

SPACE = {"optim.learning_rate": loguniform(1e-5, 1e-2)}
IDLE_SECONDS = 6.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--trials",
        type=int,
        nargs="+",
        default=[10, 100, 500],
        help="trials of one worker (default 10 100 500)",
    )
    parser.add_argument(
        "--worker-trials",
        type=int,
        default=5,
        help="trials of two Ray Train workers, 0 for none (default 5)",
    )
    parser.add_argument(
        "--sweep", type=Path, help="a sweep file whose seconds to the first step are measured too"
    )


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run sweeps of trials that do nothing on a Ray cluster of this machine."""
    if min(arguments.trials) < 1 or arguments.worker_trials < 0:
        raise InputError(
            f"--trials {arguments.trials}, --worker-trials {arguments.worker_trials}: give at least 1 and 0."
        )
    figures: dict[str, Any] = {"machine": machine(), "cells": []}
    with tempfile.TemporaryDirectory(prefix="cutslots-bench-") as folder:
        os.environ["CUTSLOTS_HOME"] = folder
        data = Path(folder) / "data" / "scenes"
        prepare("scenes", None, data, sources.load("scenes").Options())
        for workers, counts in (
            (1, arguments.trials),
            (2, [arguments.worker_trials] if arguments.worker_trials else []),
        ):
            figures["cells"] += _sweeps(Resources(workers, cpus=1), counts, data, Path(folder))
        if arguments.sweep:
            figures["first_step_seconds"] = _first_step(arguments.sweep)
            print(
                f"{arguments.sweep}: {figures['first_step_seconds']:.1f} s to the first step of a training"
            )
    return figures


def _sweeps(
    need: Resources, counts: list[int], data: Path, folder: Path
) -> Iterator[dict[str, Any]]:
    """Figures of sweeps with so many trials each, on one cluster."""
    from cutslots.sweep import ray_backend as tune

    started = time.perf_counter()
    with open(folder / "ray.txt", "a") as said, _elsewhere(said), connected(need) as room:
        ready = time.perf_counter() - started
        for count in counts:
            # A first trial pays for the actors' start.
            first, _ = _timed(tune, need, data, folder, 1, room, _nothing)
            seconds, _ = _timed(tune, need, data, folder, count, room, _nothing)
            cell = {
                "workers": need.workers,
                "trials": count,
                "seconds_a_trial": seconds / count,
                "first_trial_seconds": first,
            }
            yield cell | {"ray_seconds": ready, "at_a_time": room}
            _tell(
                f"{count:>4} trials of {need}, {room} at a time: {seconds / count:.2f} s a trial; the first alone {first:.1f} s; "
                f"Ray itself starts in {ready:.1f} s"
            )
        if counts:
            _, memory = _timed(tune, need, data, folder, 1, room, _idle)
            yield {"workers": need.workers, "idle_trial_megabytes": memory}
            _tell(
                f"memory of an idle trial of {need}: {memory:.0f} MB over all its processes (shared pages by their share)"
            )


def _timed(
    tune: Any, need: Resources, data: Path, folder: Path, count: int, room: int, body: Any
) -> tuple[float, float]:
    """Seconds of a sweep, and the most memory its trials' processes had, in MB."""
    sweep = Sweep(
        f"bench-{time.time_ns()}",
        "scenes",
        "small",
        SPACE,
        trials=count,
        halving=None,
        search="random",
    )
    home = folder / "sweeps" / sweep.name
    driver = SweepDriver(
        Study(sweep, home), SweepContext(data, "scenes", "bench"), home, None, lambda text: None
    )
    with _Memory() as memory:
        start = time.perf_counter()
        tune.run(driver, need, room, 0, body)
        seconds = time.perf_counter() - start
    states = [row.state for row in driver.rows()]
    if states != ["finished"] * count:
        raise RuntimeError(
            f"{count} trials ended as {states}: {[row.cause for row in driver.rows() if row.cause][:1]}"
        )
    return seconds, memory.most


def _nothing(task: TrialSpec, report: Report, ranks: Ranks) -> TrialResult:
    return TrialResult("finished", 1, {"ari_fg": 1 / (1 + task.number)})


def _idle(task: TrialSpec, report: Report, ranks: Ranks) -> TrialResult:
    time.sleep(IDLE_SECONDS)
    return _nothing(task, report, ranks)


class _Memory(threading.Thread):
    """The most memory that processes of trials had together."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most, self._ends = 0.0, threading.Event()

    def __enter__(self) -> "_Memory":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        self.join()

    def run(self) -> None:
        while not self._ends.wait(1.0):
            total = 0
            for process in psutil.process_iter(["cmdline"]):
                name = " ".join(process.info["cmdline"] or [])
                if name.startswith("ray::") and not name.startswith("ray::IDLE"):
                    try:
                        total += process.memory_full_info().pss
                    except psutil.Error:
                        continue
            self.most = max(self.most, total / 1e6)


def _first_step(sweep: Path) -> float:
    """Seconds from a sweep's command to the first step of its first trial, with its data prepared and an empty tracking store."""
    runs = Path(os.environ["CUTSLOTS_HOME"]) / "runs"
    start = time.time()
    process = subprocess.Popen(
        [sys.executable, str(sweep), "--name", "first-step"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while process.poll() is None:
            journals = [path.parent for path in runs.glob("*/journal.jsonl")]
            # A trial logs its parameters when it has its model, right before its first step.
            begun = [
                event["time"] / 1000
                for run_dir in journals
                for event in events(run_dir)
                if event["kind"] == "params"
            ]
            if begun:
                return min(begun) - start
            time.sleep(0.1)
    finally:
        process.terminate()
        process.wait(120)
    raise RuntimeError(f"{sweep} ended before a training began")


@contextmanager
def _elsewhere(file: Any) -> Iterator[None]:
    with redirect_stdout(file), redirect_stderr(file):
        yield


def _tell(text: str) -> None:
    print(text, file=sys.__stdout__, flush=True)
