"""One trial of a sweep, in a Tune function, a Ray Train worker, or a debugger.

A trial trains in the folder of its run, which is named by its hash, so that it resumes from the
newest checkpoint there on any machine. It returns a `TrialResult` and raises only what a restart
may cure: a deterministic failure is not repeated.
"""

import contextlib
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
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
    """What a process needs to run a trial. All values can be written as JSON.

    Attributes:
        number, label, sweep: for logs and tags.
        config: the configuration, from `to_json`.
        data: a prepared folder or its URI.
        run_dir: the folder of the run, at the same path on every node.
        parent_run_id: the MLflow id of the sweep's run.
        stops: the folder of the stop files, at the same path on every node.
        tests: prepared datasets whose test split is scored at the end.
        threads: threads of torch; 0 keeps its default.
        device: None takes the GPU if there is one.
    """

    number: int
    label: str
    sweep: str
    config: str
    data: str
    run_dir: str
    experiment: str
    parent_run_id: str | None
    stops: str
    tests: Sequence[str] = ()
    threads: int = 0
    device: str | None = None


@dataclass(frozen=True)
class TrialResult:
    """How a trial ended.

    Attributes:
        state: finished, pruned, interrupted or failed; see `MLFLOW_STATUS`.
        scores: the best evaluation so far, and its `step`.
        cause: the reason of a failure.
    """

    state: str
    step: int = 0
    scores: dict[str, float] = field(default_factory=dict)
    cause: str | None = None


class StopFile:
    """Whether this trial should stop: its own stop file exists, or the one for all trials."""

    def __init__(self, folder: Path, number: int) -> None:
        self._own, self._all = folder / str(number), folder / STOP_ALL
        self._next_look, self._exists = 0.0, False

    def __call__(self) -> bool:
        now = time.monotonic()
        if not self._exists and now >= self._next_look:
            self._exists = self._own.exists() or self._all.exists()
            self._next_look = now + LOOK_SECONDS
        return self._exists

    def look_again(self) -> None:
        """Check for the files at the next call, even if the last check was a moment ago."""
        self._next_look = 0.0

    @property
    def state(self) -> str:
        """The state of a trial that stops now."""
        return "pruned" if self._own.exists() else "interrupted"


class _Reporter(Callback):
    """Reports every evaluation to the sweep, which may decide to stop the trial."""

    def __init__(self, report: Report, stop: StopFile) -> None:
        self._report, self._stop = report, stop

    def on_evaluate(self, step: int, scores: Mapping[str, float], sample: Sample) -> None:
        self._report(step, scores)
        self._stop.look_again()


def run(spec: TrialSpec, report: Report, ranks: Ranks) -> TrialResult:
    """Run a trial to its end, from its newest checkpoint if it has one.

    Args:
        report: called with the step and scores of every evaluation, on every rank.
        ranks: the processes that train this trial together.
    """
    config, run_dir = from_json(spec.config), Path(spec.run_dir)
    if spec.threads:
        torch.set_num_threads(spec.threads)
    stop = StopFile(Path(spec.stops), spec.number)
    if ranks.any(stop()):
        return TrialResult(stop.state)
    reporter = _Reporter(report, stop)
    if not ranks.is_first:
        try:
            return _result(_fit(spec, config, reporter, stop, ranks), config, stop)
        except AGREED as error:
            stopped = isinstance(error, BusyError) and stop()
            return TrialResult(stop.state) if stopped else TrialResult("failed", cause=str(error))
    with _log_file(run_dir / LOG) as console:
        terminal = ProgressBar(console, live=False)
        terminal.say(f"trial {spec.number} of {spec.sweep}: {spec.label}")
        tags = {"sweep": spec.sweep, f"sweep.{spec.sweep}": spec.number, "label": spec.label}
        tags["mlflow.note.content"] = spec.label
        run, parent = (config, spec.data, run_dir, spec.experiment), spec.parent_run_id
        logger = MLflowCallback(*run, terminal, parent_run_id=parent, tags=tags)
        # The reporter comes first: it waits for all ranks, and an error of the other two must not
        # keep them waiting.
        callbacks = CallbackList([reporter, logger, terminal])
        status: Status = "KILLED"
        try:
            result = _run_first_rank(spec, config, callbacks, logger, terminal, stop, ranks)
            status = MLFLOW_STATUS[result.state]
        finally:
            logger.close(status)
        return result


def _run_first_rank(
    spec: TrialSpec,
    config: RunConfig,
    callbacks: CallbackList,
    logger: MLflowCallback,
    terminal: ProgressBar,
    stop: StopFile,
    ranks: Ranks,
) -> TrialResult:
    try:
        trained = _fit(spec, config, callbacks, stop, ranks)
        result = _result(trained, config, stop)
        if result.state != "finished":
            logger.ended(result.state)
            return result
        logger.finished(trained)
        for name in spec.tests:
            _score(name, spec, config, logger, terminal)
        return result
    except BusyError as error:  # the log in this folder is that of the process that trains there
        terminal.say(str(error))
        return TrialResult(stop.state) if stop() else TrialResult("failed", cause=str(error))
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
        return TrialResult("failed", cause=f"{name}{error}".partition("\n")[0])


def _fit(
    spec: TrialSpec, config: RunConfig, callback: Callback, stop: StopFile, ranks: Ranks
) -> Result:
    """Train, after waiting for any other process that trains in the run's folder."""
    deadline = time.monotonic() + BUSY_SECONDS
    with ranks.agreed():
        folder = local(spec.data)
    options = {"device": spec.device, "resume": True, "ranks": ranks, "stop": stop}
    while True:
        try:
            return fit(config, folder, Path(spec.run_dir), callback, **options)
        except BusyError:
            if ranks.any(time.monotonic() > deadline or stop()):
                raise
            time.sleep(1.0)


def _result(trained: Result, config: RunConfig, stop: StopFile) -> TrialResult:
    state = "finished" if trained.step >= config.train.steps else stop.state
    return TrialResult(state, trained.step, trained.best)


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
        size = config.optim.batch_size
        batches = Batches(folder, split, size, shuffle=False, drop_last=False)
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


@contextlib.contextmanager
def _log_file(path: Path) -> Iterator[Console]:
    """A console that writes to `path`; so do standard output and error meanwhile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        open(path, "a", buffering=1, encoding="utf-8") as file,
        contextlib.redirect_stdout(file),
        contextlib.redirect_stderr(file),
    ):
        yield Console(file=file, width=160)
