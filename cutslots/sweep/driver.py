"""The driver of a sweep: it chooses trials, records their results and publishes the best.

It does not know Ray: `ray_backend` asks it for trials and passes it their results.
"""

import json
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from optuna.distributions import distribution_to_json

import cutslots
from cutslots import data, tracking
from cutslots.errors import InputError
from cutslots.files import git_commit, write_text
from cutslots.metrics.registry import better
from cutslots.report.tables import Table
from cutslots.runs.lookup import finished, runs_dir
from cutslots.sweep.display import ENDED, Display, TrialRow
from cutslots.sweep.study import STATES, PlannedTrial, Study
from cutslots.sweep.trial import LOG, MLFLOW_STATUS, STOP_ALL, TrialResult, TrialSpec
from cutslots.tracking import RunLog
from cutslots.tracking.journal import latest
from cutslots.train.callbacks import clock
from cutslots.train.checkpoint import held
from cutslots.train.config import run_hash, to_json

SCORES = ("ari_fg", "ari", "miou", "mse", "cut_ari_fg")  # columns of the table of trials


@dataclass(frozen=True)
class SweepContext:
    """What all trials of a sweep share besides its declaration.

    Attributes:
        data: a prepared folder or its URI.
        dataset_name: the name of the data in tables and run folders.
        experiment: the MLflow experiment.
        registered_model: the model in MLflow's registry that gets the best run as a version.
        tests: prepared datasets whose test split is scored at the end of a trial.
        threads: threads per process; 0 for torch's default.
    """

    data: Path | str
    dataset_name: str
    experiment: str
    registered_model: str | None = None
    tests: tuple[str, ...] = ()
    threads: int = 0
    device: str | None = None


