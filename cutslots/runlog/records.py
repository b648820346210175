"""Figures that no run of ours made, such as published ones, as runs of the tracking store."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from cutslots.errors import InputError
from cutslots.runlog.found import ready, unreachable
from cutslots.runlog.log import user
from cutslots.runlog.store import OutageError, RefusedError, Store, default_uri


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
