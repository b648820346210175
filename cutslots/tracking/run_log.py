"""The log of one run."""

import atexit
import getpass
import sys
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from cutslots.errors import InputError
from cutslots.tracking.client import absolute, default_uri, without_password
from cutslots.tracking.journal import FILE, Journal, events, number, opening
from cutslots.tracking.uploader import Delivery, Say

Status = Literal["FINISHED", "FAILED", "KILLED"]

CLOSE_SECONDS, ANNOTATE_SECONDS = (
    30.0,
    10.0,
)  # the second has to hold the import of MLflow; an absent store is given up sooner


def to_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class RunLog:
    """The log of one training run; opening a folder that has a journal continues it, and the same MLflow run.

    No method but `close` waits for anything but the local disk, and none fails for the tracking store's sake. Logging
    after `close` is a ValueError.

    Args:
        run_dir: the run's folder; the journal lies in it.
        experiment: name of the MLflow experiment, made when missing.
        run_name: name of the run in MLflow.
        tracking_uri: the tracking store; None takes `default_uri()`.
        parent_run_id: MLflow id of the run under which this one is shown (a sweep).
        say: takes one line of text for the user; called from the delivery thread. Default: standard error.
        pause: seconds between attempts at a store that is away, first and longest.
        gather: seconds for which lines are collected into one call.
        annotate: add to a run without being its training, which may have ended in any way or still be going on in another process:
            the run's state stays as it is, and `close` waits little. A folder without a journal is opened as usual.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        experiment: str,
        run_name: str,
        tracking_uri: str | None = None,
        parent_run_id: str | None = None,
        say: Say = to_stderr,
        pause: tuple[float, float] = (5.0, 60.0),
        gather: float = 1.0,
        annotate: bool = False,
    ) -> None:
        self.run_dir = Path(run_dir).absolute()
        uri = absolute(tracking_uri or default_uri())
        self._journal = Journal(self.run_dir / FILE, shared=annotate)
        earlier = opening(self.run_dir)
        self._annotates = annotate and earlier is not None
        self._delivery = Delivery(
            self.run_dir, uri, say, pause, gather, patient=not self._annotates
        )
        self._closed = self._disk_said = False
        if not self._annotates:
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
        self._delivery.start()
        # A training that ends without `close` loses nothing; this keeps the thread from speaking into a dying process.
        atexit.register(self._delivery.finish, 2.0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._closed:
            self.close(
                "FINISHED"
                if kind is None
                else "FAILED"
                if issubclass(kind, Exception)
                else "KILLED"
            )

    def params(self, values: Mapping[str, Any]) -> None:
        """Log parameters, written with `str`; MLflow refuses a later change of one."""
        self._append("params", values={name: str(value) for name, value in values.items()})

    def tags(self, values: Mapping[str, Any]) -> None:
        """Log tags, written with `str`; a later value replaces the earlier."""
        self._append("tags", values={name: str(value) for name, value in values.items()})

    def metrics(self, step: int, values: Mapping[str, Any]) -> None:
        """Log numbers (anything `float` takes; NaN and infinities too) at `step`, with the present time."""
        self._append(
            "metrics",
            step=int(step),
            values={name: number(value) for name, value in values.items()},
        )

    def dataset(
        self,
        name: str,
        digest: str,
        source: str,
        schema: Mapping[str, Any],
        profile: Mapping[str, Any],
        context: str = "training",
    ) -> None:
        """Log a dataset as input of the run.

        Args:
            digest: names the dataset's exact content; MLflow keeps its first 36 characters.
            source: folder or address of the data.
            schema: column name -> type.
            profile: anything JSON can hold: number of records, seeds, checksums.
            context: "training", "validation" or "test".
        """
        fields = {"name": name, "digest": digest, "source": str(source), "context": context}
        self._append("dataset", **fields, schema=dict(schema), profile=dict(profile))

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Log a file, or all that is in a folder, under `folder` among the run's artifacts.

        What lies at `path` when it is delivered is stored: leave it there, unchanged, until `close` has returned 0.
        """
        path = Path(path).absolute()
        inside = path.is_relative_to(self.run_dir)  # a moved run folder can still be delivered
        self._append(
            "artifact", path=str(path.relative_to(self.run_dir) if inside else path), folder=folder
        )

    @property
    def run_id(self) -> str | None:
        """The MLflow run id, None while the tracking store has not made the run."""
        return self._delivery.state.run_id

    def url(self) -> str | None:
        """The run's page on the tracking server; None for a database, and while the run is not made."""
        state = self._delivery.state
        if state.run_id is None or not state.tracking_uri.startswith("http"):
            return None
        return f"{state.tracking_uri.rstrip('/')}/#/experiments/{state.experiment_id}/runs/{state.run_id}"

    def close(self, status: Status = "FINISHED", timeout: float | None = None) -> int:
        """Log the run's end (not when annotating) and deliver what is left, for at most `timeout` seconds, 30 unless given.

        Returns: the number of events that the tracking store does not have; `sync` delivers them later.
        """
        if self._closed:
            return self._delivery.pending()
        if not self._annotates:
            self._append("status", status=status)
        self._closed = True
        atexit.unregister(self._delivery.finish)
        default = ANNOTATE_SECONDS if self._annotates else CLOSE_SECONDS
        self._delivery.finish(default if timeout is None else timeout)
        self._journal.close()
        return _said_at_end(self._delivery)

    def _append(self, kind: str, **fields: Any) -> None:
        if self._closed:
            raise ValueError(
                f"{kind} logged after close. Log it before, or open RunLog({str(self.run_dir)!r}) again."
            )
        try:
            self._journal.append(kind, fields)
        except OSError as error:
            if not self._disk_said:
                self._disk_said = True
                self._delivery.say(
                    f"journal {self._journal.path} cannot be written: {error}; training goes on, unlogged"
                )
        self._delivery.wake()


