"""One trial of a sweep, in whatever process it has been given: a Tune function, one of several Ray Train workers, a debugger.

A trial lives in its run's folder, which is named by its signature: started again, on whatever machine, it goes on from the newest
checkpoint there. It ends with an `Ending` and not with an exception, so that nobody repeats a deterministic failure.
"""

import contextlib
import json
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from cutslots.data import Batches, Manifest, local
from cutslots.errors import BusyError, InputError
from cutslots.report.evaluation import set_name
from cutslots.runs.mlflow_callback import MLflowCallback
from cutslots.tracking.run_log import Status
from cutslots.train import Callback, NonFiniteLossError, Result, evaluate, fit, load_model
from cutslots.train.callbacks import CallbackList, ProgressBar, Sample
from cutslots.train.config import RunConfig, from_json
from cutslots.train.inputs import check_data, pick_device
from cutslots.train.ranks import Ranks

LOG = "log.txt"
ALL = "all"  # the stop sign of every trial
LOOK_SECONDS = 0.5
AGREED = (InputError, NonFiniteLossError)  # what `fit` raises on every rank when one raises it
BUSY_SECONDS = 86_400.0  # how long a trial waits for another process that has its folder: one that is dying, or another sweep's

Report = Callable[[int, Mapping[str, float]], None]


