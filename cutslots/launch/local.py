"""One run in this process, with its log: no Ray, so a breakpoint stops where it stands."""

import contextlib
import json
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cutslots
from cutslots import options
from cutslots.data import Manifest, dataset_name, local
from cutslots.data.locate import is_uri
from cutslots.data.manifest import MANIFEST
from cutslots.errors import InputError
from cutslots.files import home, write_text
from cutslots.launch.origin import ABOUT, origin, run_folder
from cutslots.report.animation import clip_animation
from cutslots.report.figures import EXAMPLES, example_labels, sample_figure
from cutslots.runlog import (
    RunLog,
    SystemMetrics,
    add_metrics,
    fetch_model,
    find_run,
    git_commit,
    is_model_uri,
    package_model,
)
from cutslots.runlog.fetch import FETCHED
from cutslots.runlog.found import SECONDS
from cutslots.runlog.log import Status
from cutslots.train import Observer, Result, RunConfig, checkpoint, fit
from cutslots.train.config import RESUMABLE, differences, from_json, signature
from cutslots.train.export import WEIGHTS, find_checkpoint, load_weights, save_model
from cutslots.train.fit import CHECKPOINTS, CONFIG
from cutslots.train.observer import Examples, Observers, Sample, Start
from cutslots.train.terminal import Terminal
from cutslots.train.track import Clips

DELIVERY_SECONDS = 30.0  # how long a finished run waits for an absent tracking store


class Tracking(Observer):
    """Keeps a run's log: opened when `fit` has accepted the run, so that a refused one leaves no trace."""

    def __init__(
        self,
        config: RunConfig,
        data: Path | str,
        run_dir: Path,
        experiment: str,
        terminal: Terminal,
        system_metrics: bool = True,
        parent_run_id: str | None = None,
        tags: Mapping[str, Any] | None = None,
    ) -> None:
        self.config, self.data, self.run_dir = (
            config,
            data if is_uri(data) else Path(data).absolute(),
            run_dir,
        )
        self.experiment, self.terminal, self.system_metrics = experiment, terminal, system_metrics
        self.parent_run_id, self.tags = parent_run_id, dict(tags or {})
        self.log: RunLog | None = None
        self.system: SystemMetrics | None = None

    def started(self, start: Start) -> None:
        self.terminal.say(f"run {self.run_dir.name} in {self.run_dir}")
        data_dir = local(self.data)
        manifest = Manifest.load(data_dir)
        about = {
            "source": manifest.source,
            "set": dataset_name(manifest),
            "data": str(self.data),
            "experiment": self.experiment,
        }
        write_text(self.run_dir / ABOUT, json.dumps(about, indent=2) + "\n")
        log = self._open()
        values = options.flat(self.config)
        # MLflow refuses a changed parameter, and these change when a run is extended.
        changeable = {path: values.pop(path) for path in RESUMABLE}
        log.params({**values, "num_parameters": start.num_parameters})
        log.tags(
            {
                **changeable,
                "dataset": manifest.source,
                "set": about["set"],
                "data_digest": manifest.digest,
                "model": self.config.model_name,
                "signature": signature(self.config, manifest.digest),
                "commit": git_commit(Path(cutslots.__file__).parent) or "none",
                "cutslots.version": cutslots.__version__,
                "cutslots.device": start.device,
                "cutslots.precision": start.precision,
                "checkpoints": self.run_dir / CHECKPOINTS,
                "state": "running",
                **self.tags,
            }
        )
        schema = {"image": f"uint8 {manifest.frame_shape}", "mask": "uint8 instance ids"}
        log.dataset(manifest.source, manifest.digest, str(self.data), schema, manifest.to_json())
        log.artifact(data_dir / MANIFEST)
        log.artifact(self.run_dir / CONFIG)
        self.log, self.system = log, SystemMetrics(log) if self.system_metrics else None

    def _open(self) -> RunLog:
        return RunLog(
            self.run_dir,
            experiment=self.experiment,
            run_name=self.run_dir.name,
            parent_run_id=self.parent_run_id,
            say=self.terminal.say,
        )

    def progress(self, step: int, values: Mapping[str, float]) -> None:
        if self.log:
            self.log.metrics(step, {f"train/{name}": value for name, value in values.items()})

    def evaluated(self, step: int, scores: Mapping[str, float], sample: Sample) -> None:
        if self.log:
            self.log.metrics(step, {f"val/{name}": value for name, value in scores.items()})
            self.log.artifact(
                _drawn(sample, self.run_dir / "figures" / f"step-{step:08d}"), "figures"
            )

    def improved(self, step: int, examples: Examples) -> None:
        if self.log:
            older = list((self.run_dir / EXAMPLES).glob("step-*"))
            path = _drawn(
                examples.sample,
                self.run_dir / EXAMPLES / f"step-{step:08d}",
                example_labels(examples),
            )
            for each in older:
                if each != path:
                    each.unlink(missing_ok=True)

    def finished(self, result: Result) -> None:
        """Log the best scores, the best model and its telling scenes."""
        if self.log:
            self.log.tags({"state": "finished"})
            self.log.metrics(
                result.step,
                {f"best/{name}": value for name, value in result.best.items()}
                | {SECONDS: result.seconds},
            )
            self.log.artifact(self._packaged_model(), "model")
            # By its step: of an older run, or one that was extended, there may be the picture of another evaluation, or none.
            for path in (self.run_dir / EXAMPLES).glob(f"step-{result.best['step']:08.0f}.*"):
                self.log.artifact(path, EXAMPLES)

    def ended(self, state: str, cause: str | None = None) -> None:
        """Log why a run ends that takes no more steps; of a sweep's trial also when it took none."""
        if self.log is None and self.parent_run_id:
            self.log = self._open()
            self.log.tags(self.tags)
        if self.log:
            self.log.tags({"state": state, **({"cause": cause} if cause else {})})

    def close(self, status: Status) -> None:
        """End the log; nothing happens when it was never opened."""
        if self.system:
            self.system.close()
        if self.log:
            self.log.close(status, DELIVERY_SECONDS)

    def _packaged_model(self) -> Path:
        config, state = load_weights(self.run_dir)
        export, packaged = self.run_dir / "model", self.run_dir / "mlflow-model"
        save_model(state, config, export, origin(find_checkpoint(self.run_dir)))
        shutil.rmtree(packaged, ignore_errors=True)
        return package_model(export, packaged, config.model.image_size)


