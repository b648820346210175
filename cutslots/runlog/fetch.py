"""Models that lie in MLflow, among a run's artifacts or in the registry, as folders on this machine."""

import hashlib
import json
import os
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cutslots.errors import InputError
from cutslots.files import home, write_text
from cutslots.runlog.found import ask
from cutslots.runlog.registry import FOLDER
from cutslots.runlog.store import RefusedError, default_uri, without_password

if TYPE_CHECKING:
    from mlflow import MlflowClient

CONFIG, WEIGHTS, FETCHED = "config.json", "weights.safetensors", "fetched.json"
FORMS = "models:/NAME@ALIAS, models:/NAME/VERSION or runs:/ID"
_REGISTERED = re.compile(r"models:/(?P<name>[^/@]+)(@(?P<alias>[^/@]+)|/(?P<version>\d+))")
_OF_RUN = re.compile(rf"runs:/(?P<run_id>[0-9a-f]{{32}})(/{FOLDER})?/?")


class _Origin(NamedTuple):
    """Where a model's files are, and what is known of it."""

    uri: str
    known: dict[str, Any]


def is_model_uri(reference: str) -> bool:
    """Whether this is a model's address in MLflow, `models:/...` or `runs:/...`."""
    return reference.startswith(("models:/", "runs:/"))


def fetch_model(reference: str, tracking_uri: str | None = None) -> Path:
    """Bring a model that MLflow keeps to this machine, anew with every call: a registered name may mean another one tomorrow.

    Nothing of the model's folder is taken but a configuration in JSON and weights in safetensors; no code of it runs.

    Args:
        reference: `models:/NAME@ALIAS`, `models:/NAME/VERSION`, or `runs:/ID`, a run's own model.

    Returns:
        A folder under the home's cache with `config.json`, `weights.safetensors`, and in `fetched.json` what MLflow knows of it:
        `reference`, `name` and `version` where it is registered, and `run_id`, `run`, `tags`, `metrics` of its run.

    Raises:
        InputError: another form of address, the store cannot be reached, or it has no such model.
    """
    if not (_REGISTERED.fullmatch(reference) or _OF_RUN.fullmatch(reference)):
        raise InputError(f"{reference!r} is no address of a model in MLflow. Give {FORMS}.")
    uri = tracking_uri or default_uri()

    def fetch(client: "MlflowClient") -> Path:
        origin = _origin(client, reference)
        name = hashlib.sha256(f"{without_password(uri)} {origin.uri}".encode()).hexdigest()[:16]
        folder = home() / "cache" / "models" / name
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            _download(origin.uri, uri, Path(temporary), folder)
        write_text(
            folder / FETCHED, json.dumps({"reference": reference, **origin.known}, indent=1) + "\n"
        )
        return folder

    try:
        found = ask(fetch, uri)
    except RefusedError as refused:
        raise InputError(f"MLflow has no model {reference}: {refused}") from refused
    if found is None:
        raise InputError(
            f"MLflow has no model {reference}: there is no tracking store at {without_password(uri)} yet."
        )
    return found


def _origin(client: "MlflowClient", reference: str) -> _Origin:
    run = _OF_RUN.fullmatch(reference)
    if run:
        return _Origin(f"runs:/{run['run_id']}/{FOLDER}", _known(client, run["run_id"]))
    registered = _REGISTERED.fullmatch(reference)
    assert registered
    name, version = registered["name"], registered["version"]
    if version is None:
        version = str(client.get_model_version_by_alias(name, registered["alias"]).version)
    of_run = client.get_model_version(name, version).run_id
    known = {"name": name, "version": int(version), **(_known(client, of_run) if of_run else {})}
    return _Origin(client.get_model_version_download_uri(name, version), known)


def _known(client: "MlflowClient", run_id: str) -> dict[str, Any]:
    try:
        run = client.get_run(run_id)
    except Exception as error:
        if getattr(error, "error_code", None) == "RESOURCE_DOES_NOT_EXIST":
            return {}
        raise
    tags = {name: text for name, text in run.data.tags.items() if not name.startswith("mlflow.")}
    return {
        "run_id": run_id,
        "run": run.info.run_name,
        "tags": tags,
        "metrics": dict(run.data.metrics),
    }


def _download(artifact_uri: str, tracking_uri: str, temporary: Path, folder: Path) -> None:
    from mlflow.artifacts import download_artifacts

    there = Path(
        download_artifacts(
            artifact_uri=artifact_uri, dst_path=str(temporary), tracking_uri=tracking_uri
        )
    )
    for weights in there.rglob(WEIGHTS):
        if (weights.parent / CONFIG).is_file():
            for name in (CONFIG, WEIGHTS):  # the copy is on the cache's own disk
                os.replace(weights.parent / name, folder / name)
            return
    raise RefusedError(
        f"{artifact_uri} has no {CONFIG} beside {WEIGHTS}: it is not a model of cutslots"
    )
