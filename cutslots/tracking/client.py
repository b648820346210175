"""The MLflow side: where the tracking store is, how one event is sent, and what a failure means."""

import fcntl
import json
import logging
import os
import posixpath
import re
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cutslots.files import home

if TYPE_CHECKING:
    from mlflow import MlflowClient

# MLflow's limits for one log_batch call, and for names and values.
METRICS_PER_CALL = 1000
PARAMS_PER_CALL = 100
NAME_LENGTH, PARAM_LENGTH, TAG_LENGTH, DIGEST_LENGTH = 250, 6000, 8000, 36
LOCK_SECONDS = 60.0

# Answers that will be the same at every repetition. All others (dead server, locked database, full disk, missing
# rights) are taken as an outage: somebody can mend those, and the journal loses nothing by waiting.
FINAL_CODES = {
    "INVALID_PARAMETER_VALUE",
    "BAD_REQUEST",
    "MALFORMED_REQUEST",
    "INVALID_STATE",
    "NOT_IMPLEMENTED",
}
FINAL_CODES |= {
    "RESOURCE_DOES_NOT_EXIST",
    "RESOURCE_ALREADY_EXISTS",
    "NOT_FOUND",
    "ENDPOINT_NOT_FOUND",
}
PASSING_HTTP = {401, 403, 407, 408, 425, 429}


class OutageError(Exception):
    """The store does not take anything now; try again later."""


class RefusedError(Exception):
    """The store will never take this event."""


def default_uri() -> str:
    """The tracking store: `MLFLOW_TRACKING_URI`, else the SQLite database `mlflow.db` in `cutslots.files.home()`."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home() / 'mlflow.db'}"


def absolute(uri: str) -> str:
    """`uri` with a relative SQLite path made absolute: Ray Tune changes the working directory under a trial."""
    path = database_of(uri)
    return uri if path is None else f"sqlite:///{path}{uri[len(uri.split('?')[0]) :]}"


def without_password(uri: str) -> str:
    """`uri`, or a text that names it, as it may be written and said."""
    return re.sub(r"//([^/@:\s]*):[^/@\s]*@", r"//\1@", uri)


def database_of(uri: str) -> Path | None:
    """The file of a SQLite store, None for every other store."""
    name = uri.removeprefix("sqlite:///").split("?")[0]
    return None if name == uri.split("?")[0] or name in ("", ":memory:") else Path(name).absolute()


def _legal(name: str) -> str:
    """The nearest name MLflow accepts: letters, digits and `_ - . : /` and blanks, no empty, `.` or `..` part."""
    name = re.sub(r"[^/\w.\- :]", "_", name)[:NAME_LENGTH]
    if posixpath.normpath(name) != name or name.startswith(("/", "..")) or name == ".":
        name = "/".join(part for part in name.split("/") if part.strip(".")) or "_"
    return name


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _brief(error: BaseException) -> str:
    root = error
    while inner := root.__cause__ or root.__context__:
        root = inner
    # "Connection refused" and "disk I/O error" say more than the four wrappings around them.
    said = root if isinstance(root, OSError | sqlite3.Error) and str(root) else error
    return _cut(without_password(" ".join((str(said) or repr(said)).split())), 300)


def _is_final(error: Exception) -> bool:
    if isinstance(error, RefusedError):
        return True
    # requests.HTTPError of an artifact upload; a missing run shows here as 404 too.
    http = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(http, int):
        return 400 <= http < 500 and http not in PASSING_HTTP
    code = getattr(error, "error_code", None)
    return code in FINAL_CODES or (
        code is None and isinstance(error, TypeError | ValueError | KeyError)
    )


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except OutageError:
        raise
    except Exception as error:
        raise (RefusedError if _is_final(error) else OutageError)(_brief(error)) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep this thread's chatter out of the training's output: an outage is said once, by the run log."""
    thread = threading.get_ident()
    levels = {"urllib3.connectionpool": logging.ERROR, "mlflow.store.db.utils": logging.WARNING}
    levels |= dict.fromkeys(
        ("alembic.runtime.migration", "alembic.runtime.plugins"), logging.WARNING
    )
    levels["mlflow.utils.validation"] = logging.ERROR

    def silent(record: logging.LogRecord) -> bool:
        return record.thread != thread or record.levelno >= levels[record.name]

    for name in levels:
        logging.getLogger(name).addFilter(silent)
    try:
        yield
    finally:
        for name in levels:
            logging.getLogger(name).removeFilter(silent)


