"""The callback that logs a training to MLflow."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cutslots
from cutslots import options
from cutslots.data import Manifest, dataset_name, local
from cutslots.data.locate import is_uri
from cutslots.data.manifest import MANIFEST
from cutslots.files import git_commit, write_text
from cutslots.report.figures import EXAMPLES, clip_animation, example_labels, sample_figure
from cutslots.runs.provenance import ABOUT, origin
from cutslots.tracking import RunLog, SystemMetrics, package_model
from cutslots.tracking.queries import SECONDS
from cutslots.tracking.run_log import Status
from cutslots.train import Callback, Result, RunConfig
from cutslots.train.callbacks import Examples, ProgressBar, Sample, Start
from cutslots.train.checkpoint import CHECKPOINTS, CONFIG
from cutslots.train.config import RESUMABLE, run_hash
from cutslots.train.export import find_checkpoint, load_weights, save_model
from cutslots.train.video import Clips

DELIVERY_SECONDS = 30.0  # a finished run waits so long for an unreachable tracking store


@dataclass
class MLflowCallback(Callback):
    """Logs parameters, metrics, data, figures and the best model.

    `fit` starts it after it has checked its input, so a rejected run leaves no log. The owner calls
    `finished` or `ended`, then `close`. Options that a resumed run may change (`RESUMABLE`) are
    tags in MLflow, the others are parameters.
    """

    config: RunConfig
    data: Path | str
    run_dir: Path
    experiment: str
    terminal: ProgressBar
    system_metrics: bool = True
    parent_run_id: str | None = None
    tags: Mapping[str, Any] = field(default_factory=dict)
    log: RunLog | None = field(default=None, init=False)
    system: SystemMetrics | None = field(default=None, init=False)

    def on_start(self, start: Start) -> None:
        self.terminal.say(f"run {self.run_dir.name} in {self.run_dir}")
        source = self.data if is_uri(self.data) else str(Path(self.data).absolute())
        data_dir = local(self.data)
        manifest = Manifest.load(data_dir)
        about = {"source": manifest.source, "set": dataset_name(manifest)}
        about |= {"data": str(source), "experiment": self.experiment}
        write_text(self.run_dir / ABOUT, json.dumps(about, indent=2) + "\n")
        self.log = log = self._open()
        self.system = SystemMetrics(log) if self.system_metrics else None
        values = options.flat(self.config)
        resumable = {path: values.pop(path) for path in RESUMABLE}
        log.params({**values, "num_parameters": start.num_parameters})
        log.tags(
            {
                **resumable,
                "dataset": manifest.source,
                "set": about["set"],
                "data_digest": manifest.digest,
                "model": self.config.model_name,
                "signature": run_hash(self.config, manifest.digest),
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
        log.dataset(manifest.source, manifest.digest, str(source), schema, manifest.to_json())
        log.artifact(data_dir / MANIFEST)
        log.artifact(self.run_dir / CONFIG)

    def _open(self) -> RunLog:
        return RunLog(
            self.run_dir,
            experiment=self.experiment,
            run_name=self.run_dir.name,
            parent_run_id=self.parent_run_id,
            say=self.terminal.say,
        )

    def on_log(self, step: int, values: Mapping[str, float]) -> None:
        if self.log:
            self.log.metrics(step, {f"train/{name}": value for name, value in values.items()})

    def on_evaluate(self, step: int, scores: Mapping[str, float], sample: Sample) -> None:
        if self.log:
            self.log.metrics(step, {f"val/{name}": value for name, value in scores.items()})
            path = self.run_dir / "figures" / f"step-{step:08d}"
            self.log.artifact(_draw(sample, path), "figures")

    def on_improve(self, step: int, examples: Examples) -> None:
        if self.log:
            older = set((self.run_dir / EXAMPLES).glob("step-*"))
            path = self.run_dir / EXAMPLES / f"step-{step:08d}"
            for old in older - {_draw(examples.sample, path, example_labels(examples))}:
                old.unlink(missing_ok=True)

    def finished(self, result: Result) -> None:
        """Log the best scores, the best model, and the best, median and worst scenes."""
        if self.log:
            self.log.tags({"state": "finished"})
            best = {f"best/{name}": value for name, value in result.best.items()}
            self.log.metrics(result.step, best | {SECONDS: result.seconds})
            log_model(self.log, self.run_dir)
            # By its step: a resumed run may have scenes of another evaluation, or none.
            for path in (self.run_dir / EXAMPLES).glob(f"step-{result.best['step']:08.0f}.*"):
                self.log.artifact(path, EXAMPLES)

    def ended(self, state: str, cause: str | None = None) -> None:
        """Log why a run ends early; a trial of a sweep is logged even if it took no step."""
        if self.log is None and self.parent_run_id:
            self.log = self._open()
            self.log.tags(self.tags)
        if self.log:
            self.log.tags({"state": state, **({"cause": cause} if cause else {})})

    def close(self, status: Status) -> None:
        """End the log, if it was opened."""
        if self.system:
            self.system.close()
        if self.log:
            self.log.close(status, DELIVERY_SECONDS)


def log_model(log: RunLog, run_dir: Path) -> None:
    """Log the best model of a run's folder, which the registry takes from there."""
    config, state = load_weights(run_dir)
    export, packaged = run_dir / "model", run_dir / "mlflow-model"
    save_model(state, config, export, origin(find_checkpoint(run_dir)))
    shutil.rmtree(packaged, ignore_errors=True)
    log.artifact(package_model(export, packaged, config.model.image_size), "model")


def _draw(sample: Sample, path: Path, labels: Sequence[str] = ()) -> Path:
    """Draw images as PNG, clips as GIF; the path of the file."""
    if isinstance(sample, Clips):
        path = path.with_suffix(".gif")
        clip_animation(sample, path, labels=labels)
    else:
        path = path.with_suffix(".png")
        sample_figure(sample, path, labels=labels)
    return path