def user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        return "unknown"


def _said_at_end(delivery: Delivery) -> int:
    left = delivery.pending()
    if left and not delivery.left_to_another:
        delivery.say(
            f"{left} events of this run are not in the tracking store {delivery.state.tracking_uri}; they are in "
            f"{delivery.run_dir / FILE}. To deliver them: cutslots sync {delivery.run_dir}"
        )
    if delivery.state.refused:
        delivery.say(
            f"{delivery.state.refused} events were refused by the tracking store and are in the journal only"
        )
    return left


def sync(
    run_dir: Path,
    *,
    tracking_uri: str | None = None,
    status: Status | None = None,
    tags: Mapping[str, Any] | None = None,
    say: Say = to_stderr,
    timeout: float = 300.0,
) -> int:
    """Deliver what the tracking store has not got of a run that is no longer going on.

    Args:
        tracking_uri: None takes the store the run was logged to; another one gets the whole run.
        status: how the run ended, for a run whose process died without `close`.
        tags: what else is to be known of such a run.
        timeout: seconds after which an absent store is given up.

    Returns: the number of events still undelivered.

    Raises:
        InputError: `run_dir` has no journal.
    """
    run_dir = Path(run_dir).absolute()
    opened = (
        [event for event in events(run_dir) if event["kind"] == "open"]
        if (run_dir / FILE).exists()
        else []
    )
    if not opened:
        raise InputError(
            f"{run_dir} has no run log: no {FILE} with an entry. Give the folder of a run."
        )
    if status is not None or tags:
        journal = Journal(run_dir / FILE)
        if tags:
            journal.append("tags", {"values": {name: str(value) for name, value in tags.items()}})
        if status is not None:
            journal.append("status", {"status": status})
        journal.close()
    uri = tracking_uri or opened[-1]["tracking_uri"]
    if without_password(default_uri()) == uri:
        uri = default_uri()  # with the password that the journal does not keep
    delivery = Delivery(run_dir, absolute(uri), say, pause=(1.0, 5.0), gather=0.0)
    delivery.start()
    delivery.finish(timeout)
    return _said_at_end(delivery)
