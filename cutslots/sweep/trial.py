"""One trial of a sweep, in a Tune function, a Ray Train worker, or a debugger.

A trial trains in the folder of its run, which is named by its hash, so that it resumes from the
newest checkpoint there on any machine. It returns a `TrialResult` and raises only what a restart
may cure: a deterministic failure is not repeated.
"""

import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.console import Console

from cutslots.data import Batches, Manifest, dataset_name, local
from cutslots.errors import BusyError, InputError
from cutslots.runs.mlflow_callback import MLflowCallback
from cutslots.tracking.run_log import Status
from cutslots.train import Callback, NonFiniteLossError, Result, evaluate, fit, load_model
from cutslots.train.callbacks import CallbackList, ProgressBar, Sample
from cutslots.train.config import RunConfig, from_json
from cutslots.train.inputs import check_data, pick_device
from cutslots.train.ranks import Ranks

# Final state of a trial -> status of its run in MLflow.
MLFLOW_STATUS: dict[str, Status] = {
    "finished": "FINISHED",
    "pruned": "FINISHED",  # stopped early by the sweep
    "interrupted": "KILLED",  # the sweep was stopped, and can be resumed
    "failed": "FAILED",
}
LOG = "log.txt"
STOP_ALL = "all"  # the stop file of all trials
LOOK_SECONDS = 0.5  # between checks for a stop file
BUSY_SECONDS = 86_400.0  # how long to wait for another process that trains in the run's folder
AGREED = (InputError, NonFiniteLossError)  # `fit` raises these on all ranks or on none

Report = Callable[[int, Mapping[str, float]], None]


@dataclass(frozen=True)
class TrialSpec:
    """What a process needs to run a trial. All values can be written as JSON."""

    number: int
    label: str
    sweep: str
    config: str  # from `to_json`
    data: str  # a prepared folder or its URI
    run_dir: str  # at the same path on every node, as is `stops`
    experiment: str
    parent_run_id: str | None  # the MLflow id of the sweep's run
    stops: str  # the folder of the stop files
    tests: Sequence[str] = ()  # prepared datasets whose test split is scored at the end
    threads: int = 0  # of torch; 0 keeps its default
    device: str | None = None  # None takes the GPU if there is one


@dataclass(frozen=True)
class TrialResult:
    """How a trial ended."""

    state: str  # a key of `MLFLOW_STATUS`
    step: int = 0
    scores: dict[str, float] = field(default_factory=dict)  # best evaluation so far, and its `step`
    cause: str | None = None  # of a failure


class SweepCallback(Callback):
    """Reports every evaluation to the sweep, and checks whether the trial should stop.

    It should if its own stop file exists or the one of all trials.
    """

    def __init__(self, report: Report, stops: Path, number: int) -> None:
        self._report, self._own, self._all = report, stops / str(number), stops / STOP_ALL
        self._next_look, self._stopped = 0.0, False

    def on_evaluate(self, step: int, scores: Mapping[str, float], sample: Sample) -> None:
        self._report(step, scores)
        self._next_look = 0.0  # the sweep may have decided to stop this trial

    def stop(self) -> bool:
        """Whether the trial should stop now."""
        now = time.monotonic()
        if not self._stopped and now >= self._next_look:
            self._stopped = self._own.exists() or self._all.exists()
            self._next_look = now + LOOK_SECONDS
        return self._stopped

    def stopped(self, error: BusyError | None = None) -> TrialResult:
        """The result of a trial that stops now, or that gives up waiting for its folder."""
        if error and not self.stop():
            return TrialResult("failed", cause=str(error))
        return TrialResult("pruned" if self._own.exists() else "interrupted")


