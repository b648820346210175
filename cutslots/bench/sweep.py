"""Overheads of a sweep: trials that train nothing, the start of a training, MLflow."""

import os
import subprocess
import sys
import tempfile
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import psutil

from cutslots import options
from cutslots.bench.timing import measure, provenance, show
from cutslots.data import prepare, sources
from cutslots.errors import InputError
from cutslots.sweep import ray_backend
from cutslots.sweep.cluster import Resources, connected, fitting
from cutslots.sweep.driver import RunOptions, SweepDriver
from cutslots.sweep.spec import Sweep, loguniform
from cutslots.sweep.trial import Report, TrialResult, TrialSpec
from cutslots.tracking import RunLog, children, events, find_runs, ready
from cutslots.tracking.journal import latest
from cutslots.train.config import preset
from cutslots.train.ranks import Ranks

# What a training logs: so many times, so many metrics.
READINGS, METRICS = 20, 26


def orchestration(
    *,
    trials: Annotated[list[int] | None, "trials of one worker (default 10,100,500)"] = None,
    worker_trials: Annotated[int, "trials of two Ray Train workers, 0 for none"] = 5,
    sweep: Annotated[Path | None, "sweep file to time until its first training step"] = None,
) -> dict[str, Any]:
    """Seconds and memory per trial that trains nothing, and seconds to a sweep's first step."""
    counts = [10, 100, 500] if trials is None else trials
    if min(counts) < 1 or worker_trials < 0:
        raise InputError(f"--trials must be at least 1, got {counts}; --worker-trials at least 0.")
    results: dict[str, Any] = {"cells": []}
    with tempfile.TemporaryDirectory(prefix="cutslots-bench-") as home:
        os.environ["CUTSLOTS_HOME"] = home
        data = Path(home) / "data" / "scenes"
        prepare("scenes", None, data, sources.load("scenes").Options())
        for workers, sizes in ((1, counts), (2, [worker_trials] if worker_trials else [])):
            if sizes:
                results["cells"] += _sweeps(Resources(workers, cpus=1), sizes, data)
        show(results["cells"], *results["cells"][0])
        if sweep:
            results["first_step_seconds"] = _first_step(sweep, Path(home) / "runs")
            print(f"{sweep}: {results['first_step_seconds']:.1f} s to the first training step")
    return provenance() | results


def _sweeps(need: Resources, counts: list[int], data: Path) -> list[dict[str, Any]]:
    """Results of one sweep per number of trials, all on one Ray cluster."""
    start, cells = time.perf_counter(), []
    with (
        open(data.parent / "ray.txt", "a") as log,
        redirect_stdout(log),
        redirect_stderr(log),
        connected(need.train) as nodes,
    ):
        ray_seconds, parallel = time.perf_counter() - start, fitting(need, nodes)
        for count in counts:
            first, _ = _sweep(need, data, 1, parallel)  # pays for the start of its processes
            seconds, megabytes = _sweep(need, data, count, parallel)
            cell = {"workers": need.workers, "trials": count, "seconds_a_trial": seconds / count}
            cell |= {"first_trial_seconds": first, "idle_trial_megabytes": megabytes}
            cells.append(cell | {"ray_seconds": ray_seconds, "at_a_time": parallel})
    return cells


def _sweep(need: Resources, data: Path, count: int, parallel: int) -> tuple[float, float]:
    """Seconds of a sweep of `count` trials, and the median memory of a worker process in MB."""
    space = {"optim.learning_rate": loguniform(1e-5, 1e-2)}
    name = f"bench-{time.time_ns()}"
    sweep = Sweep(name, "scenes", "small", space, trials=count, halving=None, search="random")
    home = data.parent / name
    driver = SweepDriver(sweep, home, RunOptions(data, need))
    start = time.perf_counter()
    ray_backend.run(driver, need, parallel, 0, _report_memory)
    seconds, rows = time.perf_counter() - start, driver.trials()
    if [row.state for row in rows] != ["finished"] * count:
        raise RuntimeError(f"trials failed: {[(row.state, row.cause) for row in rows][:3]}")
    return seconds, median(row.value or 0 for row in rows)


def _report_memory(task: TrialSpec, report: Report, ranks: Ranks) -> TrialResult:
    """A trial that trains nothing; its score is its process's memory in MB."""
    memory = psutil.Process().memory_full_info()  # on Linux shared pages count by their share
    return TrialResult("finished", 1, {"ari_fg": getattr(memory, "pss", memory.rss) / 1e6})


def _first_step(sweep: Path, runs: Path) -> float:
    """Seconds from the start of a sweep's command to the first step of its first training."""
    command, start = [sys.executable, str(sweep), "--name", "first-step"], time.time()
    null = subprocess.DEVNULL
    process = subprocess.Popen(command, stdout=null, stderr=null)
    try:
        while process.poll() is None:
            for journal in runs.glob("*/journal.jsonl"):
                for event in events(journal.parent):
                    if event["kind"] == "params":  # logged right before the first step
                        return event["time"] / 1000 - start
            time.sleep(0.1)
    finally:
        process.terminate()
        process.wait(120)
    raise RuntimeError(f"{sweep} ended before a training began")


def tracking(
    *, trials: Annotated[int, "trials of the sweep that is read"] = 1000
) -> dict[str, Any]:
    """Seconds to log a metric, to log a trial to MLflow, and to read a sweep from MLflow."""
    if trials < 1:
        raise InputError(f"--trials must be at least 1, got {trials}.")
    params, values = options.flat(preset("small")), {f"train/{i}": 0.1 for i in range(METRICS)}
    with tempfile.TemporaryDirectory(prefix="cutslots-bench-") as home:
        os.environ["CUTSLOTS_HOME"] = home
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        ready()
        with RunLog(Path(home, "sweep"), experiment="bench", run_name="sweep") as parent:
            call = measure(lambda: parent.metrics(0, values), 0.02)
            tail = measure(lambda: latest(parent.run_dir), 0.02)
        start = time.perf_counter()
        for number in range(trials):
            name, above = f"trial-{number}", parent.run_id
            log = RunLog(Path(home, name), experiment="bench", run_name=name, parent_run_id=above)
            with log:
                log.params(params)
                log.tags({"sweep": "bench", "sweep.bench": str(number), "state": "finished"})
                for step in range(READINGS):
                    log.metrics(step, values)
                log.metrics(READINGS, {"best/ari_fg": 1 / (1 + number)})
        writing = time.perf_counter() - start
        query, best = "tags.sweep = 'bench'", ['metrics."best/ari_fg" DESC']
        results = {
            "trials": trials,
            "metrics_call_seconds": call.median,
            "latest_seconds": tail.median,
            "log_trial_seconds": writing / trials,
            "children_seconds": measure(lambda: children(str(parent.run_id))).median,
            "table_seconds": measure(lambda: find_runs(query, best, limit=100)).median,
        }
    show([results], *results)
    return provenance() | results
