"""Run one sweep from its folder to its champion: study, MLflow, Ray, trials, publication."""

import signal
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from optuna.trial import TrialState
from rich.console import Console

from cutslots import tracking
from cutslots.errors import BusyError, InputError
from cutslots.files import lock
from cutslots.runs.lookup import runs_dir
from cutslots.sweep.cluster import Resources, check_machine, connected
from cutslots.sweep.display import Display
from cutslots.sweep.driver import SweepContext, SweepDriver, end_log, signal_handler
from cutslots.sweep.spec import Sweep
from cutslots.sweep.study import Study
from cutslots.sweep.trial import LOG
from cutslots.tracking import RunLog
from cutslots.tracking.run_log import Status

STORE_SECONDS = 90.0  # for a new database to be created, or a server to answer
SYNC_SECONDS = 30.0
RAY_OUTPUT = "ray.txt"
COMPLETE = "over"  # user attribute of a study whose results are all in MLflow


@dataclass(frozen=True)
class RunOptions:
    """How a sweep is run; none of it changes a trial's numbers.

    Attributes:
        concurrent: trials at a time; None for as many as fit.
        retries: restarts of a trial whose process or node died.
        storage: an Optuna storage instead of a file in the sweep's folder.
    """

    resources: Resources
    resume: bool = False
    retry_failed: bool = False
    concurrent: int | None = None
    retries: int = 5
    storage: str | None = None


def run(sweep: Sweep, folder: Path, context: SweepContext, options: RunOptions) -> int:
    """Run the trials of a sweep that have not ended.

    Returns:
        An exit status: 0, 1 if no trial has a result, or 130 if the sweep was stopped.

    Raises:
        InputError: the sweep exists and `resume` is not set, another process runs it, or its
            resources can never be met.
        KeyboardInterrupt: stopped without waiting for checkpoints.
    """
    # SIGTERM interrupts like Ctrl-C, so that everything is closed.
    sigterm = signal_handler(signal.default_int_handler, signal.SIGTERM)
    with lock(folder / ".lock") as acquired, sigterm:
        if not acquired:
            raise BusyError(
                f"sweep {folder.name!r} is run by another process. Wait for it, or give another "
                "--name."
            )
        study = Study(sweep, folder, options.storage)
        waiting = len(study.trials(TrialState.WAITING))
        begun = not options.storage and waiting < len(study.trials())
        if options.retry_failed and (options.resume or not begun):
            study.retry_failed()
        if study.exhausted and study.optuna.user_attrs.get(COMPLETE):
            table = folder / "table.md"
            print(f"sweep {sweep.name!r} is finished: {table}\n")
            print(*table.read_text().splitlines()[:16] if table.exists() else (), sep="\n")
            return 0
        if begun and not options.resume:
            raise InputError(
                f"sweep {sweep.name!r} exists in {folder} ({study.counts()}). Continue it with "
                "--resume, or start another one with --name."
            )
        workers, size = options.resources.workers, sweep.base.optim.batch_size
        if size % workers:
            raise InputError(
                f"--workers-per-trial must divide the batch size {size}, got {workers}."
            )
        check_machine(options.resources)
        return _run_logged(study, folder, context, options)


def _run_logged(study: Study, folder: Path, context: SweepContext, options: RunOptions) -> int:
    """Run the trials as children of the sweep's own run in MLflow."""
    sweep, objective = study.sweep, study.sweep.objectives[0]
    # Created before stderr is redirected. FORCE_COLOR must not make a file a terminal.
    live = None if sys.stderr.isatty() else False
    console = Console(file=sys.stderr, force_interactive=live)

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    driver = SweepDriver(study, context, folder, None, say)
    # Its thread creates a new database while Ray starts.
    log = RunLog(folder, experiment=context.experiment, run_name=sweep.name, say=say)
    driver.log = log
    study.optuna.set_user_attr(COMPLETE, False)
    status: Status = "FAILED"
    published = False
    try:
        driver.log_definition()
        with (
            open(folder / RAY_OUTPUT, "a", buffering=1, encoding="utf-8") as file,
            redirect_stdout(file),
            redirect_stderr(file),
            connected(options.resources) as room,
        ):
            from cutslots.sweep import ray_backend  # takes seconds, during which `log` connects

            _wait_for_store(log)
            concurrent = min(options.concurrent or room, room)
            title = f"{sweep.name}: {context.data}"
            with Display(
                title, driver.rows, lambda: study.total, objective, console
            ) as driver.display:
                driver.say(
                    f"{study.total} trials, {concurrent} at a time, each with {options.resources}; "
                    f"Ctrl-C stops, --resume continues\nRay output: {folder / RAY_OUTPUT}\n"
                    f"trial output: {runs_dir()}/RUN/{LOG}; masks and curves: cutslots ui "
                    f"(experiment {context.experiment!r})"
                )
                ray_backend.run(driver, options.resources, concurrent, options.retries)
            driver.display = None
            table = driver.write_table()
            log.artifact(table)
            say(f"\n{driver.markdown(12)}\nall trials: {table}")
            if driver.stopping_since is not None:
                status = "KILLED"
            else:
                _deliver_rest(study, say)
                status = "FINISHED" if study.ranked() else "FAILED"
                try:
                    driver.publish()
                    published = True
                except InputError as error:  # the trials are done
                    say(
                        f"the ranks and the best model are not in MLflow: {error} "
                        "Add them with --resume."
                    )
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        driver.display = None
        log.tags({"state": {"FINISHED": "finished", "KILLED": "interrupted"}.get(status, "failed")})
        undelivered = log.close(status, SYNC_SECONDS)
        for trial in study.trials(TrialState.RUNNING):  # killed with the sweep
            if name := trial.user_attrs.get("run"):
                end_log(runs_dir() / name, "interrupted", None, say)
        undelivered = undelivered or _deliver_rest(study, say)
    study.optuna.set_user_attr(COMPLETE, published and not undelivered)
    return {"FINISHED": 0, "KILLED": 130}.get(status, 1)


def _wait_for_store(log: RunLog) -> None:
    """Wait until the sweep's run exists: trials need its id and a complete database."""
    deadline = time.monotonic() + STORE_SECONDS
    while log.run_id is None:
        if time.monotonic() > deadline:
            store = tracking.without_password(tracking.default_uri())
            raise InputError(
                f"the tracking server {store} did not answer within {STORE_SECONDS:.0f} s. "
                "Start it, or unset MLFLOW_TRACKING_URI to use a local database."
            )
        time.sleep(0.05)


def _deliver_rest(study: Study, say: Callable[[str], None]) -> int:
    """Send MLflow what trials could not: the server was unreachable, or their process died.

    Returns: the number of missing events of the first run that fails; later runs are not tried.
    """
    names = {trial.user_attrs.get("run") for trial in study.trials()}
    for run_dir in tracking.undelivered(runs_dir()):
        if run_dir.name in names and (
            left := tracking.sync(run_dir, say=say, timeout=SYNC_SECONDS)
        ):
            name = run_dir.name
            say(f"{left} events of {name} are not in MLflow yet. Later: cutslots sync {name}")
            return left
    return 0