@dataclass(frozen=True)
class Task:
    """All that a process needs to run a trial; goes through JSON.

    Attributes:
        number, label, sweep: for people.
        config: the run, as `to_json` writes it.
        data: prepared folder, or the URI of one.
        run_dir: of the run; all processes that may run it see it under this path.
        parent_run_id: MLflow id of the sweep's run.
        stops: folder of stop signs.
        tests: sets whose test split is scored at the end.
        threads: of torch; 0 leaves it alone.
        device: None takes what there is.
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
    tests: tuple[str, ...] = ()
    threads: int = 0
    device: str | None = None

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Task":
        values = json.loads(text)
        return cls(**{**values, "tests": tuple(values["tests"])})


@dataclass(frozen=True)
class Ending:
    """How a trial ended.

    Attributes:
        state: finished, pruned (the sweep ended it), interrupted (the sweep itself ends; it can go on later), failed.
        scores: of the best evaluation so far.
        cause: of a failure, in a sentence.
    """

    state: str
    step: int = 0
    scores: dict[str, float] = field(default_factory=dict)
    cause: str | None = None


class StopSign:
    """Whether somebody wants this trial to end: a file of its number, or one for all, in a folder that all machines see."""

    def __init__(self, folder: Path, number: int) -> None:
        self._own, self._all = folder / str(number), folder / ALL
        self._next = 0.0
        self._set = False

    def __call__(self) -> bool:
        now = time.monotonic()
        if not self._set and now >= self._next:
            self._set, self._next = self._own.exists() or self._all.exists(), now + LOOK_SECONDS
        return self._set

    def look(self) -> None:
        """Look again at the next question, however short ago the last one was."""
        self._next = 0.0

    @property
    def state(self) -> str:
        """What becomes of a trial that heeds it: pruned when it was for this trial alone, else interrupted."""
        return "pruned" if self._own.exists() else "interrupted"


class Reporting(Callback):
    """Reports every evaluation to the sweep, then looks at once whether that ends the trial."""

    def __init__(self, report: Report, stop: StopSign) -> None:
        self._report, self._stop = report, stop

    def on_evaluate(self, step: int, scores: Mapping[str, float], sample: Sample) -> None:
        self._report(step, scores)
        self._stop.look()


def run(task: Task, report: Report, ranks: Ranks) -> Ending:
    """Run a trial to its end, from its newest checkpoint on if it was begun before.

    Args:
        report: is told the scores of every evaluation, on every rank.
        ranks: the processes that share it.
    """
    config, run_dir = from_json(task.config), Path(task.run_dir)
    if task.threads:
        torch.set_num_threads(task.threads)
    stop = StopSign(Path(task.stops), task.number)
    if ranks.any(stop()):
        return Ending(stop.state)
    if not ranks.is_first:
        try:
            return _ending(_fit(task, config, Reporting(report, stop), stop, ranks), config, stop)
        except BusyError as error:
            return Ending(stop.state) if stop() else Ending("failed", cause=str(error))
        except AGREED as error:
            return Ending("failed", cause=str(error))
    with _log_file(run_dir / LOG) as console:
        terminal = ProgressBar(console, live=False)
        terminal.say(f"trial {task.number} of {task.sweep}: {task.label}")
        tags = {
            "sweep": task.sweep,
            f"sweep.{task.sweep}": task.number,
            "label": task.label,
            "mlflow.note.content": task.label,
        }
        tracking = MLflowCallback(
            config,
            task.data,
            run_dir,
            task.experiment,
            terminal,
            parent_run_id=task.parent_run_id,
            tags=tags,
        )
        status: Status = "KILLED"
        try:
            # The report first: it waits for all ranks, and what fails in the other two must not keep them waiting.
            ending = _run(task, config, [Reporting(report, stop), tracking, terminal], stop, ranks)
            status = {"failed": "FAILED", "interrupted": "KILLED"}.get(ending.state, "FINISHED")  # type: ignore[assignment]
        finally:
            tracking.close(status)
        return ending


def _run(
    task: Task, config: RunConfig, callbacks: list[Any], stop: StopSign, ranks: Ranks
) -> Ending:
    """What `run` does on the first rank, between opening and closing its log."""
    _, tracking, terminal = callbacks
    try:
        result = _fit(task, config, CallbackList(callbacks), stop, ranks)
        ending = _ending(result, config, stop)
        if ending.state == "finished":
            tracking.finished(result)
            _test(task, config, tracking, terminal)
        else:
            tracking.ended(ending.state)
        return ending
    except BusyError as error:
        # Another sweep's process trains in this folder, and the log there is its own.
        terminal.say(str(error))
        return Ending(stop.state) if stop() else Ending("failed", cause=str(error))
    except Exception as error:
        terminal.say("".join(traceback.format_exception(error)))
        if (ranks.size > 1 and not isinstance(error, AGREED)) or _of_the_machine(error):
            # Other ranks may be waiting for this one, or are dead: their group has to end together, and begins again.
            tracking.ended("interrupted")
            raise
        cause = (
            f"{type(error).__name__}: {error}" if not isinstance(error, InputError) else str(error)
        )
        tracking.ended("failed", cause)
        return Ending("failed", cause=cause.partition("\n")[0])


def _of_the_machine(error: BaseException) -> bool:
    """Whether another machine, or another moment, may do better: a disk or a GPU that fails."""
    return any(
        isinstance(each, OSError) or "CUDA error" in str(each)
        for each in (error, error.__cause__)
        if each is not None
    )


def _fit(task: Task, config: RunConfig, callback: Callback, stop: StopSign, ranks: Ranks) -> Result:
    until = time.monotonic() + BUSY_SECONDS
    with ranks.agreed():
        folder = local(task.data)
    while True:
        try:
            return fit(
                config,
                folder,
                Path(task.run_dir),
                callback,
                device=task.device,
                resume=True,
                ranks=ranks,
                stop=stop,
            )
        except BusyError:
            if ranks.any(time.monotonic() > until or stop()):
                raise
            time.sleep(1.0)


def _ending(result: Result, config: RunConfig, stop: StopSign) -> Ending:
    if result.step >= config.train.steps:
        return Ending("finished", result.step, result.best)
    return Ending(stop.state, result.step, result.best)


def _test(task: Task, config: RunConfig, tracking: MLflowCallback, terminal: ProgressBar) -> None:
    """Score the best weights on the test splits; what cannot be scored is said and costs nothing else."""
    for name in task.tests:
        try:
            folder = local(name)
            manifest = Manifest.load(folder)
            split = (
                "test"
                if "test" in manifest.splits
                else next(split for split in manifest.splits if split != "train")
            )
            device = pick_device(task.device)
            model = load_model(Path(task.run_dir), device)
            batches = Batches(
                folder, split, config.optim.batch_size, shuffle=False, drop_last=False
            )
            check_data(model, batches)
            scores, _ = evaluate(model, batches, device)
            label = set_name(manifest)
            terminal.say(
                f"{label} {split}: ARI-FG {scores['ari_fg']:.3f}  mIoU {scores['miou']:.3f}  MSE {scores['mse']:.1f}"
            )
            if tracking.log:
                tracking.log.metrics(
                    config.train.steps,
                    {f"{label}/{split}/{score}": value for score, value in scores.items()},
                )
        except Exception as error:  # too little memory for a second model, a damaged set: the training is done whatever it is
            terminal.say(f"{name} is not scored: {error}")


@contextlib.contextmanager
def _log_file(path: Path) -> Iterator[Console]:
    """A console that writes to `path`, which also takes what is printed to standard output and error meanwhile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        open(path, "a", buffering=1, encoding="utf-8") as file,
        contextlib.redirect_stdout(file),
        contextlib.redirect_stderr(file),
    ):
        yield Console(file=file, width=160)
