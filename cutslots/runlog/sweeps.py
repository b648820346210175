"""What a sweep asks of MLflow and says to it. Nothing here deletes anything.

A sweep is a parent run, and its trials are the runs below it. In the search field of `cutslots ui` (and in `find_runs`):

    tags.sweep = 'clevrtex'                                       the sweep's own run and the runs it made
    tags.sweep = 'clevrtex' and tags.state = 'finished'           its complete trials; also pruned, failed, interrupted
    tags.`sweep.clevrtex` LIKE '%'                                all trials it uses, those taken over from other sweeps too
    tags.`sweep.clevrtex` = '17'                                  trial 17
    tags.mlflow.parentRunId = '0123456789abcdef...'               everything below one run
    tags.dataset = 'clevrtex' and metrics."best/ari_fg" > 0.8     good runs on a dataset, of whatever sweep
    tags.rank = '1' and tags.dataset = 'clevr'                    the winners
    tags.signature = '...'                                        runs of one configuration on one state of the data
    params.`optim.learning_rate` = '0.0004'                       parameters are texts
    attributes.status = 'FAILED' and tags.cause LIKE '%memory%'   what went wrong

Order by `metrics."best/ari_fg" DESC`; in the page, a click on the head of that column.
"""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cutslots.runlog.delivery import Delivered, Say
from cutslots.runlog.found import FoundRun, find_runs
from cutslots.runlog.journal import FILE, opening, read
from cutslots.runlog.log import Status, sync, to_stderr
from cutslots.runlog.store import OutageError, RefusedError, Store, default_uri


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
