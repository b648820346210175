"""The log of a run: a local journal, delivered to MLflow by a thread."""

import atexit
import getpass
import sys
import time
import uuid
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, Literal, Self

from cutslots.errors import InputError
from cutslots.files import lock
from cutslots.tracking.client import absolute, default_uri, without_password
from cutslots.tracking.journal import FILE, Journal, events, number, opening, read
from cutslots.tracking.uploader import LOCK, Delivered, Say, Uploader

Status = Literal["FINISHED", "FAILED", "KILLED"]


def to_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class RunLog:
    """The log of a training run in the tracking store `default_uri()`.

    A folder that has a journal continues it, and its MLflow run. Only `close` waits for the store,
    and no method fails because of it. Logging after `close` is a ValueError.

    Args:
        experiment: name of the MLflow experiment, created if missing.
        parent_run_id: MLflow id of the run under which this one is shown (a sweep).
        say: takes one line of text for the user; called from the delivery thread.

    Attributes:
        started: when the run was first opened, in seconds since 1970.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        experiment: str,
        run_name: str,
        parent_run_id: str | None = None,
        say: Say = to_stderr,
    ) -> None:
        self.run_dir, uri = Path(run_dir).absolute(), default_uri()
        self._journal = Journal(self.run_dir / FILE)
        self._uploader = Uploader(self.run_dir, uri, say)
        self._closed = self._disk_reported = False
        earlier = opening(self.run_dir)
        self._append(
            "open",
            log_id=earlier["log_id"] if earlier else uuid.uuid4().hex,
            experiment=experiment,
            run_name=run_name,
            parent_run_id=parent_run_id,
            tracking_uri=without_password(uri),
            run_dir=str(self.run_dir),
            user=user(),
        )
        self.started: float = earlier["time"] / 1000 if earlier else time.time()
        self._uploader.start()
        # A process that ends without `close` loses nothing; this stops the thread in time.
        atexit.register(self._uploader.finish, 2.0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if not self._closed:
            failed: Status = "FAILED" if isinstance(error, Exception) else "KILLED"
            self.close("FINISHED" if error is None else failed)

    def params(self, values: Mapping[str, Any]) -> None:
        """Log parameters, written with `str`; MLflow rejects a later change of one."""
        self._append("params", values={name: str(value) for name, value in values.items()})

    def tags(self, values: Mapping[str, Any]) -> None:
        """Log tags, written with `str`; a later value replaces an earlier one."""
        self._append("tags", values={name: str(value) for name, value in values.items()})

    def metrics(self, step: int, values: Mapping[str, Any]) -> None:
        """Log numbers (anything `float` takes, NaN and infinities too) at `step`."""
        numbers = {name: number(value) for name, value in values.items()}
        self._append("metrics", step=int(step), values=numbers)

    def dataset(
        self, name: str, digest: str, source: str, schema: Mapping[str, Any], profile: Any
    ) -> None:
        """Log the training data.

        Args:
            digest: identifies the exact content; MLflow keeps its first 36 characters.
            source: folder or URI of the data.
            schema: column name -> type.
            profile: anything JSON can hold: number of records, seeds, checksums.
        """
        fields = {"name": name, "digest": digest, "source": source, "context": "training"}
        self._append("dataset", **fields, schema=dict(schema), profile=profile)

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Log a file, or all files of a folder, into `folder` of the run's artifacts.

        It is read when it is delivered: leave it unchanged until `close` has returned 0.
        """
        path = Path(path).absolute()
        if path.is_relative_to(self.run_dir):  # so that a moved run folder can be delivered
            path = path.relative_to(self.run_dir)
        self._append("artifact", path=str(path), folder=folder)

    @property
    def run_id(self) -> str | None:
        """The MLflow run id; None until the tracking store has created the run."""
        return self._uploader.state.run_id

    def pending(self) -> int:
        """The number of events that the tracking store does not have yet."""
        return self._uploader.pending()

    def close(self, status: Status = "FINISHED", timeout: float = 30.0) -> int:
        """Log how the run ended and deliver what is left, for at most `timeout` seconds.

        Returns: the number of events that the store does not have; `sync` delivers them later.
        """
        if self._closed:
            return self.pending()
        self._append("status", status=status)
        self._closed = True
        atexit.unregister(self._uploader.finish)
        self._journal.close()
        return self._uploader.finish(timeout)

    def _append(self, kind: str, **fields: Any) -> None:
        if self._closed:
            raise ValueError(f"{kind} logged after close of the log in {self.run_dir}.")
        try:
            self._journal.append(kind, fields)
        except OSError as error:
            if not self._disk_reported:
                self._disk_reported = True
                path = self._journal.path
                self._uploader.say(f"cannot write {path}: {error}; training continues without log")


def user() -> str:
    """The name of the user who runs this process."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        return "unknown"


def sync(
    run_dir: Path,
    *,
    tracking_uri: str | None = None,
    status: Status | None = None,
    tags: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Any] | None = None,
    step: int = 0,
    say: Say = to_stderr,
    timeout: float = 300.0,
) -> int:
    """Deliver what the tracking store lacks of a run.

    Args:
        tracking_uri: None takes the store that the run was logged to; another one gets all of it.
        status: how the run ended, if its process died without `close`.
        tags: more tags for such a run, for example `state` and `cause`.
        metrics: scores at `step` to add to a run that has ended or is training in another process,
            which then delivers them too; its status stays.
        timeout: seconds to wait for another process that delivers, or for an absent store.

    Returns: the number of events that are still missing.

    Raises:
        InputError: `run_dir` has no journal.
    """
    run_dir = Path(run_dir).absolute()
    exists = (run_dir / FILE).exists()
    openings = [event for event in events(run_dir) if event["kind"] == "open"] if exists else []
    if not openings:
        raise InputError(f"{run_dir} has no run log ({FILE}). Give the folder of a run.")
    with closing(Journal(run_dir / FILE, shared=status is None)) as journal:
        if tags:
            journal.append("tags", {"values": {name: str(value) for name, value in tags.items()}})
        if metrics:
            values = {name: number(value) for name, value in metrics.items()}
            journal.append("metrics", {"step": step, "values": values})
        if status is not None:
            journal.append("status", {"status": status})
    uri = absolute(tracking_uri or openings[-1]["tracking_uri"])
    if without_password(default_uri()) == uri:
        uri = default_uri()  # the journal does not keep passwords
    with lock(run_dir / LOCK) as held:
        if metrics and not held:
            say(f"another process is delivering {run_dir}, this included")
            return 0
    uploader = Uploader(run_dir, uri, say)
    uploader.start()
    return uploader.finish(timeout)


def undelivered(folder: Path) -> list[Path]:
    """The run folders in or below `folder` whose tracking store lacks events, for `sync`.

    Contacts no store. A run that is training may be listed for a moment.
    """
    behind = []
    for run_dir in sorted(path.parent for path in folder.rglob(FILE)):
        position = Delivered.load(run_dir).position
        complete_line = next(read(run_dir / FILE, position), None)
        if complete_line and (position or opening(run_dir)):
            behind.append(run_dir)
    return behind
