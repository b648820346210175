"""One sweep from its folder to its champion: study, MLflow, Ray, trials, publication.

The driver chooses trials, records their results, and publishes the best one. `ray_backend` asks it
for trials and passes it their results.
"""

import json
import shutil
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.distributions import distribution_to_json
from optuna.trial import TrialState
from rich.text import Text

import cutslots
from cutslots import data, tracking
from cutslots.errors import BusyError, InputError
from cutslots.files import git_commit, lock, write_text
from cutslots.metrics.registry import better
from cutslots.report.tables import Table, score_text
from cutslots.runs.lookup import finished, runs_dir
from cutslots.runs.train import signal_handler
from cutslots.sweep.cluster import Resources, connected, fitting
from cutslots.sweep.display import Display
from cutslots.sweep.spec import Sweep
from cutslots.sweep.study import Study, Trial
from cutslots.sweep.trial import LOG, MLFLOW_STATUS, STOP_ALL, TrialResult, TrialSpec
from cutslots.tracking import RunLog
from cutslots.tracking.journal import latest
from cutslots.train.callbacks import clock
from cutslots.train.checkpoint import held
from cutslots.train.config import run_hash, to_json

STORE_SECONDS = 90.0  # for a new database to be created, or a server to answer
SYNC_SECONDS = 30.0
START_SECONDS = 10.0  # how long a sweep that stops waits for trials that wait for a node
STOP_SECONDS = 120.0  # how long trials may take to write their checkpoints when the sweep stops
RAY_OUTPUT = "ray.txt"
COMPLETE = "over"  # user attribute of a study whose results are all in MLflow
SCORES = ("ari_fg", "ari", "miou", "miou_fg", "mse", "cut_ari_fg")  # columns of the table of trials


@dataclass(frozen=True)
class RunOptions:
    """What a sweep runs on and how; none of it changes a trial's numbers."""

    data: Path | str  # a prepared folder or its URI
    resources: Resources
    tests: tuple[str, ...] = ()  # datasets whose test split is scored at the end of a trial
    smoke: bool = False  # to the MLflow experiment "smoke", without registering a model
    resume: bool = False
    retry_failed: bool = False
    concurrent: int | None = None  # trials at a time; None for as many as fit
    retries: int = 5  # restarts of a trial whose process or node died
    storage: str | None = None  # an Optuna storage instead of a file in the sweep's folder


