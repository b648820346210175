"""The driver of a sweep: it hands out trials, hears what becomes of them, and keeps study, MLflow and the person informed.

It knows nothing of Ray: `tune.py` asks it for tasks and brings it results.
"""

import json
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from optuna.trial import TrialState
from rich.console import Console

import cutslots
from cutslots import data, tracking
from cutslots.errors import BusyError, InputError
from cutslots.files import git_commit, lock, write_text
from cutslots.metrics.registry import higher_is_better
from cutslots.runs.lookup import finished, runs_dir
from cutslots.sweep.cluster import Resources, check_here, connected
from cutslots.sweep.display import Row, View
from cutslots.sweep.spec import Sweep
from cutslots.sweep.study import Planned, Study
from cutslots.sweep.table import markdown, records
from cutslots.sweep.trial import ALL, LOG, Ending, Task
from cutslots.tracking import RunLog
from cutslots.tracking.journal import latest
from cutslots.tracking.run_log import Status
from cutslots.train.checkpoint import held
from cutslots.train.config import run_hash, to_json

STATUS: dict[str, Status] = {
    "finished": "FINISHED",
    "pruned": "FINISHED",
    "failed": "FAILED",
    "interrupted": "KILLED",
}
SYNC_SECONDS = 30.0
STATES = {TrialState.COMPLETE: "finished", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}


@dataclass(frozen=True)
class Plan:
    """What all trials of a sweep share besides the sweep itself.

    Attributes:
        data: prepared folder or URI.
        set_name: what the data are called, as in tables.
        registers: the model in MLflow's registry that the best run becomes a version of; None: none.
        tests: prepared folders or URIs that are scored at the end of a trial.
        threads: of a trial's process, 0 for torch's own choice.
    """

    data: Path | str
    set_name: str
    experiment: str
    registers: str | None = None
    tests: tuple[str, ...] = ()
    threads: int = 0
    device: str | None = None


