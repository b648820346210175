"""Find runs and models by reference.

A reference is a path, the name of a run in `CUTSLOTS_HOME/runs`, the id of an MLflow run, or the
URI of a model in MLflow: `models:/NAME@champion`, `models:/NAME/VERSION` or `runs:/ID`. The first
match is used.
"""

import contextlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from cutslots.errors import InputError
from cutslots.files import home
from cutslots.runs.provenance import ABOUT
from cutslots.tracking import fetch_model, find_run
from cutslots.train import RunConfig, checkpoint
from cutslots.train.checkpoint import CHECKPOINTS, CONFIG
from cutslots.train.config import differences, from_json
from cutslots.train.export import WEIGHTS, find_checkpoint


def runs_dir() -> Path:
    """The folder of runs that were given no other folder."""
    return home() / "runs"


def new_run_dir(name: str, argument: str = "NAME") -> Path:
    """The folder of a new run in `runs_dir`; InputError about `argument` if it cannot be one."""
    if Path(name).name != name or name.startswith("."):
        raise InputError(
            f"{argument} must be a folder name without / or a leading dot, got {name!r}."
        )
    return runs_dir() / name


def _resolve(reference: str, accept: Callable[[Path], Path | None], wanted: str) -> Path:
    """The first accepted path that a reference may mean; models are downloaded last."""

    def candidates() -> Iterator[Path]:
        if reference.startswith(("models:/", "runs:/")):
            yield fetch_model(reference)
            return
        yield from (Path(reference), runs_dir() / reference)
        if re.fullmatch("[0-9a-f]{32}", reference) and (run := find_run(reference)):
            if run.run_dir:
                yield run.run_dir
            yield fetch_model(f"runs:/{run.run_id}")

    if path := next(filter(None, map(accept, candidates())), None):
        return path
    raise InputError(
        f"no {wanted} {reference!r}. Give a path, a name in {runs_dir()}, the id of an MLflow run, "
        "or a URI such as models:/NAME@champion."
    )


def find_model(reference: str) -> Path:
    """The checkpoint file, or the exported or downloaded model folder, that a reference means.

    Raises:
        InputError: no match has weights.
    """

    def with_weights(path: Path) -> Path | None:
        if (path / WEIGHTS).exists():
            return path
        with contextlib.suppress(InputError):
            return find_checkpoint(path)
        return None

    return _resolve(reference, with_weights, "run, checkpoint or model")


def stored_run(reference: str) -> tuple[Path, RunConfig, dict[str, str]]:
    """The folder, configuration and dataset (`run.json`) of a run that was trained here.

    Raises:
        InputError: no such run.
    """

    def trained_here(path: Path) -> Path | None:
        return path if (path / CONFIG).is_file() and (path / ABOUT).is_file() else None

    path = _resolve(reference, trained_here, "run")
    about = json.loads((path / ABOUT).read_text())
    return path, from_json((path / CONFIG).read_text()), about


def finished(run_dir: Path, config: RunConfig, data_digest: str) -> dict[str, float] | None:
    """Best scores of a completed run with this configuration and data, or None."""
    path = run_dir / CONFIG
    if not path.is_file() or differences(from_json(path.read_text()), config):
        return None
    state = checkpoint.newest(run_dir / CHECKPOINTS)
    if not state or state["step"] < config.train.steps or state["data_digest"] != data_digest:
        return None
    return state["best"]
