"""The MLflow side: where the tracking store is, how events are sent, and what a failure means."""

import json
import logging
import os
import posixpath
import re
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from cutslots.errors import InputError
from cutslots.files import home, lock

if TYPE_CHECKING:
    from mlflow import MlflowClient

T = TypeVar("T")

# MLflow's limits for one call of log_batch, and for the lengths of names and values.
METRICS_PER_CALL, TEXTS_PER_CALL = 1000, 100
NAME_LENGTH, PARAM_LENGTH, TAG_LENGTH, DIGEST_LENGTH = 250, 6000, 8000, 36
LOCK_SECONDS, MIGRATION_SECONDS = 60.0, 600.0

# Errors that no retry can fix. All others (dead server, locked database, full
# disk, missing permission) count as an outage: someone can fix them, and the journal can wait.
MISSING, EXISTS = "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS"
PERMANENT = {"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "MALFORMED_REQUEST", "INVALID_STATE"}
PERMANENT |= {"NOT_IMPLEMENTED", MISSING, EXISTS, "NOT_FOUND", "ENDPOINT_NOT_FOUND"}
TEMPORARY_HTTP = {401, 403, 407, 408, 425, 429}

# They log every retry and migration; the run log reports an outage once.
NOISY = ("alembic.runtime", "mlflow.store.db.utils", "mlflow.utils.validation")
NOISY += ("urllib3.connectionpool",)


class OutageError(Exception):
    """The store does not accept anything now; try again later."""


class RefusedError(Exception):
    """The store will never accept this."""


def default_uri() -> str:
    """`MLFLOW_TRACKING_URI`, else the SQLite database `mlflow.db` in `cutslots.files.home()`."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home() / 'mlflow.db'}"


def absolute(uri: str) -> str:
    """`uri` with an absolute SQLite path: Ray Tune changes the working directory of a trial."""
    path = database_of(uri)
    return uri if path is None else f"sqlite:///{path}{uri[len(uri.split('?')[0]) :]}"


def without_password(uri: str) -> str:
    """`uri`, or a text that contains it, without the password."""
    return re.sub(r"//([^/@:\s]*):[^/@\s]*@", r"//\1@", uri)


def database_of(uri: str) -> Path | None:
    """The file of a SQLite store; None for every other store."""
    name = uri.removeprefix("sqlite:///").split("?")[0]
    return None if name == uri.split("?")[0] or name in ("", ":memory:") else Path(name).absolute()


@contextmanager
def ignoring(*codes: str) -> Iterator[None]:
    """Suppress MLflow errors with these codes, such as `MISSING`."""
    try:
        yield
    except Exception as error:
        if getattr(error, "error_code", None) not in codes:
            raise


class Store:
    """A connection to a tracking store. Its methods raise `OutageError` or `RefusedError` only."""

    def __init__(self, uri: str | None = None) -> None:
        self.uri = absolute(uri or default_uri())
        self.database = database_of(self.uri)
        self._client: MlflowClient | None = None

    def call(self, request: "Callable[[MlflowClient], T]") -> T:
        """The result of `request`, called with a connected client.

        A database gets a second attempt: another process may have locked it for a moment.
        """
        attempts = 2 if self.database else 1
        while True:
            try:
                self._client = self._client or self._connect()
                return request(self._client)
            except Exception as error:
                attempts -= 1
                permanent = self._client is not None and _is_permanent(error)
                if permanent or not attempts:
                    raise (RefusedError if permanent else OutageError)(_brief(error)) from error
            time.sleep(0.5)

    @contextmanager
    def required(self) -> Iterator[None]:
        """Turn an outage into an InputError."""
        try:
            yield
        except OutageError as outage:
            uri = without_password(self.uri)
            raise InputError(
                f"tracking store {uri} unreachable: {outage}. Check MLFLOW_TRACKING_URI."
            ) from outage

    def _connect(self) -> "MlflowClient":
        # A dead server must fail at once: MLflow's defaults (7 retries, 120 s each) take 247 s.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        from mlflow import MlflowClient

        for name in NOISY:
            logging.getLogger(name).setLevel(logging.ERROR)
        # MLflow creates a database on first use; processes that do so together break it.
        with self.alone():
            ours = home() / "mlflow.db"
            if self.database == ours and ours.exists():
                self._upgrade(ours)
            client = MlflowClient(self.uri)
            client.search_experiments(max_results=1)
        return client

    def _upgrade(self, database: Path) -> None:
        """Bring our own database to the schema of the installed MLflow, and keep a copy."""
        import mlflow
        from alembic.script import ScriptDirectory

        migrations = Path(mlflow.__file__).parent / "store" / "db_migrations"
        newest = ScriptDirectory(str(migrations)).get_current_head()
        version = newest  # also of an empty file
        with closing(sqlite3.connect(database)) as connection, suppress(sqlite3.OperationalError):
            (version,) = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        if version != newest:
            shutil.copyfile(database, database.with_name(f"{database.name}.{version}"))
            command = [sys.executable, "-m", "mlflow", "db", "upgrade", self.uri]
            subprocess.run(command, check=True, capture_output=True, timeout=MIGRATION_SECONDS)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Lock a local database against other processes that create or migrate something."""
        if self.database is None:
            yield
            return
        path = self.database.with_name(f"{self.database.name}.lock")
        with lock(path, LOCK_SECONDS) as held:
            if not held:
                raise OutageError(f"another process has held {path} for {LOCK_SECONDS:g} s")
            yield

    def has_run(self, run_id: str) -> bool:
        """Whether the store has the run. A deleted run is an outage: it can be restored."""

        def exists(client: "MlflowClient") -> bool:
            with ignoring(MISSING):
                if client.get_run(run_id).info.lifecycle_stage != "deleted":
                    return True
                raise OutageError(f"run {run_id} is deleted. Restore it, or use another run folder")
            return False

        return self.call(exists)

    def find_or_create(self, opened: Mapping[str, Any]) -> tuple[str, str]:
        """The experiment id and run id of the journal that begins with the event `opened`.

        The run has the journal's id as a tag: a crash right after its creation makes no second run.
        """

        def request(client: "MlflowClient") -> tuple[str, str]:
            with self.alone():
                experiment_id = self._experiment(client, opened["experiment"])
                same_journal = f"tags.\"cutslots.journal\" = '{opened['log_id']}'"
                for run in client.search_runs([experiment_id], same_journal, max_results=1):
                    return experiment_id, run.info.run_id
                tags = {"cutslots.journal": opened["log_id"], "cutslots.run_dir": opened["run_dir"]}
                tags |= {"mlflow.user": opened["user"], "mlflow.source.name": "cutslots"}
                if opened.get("parent_run_id"):
                    tags["mlflow.parentRunId"] = opened["parent_run_id"]
                run = client.create_run(experiment_id, opened["time"], tags, opened["run_name"])
                return experiment_id, run.info.run_id

        return self.call(request)

    def _experiment(self, client: "MlflowClient", name: str) -> str:
        if client.get_experiment_by_name(name) is None:
            # By default MLflow would write artifacts below the working directory.
            folder = _legal(name).replace("/", "_")
            root = self.database and (self.database.parent / "artifacts" / folder).as_uri()
            with ignoring(EXISTS):
                return client.create_experiment(name, root)
        experiment = client.get_experiment_by_name(name)
        assert experiment is not None
        if experiment.lifecycle_stage == "deleted":
            client.restore_experiment(experiment.experiment_id)
        return experiment.experiment_id

    def send(self, run_id: str, events: Sequence[Mapping[str, Any]], run_dir: Path) -> None:
        """Deliver one event of any kind, or several metrics events.

        Sending an event twice has the effect of sending it once: MLflow's primary key of a metric
        is (run, key, time, step, value), and the time comes from the journal; an equal parameter
        is accepted again; tags, status and artifacts overwrite; a dataset is found by name and
        digest. So a delivery repeats what a crash left in doubt.
        """
        self.call(lambda client: _send(client, run_id, events, run_dir))


def _send(
    client: "MlflowClient", run_id: str, events: Sequence[Mapping[str, Any]], run_dir: Path
) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag

    first = events[0]
    match first["kind"]:
        case "metrics":
            points = [
                Metric(_legal(name), float(value), event["time"], event["step"])
                for event in events
                for name, value in event["values"].items()
            ]
            for start in range(0, len(points), METRICS_PER_CALL):
                client.log_batch(run_id, points[start : start + METRICS_PER_CALL])
        case "params" | "tags" as kind:
            entity, length = (Param, PARAM_LENGTH) if kind == "params" else (RunTag, TAG_LENGTH)
            texts = [
                entity(_legal(name), _cut(text, length)) for name, text in first["values"].items()
            ]
            for start in range(0, len(texts), TEXTS_PER_CALL):
                part: Any = {kind: texts[start : start + TEXTS_PER_CALL]}
                client.log_batch(run_id, **part)
        case "dataset":
            schema = first["schema"]
            if not any(str(name).startswith("mlflow_") for name in schema):
                # MLflow shows this form as a table.
                columns = [{"name": n, "type": str(t), "required": True} for n, t in schema.items()]
                schema = {"mlflow_colspec": columns}
            dataset = Dataset(
                name=first["name"],
                digest=first["digest"][:DIGEST_LENGTH],
                source_type="local",
                source=json.dumps({"uri": first["source"]}),
                schema=json.dumps(schema),
                profile=json.dumps(first["profile"]),
            )
            context = InputTag("mlflow.data.context", first["context"])
            client.log_inputs(run_id, [DatasetInput(dataset, [context])])
        case "artifact":
            path = run_dir / first["path"]
            if not os.access(path, os.R_OK):
                problem = "is not readable" if path.exists() else "does not exist"
                raise RefusedError(f"{path} {problem}")
            upload = client.log_artifacts if path.is_dir() else client.log_artifact
            upload(run_id, str(path), first["folder"])
        case "open":
            client.update_run(run_id, status="RUNNING")
        case "status":
            client.set_terminated(run_id, first["status"], first["time"])
        case other:
            raise RefusedError(f"unknown kind of event {other!r}. Use the cutslots that wrote it.")


def ask(request: "Callable[[MlflowClient], T]", tracking_uri: str | None = None) -> T | None:
    """The answer of the tracking store; None if it is a database that does not exist.

    Raises:
        InputError: the store is unreachable.
        RefusedError: it has no answer.
    """
    store = Store(tracking_uri)
    if store.database is not None and not store.database.exists():
        return None
    with store.required():
        return store.call(request)


def ready(tracking_uri: str | None = None) -> None:
    """Create the tracking database or bring it up to date, or check that the server answers.

    Raises:
        InputError: the store does not answer, or is not writable.
    """
    store = Store(tracking_uri)
    with store.required():
        store.call(lambda client: None)
        for path in (store.database, store.database.parent) if store.database else ():
            if path.exists() and not os.access(path, os.W_OK):
                raise OutageError(f"{path} is not writable")


def _legal(name: str) -> str:
    """The nearest name that MLflow accepts: letters, digits, `_-.: /`, and no `.` or `..` part."""
    name = re.sub(r"[^/\w.\- :]", "_", name)[:NAME_LENGTH]
    if posixpath.normpath(name) != name or name.startswith(("/", "..")) or name == ".":
        name = "/".join(part for part in name.split("/") if part.strip(".")) or "_"
    return name


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _brief(error: BaseException) -> str:
    """One line: "Connection refused" and "disk I/O error" say more than their four wrappers."""
    root = error
    while inner := root.__cause__ or root.__context__:
        root = inner
    shown = root if isinstance(root, OSError | sqlite3.Error) and str(root) else error
    return _cut(without_password(" ".join((str(shown) or repr(shown)).split())), 300)


def _is_permanent(error: Exception) -> bool:
    if isinstance(error, OutageError | RefusedError):
        return isinstance(error, RefusedError)
    # requests.HTTPError of an artifact upload, where a missing run is a 404.
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(status, int):
        return 400 <= status < 500 and status not in TEMPORARY_HTTP
    code = getattr(error, "error_code", None)
    return code in PERMANENT if code else isinstance(error, TypeError | ValueError | KeyError)
