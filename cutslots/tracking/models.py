"""A trained model as a folder that MLflow loads and serves."""

import hashlib
import json
import os
import re
import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cutslots.errors import InputError
from cutslots.files import home, write_text
from cutslots.tracking.client import RefusedError, default_uri, without_password
from cutslots.tracking.queries import ask

if TYPE_CHECKING:
    from mlflow import MlflowClient

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cutslots.tracking.client import OutageError, Store
from cutslots.tracking.queries import unreachable

if TYPE_CHECKING:
    from mlflow import MlflowClient


REQUIREMENTS = ("cutslots", "mlflow", "numpy", "safetensors", "scipy", "torch")


def package_model(export_dir: Path, out_dir: Path, size: int) -> Path:
    """Write an MLflow model folder around an exported model; after `log.artifact(out_dir, "model")`,
    `mlflow.pyfunc.load_model("runs:/<run id>/model")` loads it.

    It holds JSON, safetensors and YAML, nothing pickled; loading it runs the installed cutslots and no code from the
    folder.

    Args:
        export_dir: folder with `config.json` and `weights.safetensors`.
        out_dir: the folder to write; must not exist or be empty.
        size: side of the model's label maps, in pixels. The images' own side is left open: the model takes whole multiples of it.

    Raises:
        FileNotFoundError: the export is not complete.
    """
    missing = [
        name
        for name in ("config.json", "weights.safetensors")
        if not (Path(export_dir) / name).is_file()
    ]
    if missing:
        raise FileNotFoundError(
            f"{export_dir} is not an exported model: it has no {' and no '.join(missing)}"
        )
    import mlflow.pyfunc
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    images = TensorSpec(np.dtype(np.uint8), (-1, -1, -1, 3))
    masks = TensorSpec(np.dtype(np.uint8), (-1, size, size))
    with warnings.catch_warnings():
        # An example would be run through the model, in the training's last minute, for what the signature says already.
        warnings.filterwarnings("ignore", message=".*input example was not provided")
        mlflow.pyfunc.save_model(
            str(out_dir),
            loader_module="cutslots.tracking",
            data_path=str(export_dir),
            signature=ModelSignature(inputs=Schema([images]), outputs=Schema([masks])),
            # Without a list MLflow loads the model in a fresh process to find out what it imports: 5-12 s.
            pip_requirements=[
                f"{name}=={re.sub(r'[+].*', '', version(name))}" for name in REQUIREMENTS
            ],
        )
    return Path(out_dir)


class _Segmenter:
    """What `mlflow.pyfunc` calls: images in, label maps out."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def predict(self, data: Any, params: dict[str, Any] | None = None) -> np.ndarray:
        """Label maps (N, H, W) uint8 of images (N, H, W, 3) uint8."""
        from cutslots.train.export import predict

        return predict(self.model, np.asarray(data))["masks"]


def _load_pyfunc(path: str) -> _Segmenter:
    from cutslots.train.export import load_model

    return _Segmenter(load_model(Path(path)))


FOLDER = "model"  # among a run's artifacts
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


CHAMPION = "champion"


@dataclass(frozen=True)
class Registered:
    """A version of a registered model; the champion is the one that `models:/NAME@champion` loads."""

    version: int
    is_champion: bool


def register(
    name: str,
    run_id: str,
    metric: str,
    value: float,
    smaller_is_better: bool = False,
    tracking_uri: str | None = None,
) -> Registered:
    """Make a run's model a version of the registered model `name`, and the champion when it is better than the present one.

    A run has one version, however often it is registered. The present champion is asked for its own `metric`: what it was
    registered with, else the `best/` score of its run. It gives way when it has no such number, when its run was deleted, and
    when its files are gone; not to an equal.

    Args:
        name: `cutslots-<dataset>`; made when missing.
        metric, value: what the model is judged by, on the dataset of that name; tags of the version, with the run and its
            signature.

    Raises:
        InputError: the tracking store cannot be reached, the run has no model there, or `value` is not finite.
    """
    if not math.isfinite(value):
        raise InputError(
            f"value is {value} for model {name!r}; only a finite {metric} can be compared. Register another run."
        )
    store = Store(tracking_uri or default_uri())
    try:
        with store.calling() as client, store.alone():
            version = _version(
                client, name, run_id, {"metric": metric, "value": repr(float(value))}
            )
            present = client.get_registered_model(name).aliases.get(CHAMPION)
            if present is not None and int(present) != version:
                sign = -1 if smaller_is_better else 1
                rival = _value(client, name, str(present), metric)
                if rival is not None and sign * value <= sign * rival:
                    return Registered(version, False)
            client.set_registered_model_alias(name, CHAMPION, str(version))
            return Registered(version, True)
    except OutageError as outage:
        raise unreachable(store, outage) from outage
    except RefusedError as refused:
        raise InputError(
            f"run {run_id} cannot be registered as model {name!r}: {refused}"
        ) from refused


def _version(client: "MlflowClient", name: str, run_id: str, judged: dict[str, str]) -> int:
    """The run's version, made when it has none, tagged with what it is judged by."""
    run = client.get_run(run_id)
    if not _loads(client, run):
        raise RefusedError(
            "it has no model in MLflow. If its folder has one, deliver that first: cutslots sync RUN"
        )
    tags = {
        **judged,
        "run": run.info.run_name or run_id,
        "signature": run.data.tags.get("signature", "none"),
    }
    try:
        client.create_registered_model(name)
    except Exception as error:
        if getattr(error, "error_code", None) != "RESOURCE_ALREADY_EXISTS":
            raise
    for known in client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'"):
        for tag, text in tags.items():
            client.set_model_version_tag(name, str(known.version), tag, text)
        return int(known.version)
    made = client.create_model_version(
        name, f"{run.info.artifact_uri}/{FOLDER}", run_id, tags, await_creation_for=0
    )
    return int(made.version)


def _loads(client: "MlflowClient", run: Any) -> bool:
    if run.info.lifecycle_stage == "deleted":
        return False
    return any(
        file.path == f"{FOLDER}/MLmodel" for file in client.list_artifacts(run.info.run_id, FOLDER)
    )


def _value(client: "MlflowClient", name: str, version: str, metric: str) -> float | None:
    """How good a version is; None when it cannot be said, or is no longer of use."""
    try:
        champion = client.get_model_version(name, version)
        run = client.get_run(champion.run_id or "")
    except Exception as error:
        if getattr(error, "error_code", None) in (
            "RESOURCE_DOES_NOT_EXIST",
            "INVALID_PARAMETER_VALUE",
        ):
            return None  # the version or its run is gone, or somebody registered it without a run
        raise
    if not _loads(client, run):
        return None
    tagged = champion.tags.get("value") if champion.tags.get("metric") == metric else None
    try:
        value = float(
            tagged if tagged is not None else run.data.metrics.get(f"best/{metric}", math.nan)
        )
    except ValueError:
        return None
    return value if math.isfinite(value) else None
