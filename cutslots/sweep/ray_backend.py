"""A sweep on Ray Tune, which starts trials where there is room, and again where a process or node died, and brings results.

What a trial is, and which one is next, is the driver's. A trial of one process without a GPU is a Tune function in an actor that
the next trial reuses (0.3 s a trial); one with a GPU or with several processes drives Ray Train workers from a Tune function.
Trials end by a stop sign that they look for (see `trial.py`), never by being killed: they leave a checkpoint, a closed log, and
nothing on the cluster.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune
from ray.tune.search import Searcher

from cutslots.sweep import trial
from cutslots.sweep.cluster import Resources
from cutslots.sweep.driver import Driver
from cutslots.sweep.trial import Ending, Report, Task
from cutslots.train.ranks import Ranks

DRIVER = "cutslots_driver"  # a resource of nodes that are not lost, see cluster/gpu.yaml
START_SECONDS = 10.0
STOP_SECONDS = (
    120.0  # how long trials may take to write their checkpoints when the sweep is asked to end
)


def run(
    driver: Driver, resources: Resources, concurrent: int, retries: int, body: Body = trial.run
) -> bool:
    """Run the driver's trials until none is left; returns False when it was asked to stop before.

    Args:
        concurrent: trials at a time.
        retries: how often a trial is started again when its process or node has died.
        body: what a trial does.

    Raises:
        KeyboardInterrupt: asked to stop twice.
    """
    if resources.train:
        # Where the cluster keeps a node for it, Tune's part lies there: with a lost worker node only its own trials move.
        part: dict[str, float] = (
            {DRIVER: 1} if ray.cluster_resources().get(DRIVER) else {"CPU": 0.01}
        )
        trainable = tune.with_resources(on_workers(body, resources, driver.folder, retries), part)
    else:
        trainable = tune.with_resources(in_function(body), {"CPU": resources.cpus})
    tuner = tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            search_alg=_Search(driver),
            num_samples=-1,  # the driver knows when it is over
            max_concurrent_trials=concurrent,
            reuse_actors=not resources.train,
            trial_name_creator=lambda each: f"trial-{each.trial_id}",
            trial_dirname_creator=lambda each: str(each.trial_id),
        ),
        run_config=tune.RunConfig(
            name=f"tune-{os.getpid()}-{int(time.time())}",
            storage_path=str(driver.folder / "ray"),
            failure_config=tune.FailureConfig(max_failures=retries),
            callbacks=[_Watch(driver)],
            verbose=0,
        ),
    )
    with _signals(driver), contextlib.suppress(_Unheeded):
        tuner.fit()
    return driver.stopping_since is None


class _Unheeded(KeyboardInterrupt):
    """Trials do not end though they were asked to. No `Exception`, which Tune would take for its own."""


class _Search(Searcher):
    """What Tune asks for configurations; the driver answers."""

    def __init__(self, driver: Driver) -> None:
        super().__init__()
        self._driver, self._numbers, self._endings = driver, {}, {}

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune keeps a copy that nobody reads

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        task = self._driver.next()
        if task is None:
            return Searcher.FINISHED if self._driver.exhausted else None
        self._numbers[trial_id] = task.number
        return {TASK: task.to_json()}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        number = self._numbers[trial_id]
        if ending_of(result):
            self._endings[number] = result
        elif evaluation := reported(result):
            self._driver.reported(number, *evaluation)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        if error:
            return  # Tune tells `_Watch` why
        number = self._numbers[trial_id]
        last = self._endings.pop(number, None) or result or {}
        ending = ending_of(last)
        if ending is None:
            self._driver.died(number, "its process ended without a result")
        elif last.get(DIED):
            self._driver.died(number, ending.cause or "its processes died")
        else:
            self._driver.ended(number, ending)

    def save(self, checkpoint_path: str) -> None: ...

    def restore(self, checkpoint_path: str) -> None: ...


class _Watch(tune.Callback):
    """Hears of dead processes, and ends a sweep whose trials do not heed the stop sign."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._driver.recovering(_number(trial), "its process or node died")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._driver.died(
            _number(trial), f"its process died {trial.num_failures} times: {_last_words(trial)}"
        )

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        since = self._driver.stopping_since
        if since is None:
            return
        waited = time.monotonic() - since
        if waited > STOP_SECONDS:
            self._driver.say(
                f"trials did not end within {STOP_SECONDS:.0f} s; they are killed, their last checkpoints stay"
            )
            raise _Unheeded
        if waited > START_SECONDS and not self._driver.any_started():
            raise _Unheeded  # they wait for nodes, and look for no sign