def _drawn(sample: Sample, path: Path, labels: Sequence[str] = ()) -> Path:
    """Draw a sample as what it is; returns the file, `path` with its ending."""
    if isinstance(sample, Clips):
        path = path.with_suffix(".gif")
        clip_animation(sample, path, labels=labels)
    else:
        path = path.with_suffix(".png")
        sample_figure(sample, path, labels=labels)
    return path


def train_here(
    config: RunConfig,
    data: Path | str,
    run_dir: Path,
    *,
    experiment: str,
    device: str | None = None,
    resume: bool = False,
    debug: bool = False,
    terminal: Terminal | None = None,
) -> Result:
    """Run `fit` with progress at the terminal and everything in MLflow: parameters, metrics, data, figures and the best model.

    The first Ctrl-C ends it after the step that it is at, with a checkpoint; a second one, or with `debug` the first, interrupts.

    What a resumed run may change (`RESUMABLE`) is in MLflow's tags, the other options are its parameters. With `debug` nothing
    draws over a debugger's prompt and no thread samples the machine. The run remembers `data` as it is given, a prepared
    folder or the URI of one: the copy of what a URI names may be gone when the run is resumed.

    Raises: what `fit` raises; the run is then marked FAILED (KILLED when interrupted) and stays resumable.
    """
    terminal = terminal or Terminal(live=not debug)
    tracking = Tracking(config, data, run_dir, experiment, terminal, system_metrics=not debug)
    status: Status = "FAILED"
    try:
        observers = Observers([tracking, terminal])
        with terminal, _stop_sign(terminal, debug) as stop:
            result = fit(
                config,
                local(data),
                run_dir,
                observers,
                device=device,
                resume=resume,
                debug=debug,
                stop=stop,
            )
        if stop() and result.step < config.train.steps:
            raise KeyboardInterrupt
        tracking.finished(result)
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        tracking.ended("interrupted")
        raise
    except Exception as error:
        tracking.ended("failed", str(error))
        raise
    finally:
        tracking.close(status)
    return result


