"""The run log: a local journal that is the truth, and its delivery to MLflow.

    with RunLog(run_dir, experiment="clevr", run_name="seed 0") as log, SystemMetrics(log):
        log.params(flat(config))
        log.metrics(step, {"train/loss": loss})
        log.artifact(run_dir / "figure.png", "figures")

Every call appends one line to `run_dir/journal.jsonl` and returns at once; a thread delivers the lines to MLflow in
their order. A tracking store that is away costs the training nothing: it is said once, and what was missed is delivered
when the store is back, at `close`, or later by `sync(run_dir)`. No other part of cutslots imports mlflow.

What sweeps ask of the store is in `sweeps.py`, whose head lists searches for its page; models worth keeping in `registry.py`;
`latest.latest(run_dir)` tells a live view how a run stands, from its journal.
"""

from cutslots.tracking.client import database_of as database_of
from cutslots.tracking.client import default_uri as default_uri
from cutslots.tracking.client import without_password as without_password
from cutslots.tracking.journal import events as events
from cutslots.tracking.models import Registered as Registered
from cutslots.tracking.models import (
    _load_pyfunc as _load_pyfunc,
)  # MLflow calls it by this name, see model.py
from cutslots.tracking.models import fetch_model as fetch_model
from cutslots.tracking.models import is_model_uri as is_model_uri
from cutslots.tracking.models import package_model as package_model
from cutslots.tracking.models import register as register
from cutslots.tracking.queries import FoundRun as FoundRun
from cutslots.tracking.queries import Imported as Imported
from cutslots.tracking.queries import Record as Record
from cutslots.tracking.queries import add_metrics as add_metrics
from cutslots.tracking.queries import children as children
from cutslots.tracking.queries import end_run as end_run
from cutslots.tracking.queries import experiments as experiments
from cutslots.tracking.queries import find_run as find_run
from cutslots.tracking.queries import find_runs as find_runs
from cutslots.tracking.queries import finished_run as finished_run
from cutslots.tracking.queries import import_records as import_records
from cutslots.tracking.queries import last_artifact as last_artifact
from cutslots.tracking.queries import metric_histories as metric_histories
from cutslots.tracking.queries import ready as ready
from cutslots.tracking.queries import tag_runs as tag_runs
from cutslots.tracking.queries import undelivered as undelivered
from cutslots.tracking.run_log import RunLog as RunLog
from cutslots.tracking.run_log import sync as sync
from cutslots.tracking.system_metrics import SystemMetrics as SystemMetrics
