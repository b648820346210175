"""Run the trials of a sweep on Ray Tune, and restart those whose process or node dies.

Three parts of Ray are replaced because they would lose trials or results. `OptunaSearch` keeps its
state in Tune's experiment checkpoint, which is incomplete after a killed driver; our study is on
disk after every trial, and `_Search` only passes it on. `ASHAScheduler` kills the actor of a
stopped trial; ours stops after a step, with a checkpoint, and Optuna stores its rungs for a resume.
`MLflowLoggerCallback` logs from the driver, without a queue for an absent server; a trial logs its
own run. Tune still gets every trial's values as its config and every evaluation as flat metrics
(`ari_fg`, `step`, ...), so that the `ResultGrid` and Ray's dashboard show them.

A trial of one process without a GPU is a Tune function in an actor that the next trial reuses
(0.3 s per trial); any other drives Ray Train workers from a Tune function (15 s).
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol

import ray
import torch
from ray import train, tune
from ray.tune.search import Searcher

from cutslots.sweep import trial
from cutslots.sweep.cluster import Resources
from cutslots.sweep.trial import Report, TrialResult, TrialSpec
from cutslots.train.ranks import Ranks

DRIVER = "cutslots_driver"  # a resource of nodes that are not preempted, see cluster/gpu.yaml
SPEC, BEST = "trial", "best/"  # keys of a trial's config and of its last report

# What a trial runs: `trial.run`, or nothing when Ray's overhead is measured.
RunTrial = Callable[[TrialSpec, Report, Ranks], TrialResult]


class Driver(Protocol):
    """What runs on Ray: see `SweepDriver`."""

    folder: Path

    @property
    def exhausted(self) -> bool: ...
    def next(self) -> tuple[dict[str, Any], TrialSpec] | None: ...
    def on_report(self, number: int, step: int, scores: Mapping[str, float]) -> None: ...
    def on_restart(self, number: int) -> None: ...
    def on_end(self, number: int, result: TrialResult) -> None: ...
    def on_step(self) -> bool: ...


def run(
    driver: Driver,
    resources: Resources,
    concurrent: int,
    retries: int,
    run_trial: RunTrial = trial.run,
) -> tune.ResultGrid | None:
    """Run the driver's trials until none is left or the sweep is stopped; returns Tune's results.

    Args:
        concurrent: how many trials run at a time.
        retries: how often a trial is restarted after its process or node died.
    """
    if resources.train:
        # On a node that is not preempted, if there is one: a lost worker moves only its trials.
        kept = ray.cluster_resources().get(DRIVER)
        on_workers = _on_workers(run_trial, resources, driver.folder, retries)
        trainable = tune.with_resources(on_workers, {DRIVER: 1} if kept else {"CPU": 0.01})
    else:

        def in_actor(config: Mapping[str, Any]) -> None:
            spec = TrialSpec(**config[SPEC])
            tune.report(_metrics(run_trial(spec, _reporting(tune.report), Ranks())))

        trainable = tune.with_resources(in_actor, {"CPU": resources.cpus})
    tuner = tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            search_alg=_Search(driver),
            num_samples=-1,  # the driver decides when the sweep is complete
            max_concurrent_trials=concurrent,
            reuse_actors=not resources.train,
            trial_name_creator=_name,
            trial_dirname_creator=lambda tune_trial: str(tune_trial.trial_id),
        ),
        run_config=tune.RunConfig(
            name=f"tune-{os.getpid()}-{int(time.time())}",
            storage_path=str(driver.folder / "ray"),
            failure_config=tune.FailureConfig(max_failures=retries),
            callbacks=[_Watch(driver)],
            verbose=0,
        ),
    )
    with contextlib.suppress(_UnresponsiveTrials):
        return tuner.fit()


class _UnresponsiveTrials(KeyboardInterrupt):
    """Trials ignore the stop request. Not an `Exception`, or Tune would swallow it."""


def _name(tune_trial: Any) -> str:
    """The name of a trial in Tune's table: its number and settings."""
    spec = tune_trial.config[SPEC]
    return f"{spec['number']}_" + re.sub(r"[^\w.+-]+", "_", spec["label"])[:80]