@contextmanager
def locked(path: Path, *, seconds: float = 0) -> Iterator[bool]:
    """Hold the lock file `path`; yields False when another process still holds it after `seconds`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + seconds
    with open(path, "w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() < until:
                    time.sleep(0.05)
                    continue
                yield False
                return
            except OSError:
                pass  # a file system without locks: delivery is idempotent, so two at once waste time and nothing else
            break
        try:
            yield True
        finally:
            with suppress(
                OSError
            ):  # closing is not enough: a forked data worker would keep the lock
                fcntl.flock(file, fcntl.LOCK_UN)


@contextmanager
def _alone(database: Path) -> Iterator[None]:
    path = database.with_name(f"{database.name}.lock")
    with locked(path, seconds=LOCK_SECONDS) as mine:
        if not mine:  # its holder is suspended, or far slower than any migration: nobody may wait for that without end
            raise OutageError(f"another process has held {path} for {LOCK_SECONDS:.0f} s")
        yield


class Store:
    """A connection to one tracking store. Every method raises `OutageError` or `RefusedError` and nothing else."""

    def __init__(self, uri: str) -> None:
        self.uri = absolute(uri)
        self._connected: MlflowClient | None = None

    @property
    def database(self) -> Path | None:
        """The file of a SQLite store, None for every other store."""
        return database_of(self.uri)

    @property
    def _client(self) -> "MlflowClient":
        if self._connected is None:
            self._connected = _connect(self.uri)
        return self._connected

    @contextmanager
    def calling(self) -> Iterator["MlflowClient"]:
        """A connected client; its faults become those of this class."""
        with _quiet(), _translated():
            yield self._client

    def has_run(self, run_id: str) -> bool:
        """Whether the run is there.

        Raises:
            OutageError: also for a run that somebody deleted and can restore.
        """
        with self.calling() as client:
            try:
                run = client.get_run(run_id)
            except Exception as error:
                if getattr(error, "error_code", None) == "RESOURCE_DOES_NOT_EXIST":
                    return False
                raise
            if run.info.lifecycle_stage == "deleted":
                raise OutageError(
                    f"run {run_id} was deleted there; restore it, or take another run folder"
                )
            return True

    def find_or_create(self, opened: Mapping[str, Any]) -> tuple[str, str]:
        """The experiment id and run id of the journal whose first line is `opened`.

        The journal's own id is a tag of the run: a crash between its creation and the note of it makes no second run.
        """
        with self.calling() as client, self.alone():
            experiment_id = self._experiment(client, opened["experiment"])
            mine = f"tags.\"cutslots.journal\" = '{opened['log_id']}'"
            for run in client.search_runs([experiment_id], mine, max_results=1):
                return experiment_id, run.info.run_id
            tags = {"cutslots.journal": opened["log_id"], "cutslots.run_dir": opened["run_dir"]}
            tags |= {"mlflow.user": opened["user"], "mlflow.source.name": "cutslots"}
            if opened.get("parent_run_id"):
                tags["mlflow.parentRunId"] = opened["parent_run_id"]
            run = client.create_run(experiment_id, opened["time"], tags, opened["run_name"])
            return experiment_id, run.info.run_id

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Only one process at a time makes an experiment, or a model's version, in a local database."""
        database = self.database
        with _alone(database) if database else nullcontext():
            yield

    def _experiment(self, client: "MlflowClient", name: str) -> str:
        found = client.get_experiment_by_name(name)
        if found is None:
            database = self.database
            # Without an explicit place MLflow writes artifacts below the working directory of whoever comes first.
            folder = _legal(name).replace("/", "_")
            place = None if database is None else (database.parent / "artifacts" / folder).as_uri()
            try:
                return client.create_experiment(name, place)
            except Exception as error:
                if getattr(error, "error_code", None) != "RESOURCE_ALREADY_EXISTS":
                    raise
                found = client.get_experiment_by_name(name)
                assert found is not None
        if found.lifecycle_stage == "deleted":
            client.restore_experiment(found.experiment_id)
        return found.experiment_id

    def send(self, run_id: str, events: Sequence[Mapping[str, Any]], run_dir: Path) -> None:
        """Deliver events: several of metrics, or a single one of any kind.

        Sending an event twice leaves what sending it once left. MLflow's primary key of a metric point is (run, key,
        time, step, value), and the time comes from the journal, so a repeated point is the same row; an equal parameter
        is accepted again; tags, status and artifacts overwrite; a dataset input is found by name and digest. Hence
        delivery may repeat what a crash left in doubt, and needs no transaction across store and journal.
        """
        with self.calling() as client:
            first = events[0]
            match first["kind"]:
                case "metrics":
                    self._send_metrics(client, run_id, events)
                case "params" | "tags" as kind:
                    self._send_texts(client, run_id, kind, first["values"])
                case "dataset":
                    client.log_inputs(run_id, [_dataset_input(first)])
                case "artifact":
                    _send_artifact(client, run_id, run_dir / first["path"], first["folder"])
                case "open":
                    client.update_run(run_id, status="RUNNING")
                case "status":
                    client.set_terminated(run_id, first["status"], first["time"])
                case other:
                    raise RefusedError(
                        f"unknown kind of event {other!r}; was the journal written by a newer cutslots?"
                    )

    @staticmethod
    def _send_metrics(
        client: "MlflowClient", run_id: str, events: Sequence[Mapping[str, Any]]
    ) -> None:
        from mlflow.entities import Metric

        points = [
            Metric(_legal(name), float(value), event["time"], event["step"])
            for event in events
            for name, value in event["values"].items()
        ]
        for start in range(0, len(points), METRICS_PER_CALL):
            client.log_batch(run_id, metrics=points[start : start + METRICS_PER_CALL])

    @staticmethod
    def _send_texts(
        client: "MlflowClient", run_id: str, kind: str, values: Mapping[str, str]
    ) -> None:
        from mlflow.entities import Param, RunTag

        names = list(values)
        for start in range(0, len(names), PARAMS_PER_CALL):
            some = names[start : start + PARAMS_PER_CALL]
            if kind == "params":
                client.log_batch(
                    run_id,
                    params=[Param(_legal(name), _cut(values[name], PARAM_LENGTH)) for name in some],
                )
            else:
                client.log_batch(
                    run_id,
                    tags=[RunTag(_legal(name), _cut(values[name], TAG_LENGTH)) for name in some],
                )


