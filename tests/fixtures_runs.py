"""Runs in a tracking store: logged without training (`make_run`), or trained for a few steps."""

import functools
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from cutslots import options
from cutslots.tracking import RunLog, ready
from cutslots.train.config import RunConfig, preset
from cutslots.train.export import save_model

EARLIER_SMALL = (  # assignments that make `small` the model of versions before its recipe
    "composition=decoder",
    "color.steps=0",
    "color.ramp=0",
    "window.kind=none",
    "weights.num_layers=2",
    "weights.dilated=false",
    "cut.reach=none",
    "cut.gamma_terminal=0.05",
    "cut.gamma_vertex=0.05",
    "train.best_metric=ari_fg",
)
TINY = (
    "encoder.channels=8",
    "weights.hidden=8",
    "slots.size=8",
    "slots.hidden=16",
    "decoder.channels=8",
    "optim.batch_size=8",
)
OVERRIDES = [word for assignment in TINY for word in ("--set", assignment)]


def log_run(
    run_dir: Path,
    *,
    tags: Mapping[str, Any] | None = None,
    params: Mapping[str, Any] | None = None,
    metrics: Mapping[str, float] | None = None,
    step: int = 1,
    history: Mapping[int, Mapping[str, float]] | None = None,
    artifacts: Mapping[str, Path] | None = None,
    parent: str | None = None,
    status: Any = "FINISHED",
    experiment: str = "e",
) -> str:
    """Log a run named after `run_dir` and return its MLflow id.

    Args:
        metrics: logged at `step`.
        history: more metrics by step, logged first.
        artifacts: artifact folder -> file or folder to log there.
    """
    log = RunLog(
        run_dir,
        experiment=experiment,
        run_name=run_dir.name,
        parent_run_id=parent,
    )
    log.params(params or {})
    log.tags(tags or {})
    points = dict(history or {})
    points[step] = {**points.get(step, {}), **(metrics or {})}
    for at, values in points.items():
        log.metrics(at, values)
    for folder, path in (artifacts or {}).items():
        log.artifact(path, folder)
    assert log.close(status, timeout=60) == 0
    assert log.run_id is not None
    return log.run_id


def tiny_config(name: str = "small") -> RunConfig:
    """A preset with the smallest layers."""
    assignments = [a for a in TINY if not a.startswith("optim")]
    return functools.reduce(options.override, assignments, preset(name))


def save_tiny_model(folder: Path, name: str = "small", seed: int = 0) -> Path:
    """Export an untrained model to `folder` and return the folder."""
    config = tiny_config(name)
    torch.manual_seed(seed)
    save_model(config.model.build().state_dict(), config, folder)
    return folder


def train_tiny_run(name: str, *arguments: str, data: str = "scenes", steps: int = 3) -> None:
    """Train a run of a tiny model on prepared data with `cutslots train`."""
    from cutslots.cli import main

    assert main(["train", data, "--name", name, "--steps", str(steps), *OVERRIDES, *arguments]) == 0


@pytest.fixture(scope="session")
def make_run() -> Callable[..., str]:
    """`log_run` as a fixture."""
    return log_run


@pytest.fixture(scope="session")
def copy_database(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """A function that puts an empty MLflow database into a home folder and returns the folder.

    Creating a database takes seconds.
    """
    database = tmp_path_factory.mktemp("database") / "mlflow.db"
    ready(f"sqlite:///{database}")

    def copy(home: Path) -> Path:
        home.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(database, home / "mlflow.db")
        return home

    return copy
