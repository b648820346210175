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

from cutslots.runlog.commit import git_commit as git_commit
from cutslots.runlog.fetch import fetch_model as fetch_model
from cutslots.runlog.fetch import is_model_uri as is_model_uri
from cutslots.runlog.found import FoundRun as FoundRun
from cutslots.runlog.found import experiments as experiments
from cutslots.runlog.found import find_run as find_run
from cutslots.runlog.found import find_runs as find_runs
from cutslots.runlog.found import last_artifact as last_artifact
from cutslots.runlog.found import metric_histories as metric_histories
from cutslots.runlog.found import ready as ready
from cutslots.runlog.journal import events as events
from cutslots.runlog.log import RunLog as RunLog
from cutslots.runlog.log import sync as sync
from cutslots.runlog.model import (
    _load_pyfunc as _load_pyfunc,
)  # MLflow calls it by this name, see model.py
from cutslots.runlog.model import package_model as package_model
from cutslots.runlog.records import Imported as Imported
from cutslots.runlog.records import Record as Record
from cutslots.runlog.records import import_records as import_records
from cutslots.runlog.registry import Registered as Registered
from cutslots.runlog.registry import register as register
from cutslots.runlog.store import database_of as database_of
from cutslots.runlog.store import default_uri as default_uri
from cutslots.runlog.store import without_password as without_password
from cutslots.runlog.sweeps import add_metrics as add_metrics
from cutslots.runlog.sweeps import children as children
from cutslots.runlog.sweeps import end_run as end_run
from cutslots.runlog.sweeps import finished_run as finished_run
from cutslots.runlog.sweeps import tag_runs as tag_runs
from cutslots.runlog.sweeps import undelivered as undelivered
from cutslots.runlog.system import SystemMetrics as SystemMetrics
