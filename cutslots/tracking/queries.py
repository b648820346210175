"""Queries and small updates of the tracking store. Nothing here deletes anything.

A sweep is a run, and its trials are the runs below it. Searches for `find_runs`, and for the
search field of `cutslots ui`:

    tags.sweep = 'clevrtex'                                     a sweep and the runs it made
    tags.sweep = 'clevrtex' and tags.state = 'finished'         also: pruned, failed, interrupted
    tags.`sweep.clevrtex` LIKE '%'                              its trials, reused runs included
    tags.`sweep.clevrtex` = '17'                                trial 17
    tags.mlflow.parentRunId = '0123456789abcdef...'             everything below a run
    tags.dataset = 'clevrtex' and metrics."best/ari_fg" > 0.8   good runs on a dataset
    tags.rank = '1' and tags.dataset = 'clevr'                  the best trials of sweeps
    tags.signature = '...'                                      runs of one configuration and data
    params.`optim.learning_rate` = '0.0004'                     parameters are texts
    attributes.status = 'FAILED' and tags.cause LIKE '%memory%'  what went wrong

Order by `metrics."best/ari_fg" DESC`, or click on the column's header.
"""

import itertools
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cutslots.tracking.client import MISSING, OutageError, RefusedError, Store, ask, ignoring
from cutslots.tracking.journal import now
from cutslots.tracking.run_log import user

if TYPE_CHECKING:
    from mlflow import MlflowClient

PAGE = 200  # runs per call: a busy server must answer within 10 s
SECONDS = "train/seconds"  # the metric with the duration of a training


@dataclass(frozen=True)
class FoundRun:
    """A run in the tracking store.

    Attributes:
        status: RUNNING, FINISHED, FAILED or KILLED.
        metrics: newest value by name.
        run_dir: its folder on the machine that ran it.
        started, ended: seconds since 1970; `ended` is None while the run is active.
    """

    run_id: str
    name: str
    status: str
    params: dict[str, str]
    tags: dict[str, str]
    run_dir: Path | None
    metrics: dict[str, float]
    started: float
    ended: float | None

    @property
    def seconds(self) -> float | None:
        """Training time; wall-clock time if it was not logged; None while running."""
        if self.ended is None:
            return None
        return self.metrics.get(SECONDS, self.ended - self.started)

    @classmethod
    def of(cls, run: Any) -> "FoundRun":
        """From MLflow's own `Run`."""
        info, tags = run.info, dict(run.data.tags)
        return cls(
            run_id=info.run_id,
            name=info.run_name or "",
            status=info.status,
            params=dict(run.data.params),
            tags=tags,
            run_dir=Path(tags["cutslots.run_dir"]) if tags.get("cutslots.run_dir") else None,
            metrics=dict(run.data.metrics),
            started=info.start_time / 1000,
            ended=None if info.end_time is None else info.end_time / 1000,
        )


def find_run(run_id: str) -> FoundRun | None:
    """The run with this MLflow id, or None."""
    return next(iter(find_runs(f"attributes.run_id = '{run_id}'")), None)


def find_runs(
    where: str = "",
    order_by: Sequence[str] = (),
    limit: int | None = None,
    tracking_uri: str | None = None,
) -> list[FoundRun]:
    """The runs of all experiments that match, newest first by default, without deleted ones.

    Args:
        where: a search, see the top of this file.
        order_by: for example `metrics."best/ari_fg" DESC`.
        limit: the largest number of runs; None returns all.

    Raises:
        InputError: the store is unreachable (also in the functions below), or does not understand
            `where` or `order_by`.
    """

    def search(client: "MlflowClient") -> list[FoundRun]:
        ids = [experiment.experiment_id for experiment in _all(client.search_experiments)]
        if not ids:
            return []
        results = _all(client.search_runs, ids, where, order_by=list(order_by))
        # A run that is created meanwhile can push another one into the next page too.
        runs = {run.info.run_id: run for run in itertools.islice(results, limit)}
        return [FoundRun.of(run) for run in runs.values()]

    refusal = f"MLflow rejects the search {where!r} ordered by {list(order_by)}: "
    return ask(search, refusal, tracking_uri) or []


def _all(search: Callable[..., Any], *arguments: Any, **options: Any) -> Iterator[Any]:
    """All results of a paginated MLflow search."""
    token = None
    while True:
        page = search(*arguments, max_results=PAGE, page_token=token, **options)
        yield from page
        token = page.token
        if not token:
            return


