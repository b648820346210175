"""One driver's part in a sweep: from its folder to its table, with MLflow and Ray around it."""

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.trial import TrialState
from rich.console import Console

import cutslots
from cutslots import data, runlog
from cutslots.errors import BusyError, InputError
from cutslots.launch.connect import Resources, check_here, connected
from cutslots.launch.driver import Driver, Plan, end_log
from cutslots.launch.local import runs_dir
from cutslots.launch.study import Study
from cutslots.launch.sweep import Sweep
from cutslots.launch.table import markdown
from cutslots.launch.trial import LOG
from cutslots.launch.view import View
from cutslots.report.leaderboard import smaller_is_better
from cutslots.runlog import RunLog, git_commit
from cutslots.runlog.log import Status
from cutslots.runlog.store import locked

STORE_SECONDS = 90.0  # for a fresh database to be made, or a server to answer
SYNC_SECONDS = 30.0
SHOWN = 12
OUTPUT = "ray.txt"
OVER = "over"  # the study's attribute: all is done and in MLflow


@dataclass(frozen=True)
class How:
    """How a sweep is run; nothing of it changes a trial's numbers.

    Attributes:
        resume: go on with one that was begun.
        retry_failed: run failed trials again.
        concurrent: trials at a time; None: as many as fit.
        retries: restarts of a trial whose process or node died.
        storage: Optuna's, in place of a file in the sweep's folder.
    """

    resources: Resources
    resume: bool = False
    retry_failed: bool = False
    concurrent: int | None = None
    retries: int = 5
    storage: str | None = None


def run(sweep: Sweep, folder: Path, plan: Plan, how: How) -> int:
    """Run what is left of a sweep; returns an exit status: 0, 1 when no trial has a result, 130 when stopped.

    Raises:
        InputError: it was begun and `resume` is not asked for, another driver runs it, or its needs cannot be met.
        KeyboardInterrupt: stopped without waiting for checkpoints.
    """
    with _alone(folder), _sigterm_interrupts():
        study = Study(sweep, folder, how.storage)
        begun = not how.storage and len(study.trials(TrialState.WAITING)) < len(study.trials())
        if how.retry_failed and (how.resume or not begun):
            study.retry_failed()
        if study.exhausted and study.optuna.user_attrs.get(OVER):
            print(
                f"sweep {sweep.name!r} is finished: {folder / 'table.md'}\n\n{_last_table(folder)}",
                end="",
            )
            return 0
        if begun and not how.resume:
            raise InputError(
                f"sweep {sweep.name!r} was begun in {folder} ({study.counts()}). Go on: --resume. Begin another: --name OTHER."
            )
        return _logged(study, folder, plan, how)


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """SIGTERM is the same as Ctrl-C, also while nobody listens for either: what was begun is closed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the sweep's folder against a second driver."""
    with locked(folder / ".lock") as mine:
        if not mine:
            raise BusyError(
                f"sweep {folder.name!r} is being run by another process. Wait for it, or give another --name."
            )
        yield


def _logged(study: Study, folder: Path, plan: Plan, how: How) -> int:
    """Run the trials under a run of their own in MLflow."""
    sweep, resources = study.sweep, how.resources
    size = sweep.base.optim.batch_size
    if size % resources.workers:
        raise InputError(
            f"--workers-per-trial {resources.workers} does not divide the batch of {size} images. Use a divisor of it."
        )
    check_here(resources)
    # It makes a fresh database while Ray starts.
    log = RunLog(folder, experiment=plan.experiment, run_name=sweep.name, say=_to_stderr)
    study.optuna.set_user_attr(OVER, False)
    status: Status = "FAILED"
    published = False
    console = Console(file=sys.stderr)
    try:
        _describe(sweep, plan, log)
        with _quiet(folder / OUTPUT), connected(resources) as room:
            status, published = _drive(
                study, folder, plan, log, how, min(how.concurrent or room, room), console
            )
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        log.tags({"state": {"FINISHED": "finished", "KILLED": "interrupted"}.get(status, "failed")})
        left = log.close(status, SYNC_SECONDS)
        _end_logs(study, _to_stderr)
        left = left or _deliver_rest(study, _to_stderr)
    study.optuna.set_user_attr(OVER, published and not left)
    return {"FINISHED": 0, "KILLED": 130}.get(status, 1)


@contextmanager
def _quiet(path: Path) -> Iterator[None]:
    """Everything that Ray says goes to a file; what a person is to see goes to a console that was made before."""
    with (
        open(path, "a", buffering=1, encoding="utf-8") as file,
        redirect_stdout(file),
        redirect_stderr(file),
    ):
        yield


