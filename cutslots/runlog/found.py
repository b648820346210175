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
from cutslots.runlog.store import OutageError, RefusedError, Store, default_uri, without_password

if TYPE_CHECKING:
    from mlflow import MlflowClient

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
        where: a filter as the search field of `cutslots ui` takes it; `cutslots.runlog.sweeps` lists some.
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