def _last_words(trial: Any) -> str:
    """The line in which Tune names the error of a trial."""
    try:
        lines = Path(trial.error_file).read_text(encoding="utf-8").splitlines()
    except (OSError, TypeError):
        return "no error is known"
    named = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
    return (named or lines or ["no error is known"])[-1]


def _number(trial: Any) -> int:
    return Task.from_json(trial.config[TASK]).number


@contextlib.contextmanager
def _signals(driver: Driver) -> Iterator[None]:
    """Ctrl-C and SIGTERM ask all trials to write a checkpoint and end; a second one does not wait for that."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: Any) -> None:
        if driver.stopping_since is not None:
            raise KeyboardInterrupt
        driver.stop()
        driver.say(
            f"{signal.Signals(number).name}: trials write their checkpoints and end; once more ends them at once"
        )

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


TASK, REPORT, ENDING, DIED = "task", "report", "ending", "died"

# What a trial does: `trial.run`, or nothing at all where Ray's own time is measured.
Body = Callable[[Task, Report, Ranks], Ending]


def in_function(body: Body) -> Callable[[Mapping[str, Any]], None]:
    """A Tune function that runs a trial in Tune's own actor."""

    def function(config: Mapping[str, Any]) -> None:
        task = Task.from_json(config[TASK])
        ending = body(task, lambda step, scores: tune.report(_as_report(step, scores)), Ranks())
        tune.report(_as_result(ending))

    return function


def on_workers(
    body: Body, resources: Resources, folder: Path, retries: int
) -> Callable[[Mapping[str, Any]], None]:
    """A Tune function that drives one trial on Ray Train workers."""

    def function(config: Mapping[str, Any]) -> None:
        from ray import train
        from ray.train.torch import TorchTrainer
        from ray.tune.integration.ray_train import TuneReportCallback

        number = Task.from_json(config[TASK]).number
        # A little less than whole CPUs: Tune's part of the trial takes 0.01, and a machine of two shall hold two workers.
        each = {"CPU": 0.99 * resources.cpus, **({"GPU": resources.gpus} if resources.gpus else {})}
        trainer = TorchTrainer(
            _in_worker(body, resources.gpus > 0),
            train_loop_config=dict(config),
            scaling_config=train.ScalingConfig(
                num_workers=resources.workers, use_gpu=resources.gpus > 0, resources_per_worker=each
            ),
            run_config=train.RunConfig(
                name=f"trial-{number}-{tune.get_context().get_trial_id()}",
                storage_path=str(folder / "ray"),
                failure_config=train.FailureConfig(
                    max_failures=retries, controller_failure_limit=3
                ),
                callbacks=[TuneReportCallback()],
            ),
        )
        try:
            trainer.fit()
        except train.TrainingFailedError as error:  # type: ignore[attr-defined]
            tune.report({**_as_result(Ending("failed", cause=_cause(error))), DIED: True})

    return function


def _in_worker(body: Body, gpus: bool) -> Callable[[Mapping[str, Any]], None]:
    """A trial on one of its Ray Train workers. Every worker reports: a report waits for all of them."""

    def function(config: Mapping[str, Any]) -> None:
        from ray import train
        from ray.train.torch import get_device

        if gpus and not torch.cuda.is_available():
            raise RuntimeError(
                "this node has no usable GPU"
            )  # another one may: the trial begins again
        task = replace(Task.from_json(config[TASK]), device=str(get_device()))
        ending = body(
            task, lambda step, scores: train.report(_as_report(step, scores)), Ranks.joined()
        )
        train.report(_as_result(ending))

    return function


# What Tune is told is text: it flattens nested dictionaries on their way.


def _as_report(step: int, scores: Mapping[str, float]) -> dict[str, str]:
    return {REPORT: json.dumps([step, dict(scores)])}


def _as_result(ending: Ending) -> dict[str, Any]:
    return {ENDING: json.dumps(asdict(ending))}


def reported(result: Mapping[str, Any]) -> tuple[int, dict[str, float]] | None:
    """Step and scores of an evaluation, None when the result is none."""
    return tuple(json.loads(result[REPORT])) if REPORT in result else None  # type: ignore[return-value]


def ending_of(result: Mapping[str, Any]) -> Ending | None:
    """The ending that a result brings, None when it brings none."""
    return Ending(**json.loads(result[ENDING])) if ENDING in result else None


def _cause(error: BaseException) -> str:
    """The first worker's own error in one line, of what Ray wraps around it."""
    failures = getattr(error, "worker_failures", None) or {
        0: getattr(error, "controller_failure", error)
    }
    first = failures[min(failures)]
    text = str(getattr(first, "_base_exc", None) or getattr(first, "cause", None) or first)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else type(first).__name__