def experiments() -> dict[str, str]:
    """Experiment name -> id, newest first, without MLflow's "Default"."""

    def search(client: "MlflowClient") -> dict[str, str]:
        newest_first = _all(client.search_experiments, order_by=["creation_time DESC"])
        return {e.name: e.experiment_id for e in newest_first if e.name != "Default"}

    return ask(search) or {}


def children(parent_run_id: str, tracking_uri: str | None = None) -> list[FoundRun]:
    """The runs below a run, newest first."""
    return find_runs(f"tags.mlflow.parentRunId = '{parent_run_id}'", tracking_uri=tracking_uri)


def finished_run(run_hash: str) -> FoundRun | None:
    """The newest run of any experiment that completed its training with this `run_hash`.

    A run outside sweeps has no tag `state` and counts if it logged its best scores.
    """
    where = f"tags.signature = '{run_hash}' and attributes.status = 'FINISHED'"
    for run in find_runs(where, ["attributes.end_time DESC"]):
        state = run.tags.get("state")
        scored = any(name.startswith("best/") for name in run.metrics)
        if state == "finished" or (state is None and scored):
            return run
    return None


def metric_histories(run_ids: Sequence[str], metric: str) -> dict[str, list[tuple[int, float]]]:
    """Run id -> (step, value) pairs in order of steps, the later value if one was logged twice."""

    def history(client: "MlflowClient", run_id: str) -> list[tuple[int, float]]:
        points = []
        with ignoring(MISSING):  # the run may have been deleted meanwhile
            points = client.get_metric_history(run_id, metric)
        points = sorted(points, key=lambda point: point.timestamp)
        return sorted({point.step: point.value for point in points}.items())

    histories = ask(lambda client: {run_id: history(client, run_id) for run_id in run_ids})
    return histories or {run_id: [] for run_id in run_ids}


def last_artifact(run_id: str, folder: str) -> bytes | None:
    """The content of the last file, by name, in an artifact folder; None if there is none."""

    def fetch(client: "MlflowClient") -> bytes | None:
        files = [entry.path for entry in client.list_artifacts(run_id, folder) if not entry.is_dir]
        if not files:
            return None
        with tempfile.TemporaryDirectory() as temporary:
            return Path(client.download_artifacts(run_id, max(files), temporary)).read_bytes()

    try:
        return ask(fetch)
    except RefusedError:
        return None


def tag_runs(tags: Mapping[str, Mapping[str, Any]]) -> int:
    """Set tags, written with `str`, by run id and name.

    Returns: the number of runs not tagged because the store is unreachable or lacks the run.
    """
    store, missing = Store(), 0
    for done, (run_id, values) in enumerate(tags.items()):
        try:
            texts = {name: str(value) for name, value in values.items()}
            store.send(run_id, [{"kind": "tags", "values": texts}])
        except RefusedError:
            missing += 1
        except OutageError:  # it affects the remaining runs, too
            return missing + len(tags) - done
    return missing


def add_metrics(run_id: str, step: int, values: Mapping[str, float]) -> bool:
    """Add scores to a run whose folder may be on another machine; its status stays.

    Returns: False if the store is unreachable or lacks the run.
    """
    event = {"kind": "metrics", "step": step, "time": now(), "values": dict(values)}
    try:
        Store().send(run_id, [event])
    except (RefusedError, OutageError):
        return False
    return True


@dataclass(frozen=True)
class Record:
    """Published results as a run. An existing run with the same `key` is updated."""

    key: str
    name: str
    tags: Mapping[str, str]
    metrics: Mapping[str, float]


def import_records(experiment: str, records: Sequence[Record]) -> Counter[str]:
    """Make sure that an experiment has a finished run for each record.

    Returns: the numbers of runs that were "added", "changed" and "unchanged".

    Raises:
        InputError: the store is unreachable or rejects them.
    """
    store, counts = Store(), Counter[str]()
    for record in records:
        at = {"time": now()}
        names = {"log_id": record.key, "experiment": experiment, "run_name": record.name}
        _, run_id = store.find_or_create({**names, "run_dir": "", "user": user(), **at})
        run = store.call(lambda client, run_id=run_id: client.get_run(run_id))
        tags = dict(record.tags.items() - run.data.tags.items())
        metrics = dict(record.metrics.items() - run.data.metrics.items())
        changes: list[dict[str, Any]] = []
        if tags:
            changes.append({"kind": "tags", "values": tags})
        if metrics:
            changes.append({"kind": "metrics", "step": 0, "values": metrics, **at})
        if run.info.status != "FINISHED":
            changes.append({"kind": "status", "status": "FINISHED", **at})
        for change in changes:
            store.send(run_id, [change])
        is_new = not run.data.metrics
        counts["added" if is_new else "changed" if changes else "unchanged"] += 1
    return counts
