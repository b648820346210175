"""Sweeps as a person starts them, in processes of their own that a test can watch and kill."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import psutil
import torch

from cutslots.data import manifest
from cutslots.runlog import children, find_runs
from cutslots.runlog.found import FoundRun
from cutslots.runlog.journal import events
from cutslots.train import checkpoint
from cutslots.train.config import signature

FILES = Path(__file__).parent / "sweep_files"
PATIENCE = 240.0  # seconds for anything to happen on a machine that does other things too


class Driven:
    """A sweep in a home folder of its own; one driver at a time.

    Args:
        home: CUTSLOTS_HOME, which may hold a database of MLflow already.
        env: of the driver, besides this process's.
    """

    def __init__(self, home: Path, data: Path, file: str = "tiny.py", env: dict[str, str] | None = None) -> None:
        self.home, self.data, self.file, self.env = home, data, FILES / file, env or {}
        self.folder = home / "sweeps" / self.file.stem
        self.log = home / "driver.txt"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *arguments: str) -> None:
        """Start a driver, in a process group of its own as a shell does it."""
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
        return self.ended()

    def ended(self) -> int:
        """The exit status, when the driver has ended by itself."""
        assert self.process is not None
        try:
            return self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the driver does not end\n{self.said()}") from None

    def wait(self, condition: Callable[[], Any], what: str, seconds: float = PATIENCE) -> Any:
        """What `condition` returns when it is true at last; fails when the driver ends or time runs out before."""
        until = time.monotonic() + seconds
        while not (found := condition()):
            ended = self.process is not None and self.process.poll() is not None
            if (ended or time.monotonic() > until) and not (found := condition()):
                raise AssertionError(f"{what}: not so {'when the driver ended' if ended else 'in time'}\n{self.said()}")
            if found:
                break
            time.sleep(0.02)
        return found

    def said(self, lines: int = 60) -> str:
        """The end of all that was said, for the report of a failed test."""
        texts = [self.log, self.folder / "ray.txt", *self.home.glob("runs/*/log.txt")]
        shown = {path: path.read_text(errors="replace").splitlines()[-lines:] for path in texts if path.exists()}
        return "\n".join(f"--- {path}\n" + "\n".join(found) for path, found in shown.items())

    def processes(self) -> list[psutil.Process]:
        """All living processes of this sweep, Ray's too: they inherit the environment. Those that have ended do not count."""
        return [each for each in psutil.process_iter() if each.pid != os.getpid() and self._mine(each)]

    def _mine(self, process: psutil.Process) -> bool:
        try:
            return process.environ().get("CUTSLOTS_HOME") == str(self.home) and process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False

    def kill_rest(self) -> None:
        """Leave nothing behind, however the test ended."""
        for process in self.processes():
            process.kill()
        if self.process:
            self.process.wait()

    # Trials

    def runs(self) -> list[Path]:
        """The folders of the trials' runs that have begun, oldest first."""
        found = [path.parent for path in self.home.glob("runs/*/journal.jsonl")]
        return sorted(found, key=lambda path: next(events(path))["time"])

    def steps(self, run: Path) -> int:
        """The step of a run's newest checkpoint, 0 without one."""
        found = checkpoint.steps(run / "checkpoints")
        return int(found[-1].stem.partition("-")[2]) if found else 0

    def trainer(self, run: Path) -> psutil.Process | None:
        """The process that trains in `run`, which holds its journal open."""
        return next((each for each in self.processes() if _opened(each, run / "journal.jsonl")), None)

    def workers(self) -> list[psutil.Process]:
        """The processes of Ray Train's workers."""
        return [each for each in self.processes() if "RayTrainWorker" in " ".join(each.cmdline())]

    def study(self) -> list[optuna.trial.FrozenTrial]:
        """The study's trials, as its file says."""
        backend = optuna.storages.journal.JournalFileBackend(str(self.folder / "study.log"))
        storage = optuna.storages.JournalStorage(backend)
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
        (found,) = find_runs(f"tags.sweep = '{self.folder.name}' and tags.kind = 'sweep'", tracking_uri=self.uri)
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


def openings(run: Path) -> int:
    """How many processes have trained in `run`, one after the other."""
    return sum(event["kind"] == "open" for event in events(run))


def steps_logged(run: Path) -> list[int]:
    """The steps of all training metrics in a run's journal, in the order in which they were written."""
    return [event["step"] for event in events(run) if event["kind"] == "metrics" and "train/loss" in event["values"]]


def weights(run: Path) -> dict[str, torch.Tensor]:
    """The weights and the optimiser's state of a run's last checkpoint, by name."""
    state = checkpoint.newest(run / "checkpoints")
    assert state is not None
    return dict(_tensors(state["model"], "model")) | dict(_tensors(state["optimizer"], "optimizer"))


def _tensors(value: Any, name: str) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, dict):
        for key, each in value.items():
            yield from _tensors(each, f"{name}.{key}")


def assert_same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    """Bit for bit."""
    assert left.keys() == right.keys()
    different = [name for name in left if not torch.equal(left[name], right[name])]
    assert not different, f"{len(different)} of {len(left)} tensors differ: {different[:5]}"