def run(spec: TrialSpec, report: Report, ranks: Ranks) -> TrialResult:
    """Run a trial to its end, from its newest checkpoint if it has one.

    Args:
        report: called with the step and scores of every evaluation, on every rank.
        ranks: the processes that train this trial together.
    """
    config, run_dir = from_json(spec.config), Path(spec.run_dir)
    if spec.threads:
        torch.set_num_threads(spec.threads)
    sweep = SweepCallback(report, Path(spec.stops), spec.number)
    if ranks.any(sweep.stop()):
        return sweep.stopped()
    if not ranks.is_first:
        try:
            return _fit(spec, config, sweep, sweep, ranks)[1]
        except BusyError as error:
            return sweep.stopped(error)
        except AGREED as error:
            return TrialResult("failed", cause=str(error))

    # Rank 0 also logs the run, and sends all output to a file in its folder.
    run_dir.mkdir(parents=True, exist_ok=True)
    with (
        open(run_dir / LOG, "a", buffering=1, encoding="utf-8") as file,
        redirect_stdout(file),
        redirect_stderr(file),
    ):
        terminal = ProgressBar(Console(file=file, width=160), live=False)
        terminal.say(f"trial {spec.number} of {spec.sweep}: {spec.label}")
        tags = {"sweep": spec.sweep, f"sweep.{spec.sweep}": spec.number, "label": spec.label}
        tags["mlflow.note.content"] = spec.label
        run, parent = (config, spec.data, run_dir, spec.experiment), spec.parent_run_id
        logger = MLflowCallback(*run, terminal, parent_run_id=parent, tags=tags)
        # The sweep comes first: its report waits for all ranks, and an error of the other two must
        # not keep them waiting.
        callbacks = CallbackList([sweep, logger, terminal])
        result = TrialResult("interrupted")  # unless it ends by itself
        try:
            trained, outcome = _fit(spec, config, callbacks, sweep, ranks)
            if outcome.state == "finished":
                logger.finished(trained)
                for name in spec.tests:
                    _score(name, spec, config, logger, terminal)
            else:
                logger.ended(outcome.state)
            result = outcome
        except (
            BusyError
        ) as error:  # the log in this folder is that of the process that trains there
            terminal.say(str(error))
            result = sweep.stopped(error)
        except Exception as error:
            terminal.say("".join(traceback.format_exception(error)))
            # Faults of a disk or GPU may be temporary, or of one machine.
            causes = (error, error.__cause__)
            local_fault = any(isinstance(e, OSError) or "CUDA error" in str(e) for e in causes)
            if local_fault or (ranks.size > 1 and not isinstance(error, AGREED)):
                # Other ranks may wait for this one, so the whole group ends and restarts.
                logger.ended("interrupted")
                raise
            name = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
            logger.ended("failed", f"{name}{error}")
            result = TrialResult("failed", cause=f"{name}{error}".partition("\n")[0])
        finally:
            logger.close(MLFLOW_STATUS[result.state])
        return result


def _fit(
    spec: TrialSpec, config: RunConfig, callback: Callback, sweep: SweepCallback, ranks: Ranks
) -> tuple[Result, TrialResult]:
    """Train, after waiting for any other process that trains in the run's folder."""
    deadline = time.monotonic() + BUSY_SECONDS
    with ranks.agreed():
        folder = local(spec.data)
    options = {"device": spec.device, "resume": True, "ranks": ranks, "stop": sweep.stop}
    while True:
        try:
            trained = fit(config, folder, Path(spec.run_dir), callback, **options)
            break
        except BusyError:
            if ranks.any(time.monotonic() > deadline or sweep.stop()):
                raise
            time.sleep(1.0)
    finished = trained.step >= config.train.steps
    state = "finished" if finished else sweep.stopped().state
    return trained, TrialResult(state, trained.step, trained.best)


def _score(
    name: str, spec: TrialSpec, config: RunConfig, logger: MLflowCallback, terminal: ProgressBar
) -> None:
    """Score the best weights on the test split of a dataset, or log why that is impossible."""
    try:
        folder = local(name)
        manifest = Manifest.load(folder)
        others = [split for split in manifest.splits if split != "train"]
        split = "test" if "test" in others else others[0]
        device = pick_device(spec.device)
        model = load_model(Path(spec.run_dir), device)
        batches = Batches(folder, split, config.optim.batch_size, shuffle=False, drop_last=False)
        check_data(model, batches)
        scores, _ = evaluate(model, batches, device)
        prefix = f"{dataset_name(manifest)}/{split}"
        shown = [f"{score} {scores[score]:.4g}" for score in ("ari_fg", "miou", "mse")]
        terminal.say(f"{prefix}: {'  '.join(shown)}")
        if logger.log:
            values = {f"{prefix}/{score}": value for score, value in scores.items()}
            logger.log.metrics(config.train.steps, values)
    except Exception as error:  # such as no memory for a second model; the training is complete
        terminal.say(f"no scores on {name}: {error}")