@contextlib.contextmanager
def _stop_sign(terminal: Terminal, debug: bool) -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C was pressed; a second one is a KeyboardInterrupt. Left alone where a debugger or a host program hears it."""
    ours = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )
    pressed = threading.Event()
    if debug or not ours:
        yield pressed.is_set
        return

    def stop(*_: object) -> None:
        if pressed.is_set():
            raise KeyboardInterrupt
        pressed.set()
        terminal.say("Ctrl-C: ends after this step, with a checkpoint; once more ends it now")

    signal.signal(signal.SIGINT, stop)
    try:
        yield pressed.is_set
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def finished(
    run_dir: Path, config: RunConfig, data_digest: str | None = None
) -> dict[str, float] | None:
    """The best scores of a run that has already taken all its steps with this very configuration and data; None when there is none.

    Args:
        data_digest: the data's `Manifest.digest`; None leaves the data unchecked.
    """
    if not (run_dir / CONFIG).is_file() or differences(
        from_json((run_dir / CONFIG).read_text()), config
    ):
        return None
    stored = checkpoint.newest(run_dir / CHECKPOINTS)
    if (
        not stored
        or stored["step"] < config.train.steps
        or data_digest not in (None, stored["data_digest"])
    ):
        return None
    return stored["best"]


def runs_dir() -> Path:
    """Where runs lie that were not given a folder."""
    return home() / "runs"


def find_model(reference: str) -> Path:
    """What a person calls a run, as a path that holds weights.

    Args:
        reference: a path (checkpoint, run folder, exported model), a run's name under the home folder, an MLflow run id, or a
            model's address in MLflow, such as `models:/cutslots-clevr@champion`. What is in MLflow alone is fetched.

    Raises:
        InputError: nothing of that name.
    """
    if is_model_uri(reference):
        return fetch_model(reference)
    there = [path for path in (Path(reference), runs_dir() / reference) if path.exists()]
    for path in there:
        if (path / WEIGHTS).exists():
            return path
        with contextlib.suppress(InputError):  # a folder of pictures may have the name of a run
            return find_checkpoint(path)
    if there:
        return find_checkpoint(there[0])  # which says what is missing
    found = find_run(reference) if len(reference) == 32 else None
    if found and found.run_dir and any((found.run_dir / CHECKPOINTS).glob("*.pt")):
        return find_checkpoint(found.run_dir)
    if found:
        return fetch_model(f"runs:/{found.run_id}")
    raise InputError(
        f"no run, checkpoint or model {reference!r}: not a path, not a name in {runs_dir()}, not the id of an MLflow run, "
        "not a model's address in MLflow such as models:/NAME@champion."
    )


def find_run_dir(reference: str) -> Path:
    """The folder of a run by path, name or MLflow id.

    Raises:
        InputError: there is none on this machine.
    """
    for path in (Path(reference), runs_dir() / reference):
        if (path / CONFIG).is_file():
            return path
    found = find_run(reference) if len(reference) == 32 else None
    if found and found.run_dir and (found.run_dir / CONFIG).is_file():
        return found.run_dir
    raise InputError(
        f"no run {reference!r}: neither a folder with {CONFIG}, nor a name in {runs_dir()}, nor an MLflow run on this machine."
    )


def stored_run(reference: str) -> tuple[Path, RunConfig, dict[str, str]]:
    """A run's folder, configuration and what it was trained on, by path or name.

    Raises:
        InputError: no such run.
    """
    for path in (Path(reference), runs_dir() / reference):
        if (path / CONFIG).is_file() and (path / ABOUT).is_file():
            return (
                path,
                from_json((path / CONFIG).read_text()),
                json.loads((path / ABOUT).read_text()),
            )
    raise InputError(
        f"no run {reference!r}: neither a folder with {CONFIG} nor a name in {runs_dir()}."
    )


def log_scores(
    model: Path, source: str, split: str, scores: Mapping[str, float], partial: bool = False
) -> None:
    """Add an evaluation to the log of the run that `model` belongs to, if it belongs to one; the run's state stays as it is.

    Args:
        model: a checkpoint, or a folder; one that was fetched from MLflow belongs to the run that it came from.
        partial: the scores are of a part of the split only, and are not logged: under its name they would pass for all of it.
    """
    if partial:
        return
    values = {f"{source}/{split}/{name}": value for name, value in scores.items()}
    folder = run_folder(model) if model.is_file() else None
    if folder is not None:
        about = json.loads((folder / ABOUT).read_text())
        step = int(checkpoint.load(model)["step"])
        with RunLog(
            folder, experiment=about["experiment"], run_name=folder.name, annotate=True
        ) as log:
            log.metrics(step, values)
    elif (model / FETCHED).is_file():
        known = json.loads((model / FETCHED).read_text())
        if run_id := known.get("run_id"):
            step = int(known.get("metrics", {}).get("best/step", 0))
            if not add_metrics(run_id, step, values):
                print(
                    f"the scores on {source} {split} are not in MLflow: it does not take them for run {run_id} now",
                    file=sys.stderr,
                )