def _dataset_input(event: Mapping[str, Any]) -> Any:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    schema = event["schema"]
    if not any(
        str(name).startswith("mlflow_") for name in schema
    ):  # the form that MLflow's pages show as a table
        columns = [
            {"name": name, "type": str(kind), "required": True} for name, kind in schema.items()
        ]
        schema = {"mlflow_colspec": columns}
    dataset = Dataset(
        name=event["name"],
        digest=event["digest"][:DIGEST_LENGTH],
        source_type="local",
        source=json.dumps({"uri": event["source"]}),
        schema=json.dumps(schema),
        profile=json.dumps(event["profile"]),
    )
    return DatasetInput(dataset, [InputTag("mlflow.data.context", event["context"])])


def _send_artifact(client: "MlflowClient", run_id: str, path: Path, folder: str | None) -> None:
    if not os.access(path, os.R_OK):
        raise RefusedError(f"{path} is {'not readable' if path.exists() else 'gone'}")
    (client.log_artifacts if path.is_dir() else client.log_artifact)(run_id, str(path), folder)


def _connect(uri: str) -> "MlflowClient":
    """A client whose store answers, with its database made or brought up to date when it is a local file."""
    # A dead server must fail at once: MLflow's own defaults (7 retries, 120 s each) hold every call for 247 s.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    from mlflow import MlflowClient

    database = database_of(uri)
    if database is None:
        client = MlflowClient(uri)
        client.search_experiments(max_results=1)
        return client
    # MLflow creates and migrates on first use; processes that do so together break each other's migrations.
    with _alone(database):
        if database == home() / "mlflow.db" and database.exists():
            _migrate(uri, database)
        client = MlflowClient(uri)
        client.search_experiments(max_results=1)
    return client


def _migrate(uri: str, database: Path) -> None:
    """Bring our own database to the installed MLflow's schema, leaving a copy of it as it was."""
    from mlflow.store.db import utils

    engine = utils.create_sqlalchemy_engine_with_retry(uri)
    try:
        version = utils._get_schema_version(engine)
        if version not in (None, utils._get_latest_schema_revision()):
            shutil.copyfile(database, database.with_name(f"{database.name}.{version}"))
            utils._upgrade_db(engine)
    finally:
        engine.dispose()
