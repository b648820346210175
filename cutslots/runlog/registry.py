"""The models worth keeping, by name and version."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cutslots.errors import InputError
from cutslots.runlog.found import unreachable
from cutslots.runlog.store import OutageError, RefusedError, Store, default_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient

CHAMPION = "champion"
FOLDER = "model"  # among a run's artifacts


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
