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

# MLflow's limits for one call of log_batch, and for the lengths of names. It cuts long values.
METRICS_PER_CALL, TEXTS_PER_CALL, NAME_LENGTH, DIGEST_LENGTH = 1000, 100, 250, 36
LOCK_SECONDS = 60.0

# Errors that no retry can fix. All others (dead server, locked database, full disk, missing
# permission) count as an outage: someone can fix them, and the journal can wait.
MISSING, EXISTS = "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS"
INVALID = "INVALID_PARAMETER_VALUE"
PERMANENT = {INVALID, "BAD_REQUEST", "MALFORMED_REQUEST", "INVALID_STATE"}
PERMANENT |= {"NOT_IMPLEMENTED", MISSING, EXISTS, "NOT_FOUND", "ENDPOINT_NOT_FOUND"}
TEMPORARY_HTTP = {401, 403, 407, 408, 425, 429}

SETTINGS = {
    # A dead server must fail at once: MLflow's defaults (7 retries, 120 s each) take 247 s.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
# They log every retry and migration; the run log reports an outage once.
NOISY = "alembic.runtime mlflow.store.db.utils mlflow.utils.validation urllib3.connectionpool"


class OutageError(InputError):
    """The store does not accept anything now; try again later."""


class RefusedError(InputError):
    """The store will never accept this."""


def default_uri() -> str:
    """`MLFLOW_TRACKING_URI`, else the SQLite database `mlflow.db` in `cutslots.files.home()`."""
    return absolute(os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home() / 'mlflow.db'}")


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
    """A connection to a tracking store. Methods raise `OutageError` or `RefusedError`."""

    def __init__(self, uri: str | None = None) -> None:
        self.uri = uri or default_uri()
        self.database = database_of(self.uri)
        self._client: MlflowClient | None = None

    def call(self, request: "Callable[[MlflowClient], T]", refusal: str = "") -> T:
        """The result of `request`, called with a connected client.

        A database gets a second attempt: another process may have locked it for a moment. `refusal`
        begins the message of a `RefusedError`.
        """
        attempts = 2 if self.database else 1
        while True:
            try:
                self._client = self._client or self._connect()
                return request(self._client)
            except (OutageError, RefusedError):
                raise
            except Exception as error:
                attempts -= 1
                if self._client is not None and _is_permanent(error):
                    raise RefusedError(f"{refusal}{_brief(error)}") from error
                if not attempts:
                    uri = without_password(self.uri)
                    raise OutageError(
                        f"tracking store {uri} unreachable: {_brief(error)}. "
                        "Check MLFLOW_TRACKING_URI."
                    ) from error
            time.sleep(0.5)

    def _connect(self) -> "MlflowClient":
        for name, value in SETTINGS.items():
            os.environ.setdefault(name, value)
        import mlflow
        from alembic.script import ScriptDirectory

        for name in NOISY.split():
            logging.getLogger(name).setLevel(logging.ERROR)
        # MLflow creates a database on first use; processes that do so together break it.
        with self.alone():
            ours = home() / "mlflow.db"
            if self.database == ours and ours.exists():
                # Bring our own database to the schema of this MLflow, and keep a copy.
                migrations = Path(mlflow.__file__).parent / "store" / "db_migrations"
                version = newest = ScriptDirectory(str(migrations)).get_current_head()
                query = "SELECT version_num FROM alembic_version"
                with closing(sqlite3.connect(ours)) as opened, suppress(sqlite3.OperationalError):
                    (version,) = opened.execute(query).fetchone()  # an empty file has no table
                if version != newest:
                    shutil.copyfile(ours, ours.with_name(f"{ours.name}.{version}"))
                    command = [sys.executable, "-m", "mlflow", "db", "upgrade", self.uri]
                    subprocess.run(command, check=True, capture_output=True, timeout=600)
            client = mlflow.MlflowClient(self.uri)
            client.search_experiments(max_results=1)
        return client

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Lock a local database against other processes that create or migrate something."""
        if self.database is None:
            yield
            return
        path = self.database.with_name(f"{self.database.name}.lock")
        with lock(path, LOCK_SECONDS) as held:
            if not held:
                raise TimeoutError(f"another process has held {path} for {LOCK_SECONDS:g} s")
            yield

    def has_run(self, run_id: str) -> bool:
        """Whether the store has the run. A deleted run is an outage: it can be restored."""
        try:
            run = self.call(lambda client: client.get_run(run_id))
        except RefusedError:
            return False
        if run.info.lifecycle_stage == "deleted":
            raise OutageError(f"run {run_id} is deleted. Restore it, or use another run folder.")
        return True

    def find_or_create(self, opened: Mapping[str, Any]) -> tuple[str, str]:
        """The experiment id and run id of the journal that begins with the event `opened`.

        The run has the journal's id as a tag: a crash right after its creation makes no second run.
        """
        name = opened["experiment"]
        # By default MLflow would write artifacts below the working directory.
        folder = _legal(name).replace("/", "_")
        root = self.database and (self.database.parent / "artifacts" / folder).as_uri()

        def request(client: "MlflowClient") -> tuple[str, str]:
            with self.alone():
                if client.get_experiment_by_name(name) is None:
                    with ignoring(EXISTS):
                        client.create_experiment(name, root)
                experiment = client.get_experiment_by_name(name)
                assert experiment is not None
                experiment_id = experiment.experiment_id
                if experiment.lifecycle_stage == "deleted":
                    client.restore_experiment(experiment_id)
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

    def send(
        self, run_id: str, events: Sequence[Mapping[str, Any]], run_dir: Path = Path()
    ) -> None:
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

    event, entities = events[0], []
    match kind := event["kind"]:
        case "metrics":
            entities = [
                Metric(_legal(name), float(value), event["time"], event["step"])
                for event in events
                for name, value in event["values"].items()
            ]
        case "params" | "tags":
            entity = Param if kind == "params" else RunTag
            entities = [entity(_legal(name), text) for name, text in event["values"].items()]
        case "dataset":
            columns = [
                {"name": name, "type": str(dtype), "required": True}
                for name, dtype in event["schema"].items()
            ]
            dataset = Dataset(
                name=event["name"],
                digest=event["digest"][:DIGEST_LENGTH],
                source_type="local",
                source=json.dumps({"uri": event["source"]}),
                schema=json.dumps({"mlflow_colspec": columns}),  # MLflow shows it as a table
                profile=json.dumps(event["profile"]),
            )
            context = InputTag("mlflow.data.context", event["context"])
            client.log_inputs(run_id, [DatasetInput(dataset, [context])])
        case "artifact":
            path = run_dir / event["path"]
            if not os.access(path, os.R_OK):
                problem = "is not readable" if path.exists() else "does not exist"
                raise RefusedError(f"{path} {problem}")
            upload = client.log_artifacts if path.is_dir() else client.log_artifact
            upload(run_id, str(path), event["folder"])
        case "open":
            client.update_run(run_id, status="RUNNING")
        case "status":
            client.set_terminated(run_id, event["status"], event["time"])
        case other:
            raise RefusedError(f"unknown kind of event {other!r}. Use the cutslots that wrote it.")
    size = METRICS_PER_CALL if kind == "metrics" else TEXTS_PER_CALL
    for start in range(0, len(entities), size):
        part: Any = {kind: entities[start : start + size]}
        client.log_batch(run_id, **part)


def ask(
    request: "Callable[[MlflowClient], T]", refusal: str = "", tracking_uri: str | None = None
) -> T | None:
    """`Store.call`, or None if the store is a database that does not exist."""
    store = Store(tracking_uri)
    if store.database is not None and not store.database.exists():
        return None
    return store.call(request, refusal)


def ready(tracking_uri: str | None = None) -> None:
    """Create the tracking database or bring it up to date, or check that the server answers.

    Raises:
        InputError: the store does not answer.
    """
    Store(tracking_uri).call(lambda client: None)


def _legal(name: str) -> str:
    """The nearest name that MLflow accepts: letters, digits, `_-.: /`, and no `.` or `..` part."""
    name = re.sub(r"[^/\w.\- :]", "_", name)[:NAME_LENGTH]
    if posixpath.normpath(name) != name or name.startswith(("/", "..")) or name == ".":
        name = "/".join(part for part in name.split("/") if part.strip(".")) or "_"
    return name


def _brief(error: BaseException) -> str:
    """One line: "Connection refused" and "disk I/O error" say more than their four wrappers."""
    root = error
    while inner := root.__cause__ or root.__context__:
        root = inner
    shown = root if isinstance(root, OSError | sqlite3.Error) and str(root) else error
    return without_password(" ".join((str(shown) or repr(shown)).split()))[:300]


def _is_permanent(error: Exception) -> bool:
    # requests.HTTPError of an artifact upload, where a missing run is a 404.
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(status, int):
        return 400 <= status < 500 and status not in TEMPORARY_HTTP
    code = getattr(error, "error_code", None)
    return code in PERMANENT if code else isinstance(error, TypeError | ValueError | KeyError)