class Driver:
    """Safe for the threads of a view; `next`, `reported` and `ended` are for one thread.

    Args:
        folder: of the sweep.
        log: the sweep's own run in MLflow; None for trials without a parent.
        say: takes a line for the person.
    """

    def __init__(
        self, study: Study, plan: Plan, folder: Path, log: RunLog | None, say: Callable[[str], None]
    ) -> None:
        self.study, self.sweep, self.plan, self.folder, self.log, self.say = (
            study,
            study.sweep,
            plan,
            folder,
            log,
            say,
        )
        self.digest = data.read_manifest(plan.data).digest
        self.stops = folder / "stops"
        shutil.rmtree(self.stops, ignore_errors=True)  # signs of an earlier driver
        self.stops.mkdir(parents=True)
        self.stopping_since: float | None = None
        self._lock = threading.Lock()
        self._rows: dict[int, Row] = {}
        self._begun: dict[int, float] = {}
        self._run_ids: dict[int, str] = {}
        study.claim_data(self.digest, str(plan.data))
        for trial in study.trials():
            if "run_id" in trial.user_attrs:
                self._run_ids[trial.number] = trial.user_attrs["run_id"]
            if trial.state in STATES:
                self._remember(study.planned(trial.number), STATES[trial.state])

    # What is next

    def next(self) -> Task | None:
        """The next trial that has to be run; those that are known already are closed on the way."""
        while self.stopping_since is None and (planned := self.study.next()):
            self._remember(planned, "waiting")
            run_dir = self.run_dir(planned)
            self.study.note(planned.number, label=planned.label, run=run_dir.name)
            known = self._twin(planned) or self._found(planned, run_dir)
            if known is None:
                self._begun[planned.number] = time.monotonic()
                self._update(planned.number, state="running")
                return self.task(planned)
            self._close(planned.number, known)
        return None

    @property
    def exhausted(self) -> bool:
        """Whether no further trial will come."""
        return self.stopping_since is not None or self.study.exhausted

    def task(self, planned: Planned) -> Task:
        """All that a process needs to run a trial."""
        return Task(
            number=planned.number,
            label=planned.label,
            sweep=self.sweep.name,
            config=to_json(planned.config),
            data=str(self.plan.data),
            run_dir=str(self.run_dir(planned)),
            experiment=self.plan.experiment,
            parent_run_id=self.log.run_id if self.log else None,
            stops=str(self.stops),
            tests=self.plan.tests,
            threads=self.plan.threads,
            device=self.plan.device,
        )

    def run_dir(self, planned: Planned) -> Path:
        """Where a trial lives: by what it is, so that every sweep that asks for it finds it."""
        config = planned.config
        return (
            runs_dir() / f"{self.plan.set_name}-{config.model_name}-{run_hash(config, self.digest)}"
        )

    def _twin(self, planned: Planned) -> Ending | None:
        """What became of an earlier trial of this sweep with the very same configuration."""
        mine = self.run_dir(planned)
        again = self.study.trials()[planned.number].user_attrs.get("again")
        for row in self.rows():
            if again is not None and row.state == "failed":
                continue
            if row.run_dir == mine and row.number != planned.number:
                scores = self.study.trials()[row.number].user_attrs.get("scores", {})
                if row.state == "finished":
                    return Ending("finished", row.steps, scores)
                return Ending("failed", cause=f"the same settings as trial {row.number}")
        return None

    def _found(self, planned: Planned, run_dir: Path) -> Ending | None:
        """What a finished run with this configuration said: one whose folder is here, or one that MLflow knows."""
        try:
            best = finished(run_dir, planned.config, self.digest)
        except InputError as error:  # its checkpoints cannot be read: the trial will say so itself, and the others go on
            self.say(f"trial {planned.number} ({planned.label}): {error}")
            return None
        logged = latest(run_dir)
        if best is not None and logged and logged.status != "FINISHED":
            return None  # it died after its last step: run again, it takes none and logs what is missing
        where = f"its run {run_dir.name} was finished"
        run = self._in_mlflow(planned)
        if best is not None and run is None and self.log and logged:
            tracking.sync(
                run_dir, tracking_uri=tracking.default_uri(), say=self.say, timeout=SYNC_SECONDS
            )  # another store had it
            run = self._in_mlflow(planned)
        if best is None and run:
            best = {
                name.removeprefix("best/"): value
                for name, value in run.metrics.items()
                if name.startswith("best/")
            }
            where = f"MLflow has its finished run {run.name}"
        if best is None or not all(name in best for name in self.sweep.objectives):
            return None
        if run:
            self._run_ids[planned.number] = run.run_id
            self.study.note(planned.number, run_id=run.run_id)
            tracking.tag_runs({run.run_id: {f"sweep.{self.sweep.name}": str(planned.number)}})
        self.say(f"trial {planned.number} ({planned.label}) is not repeated: {where}")
        return Ending("finished", planned.config.train.steps, best)

    def _in_mlflow(self, planned: Planned) -> tracking.FoundRun | None:
        """MLflow's finished run of this configuration; None as well while the store is away, for which no trial waits."""
        try:
            return (
                tracking.finished_run(run_hash(planned.config, self.digest)) if self.log else None
            )
        except InputError as error:
            self.say(f"trial {planned.number} may repeat a run that only MLflow knows: {error}")
            return None

    # What has happened

    def reported(self, number: int, step: int, scores: Mapping[str, float]) -> None:
        """An evaluation; ends the trial where it is hopeless."""
        objective = self.sweep.objectives[0]
        value, row = scores.get(objective), self._rows[number]
        sign = -1 if not higher_is_better(objective) else 1
        if value is not None and (row.value is None or sign * value > sign * row.value):
            self._update(number, value=value)
        if self.study.report(number, step, scores):
            (self.stops / str(number)).touch()
            self._update(number, cause=f"not among the best {self._share()} at step {step}")

    def _share(self) -> str:
        return f"1/{self.sweep.halving.factor}" if self.sweep.halving else "share"

    def recovering(self, number: int, cause: str) -> None:
        """A trial's process died, and another one goes on with it."""
        self.say(f"trial {number}: {cause}; it goes on from its last checkpoint")

    def ended(self, number: int, ending: Ending) -> None:
        """A trial has ended, or stops for now (interrupted)."""
        if ending.state == "interrupted":
            self._update(number, state="interrupted", seconds=self._seconds(number))
        else:
            self._close(number, ending)
        # Where the trial's process has not done so: it died, or ended before it opened its log.
        row = self._rows[number]
        if row.state == "failed" and latest(row.run_dir) is None and self.log:
            log = RunLog(
                row.run_dir,
                experiment=self.plan.experiment,
                run_name=row.run_dir.name,
                parent_run_id=self.log.run_id,
                say=self.say,
            )
            log.tags(
                {"sweep": self.sweep.name, f"sweep.{self.sweep.name}": number, "label": row.label}
            )
            log.close("KILLED", 0.0)
        end_log(row.run_dir, row.state, row.cause, self.say)

    def _close(self, number: int, ending: Ending) -> None:
        """Put a trial's result into the study."""
        row = self._rows[number]
        cause = ending.cause or (row.cause if ending.state == "pruned" else None)
        self.study.note(
            number,
            scores=ending.scores,
            step=ending.step,
            seconds=self._seconds(number),
            cause=cause,
        )
        state = self.study.end(number, ending.state, ending.scores)
        if state == "failed" and not cause:
            cause = f"it has no finite {' and '.join(self.sweep.objectives)}"
        value = ending.scores.get(self.sweep.objectives[0], row.value)
        self._update(number, state=state, value=value, seconds=self._seconds(number), cause=cause)
        self._log_progress()

    def died(self, number: int, cause: str) -> None:
        """A trial's process died too often."""
        self.ended(number, Ending("failed", cause=cause))

    def stop(self) -> None:
        """Ask all running trials to write a checkpoint and end; no new ones start."""
        self.stopping_since = time.monotonic()
        (self.stops / ALL).touch()

    def any_started(self) -> bool:
        """Whether a trial that is running has a process yet."""
        return any(self._has_process(row) for row in self.rows() if row.state == "running")

    def _has_process(self, row: Row) -> bool:
        log, seconds = row.run_dir / LOG, row.seconds or 0.0
        return log.exists() and log.stat().st_mtime > time.time() - seconds - 5.0

    # What a person sees

    def rows(self) -> list[Row]:
        """Every trial as it is now."""
        with self._lock:
            return [
                replace(row, seconds=self._seconds(row.number)) if row.state == "running" else row
                for row in self._rows.values()
            ]

    @property
    def total(self) -> int:
        """How many trials the sweep has, as far as it is known now."""
        return self.study.total

    def _seconds(self, number: int) -> float | None:
        begun = self._begun.get(number)
        return None if begun is None else time.monotonic() - begun

    def _remember(self, planned: Planned, state: str) -> None:
        attributes = self.study.trials()[planned.number].user_attrs
        scores = attributes.get("scores", {})
        row = Row(
            number=planned.number,
            label=planned.label,
            state=state,
            run_dir=self.run_dir(planned),
            steps=planned.config.train.steps,
            value=scores.get(self.sweep.objectives[0]),
            seconds=attributes.get("seconds"),
            cause=attributes.get("cause"),
        )
        with self._lock:
            self._rows[planned.number] = row

    def _update(self, number: int, **changes: Any) -> None:
        with self._lock:
            self._rows[number] = replace(self._rows[number], **changes)

    # MLflow

    def _log_progress(self) -> None:
        if not self.log:
            return
        rows = self.rows()
        counts = {
            f"trials/{state}": sum(row.state == state for row in rows)
            for state in ("finished", "pruned", "failed")
        }
        best = self.study.ranked()[:1]
        scores = (
            {f"best/{name}": value for name, value in best[0].user_attrs.get("scores", {}).items()}
            if best
            else {}
        )
        self.log.metrics(sum(counts.values()), {**counts, **scores})

    def run_ids(self) -> dict[int, str]:
        """MLflow ids of the trials' runs, as far as MLflow has them."""
        # By the tag that every sweep leaves: a run that another sweep has begun stands under that one.
        tag = f"sweep.{self.sweep.name}"
        mine = {
            run.tags["signature"]: run.run_id
            for run in tracking.find_runs(f"tags.\"{tag}\" != ''")
            if "signature" in run.tags
        }
        signatures = {row.number: row.run_dir.name.rpartition("-")[2] for row in self.rows()}
        return {
            number: mine[signature] for number, signature in signatures.items() if signature in mine
        } | self._run_ids

    def publish(self) -> None:
        """Give runs their ranks, and register the best model.

        Raises:
            InputError: the tracking store is away.
        """
        ranked = self.study.ranked()
        ids = self.run_ids()
        tags = {
            ids[trial.number]: {"rank": str(rank)}
            for rank, trial in enumerate(ranked, 1)
            if trial.number in ids
        }
        if strange := [trial.number for trial in ranked if trial.number not in ids]:
            self.say(
                f"MLflow has no runs of the trials {', '.join(map(str, strange))}; they have no rank there"
            )
        if missing := tracking.tag_runs(tags):
            self.say(f"{missing} runs have not got their rank in MLflow")
        best = next((trial for trial in ranked if trial.number in ids), None)
        name, objective = self.plan.registers, self.sweep.objectives[0]
        if best is None or name is None:
            return
        registered = tracking.register(
            name,
            ids[best.number],
            objective,
            best.values[0],
        )
        role = (
            "champion" if registered.is_champion else "not the champion: another version is better"
        )
        self.say(
            f"model {name} version {registered.version}: trial {best.number}, {objective} {best.values[0]:.4f} ({role})"
        )

    def write_table(self) -> Path:
        """The sweep's trials, best first, as `table.md` and `trials.json` in its folder."""
        write_text(
            self.folder / "trials.json",
            json.dumps(records(self.study, self.rows()), indent=1) + "\n",
        )
        path = self.folder / "table.md"
        write_text(path, markdown(self.study, self.rows()))
        return path


