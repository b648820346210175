"""The log of runs: a local journal, delivered to MLflow. Only this package imports mlflow.

    with RunLog(run_dir, experiment="clevr", run_name="seed 0") as log:
        log.params(flat(config))
        log.metrics(step, {"train/loss": loss})
        log.artifact(run_dir / "figure.png", "figures")

Each call appends a line to `run_dir/journal.jsonl` and returns at once; a thread delivers the lines
to MLflow in order. If the tracking store is unreachable, the training continues: that is reported
once, and the missing lines are delivered when the store is back, at `close`, or by `sync(run_dir)`.

`queries.py` lists searches for the MLflow UI; `journal.latest(run_dir)` shows a live run's state.
MLflow itself loads models through `_load_pyfunc`.
"""

from cutslots.tracking.client import database_of, default_uri, ready, without_password
from cutslots.tracking.journal import events
from cutslots.tracking.models import Registered, _load_pyfunc, fetch_model, package_model, register
from cutslots.tracking.queries import (
    FoundRun,
    Record,
    add_metrics,
    children,
    experiments,
    find_run,
    find_runs,
    finished_run,
    import_records,
    last_artifact,
    metric_histories,
    tag_runs,
)
from cutslots.tracking.run_log import RunLog, sync, undelivered
from cutslots.tracking.system_metrics import SystemMetrics
