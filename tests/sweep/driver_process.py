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
        self.folder = home / "sweeps" / self.file.stem
        self.log = home / "driver.txt"
        self.process: subprocess.Popen[bytes]

    def start(self, *arguments: str) -> None:
        """Start a driver in a new process group, as a shell does."""
        env = {**os.environ, **self.env, "CUTSLOTS_HOME": str(self.home), "OMP_NUM_THREADS": "1"}
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(self.file), "--data", str(self.data), *arguments],
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

    def wait_for_processes(self) -> None:
        """Wait until all its processes have ended."""
        self.wait(lambda: not self.processes(), "an end of all of its processes")

    def wait(self, condition: Callable[[], T | None], what: str) -> T:
        """Wait until `condition` is true and return its value; fails if the driver ends before."""
        until = time.monotonic() + PATIENCE
        lived = self.process.poll() is None
        while True:
            ended = lived and self.process.poll() is not None
            found = condition()
            if found:
                return found
            assert not ended, f"{what}: the driver ended\n{self.output()}"
            assert time.monotonic() < until, (
                f"{what}: not so after {PATIENCE:.0f} s\n{self.output()}"
            )
            time.sleep(0.02)

    def output(self, lines: int = 60) -> str:
        """The end of all output, for the report of a failed test."""
        texts = [self.log, self.folder / "ray.txt", *self.home.glob("runs/*/log.txt")]
        shown = {
            path: path.read_text(errors="replace").splitlines()[-lines:]
            for path in texts
            if path.exists()
        }
        return "\n".join(f"--- {path}\n" + "\n".join(found) for path, found in shown.items())

    def processes(self) -> list[psutil.Process]:
        """The living processes of this sweep and of its Ray: they inherit the environment."""
        return [
            each for each in psutil.process_iter() if each.pid != os.getpid() and self._mine(each)
        ]

    def _mine(self, process: psutil.Process) -> bool:
        try:
            return (
                process.environ().get("CUTSLOTS_HOME") == str(self.home)
                and process.status() != psutil.STATUS_ZOMBIE
            )
        except psutil.Error:
            return False

    def kill_rest(self) -> None:
        """Kill all processes that are left."""
        for process in self.processes():
            process.kill()
        if hasattr(self, "process"):
            self.process.wait()

    # Trials

    def runs(self) -> list[Path]:
        """The folders of the trials' runs that have begun, oldest first."""
        begun = {
            path.parent: opening(path.parent) for path in self.home.glob("runs/*/journal.jsonl")
        }
        return sorted(
            (run for run, opened in begun.items() if opened),
            key=lambda run: (begun[run] or {})["time"],
        )

    def run_of(self, label: str) -> Path:
        """The folder of the run of the trial of that name, as soon as it has begun."""

        def labels() -> dict[str, Path]:
            return {
                event["values"].get("label"): run
                for run in self.runs()
                for event in events(run)
                if event["kind"] == "tags"
            }

        return self.wait(lambda: labels().get(label), f"trial {label!r}")

    def trainer(self, run: Path) -> psutil.Process:
        """The process that trains in `run`, which holds its journal open."""
        return next(each for each in self.processes() if _opened(each, run / "journal.jsonl"))

    def finished(self) -> list[Path]:
        """The folders of the finished runs."""
        return [run for run in self.runs() if status(run) == "FINISHED"]

    def between_checkpoints(self, step: int, end: int = 200) -> Path | None:
        """A run with steps after its last checkpoint, at `step` or later, and not near its end."""
        return next(
            (run for run in self.runs() if end - 20 > last_step(run) > newest_step(run) >= step),
            None,
        )

    def workers(self) -> list[psutil.Process]:
        """The processes of Ray Train's workers."""
        return [each for each in self.processes() if "RayTrainWorker" in " ".join(each.cmdline())]

    def study(self) -> list[optuna.trial.FrozenTrial]:
        """The trials in the study's file."""
        storage = JournalStorage(JournalFileBackend(str(self.folder / "study.log")))
        return optuna.load_study(study_name=self.folder.name, storage=storage).trials

    def records(self) -> list[dict[str, Any]]:
        """The sweep's table, by number of the trial."""
        found = json.loads((self.folder / "trials.json").read_text())
        return sorted(found, key=lambda each: each["number"])

    # MLflow

    @property
    def uri(self) -> str:
        """The tracking store."""
        return self.env.get("MLFLOW_TRACKING_URI") or f"sqlite:///{self.home / 'mlflow.db'}"

    def parent(self) -> FoundRun:
        """The sweep's own run, of which there is one."""
        (found,) = find_runs(
            f"tags.sweep = '{self.folder.name}' and tags.kind = 'sweep'", tracking_uri=self.uri
        )
        return found

    def children(self) -> list[FoundRun]:
        """The trials' runs in MLflow, by number of the trial."""
        found = children(self.parent().run_id, self.uri)
        return sorted(found, key=lambda run: int(run.tags[f"sweep.{self.folder.name}"]))


def _opened(process: psutil.Process, path: Path) -> bool:
    try:
        return any(Path(each.path) == path for each in process.open_files())
    except psutil.Error:
        return False


def in_shared_memory() -> set[str]:
    """Names of Ray and torch in shared memory."""
    return {
        name
        for name in os.listdir("/dev/shm")
        if name.startswith(("plasma", "ray", "torch", "sem.", "psm_"))
    }
