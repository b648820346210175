"""Questions to the tracking store, and runs as it knows them."""

import gc
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from os import W_OK, access
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from cutslots.errors import InputError
from cutslots.tracking.client import OutageError, RefusedError, Store, default_uri, without_password

if TYPE_CHECKING:
    from mlflow import MlflowClient

import os
from collections.abc import Mapping
from typing import NamedTuple

from cutslots.tracking.journal import FILE, opening, read
from cutslots.tracking.run_log import Status, sync, to_stderr, user
from cutslots.tracking.uploader import Delivered, Say

T = TypeVar("T")

PAGE = 200  # runs a call: a busy server must answer within its ten seconds


SECONDS = "train/seconds"  # the metric of that name


@dataclass(frozen=True)
class FoundRun:
    """A run as the tracking store knows it.

    Attributes:
        status: RUNNING, FINISHED, FAILED or KILLED.
        metrics: the newest value of each.
        run_dir: where its journal and checkpoints were written, by the machine that wrote them.
        started, ended: seconds since 1970; `ended` is None while the run goes on.
        artifact_uri: where the store keeps the run's artifacts.
    """

    run_id: str
    experiment_id: str
    name: str
    status: str
    params: dict[str, str]
    tags: dict[str, str]
    run_dir: Path | None
    metrics: dict[str, float]
    started: float
    ended: float | None
    artifact_uri: str

    @property
    def seconds(self) -> float | None:
        """That its training took; of runs that did not log it, from the start to the end. None while it goes on."""
        if self.ended is None:
            return None
        return self.metrics.get(SECONDS, self.ended - self.started)


def find_run(reference: str, tracking_uri: str | None = None) -> FoundRun | None:
    """The run with the MLflow id `reference`, None when the store has no such run.

    Raises:
        InputError: the tracking store cannot be reached.
    """
    try:
        run = ask(lambda client: client.get_run(reference), tracking_uri)
    except RefusedError:
        return None
    return None if run is None else _found(run)


def find_runs(
    where: str = "",
    order_by: Sequence[str] = (),
    limit: int | None = None,
    tracking_uri: str | None = None,
) -> list[FoundRun]:
    """The runs of all experiments for which `where` holds, newest first unless ordered otherwise; deleted ones left out.

    Args:
        where: a filter as the search field of `cutslots ui` takes it; `cutslots.tracking.queries` lists some.
        order_by: such as `metrics."best/ari_fg" DESC`.
        limit: at most so many runs; None: all.

    Raises:
        InputError: the tracking store cannot be reached, or does not understand `where` or `order_by`.
    """

    def search(client: "MlflowClient") -> list[FoundRun]:
        experiments = [experiment.experiment_id for experiment in _all(client.search_experiments)]
        if not experiments:
            return []
        runs = _all(client.search_runs, experiments, where, order_by=list(order_by), limit=limit)
        # A run that was made while pages were read can push another one over a page's end, into the next page too.
        return list({run.info.run_id: _found(run) for run in runs}.values())

    try:
        with _without_collection():
            return ask(search, tracking_uri) or []
    except RefusedError as refused:
        raise InputError(
            f"the tracking store refuses to search for {where!r} by {list(order_by)}: {refused}"
        ) from refused


def experiments(tracking_uri: str | None = None) -> dict[str, str]:
    """The ids of all experiments by their name, the newest first, without the one that MLflow makes by itself.

    Raises:
        InputError: the tracking store cannot be reached.
    """
    found = (
        ask(
            lambda client: list(_all(client.search_experiments, order_by=["creation_time DESC"])),
            tracking_uri,
        )
        or []
    )
    return {each.name: each.experiment_id for each in found if each.name != "Default"}


def ready(tracking_uri: str | None = None, timeout: float = 10.0) -> None:
    """Make sure that the tracking store answers: its database is made, or brought up to date, before several processes open it.

    Args:
        timeout: seconds that a server may take; a database takes those that it needs (5-10 to make one).

    Raises:
        InputError: the store does not answer, or cannot be written to.
    """
    store = Store(tracking_uri or default_uri())
    import_module("mlflow")  # takes seconds, which are not the server's
    failures: list[Exception] = []

    def connect() -> None:
        try:
            with store.calling() as client:
                client.search_experiments(max_results=1)
        except (OutageError, RefusedError) as error:
            failures.append(error)

    thread = threading.Thread(target=connect, name="is the tracking store there", daemon=True)
    thread.start()
    thread.join(timeout if store.database is None else None)
    if thread.is_alive():
        raise unreachable(store, f"no answer within {timeout:g} s")
    if failures:
        raise unreachable(store, failures[0]) from failures[0]
    for path in (store.database, store.database.parent) if store.database else ():
        if path.exists() and not access(path, W_OK):
            raise unreachable(store, f"{path} may not be written")