class SweepDriver:
    """Chooses trials, records their results in the study and MLflow, and publishes the best.

    `rows` and `say` may be called from any thread, the other methods from one.

    Args:
        folder: the folder of the sweep.
        log: the sweep's own run in MLflow; None for trials without a parent.
        say: prints a line for the user; replaced by the display while it is active.
    """

    def __init__(
        self,
        study: Study,
        context: SweepContext,
        folder: Path,
        log: RunLog | None,
        say: Callable[[str], None],
    ) -> None:
        self.study, self.sweep, self.context, self.log = study, study.sweep, context, log
        self.folder, self.stops, self._say = folder, folder / "stops", say
        self.digest = data.read_manifest(context.data).digest
        shutil.rmtree(self.stops, ignore_errors=True)  # of an earlier driver
        self.stops.mkdir(parents=True)
        self.display: Display | None = None
        self.stopping_since: float | None = None
        self._rows: dict[int, TrialRow] = {}
        self._begun: dict[int, float] = {}
        self._run_ids: dict[int, str] = {}
        study.claim_data(self.digest, str(context.data))
        for trial in study.trials():
            if "run_id" in trial.user_attrs:
                self._run_ids[trial.number] = trial.user_attrs["run_id"]
            if STATES[trial.state] in ENDED:
                self._add_row(study.planned(trial.number), STATES[trial.state])

    def say(self, text: str) -> None:
        """Print a line for the user."""
        (self.display.say if self.display else self._say)(text)

    # Trials

    def next(self) -> tuple[dict[str, Any], TrialSpec] | None:
        """The parameters and spec of the next trial to run; None if there is none at present.

        Ends trials whose result is already known.
        """
        while self.stopping_since is None and (planned := self.study.next()):
            number, run_dir = planned.number, self._run_dir(planned)
            self._add_row(planned, "waiting")
            self.study.annotate(number, label=planned.label, run=run_dir.name)
            result = self._twin_result(planned) or self._earlier_result(planned, run_dir)
            if result is not None:
                self._end(number, result)
                continue
            self._begun[number] = time.monotonic()
            self._update(number, state="running")
            return planned.params, TrialSpec(
                number=number,
                label=planned.label,
                sweep=self.sweep.name,
                config=to_json(planned.config),
                data=str(self.context.data),
                run_dir=str(run_dir),
                experiment=self.context.experiment,
                parent_run_id=self.log.run_id if self.log else None,
                stops=str(self.stops),
                tests=self.context.tests,
                threads=self.context.threads,
                device=self.context.device,
            )
        return None

    @property
    def exhausted(self) -> bool:
        """Whether `next` will return no further trial."""
        return self.stopping_since is not None or self.study.exhausted

    def _run_dir(self, planned: PlannedTrial) -> Path:
        """The run folder of a trial, named by a hash so that every sweep finds it."""
        digest = run_hash(planned.config, self.digest)
        return runs_dir() / f"{self.context.dataset_name}-{planned.config.model_name}-{digest}"

    def _twin_result(self, planned: PlannedTrial) -> TrialResult | None:
        """The result of an earlier trial of this sweep with the same configuration."""
        run_dir, trials = self._run_dir(planned), self.study.trials()
        retry = trials[planned.number].user_attrs.get("again") is not None
        for row in self.rows():
            if row.run_dir != run_dir or row.number == planned.number:
                continue
            if row.state == "finished":
                scores = trials[row.number].user_attrs.get("scores", {})
                return TrialResult("finished", row.steps, scores)
            if not (retry and row.state == "failed"):
                return TrialResult("failed", cause=f"same configuration as trial {row.number}")
        return None

    def _earlier_result(self, planned: PlannedTrial, run_dir: Path) -> TrialResult | None:
        """The result of a finished run with this configuration, on disk or in MLflow."""
        name = f"trial {planned.number} ({planned.label})"
        try:
            best = finished(run_dir, planned.config, self.digest)
        except InputError as error:  # unreadable checkpoints: the trial will fail with this
            self.say(f"{name}: {error}")
            return None
        logged = latest(run_dir)
        if best is not None and logged and logged.status != "FINISHED":
            return None  # it died after its last step, and still has to log its results
        source = f"its run {run_dir.name} is finished"
        run = self._find_in_mlflow(planned)
        if best is not None and run is None and self.log and logged:
            # It was logged to another store.
            uri = tracking.default_uri()
            tracking.sync(run_dir, tracking_uri=uri, say=self.say, timeout=30.0)
            run = self._find_in_mlflow(planned)
        if best is None and run:
            scores = {name: value for name, value in run.metrics.items() if name[:5] == "best/"}
            best = {name.removeprefix("best/"): value for name, value in scores.items()}
            source = f"MLflow has its finished run {run.name}"
        if best is None or not all(name in best for name in self.sweep.objectives):
            return None
        if run:
            self._run_ids[planned.number] = run.run_id
            self.study.annotate(planned.number, run_id=run.run_id)
            tracking.tag_runs({run.run_id: {f"sweep.{self.sweep.name}": str(planned.number)}})
        self.say(f"{name} is not repeated: {source}")
        return TrialResult("finished", planned.config.train.steps, best)

    def _find_in_mlflow(self, planned: PlannedTrial) -> tracking.FoundRun | None:
        if self.log is None:
            return None
        try:
            return tracking.finished_run(run_hash(planned.config, self.digest))
        except InputError as error:  # trials never wait for the tracking server
            self.say(f"trial {planned.number} may repeat a run in MLflow: {error}")
            return None

    def on_report(self, number: int, step: int, scores: Mapping[str, float]) -> None:
        """Record an evaluation; ask the trial to stop if it is not among the best."""
        objective, row = self.sweep.objectives[0], self._rows[number]
        value = scores.get(objective)
        if value is not None and (row.value is None or better(objective, value, row.value)):
            self._update(number, value=value)
        if self.study.report(number, step, scores):
            # A file in the shared folder reaches a trial even if the driver or Ray has died.
            (self.stops / str(number)).touch()
            factor = self.sweep.halving.reduction_factor if self.sweep.halving else 1
            self._update(number, cause=f"not among the best 1/{factor} at step {step}")

    def on_restart(self, number: int) -> None:
        """A trial's process or node died, and the trial is started again."""
        self.say(f"trial {number}: its process or node died; it resumes from its last checkpoint")

    def on_end(self, number: int, result: TrialResult) -> None:
        """Record the end of a trial, or its interruption."""
        if result.state == "interrupted":
            self._update(number, state="interrupted", seconds=self._seconds(number))
        else:
            self._end(number, result)
        row = self._rows[number]
        if row.state == "failed" and latest(row.run_dir) is None and self.log:
            # Its process died before it opened its log.
            names: Any = {"experiment": self.context.experiment, "run_name": row.run_dir.name}
            log = RunLog(row.run_dir, **names, parent_run_id=self.log.run_id, say=self.say)
            sweep = self.sweep.name
            log.tags({"sweep": sweep, f"sweep.{sweep}": number, "label": row.label})
            log.close("KILLED", 0.0)
        end_log(row.run_dir, row.state, row.cause, self.say)

    def _end(self, number: int, result: TrialResult) -> None:
        """Record a result in the study and in the sweep's run."""
        row, seconds = self._rows[number], self._seconds(number)
        cause = result.cause or (row.cause if result.state == "pruned" else None)
        facts = {"scores": result.scores, "step": result.step, "seconds": seconds, "cause": cause}
        self.study.annotate(number, **facts)
        state = self.study.end(number, result.state, result.scores)
        if state == "failed" and not cause:
            cause = f"it has no finite {' and '.join(self.sweep.objectives)}"
        value = result.scores.get(self.sweep.objectives[0], row.value)
        self._update(number, state=state, value=value, seconds=seconds, cause=cause)
        if self.log:
            states = [row.state for row in self.rows()]
            counts = {name: states.count(name) for name in ("finished", "pruned", "failed")}
            metrics: dict[str, Any] = {f"trials/{name}": n for name, n in counts.items()}
            for best in self.study.ranked()[:1]:
                scores = best.user_attrs.get("scores", {})
                metrics |= {f"best/{name}": score for name, score in scores.items()}
            self.log.metrics(sum(counts.values()), metrics)

    def stop(self) -> None:
        """Ask all running trials to write a checkpoint and stop; no new trials start."""
        self.stopping_since = time.monotonic()
        (self.stops / STOP_ALL).touch()

    def any_started(self) -> bool:
        """Whether any running trial has a process instead of waiting for a node."""

        def started(row: TrialRow) -> bool:
            path, since = row.run_dir / LOG, time.time() - (row.seconds or 0.0) - 5.0
            return path.exists() and path.stat().st_mtime > since

        return any(started(row) for row in self.rows() if row.state == "running")

    # Tables

    def rows(self) -> list[TrialRow]:
        """The current row of every trial."""
        return [
            replace(row, seconds=self._seconds(row.number)) if row.state == "running" else row
            for row in list(self._rows.values())
        ]

    def _seconds(self, number: int) -> float | None:
        begun = self._begun.get(number)
        return None if begun is None else time.monotonic() - begun

    def _add_row(self, planned: PlannedTrial, state: str) -> None:
        attributes = self.study.trials()[planned.number].user_attrs
        self._rows[planned.number] = TrialRow(
            number=planned.number,
            label=planned.label,
            state=state,
            run_dir=self._run_dir(planned),
            steps=planned.config.train.steps,
            value=attributes.get("scores", {}).get(self.sweep.objectives[0]),
            seconds=attributes.get("seconds"),
            cause=attributes.get("cause"),
        )

    def _update(self, number: int, **changes: Any) -> None:
        self._rows[number] = replace(self._rows[number], **changes)

    def records(self) -> list[dict[str, Any]]:
        """Every trial with its settings, scores and run, best first; unranked ones last."""
        ranks = {trial.number: rank for rank, trial in enumerate(self.study.ranked(), 1)}
        front, several = self.study.front(), len(self.sweep.objectives) > 1
        records = []
        for row in sorted(self.rows(), key=lambda row: (ranks.get(row.number, 1e9), row.number)):
            trial = self.study.trials()[row.number]
            attributes = trial.user_attrs
            records.append(
                {
                    "rank": ranks.get(row.number),
                    **({"pareto": row.number in front} if several else {}),
                    "number": row.number,
                    "kind": attributes.get("kind"),
                    "label": row.label,
                    "state": row.state,
                    "values": trial.params,
                    "seed": attributes.get("seed"),
                    "step": attributes.get("step"),
                    "scores": attributes.get("scores", {}),
                    "seconds": row.seconds,
                    "run": row.run_dir.name,
                    "cause": row.cause,
                }
            )
        return records

    def markdown(self, most: int | None = None) -> str:
        """The trials as a Markdown table, best first; at most `most` rows."""
        sweep, records = self.sweep, self.records()
        names = dict.fromkeys([*sweep.objectives, *SCORES])
        names = [name for name in names if any(name in record["scores"] for record in records)]
        rows = []
        for record in records[:most]:
            scores = record["scores"]
            digits = {name: 1 if name == "mse" else 3 for name in names}
            failed = record["state"] == "failed" and record["cause"]
            rows.append(
                [
                    f"{record['rank'] or ''}{' Pareto' if record.get('pareto') else ''}",
                    str(record["number"]),
                    record["label"],
                    *(f"{scores[n]:.{digits[n]}f}" if n in scores else "" for n in names),
                    "" if record["step"] is None else f"{record['step']:,}",
                    "" if record["seconds"] is None else clock(record["seconds"]),
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
        text = json.dumps(self.records(), indent=1)
        write_text(self.folder / "trials.json", f"{text}\n")
        write_text(self.folder / "table.md", self.markdown())
        return self.folder / "table.md"

    # MLflow

    def log_definition(self) -> None:
        """Log the sweep's declaration to its run."""
        sweep, log = self.sweep, self.log
        assert log is not None
        space = sweep.full_space.items()
        log.params(
            {
                "dataset": self.context.dataset_name,
                "data_digest": self.digest,
                "preset": sweep.preset,
                "set": " ".join(sweep.overrides),
                "objective": ", ".join(sweep.objectives),
                "search": sweep.search,
                **{f"space/{path}": distribution_to_json(d) for path, d in space},
            }
        )
        log.tags(
            {
                "sweep": sweep.name,
                "kind": "sweep",
                "dataset": self.context.dataset_name,
                "state": "running",
                "commit": git_commit(Path(cutslots.__file__).parent) or "none",
                "cutslots.version": cutslots.__version__,
                "trials": sweep.trials,
                "seeds": ", ".join(map(str, sweep.seeds)),
            }
        )

    def publish(self) -> None:
        """Tag the runs with their ranks in MLflow, and register the best model.

        Raises:
            InputError: the tracking server does not answer.
        """
        # By this sweep's tag: a reused run has another sweep as its parent.
        runs = tracking.find_runs(f"tags.\"sweep.{self.sweep.name}\" != ''")
        by_hash = {run.tags.get("signature"): run.run_id for run in runs}
        hashes = {row.number: row.run_dir.name.rpartition("-")[2] for row in self.rows()}
        ids = {n: by_hash[digest] for n, digest in hashes.items() if digest in by_hash}
        ids |= self._run_ids
        ranked = self.study.ranked()
        ranks = {trial.number: str(rank) for rank, trial in enumerate(ranked, 1)}
        if missing := [str(number) for number in ranks if number not in ids]:
            self.say(f"MLflow has no runs of the trials {', '.join(missing)}")
        tags = {ids[number]: {"rank": rank} for number, rank in ranks.items() if number in ids}
        if failed := tracking.tag_runs(tags):
            self.say(f"could not tag {failed} runs with their rank in MLflow")
        best = next((trial for trial in ranked if trial.number in ids), None)
        name, objective = self.context.registered_model, self.sweep.objectives[0]
        if best is None or name is None:
            return
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
    logged = None if held(run_dir) else latest(run_dir)
    if logged and logged.status != MLFLOW_STATUS[state]:
        tags = {"state": state, **({"cause": cause} if cause else {})}
        tracking.sync(run_dir, status=MLFLOW_STATUS[state], tags=tags, say=say, timeout=10.0)


@contextmanager
def signal_handler(handle: Callable[[int, Any], None], *numbers: int) -> Iterator[None]:
    """Call `handle` on these signals; does nothing outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        numbers = ()
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
