"""A sweep on Ray Tune, which starts trials where there is room, and again where a process or node died, and brings results.

What a trial is, and which one is next, is the driver's. A trial of one process without a GPU is a Tune function in an actor that
the next trial reuses (0.3 s a trial); one with a GPU or with several processes drives Ray Train workers from a Tune function.
Trials end by a stop sign that they look for (see `trial.py`), never by being killed: they leave a checkpoint, a closed log, and
nothing on the cluster.
"""

import contextlib
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.search import Searcher

from cutslots.launch import trial
from cutslots.launch.connect import Resources
from cutslots.launch.driver import Driver
from cutslots.launch.trial import Task
from cutslots.launch.workers import DIED, TASK, Body, ending_of, in_function, on_workers, reported

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
