"""What runs in Ray's processes: a trial in a Tune actor, or spread over Ray Train workers. Imports no more than a trial needs."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from ray import tune

from cutslots.launch.connect import Resources
from cutslots.launch.trial import Ending, Report, Task
from cutslots.train.ranks import Ranks

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