def _drive(
    study: Study, folder: Path, plan: Plan, log: RunLog, how: How, concurrent: int, console: Console
) -> tuple[Status, bool]:
    """Run the trials with a view on them; returns how it ended, and whether MLflow has their ranks and the best model."""
    from cutslots.launch import tune  # seconds, while `log` makes its database

    _wait_for_store(log)
    sweep = study.sweep
    objective = sweep.objectives[0]
    said: list[Callable[[str], None]] = []
    driver = Driver(study, plan, folder, log, lambda text: said[-1](text))
    title = f"{sweep.name}: {plan.data}"
    said.append(lambda text: console.print(text, markup=False, highlight=False, soft_wrap=True))
    with View(
        title, driver.rows, lambda: driver.total, objective, smaller_is_better(objective), console
    ) as view:
        said.append(view.say)
        view.say(
            f"{driver.total} trials, {concurrent} at a time, each {how.resources}; Ctrl-C stops, --resume goes on"
        )
        view.say(f"what Ray says: {folder / OUTPUT}")
        view.say(
            f"output of each in {runs_dir()}/RUN/{LOG}; masks and curves: cutslots ui (experiment {plan.experiment!r})"
        )
        whole = tune.run(driver, how.resources, concurrent, how.retries)
        said.pop()
    table = driver.write_table()
    log.artifact(table)
    said[-1](f"\n{markdown(study, driver.rows(), SHOWN)}\nall of it: {table}")
    if not whole:
        return "KILLED", False
    _deliver_rest(study, said[-1])
    return "FINISHED" if study.ranked() else "FAILED", _published(driver)


def _published(driver: Driver) -> bool:
    try:
        driver.publish()
    except InputError as error:  # the trials are done, whatever became of the store
        driver.say(f"MLflow has neither ranks nor the best model: {error} Then --resume adds them.")
        return False
    return True


def _wait_for_store(log: RunLog) -> None:
    """Trials stand under the sweep's own run, and need a database that is there before several of them open it."""
    until = time.monotonic() + STORE_SECONDS
    while log.run_id is None:
        if time.monotonic() > until:
            raise InputError(
                f"the tracking store {runlog.without_password(runlog.default_uri())} does not answer within {STORE_SECONDS:.0f} s. "
                "Start it, or unset MLFLOW_TRACKING_URI to use a database of your own."
            )
        time.sleep(0.05)


def _describe(sweep: Sweep, plan: Plan, log: RunLog) -> None:
    log.params(
        {
            "dataset": plan.set_name,
            "data_digest": data.read_manifest(plan.data).digest,
            "preset": sweep.preset,
            "set": " ".join(sweep.set),
            "objective": ", ".join(sweep.objectives),
            "search": sweep.search,
            **{
                f"space/{path}": str(distribution)
                for path, distribution in sweep.resolved().items()
            },
        }
    )
    tags: dict[str, Any] = {
        "sweep": sweep.name,
        "kind": "sweep",
        "dataset": plan.set_name,
        "state": "running",
    }
    tags |= {
        "commit": git_commit(Path(cutslots.__file__).parent) or "none",
        "cutslots.version": cutslots.__version__,
    }
    log.tags({**tags, "trials": sweep.trials, "seeds": ", ".join(map(str, sweep.seeds))})


def _end_logs(study: Study, say: Callable[[str], None]) -> None:
    """Say of trials that were killed with the sweep that they do not go on."""
    for trial in study.trials(TrialState.RUNNING):
        if name := trial.user_attrs.get("run"):
            end_log(runs_dir() / name, "interrupted", None, say)


def _deliver_rest(study: Study, say: Callable[[str], None]) -> int:
    """Bring to MLflow what trials could not deliver themselves: a store that was away, a process that died.

    Returns: the number of events of the first run that cannot be delivered now; the rest is not tried then.
    """
    mine = {trial.user_attrs.get("run") for trial in study.trials()}
    for run_dir in runlog.undelivered(runs_dir()):
        if run_dir.name in mine and (left := runlog.sync(run_dir, say=say, timeout=SYNC_SECONDS)):
            say(
                f"{left} events of {run_dir.name} are not in MLflow yet; later: cutslots sync {run_dir.name}"
            )
            return left
    return 0


def _last_table(folder: Path) -> str:
    path = folder / "table.md"
    return "\n".join(path.read_text().splitlines()[: SHOWN + 4]) + "\n" if path.exists() else ""


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
