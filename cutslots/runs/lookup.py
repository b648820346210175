"""Runs and models by the names that people give them: a path, a name, an MLflow run id, a model URI."""

import contextlib
import json
from pathlib import Path

from cutslots.errors import InputError
from cutslots.files import home
from cutslots.runs.provenance import ABOUT
from cutslots.tracking import (
    fetch_model,
    find_run,
    is_model_uri,
)
from cutslots.train import RunConfig, checkpoint
from cutslots.train.checkpoint import CHECKPOINTS, CONFIG
from cutslots.train.config import differences, from_json
from cutslots.train.export import WEIGHTS, find_checkpoint


def runs_dir() -> Path:
    """Where runs lie that were not given a folder."""
    return home() / "runs"


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