class _Search(Searcher):
    """Passes the driver's trials to Tune, and Tune's results to the driver."""

    def __init__(self, driver: Driver) -> None:
        super().__init__()
        self._driver, self._numbers, self._results = driver, {}, {}

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune saves a copy that nothing reads

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        planned = self._driver.next()
        if planned is None:
            return Searcher.FINISHED if self._driver.exhausted else None
        params, spec = planned
        self._numbers[trial_id] = spec.number
        return {**params, SPEC: asdict(spec)}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        number = self._numbers[trial_id]
        if "state" in result:
            self._results[number] = result
        else:
            self._driver.on_report(number, result["step"], result)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        if error:
            return  # Tune passes the reason to `_Watch`
        number = self._numbers[trial_id]
        last = self._results.pop(number, None) or result or {}
        if "state" not in last:
            self._driver.on_end(number, TrialResult("failed", cause="its process ended early"))
            return
        best = {name.removeprefix(BEST): last[name] for name in last if name.startswith(BEST)}
        ended = TrialResult(last["state"], last["step"], best, last.get("cause"))
        self._driver.on_end(number, ended)

    def save(self, checkpoint_path: str) -> None: ...

    def restore(self, checkpoint_path: str) -> None: ...


class _Watch(tune.Callback):
    """Reports dead processes, and ends a sweep whose trials ignore the stop request."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._driver.on_restart(trial.config[SPEC]["number"])

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        lines = []
        with contextlib.suppress(OSError, TypeError):
            lines = Path(trial.error_file).read_text(encoding="utf-8").splitlines()
        errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
        last = (errors or lines or ["unknown error"])[-1]
        cause = f"its process died {trial.num_failures} times: {last}"
        self._driver.on_end(trial.config[SPEC]["number"], TrialResult("failed", cause=cause))

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        if self._driver.on_step():
            raise _UnresponsiveTrials


def _on_workers(
    run_trial: RunTrial, resources: Resources, folder: Path, retries: int
) -> Callable[[Mapping[str, Any]], None]:
    """A Tune function that runs a trial on Ray Train workers."""

    def on_worker(config: Mapping[str, Any]) -> None:
        from ray.train.torch import get_device

        if resources.gpus and not torch.cuda.is_available():
            raise RuntimeError("this node has no usable GPU")  # restarts the trial on another one
        spec = replace(TrialSpec(**config[SPEC]), device=str(get_device()))
        # A report waits until every worker reports.
        train.report(_metrics(run_trial(spec, _reporting(train.report), Ranks.joined())))

    def function(config: Mapping[str, Any]) -> None:
        from ray.train.torch import TorchTrainer
        from ray.tune.integration.ray_train import TuneReportCallback

        # The Tune function takes 0.01 CPUs, and two workers must still fit on two CPUs.
        worker = {"CPU": 0.99 * resources.cpus}
        worker |= {"GPU": resources.gpus} if resources.gpus else {}
        trainer = TorchTrainer(
            on_worker,
            train_loop_config=dict(config),
            scaling_config=train.ScalingConfig(
                num_workers=resources.workers,
                use_gpu=resources.gpus > 0,
                resources_per_worker=worker,
            ),
            run_config=train.RunConfig(
                name=f"trial-{config[SPEC]['number']}-{tune.get_context().get_trial_id()}",
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
            failures = getattr(error, "worker_failures", None) or {0: error}
            lines = str(failures[min(failures)]).strip().splitlines()
            cause = lines[-1].strip() if lines else type(error).__name__
            tune.report(_metrics(TrialResult("failed", cause=cause)))

    return function


def _reporting(report: Callable[[dict[str, Any]], None]) -> Report:
    return lambda step, scores: report({**scores, "step": step})


def _metrics(result: TrialResult) -> dict[str, Any]:
    """The last report of a trial: its state, and its best scores with and without `best/`."""
    best = {f"{BEST}{name}": value for name, value in result.scores.items()}
    cause = {"cause": result.cause} if result.cause else {}
    return {**result.scores, **best, **cause, "step": result.step, "state": result.state}