def end_log(run_dir: Path, state: str, cause: str | None, say: Callable[[str], None]) -> None:
    """Say in a trial's log how it ended, if its process has not said so or has said otherwise; without a log nothing is said.

    Nor where a process still trains in the folder: it is another sweep's, for which the trial has waited.
    """
    logged = None if held(run_dir) else latest(run_dir)
    if logged and logged.status != STATUS[state]:
        tags = {"state": state, **({"cause": cause} if cause else {})}
        tracking.sync(run_dir, status=STATUS[state], tags=tags, say=say, timeout=10.0)


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
    with lock(folder / ".lock") as mine:
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
    from cutslots.sweep import ray_backend  # seconds, while `log` makes its database

    _wait_for_store(log)
    sweep = study.sweep
    objective = sweep.objectives[0]
    said: list[Callable[[str], None]] = []
    driver = Driver(study, plan, folder, log, lambda text: said[-1](text))
    title = f"{sweep.name}: {plan.data}"
    said.append(lambda text: console.print(text, markup=False, highlight=False, soft_wrap=True))
    with View(
        title,
        driver.rows,
        lambda: driver.total,
        objective,
        not higher_is_better(objective),
        console,
    ) as view:
        said.append(view.say)
        view.say(
            f"{driver.total} trials, {concurrent} at a time, each {how.resources}; Ctrl-C stops, --resume goes on"
        )
        view.say(f"what Ray says: {folder / OUTPUT}")
        view.say(
            f"output of each in {runs_dir()}/RUN/{LOG}; masks and curves: cutslots ui (experiment {plan.experiment!r})"
        )
        whole = ray_backend.run(driver, how.resources, concurrent, how.retries)
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
                f"the tracking store {tracking.without_password(tracking.default_uri())} does not answer within {STORE_SECONDS:.0f} s. "
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
    for run_dir in tracking.undelivered(runs_dir()):
        if run_dir.name in mine and (left := tracking.sync(run_dir, say=say, timeout=SYNC_SECONDS)):
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