def ask(question: "Callable[[MlflowClient], T]", tracking_uri: str | None = None) -> T | None:
    """The answer of the tracking store; None when it is a database that nobody has made yet: looking makes none.

    Raises:
        InputError: the store cannot be reached.
        RefusedError: it can, and has no answer.
    """
    store = Store(tracking_uri or default_uri())
    if store.database is not None and not store.database.exists():
        return None
    for attempt in range(2):
        try:
            with store.calling() as client:
                return question(client)
        except OutageError as outage:
            # Many processes write to a database at once: what was locked a moment ago no longer is.
            if attempt or store.database is None:
                raise unreachable(store, outage) from outage
            time.sleep(0.5)
    raise AssertionError("the second attempt returns or raises")


def unreachable(store: Store, why: object) -> InputError:
    return InputError(
        f"tracking store {without_password(store.uri)} unreachable: {why}. Check MLFLOW_TRACKING_URI."
    )


def _all(
    search: Callable[..., Any], *arguments: Any, limit: int | None = None, **options: Any
) -> Iterator[Any]:
    """The pages of one of MLflow's searches as one."""
    left, token = limit, None
    while left is None or left > 0:
        page = search(
            *arguments,
            max_results=PAGE if left is None else min(PAGE, left),
            page_token=token,
            **options,
        )
        yield from page
        token, left = page.token, None if left is None else left - len(page)
        if not token:
            return


