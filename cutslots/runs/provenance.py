"""What is known of a model: the run that trained it, on what, with which code, and how good it is."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cutslots import tracking
from cutslots.tracking import RunLog, add_metrics
from cutslots.tracking.journal import FILE
from cutslots.tracking.models import FETCHED
from cutslots.train import checkpoint
from cutslots.train.export import described

ABOUT = "run.json"
VALIDATION = "validation"


def run_folder(checkpoint: Path) -> Path | None:
    """The run that a checkpoint file belongs to, None when it lies outside one."""
    folder = checkpoint.parent.parent
    return folder if (folder / ABOUT).is_file() else None


def trained_on(folder: Path) -> str:
    """The name of the set that a run was trained on."""
    about = json.loads((folder / ABOUT).read_text())
    return about.get("set", about["source"])  # runs of earlier versions have the source alone


def origin(path: Path) -> dict[str, Any]:
    """What is known of the model at a path that `find_model` gave; what is not known is left out.

    Returns:
        `run`, its name; `signature`, `step` and `data_digest` of its training; `trained_on`, the set; `commit`, the code's;
        `scores`, by where they were measured: "validation" during training, else "SET SPLIT", each by our names of scores.

    Raises:
        InputError: a file that cannot be read.
    """
    return _of_folder(path) if path.is_dir() else _of_checkpoint(path)


def _of_checkpoint(path: Path) -> dict[str, Any]:
    state = checkpoint.load(path)
    known = {name: state[name] for name in ("signature", "step", "data_digest") if name in state}
    scores: dict[str, dict[str, float]] = {}
    best = state.get("best", {})
    if best and best.get("step") == state.get("step"):  # else they are another checkpoint's
        scores[VALIDATION] = {name: value for name, value in best.items() if name != "step"}
    folder = run_folder(path)
    if folder:
        known |= {"run": folder.name, "trained_on": trained_on(folder)}
        events = list(tracking.events(folder)) if (folder / FILE).is_file() else []
        for event in events:
            if event["kind"] == "tags" and "commit" in event["values"]:
                known["commit"] = event["values"]["commit"]
            if event["kind"] == "metrics" and event["step"] == state["step"]:
                _add(scores, event["values"])
    return {**known, "scores": scores}


def _of_folder(folder: Path) -> dict[str, Any]:
    known = described(folder)
    scores = {where: dict(values) for where, values in known.pop("scores", {}).items()}
    if (folder / FETCHED).is_file():
        fetched = json.loads((folder / FETCHED).read_text())
        metrics, tags = fetched.get("metrics", {}), fetched.get("tags", {})
        best = {
            name.removeprefix("best/"): value
            for name, value in metrics.items()
            if name.startswith("best/")
        }
        step = best.pop("step", None)
        of_run = {
            "run": fetched.get("run"),
            "step": None if step is None else int(step),
            "trained_on": tags.get("set", tags.get("dataset")),
            **{name: tags.get(name) for name in ("signature", "data_digest", "commit")},
        }
        known = {name: value for name, value in of_run.items() if value is not None} | known
        scores = ({VALIDATION: best} if best else {}) | scores
        _add(scores, metrics)
    return {**known, "scores": scores}


def _add(scores: dict[str, dict[str, float]], metrics: Mapping[str, Any]) -> None:
    """Add those that `cutslots evaluate` logs, SET/SPLIT/SCORE."""
    for name, value in metrics.items():
        where, _, score = name.rpartition("/")
        if where.count("/") == 1:
            scores.setdefault(where.replace("/", " "), {})[score] = float(value)


def log_scores(
    model: Path, source: str, split: str, scores: Mapping[str, float], partial: bool = False
) -> None:
    """Add an evaluation to the log of the run that `model` belongs to, if it belongs to one; the run's state stays as it is.

    Args:
        model: a checkpoint, or a folder; one that was fetched from MLflow belongs to the run that it came from.
        partial: the scores are of a part of the split only, and are not logged: under its name they would pass for all of it.
    """
    if partial:
        return
    values = {f"{source}/{split}/{name}": value for name, value in scores.items()}
    folder = run_folder(model) if model.is_file() else None
    if folder is not None:
        about = json.loads((folder / ABOUT).read_text())
        step = int(checkpoint.load(model)["step"])
        with RunLog(
            folder, experiment=about["experiment"], run_name=folder.name, annotate=True
        ) as log:
            log.metrics(step, values)
    elif (model / FETCHED).is_file():
        known = json.loads((model / FETCHED).read_text())
        if run_id := known.get("run_id"):
            step = int(known.get("metrics", {}).get("best/step", 0))
            if not add_metrics(run_id, step, values):
                print(
                    f"the scores on {source} {split} are not in MLflow: it does not take them for run {run_id} now",
                    file=sys.stderr,
                )
