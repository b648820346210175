"""A sweep in its own process, as a user starts it, that a test can watch and kill."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import optuna
import psutil
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from run_facts import last_step, newest_step, status

from cutslots.tracking import children, find_runs
from cutslots.tracking.journal import events, opening
from cutslots.tracking.queries import FoundRun

FILES = Path(__file__).parent / "sweep_files"
T = TypeVar("T")
PATIENCE = 240.0  # seconds; the machine may be busy


class DriverProcess:
    """The driver of a sweep with its own home folder; one process at a time.

    Args:
        home: CUTSLOTS_HOME, which may hold a database of MLflow already.
        env: of the driver, besides this process's.
    """

    def __init__(
        self, home: Path, data: Path, file: str = "tiny.py", env: dict[str, str] | None = None
    ) -> None:
        self.home, self.data, self.file, self.env = home, data, FILES / file, env or {}
        self.folder, self.log = home / "sweeps" / self.file.stem, home / "driver.txt"
        self.uri = self.env.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home / 'mlflow.db'}"
        self.process: subprocess.Popen[bytes]

    def start(self, *arguments: str) -> None:
        """Start a driver in a new process group, as a shell does."""
        env = {**os.environ, **self.env, "CUTSLOTS_HOME": str(self.home), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(self.file), "--data", str(self.data), *arguments]
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.home,
                env=env,
                start_new_session=True,
            )

    def run(self, *arguments: str) -> int:
        """Run a sweep to its end; returns the exit status."""
        self.start(*arguments)
        return self.wait_for_exit()

    def wait_for_exit(self) -> int:
        """Wait until the driver ends; returns its exit status."""
        try:
            return self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the driver does not end\n{self.output()}") from None

    def kill(self) -> None:
        """SIGKILL to the driver."""
        self.process.kill()
        self.process.wait()

    def wait(self, condition: Callable[[], T | None], what: str) -> T:
        """Wait until `condition` is true and return its value; fails if the driver ends before."""
        deadline, lived = time.monotonic() + PATIENCE, self.process.poll() is None
        while True:
            ended = lived and self.process.poll() is not None
            if value := condition():
                return value
            assert not ended, f"{what}: the driver ended\n{self.output()}"
            assert time.monotonic() < deadline, f"{what}: not in time\n{self.output()}"
            time.sleep(0.02)

    def wait_for_processes(self) -> None:
        """Wait until all its processes have ended."""
        self.wait(lambda: not self.processes(), "the end of all its processes")

    def output(self) -> str:
        """The end of all output, for the report of a failed test."""
        texts = [self.log, self.folder / "ray.txt", *self.home.glob("runs/*/log.txt")]
        ends = {path: path.read_text(errors="replace")[-6000:] for path in texts if path.exists()}
        return "\n".join(f"--- {path}\n{end}" for path, end in ends.items())

    def processes(self) -> list[psutil.Process]:
        """The living processes of this sweep and of its Ray: they inherit the environment."""
        living = []
        for process in psutil.process_iter():
            try:
                home = process.environ().get("CUTSLOTS_HOME")
                if home == str(self.home) and process.status() != psutil.STATUS_ZOMBIE:
                    living.append(process)
            except psutil.Error:
                pass
        return [process for process in living if process.pid != os.getpid()]

    def kill_rest(self) -> None:
        """Kill all remaining processes."""
        for process in self.processes():
            process.kill()
        if hasattr(self, "process"):
            self.process.wait()

    # Trials

    def runs(self) -> list[Path]:
        """The folders of the trials' runs that have begun, oldest first."""
        paths = self.home.glob("runs/*/journal.jsonl")
        openings = {path.parent: opening(path.parent) for path in paths}
        times = {run: opened["time"] for run, opened in openings.items() if opened}
        return sorted(times, key=lambda run: times[run])

    def run_of(self, label: str) -> Path:
        """The folder of the run of a trial, as soon as it has begun."""

        def labels() -> dict[str, Path]:
            tags = [(e["values"], run) for run in self.runs() for e in events(run) if "values" in e]
            return {values["label"]: run for values, run in tags if "label" in values}

        return self.wait(lambda: labels().get(label), f"trial {label!r}")

    def trainer(self, run: Path) -> psutil.Process:
        """The process that trains in `run`, which has its journal open."""

        def trains(process: psutil.Process) -> bool:
            try:
                return any(Path(file.path).parent == run for file in process.open_files())
            except psutil.Error:
                return False

        return next(filter(trains, self.processes()))

    def workers(self) -> list[psutil.Process]:
        """The processes of Ray Train's workers."""
        return [p for p in self.processes() if "RayTrainWorker" in " ".join(p.cmdline())]

    def finished(self) -> list[Path]:
        """The folders of the finished runs."""
        return [run for run in self.runs() if status(run) == "FINISHED"]

    def between_checkpoints(self, step: int = 40, end: int = 200) -> Path | None:
        """A run with steps after its last checkpoint, at `step` or later, and not near its end."""
        steps = {run: (newest_step(run), last_step(run)) for run in self.runs()}
        return next(
            (run for run, (saved, last) in steps.items() if end - 20 > last > saved >= step), None
        )

    def start_past_checkpoints(self, *arguments: str, end: int = 200) -> Path:
        """Start a driver and wait for a run between its checkpoints, which is returned."""
        self.start(*arguments)
        return self.wait(lambda: self.between_checkpoints(end=end), "a run past its checkpoints")

    def study(self) -> list[optuna.trial.FrozenTrial]:
        """The trials in the study's file."""
        storage = JournalStorage(JournalFileBackend(str(self.folder / "study.log")))
        return optuna.load_study(study_name=self.folder.name, storage=storage).trials

    def records(self) -> list[dict[str, Any]]:
        """The sweep's table, by number of the trial."""
        records = json.loads((self.folder / "trials.json").read_text())
        return sorted(records, key=lambda record: record["number"])

    # MLflow

    def parent(self) -> FoundRun:
        """The sweep's own run, of which there is one."""
        (run,) = find_runs(
            f"tags.sweep = '{self.folder.name}' and tags.kind = 'sweep'", tracking_uri=self.uri
        )
        return run

    def children(self) -> list[FoundRun]:
        """The trials' runs in MLflow, by number of the trial."""
        runs = children(self.parent().run_id, self.uri)
        return sorted(runs, key=lambda run: int(run.tags[f"sweep.{self.folder.name}"]))

    def states(self) -> list[tuple[str, str]]:
        """The status and the tag `state` of the sweep's run and of its trials' runs."""
        return [(run.status, run.tags["state"]) for run in (self.parent(), *self.children())]