def run(sweep: Sweep, folder: Path, options: RunOptions) -> int:
    """Run the trials of a sweep that have not ended.

    Returns:
        An exit status: 0, 1 if no trial has a result, or 130 if the sweep was stopped.

    Raises:
        InputError: the sweep exists and `resume` is not set, or another process runs it.
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
        driver = SweepDriver(sweep, folder, options)
        study = driver.study
        begun = not options.storage and len(study.trials(TrialState.WAITING)) < len(study.trials())
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
        return driver.run()


class SweepDriver:
    """Runs a sweep: chooses trials, records their results in the study and MLflow.

    `trials` and `say` may be called from any thread, the other methods from one.
    """

    def __init__(self, sweep: Sweep, folder: Path, options: RunOptions) -> None:
        self.sweep, self.folder, self.options = sweep, folder, options
        manifest = data.read_manifest(options.data)
        self.digest, self.dataset_name = manifest.digest, data.dataset_name(manifest)
        self.experiment = "smoke" if options.smoke else manifest.source
        self.study = study = Study(sweep, folder, options.storage, self.digest)
        self.stops = folder / "stops"
        shutil.rmtree(self.stops, ignore_errors=True)  # of an earlier driver
        self.stops.mkdir(parents=True)
        title = f"{sweep.name}: {options.data}"
        self.display = Display(title, self.trials, lambda: study.total, sweep.objectives[0])
        self.say = self.display.say
        self.log: RunLog | None = None  # the sweep's own run in MLflow, the parent of its trials
        self.stopping_since: float | None = None
        self._trials: dict[int, Trial] = {}
        self._run_ids: dict[int, str] = {}
        for trial in study.trials():
            if "run_id" in trial.user_attrs:
                self._run_ids[trial.number] = trial.user_attrs["run_id"]
            if trial.state.is_finished():
                self._add(study.planned(trial.number))

    def run(self) -> int:
        """Run all trials and publish the best one; returns the exit status."""
        options, sweep = self.options, self.sweep
        # Its thread creates a new database while Ray starts.
        self.log = log = RunLog(
            self.folder, experiment=self.experiment, run_name=sweep.name, say=self.say
        )
        self.study.optuna.set_user_attr(COMPLETE, False)
        state, published = "failed", False
        try:
            self._log_definition(log)
            with (
                open(self.folder / RAY_OUTPUT, "a", buffering=1, encoding="utf-8") as file,
                redirect_stdout(file),
                redirect_stderr(file),
                connected(options.resources.train) as nodes,
            ):
                from cutslots.sweep import ray_backend  # takes seconds, as does the log's start

                # Trials need the id of the sweep's run, and a complete database.
                deadline = time.monotonic() + STORE_SECONDS
                while log.run_id is None:
                    if time.monotonic() > deadline:
                        store = tracking.without_password(tracking.default_uri())
                        raise InputError(
                            f"the tracking server {store} did not answer within "
                            f"{STORE_SECONDS:.0f} s. Start it, or unset MLFLOW_TRACKING_URI to use "
                            "a local database."
                        )
                    time.sleep(0.05)
                room = fitting(options.resources, nodes)
                concurrent = min(options.concurrent or room, room)
                with self.display:
                    self.say(
                        f"{self.study.total} trials, {concurrent} at a time, each with "
                        f"{options.resources}; Ctrl-C stops, --resume continues\n"
                        f"Ray output: {self.folder / RAY_OUTPUT}\n"
                        f"trial output: {runs_dir()}/RUN/{LOG}; masks and curves: cutslots ui "
                        f"(experiment {self.experiment!r})"
                    )
                    with signal_handler(self._on_signal, signal.SIGINT, signal.SIGTERM):
                        ray_backend.run(self, options.resources, concurrent, options.retries)
            log.artifact(self.write_table())
            self.say(f"\n{self.markdown(12)}\nall trials: {self.folder / 'table.md'}")
            if self.stopping_since is not None:
                state = "interrupted"
            else:
                self._deliver_rest()
                state = "finished" if self.study.ranked() else "failed"
                try:
                    self._publish()
                    published = True
                except InputError as error:  # the trials are done
                    self.say(
                        f"the ranks and the best model are not in MLflow: {error} "
                        "Add them with --resume."
                    )
        except KeyboardInterrupt:
            state = "interrupted"
            raise
        finally:
            log.tags({"state": state})
            undelivered = log.close(MLFLOW_STATUS[state], SYNC_SECONDS)
            for trial in self.study.trials(TrialState.RUNNING):  # killed with the sweep
                if name := trial.user_attrs.get("run"):
                    end_log(runs_dir() / name, "interrupted", None, self.say)
            undelivered = undelivered or self._deliver_rest()
        self.study.optuna.set_user_attr(COMPLETE, published and not undelivered)
        return {"finished": 0, "interrupted": 130}.get(state, 1)

    # What `ray_backend` calls

    @property
    def exhausted(self) -> bool:
        """Whether `next` will return no further trial."""
        return self.stopping_since is not None or self.study.exhausted

    def next(self) -> tuple[dict[str, Any], TrialSpec] | None:
        """The parameters and spec of the next trial to run; None if there is none at present.

        Ends trials whose result is already known.
        """
        while self.stopping_since is None and (trial := self.study.next()):
            self._add(trial)
            self.study.annotate(trial.number, label=trial.label, run=trial.run_dir.name)
            if result := self._known_result(trial):
                self._end(trial, result)
                continue
            trial.begun, trial.state = time.monotonic(), "running"
            self.say(f"trial {trial.number} started: {trial.label}")
            resources = self.options.resources
            return trial.params, TrialSpec(
                number=trial.number,
                label=trial.label,
                sweep=self.sweep.name,
                config=to_json(trial.config),
                data=str(self.options.data),
                run_dir=str(trial.run_dir),
                experiment=self.experiment,
                parent_run_id=self.log.run_id if self.log else None,
                stops=str(self.stops),
                tests=self.options.tests,
                threads=0 if resources.gpus else max(1, int(resources.cpus)),
                device=None if resources.gpus else "cpu",
            )
        return None

    def _add(self, trial: Trial) -> None:
        name = f"{self.dataset_name}-{trial.config.model_name}"
        trial.run_dir = runs_dir() / f"{name}-{run_hash(trial.config, self.digest)}"
        self._trials[trial.number] = trial

    def _known_result(self, trial: Trial) -> TrialResult | None:
        """The result of an earlier run with this configuration, if any."""
        # 1. A trial of this sweep.
        stored = self.study.trials()
        retry = stored[trial.number].user_attrs.get("again") is not None
        for other in self.trials():
            if other.run_dir != trial.run_dir or other.number == trial.number:
                continue
            if other.state == "finished":
                scores = stored[other.number].user_attrs.get("scores", {})
                return TrialResult("finished", other.config.train.steps, scores)
            if not (retry and other.state == "failed"):
                return TrialResult("failed", cause=f"same configuration as trial {other.number}")
        # 2. The folder of its run.
        name, run_dir = f"trial {trial.number} ({trial.label})", trial.run_dir
        try:
            best = finished(run_dir, trial.config, self.digest)
        except InputError as error:  # unreadable checkpoints: the trial will fail with this
            self.say(f"{name}: {error}")
            return None
        logged = latest(run_dir)
        if best is not None and logged and logged.status != "FINISHED":
            return None  # it died after its last step, and still has to log its results
        source = f"its run {run_dir.name} is finished"
        # 3. MLflow; a run in the folder that is not there was logged to another store.
        run = None
        try:
            if self.log:
                run = tracking.finished_run(run_hash(trial.config, self.digest))
            if self.log and run is None and best is not None and logged:
                uri = tracking.default_uri()
                tracking.sync(run_dir, tracking_uri=uri, say=self.say, timeout=SYNC_SECONDS)
                run = tracking.finished_run(run_hash(trial.config, self.digest))
        except InputError as error:  # trials never wait for the tracking server
            self.say(f"{name} may repeat a run in MLflow: {error}")
        if best is None and run:
            scores = {name: value for name, value in run.metrics.items() if name[:5] == "best/"}
            best = {name.removeprefix("best/"): value for name, value in scores.items()}
            source = f"MLflow has its finished run {run.name}"
        if best is None or not all(objective in best for objective in self.sweep.objectives):
            return None
        if run:
            self._run_ids[trial.number] = run.run_id
            self.study.annotate(trial.number, run_id=run.run_id)
            tracking.tag_runs({run.run_id: {f"sweep.{self.sweep.name}": str(trial.number)}})
        self.say(f"{name} is not repeated: {source}")
        return TrialResult("finished", trial.config.train.steps, best)

    def on_report(self, number: int, step: int, scores: Mapping[str, float]) -> None:
        """Record an evaluation; ask the trial to stop if it is not among the best."""
        objective, trial = self.sweep.objectives[0], self._trials[number]
        value = scores.get(objective)
        if value is not None and (trial.value is None or better(objective, value, trial.value)):
            trial.value = value
        if self.study.report(number, step, scores):
            # A file in the shared folder reaches a trial even if the driver or Ray has died.
            (self.stops / str(number)).touch()
            factor = self.sweep.halving.reduction_factor if self.sweep.halving else 1
            trial.cause = f"not among the best 1/{factor} at step {step}"

    def on_restart(self, number: int) -> None:
        """A trial's process or node died, and the trial is started again."""
        self.say(f"trial {number}: its process or node died; it resumes from its last checkpoint")

    def on_end(self, number: int, result: TrialResult) -> None:
        """Record the end of a trial, or its interruption."""
        trial = self._trials[number]
        if result.state == "interrupted":
            trial.seconds, trial.state = trial.elapsed, "interrupted"
        else:
            self._end(trial, result)
        if trial.state == "failed" and latest(trial.run_dir) is None and self.log:
            # Its process died before it opened its log.
            log = RunLog(
                trial.run_dir,
                experiment=self.experiment,
                run_name=trial.run_dir.name,
                parent_run_id=self.log.run_id,
                say=self.say,
            )
            name = self.sweep.name
            log.tags({"sweep": name, f"sweep.{name}": number, "label": trial.label})
            log.close("KILLED", 0.0)
        end_log(trial.run_dir, trial.state, trial.cause, self.say)
        took, value = clock(trial.elapsed or 0.0), trial.value
        best = "" if value is None else f", {self.sweep.objectives[0]} {value:.4g}"
        cause = " ".join(Text.from_ansi(trial.cause or "").plain.split())
        self.say(f"trial {number} {trial.state} after {took}{best}{cause and f': {cause}'}")

    def _end(self, trial: Trial, result: TrialResult) -> None:
        """Record a result in the study and in the sweep's run."""
        cause = result.cause or (trial.cause if result.state == "pruned" else None)
        facts = {"scores": result.scores, "step": result.step, "seconds": trial.elapsed}
        self.study.annotate(trial.number, **facts, cause=cause)
        state = self.study.end(trial.number, result.state, result.scores)
        if state == "failed" and not cause:
            cause = f"it has no finite {' and '.join(self.sweep.objectives)}"
        trial.value = result.scores.get(self.sweep.objectives[0], trial.value)
        trial.seconds, trial.cause, trial.state = trial.elapsed, cause, state
        if self.log:
            states = [trial.state for trial in self.trials()]
            counts = {name: states.count(name) for name in ("finished", "pruned", "failed")}
            metrics: dict[str, Any] = {f"trials/{name}": n for name, n in counts.items()}
            for best in self.study.ranked()[:1]:
                scores = best.user_attrs.get("scores", {})
                metrics |= {f"best/{name}": score for name, score in scores.items()}
            self.log.metrics(sum(counts.values()), metrics)

    def _on_signal(self, number: int, frame: Any) -> None:
        """Let all running trials write a checkpoint and stop; a second signal interrupts."""
        if self.stopping_since is not None:
            raise KeyboardInterrupt
        self.stopping_since = time.monotonic()
        (self.stops / STOP_ALL).touch()
        name = signal.Signals(number).name
        self.say(f"{name}: trials write their checkpoints and stop; repeat it to kill them")

    def on_step(self) -> bool:
        """Update the display; returns whether a sweep that stops no longer waits for its trials."""
        self.display.update()
        waited = 0.0 if self.stopping_since is None else time.monotonic() - self.stopping_since
        if waited > STOP_SECONDS:
            self.say(
                f"trials did not stop within {STOP_SECONDS:.0f} s and are killed; "
                "their last checkpoints are kept"
            )
            return True

        def has_process(trial: Trial) -> bool:  # else it waits for a node
            path, begun = trial.run_dir / LOG, time.time() - (trial.elapsed or 0.0) - 5.0
            return path.exists() and path.stat().st_mtime > begun

        running = [trial for trial in self.trials() if trial.state == "running"]
        return waited > START_SECONDS and not any(map(has_process, running))

    # Tables

    def trials(self) -> list[Trial]:
        """The trials that have begun, by number."""
        return [self._trials[number] for number in sorted(self._trials.copy())]

    def records(self) -> list[dict[str, Any]]:
        """Every trial with its settings, scores and run, best first; unranked ones last."""
        ranks = {trial.number: rank for rank, trial in enumerate(self.study.ranked(), 1)}
        front, several = self.study.front(), len(self.sweep.objectives) > 1
        stored, records = self.study.trials(), []
        for trial in sorted(self.trials(), key=lambda t: (ranks.get(t.number, 1e9), t.number)):
            number, attributes = trial.number, stored[trial.number].user_attrs
            records.append(
                {
                    "rank": ranks.get(number),
                    **({"pareto": number in front} if several else {}),
                    "number": number,
                    "kind": trial.kind,
                    "label": trial.label,
                    "state": trial.state,
                    "values": stored[number].params,
                    "seed": trial.params["seed"],
                    "step": attributes.get("step"),
                    "scores": attributes.get("scores", {}),
                    "seconds": trial.elapsed,
                    "run": trial.run_dir.name,
                    "cause": trial.cause,
                }
            )
        return records

    def markdown(self, most: int | None = None) -> str:
        """The trials as a Markdown table, best first; at most `most` rows."""
        sweep, records, rows = self.sweep, self.records(), []
        names = dict.fromkeys([*sweep.objectives, *SCORES])
        names = [name for name in names if any(name in record["scores"] for record in records)]
        for record in records[:most]:
            scores, step, seconds = record["scores"], record["step"], record["seconds"]
            failed = record["state"] == "failed" and record["cause"]
            rows.append(
                [
                    f"{record['rank'] or ''}{' Pareto' if record.get('pareto') else ''}",
                    str(record["number"]),
                    record["label"],
                    *(score_text(name, scores.get(name)) for name in names),
                    "" if step is None else f"{step:,}",
                    "" if seconds is None else clock(seconds),
                    record["state"] + (f": {record['cause']}" if failed else ""),
                ]
            )
        columns = ["", "trial", "settings", *names, "steps", "time", "state"]
        return (
            f"# Sweep {sweep.name}: {sweep.dataset}, {' and '.join(sweep.objectives)} on the "
            f"validation split, best checkpoints\n\n{Table(columns, rows).markdown()}"
        )

    def write_table(self) -> Path:
        """Write `table.md` and `trials.json` to the sweep's folder; returns the former."""
        write_text(self.folder / "trials.json", f"{json.dumps(self.records(), indent=1)}\n")
        write_text(self.folder / "table.md", self.markdown())
        return self.folder / "table.md"

    # MLflow

    def _log_definition(self, log: RunLog) -> None:
        """Log the sweep's declaration to its run."""
        sweep = self.sweep
        space = {f"space/{path}": distribution_to_json(d) for path, d in sweep.full_space.items()}
        log.params(
            {
                "dataset": self.dataset_name,
                "data_digest": self.digest,
                "preset": sweep.preset,
                "set": " ".join(sweep.overrides),
                "objective": ", ".join(sweep.objectives),
                "search": sweep.search,
                **space,
            }
        )
        log.tags(
            {
                "sweep": sweep.name,
                "kind": "sweep",
                "dataset": self.dataset_name,
                "state": "running",
                "commit": git_commit(Path(cutslots.__file__).parent) or "none",
                "cutslots.version": cutslots.__version__,
                "trials": sweep.trials,
                "seeds": ", ".join(map(str, sweep.seeds)),
            }
        )

    def _deliver_rest(self) -> int:
        """Send MLflow what trials could not: the server was unreachable, or their process died.

        Returns: the number of missing events of the first run that fails; later runs are not tried.
        """
        names = {trial.user_attrs.get("run") for trial in self.study.trials()}
        for run_dir in tracking.undelivered(runs_dir()):
            if run_dir.name in names and (
                left := tracking.sync(run_dir, say=self.say, timeout=SYNC_SECONDS)
            ):
                name = run_dir.name
                self.say(
                    f"{left} events of {name} are not in MLflow yet. Later: cutslots sync {name}"
                )
                return left
        return 0

    def _publish(self) -> None:
        """Tag the runs with their ranks in MLflow, and register the best model.

        Raises:
            InputError: the tracking server does not answer.
        """
        # By this sweep's tag: a reused run has another sweep as its parent.
        runs = tracking.find_runs(f"tags.\"sweep.{self.sweep.name}\" != ''")
        by_hash = {run.tags.get("signature"): run.run_id for run in runs}
        hashes = {trial.number: trial.run_dir.name.rpartition("-")[2] for trial in self.trials()}
        ids = {n: by_hash[digest] for n, digest in hashes.items() if digest in by_hash}
        ids |= self._run_ids
        ranked = self.study.ranked()
        ranks = {trial.number: rank for rank, trial in enumerate(ranked, 1)}
        if missing := [str(number) for number in ranks if number not in ids]:
            self.say(f"MLflow has no runs of the trials {', '.join(missing)}")
        tags = {ids[number]: {"rank": rank} for number, rank in ranks.items() if number in ids}
        if failed := tracking.tag_runs(tags):
            self.say(f"could not tag {failed} runs with their rank in MLflow")
        best = next((trial for trial in ranked if trial.number in ids), None)
        if best is None or self.options.smoke:
            return
        name, objective = f"cutslots-{self.dataset_name}", self.sweep.objectives[0]
        value = best.values[0]
        registered = tracking.register(name, ids[best.number], objective, value)
        role = "champion" if registered.is_champion else "the champion is another, better version"
        self.say(
            f"model {name} version {registered.version}: trial {best.number}, "
            f"{objective} {value:.4f} ({role})"
        )


def end_log(run_dir: Path, state: str, cause: str | None, say: Callable[[str], None]) -> None:
    """Write the final status to a trial's log unless its process already did.

    Does nothing without a log or while another process trains there.
    """
    logged, status = None if held(run_dir) else latest(run_dir), MLFLOW_STATUS[state]
    if logged and logged.status != status:
        tags = {"state": state, **({"cause": cause} if cause else {})}
        tracking.sync(run_dir, status=status, tags=tags, say=say, timeout=10.0)
