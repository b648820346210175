"""Trained models in MLflow: packaged with a run, fetched by URI, registered with a champion."""

import hashlib
import json
import math
import os
import re
import tempfile
import warnings
from contextlib import suppress
from importlib.metadata import version as installed
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cutslots.errors import InputError
from cutslots.files import home, write_text
from cutslots.tracking.client import (
    EXISTS,
    INVALID,
    MISSING,
    RefusedError,
    Store,
    ask,
    default_uri,
    ignoring,
    without_password,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient

REQUIREMENTS = ("cutslots", "mlflow", "numpy", "safetensors", "scipy", "torch")
FOLDER = "model"  # among a run's artifacts
CONFIG, WEIGHTS, FETCHED = "config.json", "weights.safetensors", "fetched.json"
CHAMPION = "champion"
_URI = re.compile(
    r"models:/(?P<name>[^/@]+)(@(?P<alias>[^/@]+)|/(?P<version>\d+))"
    rf"|runs:/(?P<run_id>[0-9a-f]{{32}})(/{FOLDER})?/?"
)


def package_model(export_dir: Path, out_dir: Path, size: int) -> Path:
    """Write an MLflow model to `out_dir`, missing or empty, around an exported model.

    After `log.artifact(out_dir, "model")`, `mlflow.pyfunc.load_model("runs:/<run id>/model")`
    loads it. It holds JSON, safetensors and YAML, nothing pickled; loading runs the installed
    cutslots and no code from the folder. `size` is the side of the model's label maps in pixels.
    """
    import mlflow.pyfunc
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    images = TensorSpec(np.dtype(np.uint8), (-1, -1, -1, 3))
    masks = TensorSpec(np.dtype(np.uint8), (-1, size, size))
    with warnings.catch_warnings():
        # MLflow would run an example through the model; the signature is known already.
        warnings.filterwarnings("ignore", message=".*input example was not provided")
        mlflow.pyfunc.save_model(
            str(out_dir),
            loader_module="cutslots.tracking",  # its `_load_pyfunc`
            data_path=str(export_dir),
            signature=ModelSignature(inputs=Schema([images]), outputs=Schema([masks])),
            # Without a list MLflow loads the model in a new process to find its imports: 5-12 s.
            pip_requirements=[f"{n}=={installed(n).partition('+')[0]}" for n in REQUIREMENTS],
        )
    return Path(out_dir)


class _Segmenter:
    """The object that `mlflow.pyfunc.load_model` wraps."""

    def __init__(self, path: Path) -> None:
        from cutslots.train.export import load_model

        self.model = load_model(path)

    def predict(self, data: Any, params: dict[str, Any] | None = None) -> np.ndarray:
        """Label maps (N, H, W) uint8 of images (N, H, W, 3) uint8."""
        from cutslots.train.export import predict

        return predict(self.model, np.asarray(data))["masks"]


def _load_pyfunc(path: str) -> _Segmenter:
    return _Segmenter(Path(path))


def fetch_model(reference: str) -> Path:
    """Download a model from MLflow, every time, because its name can move to another version.

    Only a configuration in JSON and weights in safetensors are taken; no code of the model runs.

    Returns:
        A folder in the cache with `config.json`, `weights.safetensors`, and in `fetched.json`
        what MLflow knows about it: `reference`, `name` and `version` if registered, and `run_id`,
        `run`, `tags`, `metrics` of its run.

    Raises:
        InputError: another form of URI, the store is unreachable, or it has no such model.
    """
    match = _URI.fullmatch(reference)
    if match is None:
        forms = "models:/NAME@ALIAS, models:/NAME/VERSION or runs:/ID"
        raise InputError(f"model URI must be {forms}, got {reference!r}.")
    uri, refusal = default_uri(), f"MLflow has no model {reference}: "

    def fetch(client: "MlflowClient") -> Path:
        from mlflow.artifacts import download_artifacts

        about: dict[str, Any] = {"reference": reference}
        name, version, run_id = match["name"], match["version"], match["run_id"]
        source = f"runs:/{run_id}/{FOLDER}"
        if name:
            version = version or client.get_model_version_by_alias(name, match["alias"]).version
            about |= {"name": name, "version": int(version)}
            run_id = client.get_model_version(name, str(version)).run_id
            source = client.get_model_version_download_uri(name, str(version))
        with ignoring(MISSING, INVALID):  # a registered model may have no run
            run = client.get_run(run_id or "")
            tags = {tag: text for tag, text in run.data.tags.items() if tag[:7] != "mlflow."}
            about |= {"run_id": run_id, "run": run.info.run_name, "tags": tags}
            about["metrics"] = dict(run.data.metrics)
        digest = hashlib.sha256(f"{without_password(uri)} {source}".encode()).hexdigest()
        folder = home() / "cache" / "models" / digest[:16]
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            download = Path(download_artifacts(source, dst_path=temporary, tracking_uri=uri))
            weights = [p for p in download.rglob(WEIGHTS) if p.with_name(CONFIG).is_file()]
            if not weights:
                text = f"{source} has no {CONFIG} and {WEIGHTS}: not a cutslots model"
                raise RefusedError(f"{refusal}{text}")
            for name in (CONFIG, WEIGHTS):
                os.replace(weights[0].with_name(name), folder / name)
        write_text(folder / FETCHED, json.dumps(about, indent=1) + "\n")
        return folder

    folder = ask(fetch, refusal)
    if folder is None:
        raise InputError(f"{refusal}{without_password(uri)} does not exist yet.")
    return folder


class Registered(NamedTuple):
    """A version of a registered model; `models:/NAME@champion` loads the champion."""

    version: int
    is_champion: bool


def register(name: str, run_id: str, metric: str, value: float) -> Registered:
    """Register a run's model as a version of `name`; as champion if it beats the current one.

    Registering a run again updates its version. The champion's `metric` is the value it was
    registered with, else the `best/` score of its run. A champion without this number, run or
    files is replaced; an equal one is kept.

    Raises:
        InputError: the store is unreachable, the run has no model there, or `value` is not finite.
    """
    if not math.isfinite(value):
        raise InputError(f"{metric} must be finite to register model {name!r}, got {value}.")
    from cutslots.metrics.registry import better  # imports torch, which takes seconds

    store, refusal = Store(), f"cannot register run {run_id} as model {name!r}: "

    def request(client: "MlflowClient") -> Registered:
        with store.alone():
            run = client.get_run(run_id)
            if not _has_model(client, run):
                text = "it has no model in MLflow. If its folder has one: cutslots sync RUN"
                raise RefusedError(f"{refusal}{text}")
            with ignoring(EXISTS):
                client.create_registered_model(name)
            versions = client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'")
            if not versions:
                source = f"{run.info.artifact_uri}/{FOLDER}"
                create = client.create_model_version
                versions = [create(name, source, run_id, await_creation_for=0)]
            version = str(versions[0].version)
            tags = {"metric": metric, "value": repr(float(value))}
            tags["run"] = run.info.run_name or run_id
            tags["signature"] = run.data.tags.get("signature", "none")
            for tag, text in tags.items():
                client.set_model_version_tag(name, version, tag, text)
            champion = str(client.get_registered_model(name).aliases.get(CHAMPION, version))
            score = None if champion == version else _score(client, name, champion, metric)
            is_champion = score is None or better(metric, value, score)
            if is_champion:
                client.set_registered_model_alias(name, CHAMPION, version)
            return Registered(int(version), is_champion)

    return store.call(request, refusal)


def _has_model(client: "MlflowClient", run: Any) -> bool:
    files = client.list_artifacts(run.info.run_id, FOLDER)
    return run.info.lifecycle_stage != "deleted" and f"{FOLDER}/MLmodel" in [f.path for f in files]


def _score(client: "MlflowClient", name: str, version: str, metric: str) -> float | None:
    """The score of a registered version; None if it has none or is no longer usable."""
    with ignoring(MISSING, INVALID), suppress(ValueError):
        champion = client.get_model_version(name, version)
        run = client.get_run(champion.run_id or "")
        score: Any = run.data.metrics.get(f"best/{metric}", math.nan)
        if champion.tags.get("metric") == metric:
            score = champion.tags.get("value", score)
        if math.isfinite(float(score)) and _has_model(client, run):
            return float(score)
    return None