@contextmanager
def _without_collection() -> Iterator[None]:
    """Keep Python's cycle collector out of a search for runs.

    MLflow makes an object of every parameter, tag and metric, 100,000 of them for 1,000 runs; the collector looks through all
    that are there again and again, for two thirds of the time.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _found(run: Any) -> FoundRun:
    folder = run.data.tags.get("cutslots.run_dir")
    return FoundRun(
        run_id=run.info.run_id,
        experiment_id=run.info.experiment_id,
        name=run.info.run_name or "",
        status=run.info.status,
        params=dict(run.data.params),
        tags=dict(run.data.tags),
        run_dir=Path(folder) if folder else None,
        metrics=dict(run.data.metrics),
        started=run.info.start_time / 1000,
        ended=None if run.info.end_time is None else run.info.end_time / 1000,
        artifact_uri=run.info.artifact_uri,
    )


def metric_histories(
    run_ids: Sequence[str], metric: str, tracking_uri: str | None = None
) -> dict[str, list[tuple[int, float]]]:
    """A metric's values by step of every run, in order of steps; of a step that was logged twice (a resumed run) the later one.

    Through one connection: to make one takes ten times as long as to ask it.

    Raises:
        InputError: the tracking store cannot be reached.
    """

    def fetch(client: "MlflowClient") -> dict[str, list[Any]]:
        return {run_id: _points(client, run_id, metric) for run_id in run_ids}

    found = ask(fetch, tracking_uri) or {run_id: [] for run_id in run_ids}
    return {
        run_id: sorted(
            {
                point.step: point.value
                for point in sorted(points, key=lambda point: point.timestamp)
            }.items()
        )
        for run_id, points in found.items()
    }


def _points(client: "MlflowClient", run_id: str, metric: str) -> list[Any]:
    try:
        return client.get_metric_history(run_id, metric)
    except Exception as error:
        if (
            getattr(error, "error_code", None) == "RESOURCE_DOES_NOT_EXIST"
        ):  # of a run that was deleted meanwhile
            return []
        raise


def last_artifact(run_id: str, folder: str, tracking_uri: str | None = None) -> bytes | None:
    """What is in the last file, by name, of a folder of a run's artifacts; None when there is none, or its file is gone.

    Raises:
        InputError: the tracking store cannot be reached.
    """

    def fetch(client: "MlflowClient") -> bytes | None:
        paths = sorted(
            each.path for each in client.list_artifacts(run_id, folder) if not each.is_dir
        )
        if not paths:
            return None
        with tempfile.TemporaryDirectory() as temporary:
            return Path(client.download_artifacts(run_id, paths[-1], temporary)).read_bytes()

    try:
        return ask(fetch, tracking_uri)
    except RefusedError:
        return None


def finished_run(signature: str, tracking_uri: str | None = None) -> FoundRun | None:
    """The run that ended last of those, in whatever experiment, that took all their steps with this configuration and data.

    A run without the tag `state`, which is none of a sweep's, is taken when it has its best scores.

    Raises:
        InputError: the tracking store cannot be reached.
    """
    where = f"tags.signature = '{signature}' and attributes.status = 'FINISHED'"
    for run in find_runs(where, ["attributes.end_time DESC"], tracking_uri=tracking_uri):
        state = run.tags.get("state")
        if state == "finished" or (
            state is None and any(name.startswith("best/") for name in run.metrics)
        ):
            return run
    return None


def children(parent_run_id: str, tracking_uri: str | None = None) -> list[FoundRun]:
    """All runs whose parent is the run `parent_run_id`, newest first.

    Raises:
        InputError: the tracking store cannot be reached.
    """
    return find_runs(f"tags.mlflow.parentRunId = '{parent_run_id}'", tracking_uri=tracking_uri)


def tag_runs(tags: Mapping[str, Mapping[str, Any]], tracking_uri: str | None = None) -> int:
    """Set tags, written with `str`, of many runs at once.

    Args:
        tags: run id -> name -> value.

    Returns: the number of runs that have not got theirs, because the tracking store is away or has no such run.
    """
    store = Store(tracking_uri or default_uri())
    if store.database is not None and not store.database.exists():
        return len(tags)
    left = list(tags.items())
    refused = outages = 0
    while (
        left and outages < 2
    ):  # a locked database is free again at the second attempt; what lasts would last for all the others
        run_id, values = left[-1]
        event = {"kind": "tags", "values": {name: str(value) for name, value in values.items()}}
        try:
            store.send(run_id, [event], Path())
            outages = 0
        except RefusedError:
            refused += 1
        except OutageError:
            outages += 1
            continue
        left.pop()
    return refused + len(left)


def add_metrics(
    run_id: str, step: int, values: Mapping[str, float], tracking_uri: str | None = None
) -> bool:
    """Add scores to a run that the tracking store has, whose folder may be on another machine; its state stays as it is.

    Returns: False when the store is away or has no such run, and nothing was added.
    """
    event = {
        "kind": "metrics",
        "step": step,
        "time": time.time_ns() // 1_000_000,
        "values": dict(values),
    }
    try:
        Store(tracking_uri or default_uri()).send(run_id, [event], Path())
    except (RefusedError, OutageError):
        return False
    return True


def end_run(
    run_dir: Path,
    status: Status,
    tags: Mapping[str, Any] | None = None,
    *,
    tracking_uri: str | None = None,
    say: Say = to_stderr,
    timeout: float = 10.0,
) -> int:
    """Say how a run ended whose process died without saying it: in its journal, and in the tracking store.

    Args:
        tags: added to the run's, such as `state` and `cause`.
        tracking_uri: None takes the store the run was logged to.
        timeout: seconds after which an absent store is left to a later `sync`.

    Returns: the number of events still undelivered.

    Raises:
        InputError: `run_dir` has no journal.
    """
    return sync(
        run_dir, tracking_uri=tracking_uri, status=status, tags=tags, say=say, timeout=timeout
    )


def undelivered(folder: Path) -> list[Path]:
    """The run folders below `folder`, or `folder` itself, whose journals hold what their tracking store has not got: for `sync`.

    Asks no store. A run that is going on may be among them, for a moment.
    """
    found = []
    for path, below, files in os.walk(folder):
        if FILE in files and _lags(Path(path)):
            found.append(Path(path))
        below.sort()
    return found


def _lags(run_dir: Path) -> bool:
    # Lines for another store than that of `mlflow.json` lie behind its position too.
    noted = Delivered.noted(run_dir)
    position = noted.position if noted else 0
    journal = run_dir / FILE
    if (
        journal.stat().st_size <= position or next(read(journal, position), None) is None
    ):  # at most half a line
        return False
    return position > 0 or opening(run_dir) is not None


@dataclass(frozen=True)
class Record:
    """What one such run is to hold.

    Attributes:
        key: what makes it itself: a record with a key that the experiment has changes that run and makes none.
    """

    key: str
    name: str
    tags: Mapping[str, str]
    metrics: Mapping[str, float]


class Imported(NamedTuple):
    """How many runs were made, changed, and found as they should be."""

    made: int
    changed: int
    unchanged: int


def import_records(
    experiment: str, records: Sequence[Record], tracking_uri: str | None = None
) -> Imported:
    """Make sure that an experiment has a finished run for every record; what is there already stays untouched.

    Raises:
        InputError: the tracking store cannot be reached, or does not take them.
    """
    ready(tracking_uri)
    store = Store(tracking_uri or default_uri())
    done = {"made": 0, "changed": 0, "unchanged": 0}
    try:
        for record in records:
            done[_import(store, experiment, record)] += 1
    except OutageError as outage:
        raise unreachable(store, outage) from outage
    except RefusedError as refused:
        raise InputError(
            f"the tracking store does not take the experiment {experiment!r}: {refused}"
        ) from refused
    return Imported(**done)


def _import(store: Store, experiment: str, record: Record) -> str:
    now = time.time_ns() // 1_000_000
    opened = {
        "log_id": record.key,
        "experiment": experiment,
        "run_name": record.name,
        "run_dir": "",
        "user": user(),
        "time": now,
    }
    _, run_id = store.find_or_create(opened)
    with store.calling() as client:
        run = client.get_run(run_id)
    new = not run.data.metrics
    tags = {name: text for name, text in record.tags.items() if run.data.tags.get(name) != text}
    metrics = {
        name: value for name, value in record.metrics.items() if run.data.metrics.get(name) != value
    }
    events: list[dict[str, Any]] = [
        *([{"kind": "tags", "values": tags}] if tags else []),
        *([{"kind": "metrics", "step": 0, "time": now, "values": metrics}] if metrics else []),
        *(
            [{"kind": "status", "status": "FINISHED", "time": now}]
            if run.info.status != "FINISHED"
            else []
        ),
    ]
    for event in events:
        store.send(run_id, [event], Path())
    return "made" if new else "changed" if events else "unchanged"
