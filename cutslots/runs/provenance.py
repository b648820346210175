"""The provenance of a model: the run that trained it, its data and code, and its scores."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cutslots.tracking import RunLog, add_metrics, default_uri, events, sync
from cutslots.tracking.journal import FILE
from cutslots.tracking.models import FETCHED
from cutslots.train import checkpoint
from cutslots.train.export import described

ABOUT = "run.json"
VALIDATION = "validation"
DELIVERY_SECONDS = 10.0  # for scores, the import of MLflow included


def origin(path: Path) -> dict[str, Any]:
    """The known facts about a model at a path that `find_model` returned.

    Returns:
        `run`, its name; `signature`, `step` and `data_digest` of its training; `trained_on`, the
        dataset; `commit` of the code; `scores` by "validation" or "DATASET SPLIT", then name.
        Unknown facts are missing.

    Raises:
        InputError: an unreadable file.
    """
    return _of_folder(path) if path.is_dir() else _of_checkpoint(path)


def _run_folder(checkpoint: Path) -> Path | None:
    """The run that a checkpoint file belongs to, or None."""
    folder = checkpoint.parent.parent
    return folder if (folder / ABOUT).is_file() else None


def _of_checkpoint(path: Path) -> dict[str, Any]:
    state = checkpoint.load(path)
    facts = {name: state[name] for name in ("signature", "step", "data_digest") if name in state}
    best, scores = dict(state.get("best", {})), {}
    if best and best.pop("step", None) == state.get("step"):  # the scores of this checkpoint
        scores[VALIDATION] = best
    if folder := _run_folder(path):
        about = json.loads((folder / ABOUT).read_text())
        # Runs of earlier versions do not have "set".
        facts |= {"run": folder.name, "trained_on": about.get("set", about["source"])}
        for event in events(folder) if (folder / FILE).is_file() else ():
            if event["kind"] == "tags" and "commit" in event["values"]:
                facts["commit"] = event["values"]["commit"]
            if event["kind"] == "metrics" and event["step"] == state["step"]:
                _add(scores, event["values"])
    return {**facts, "scores": scores}


def _of_folder(folder: Path) -> dict[str, Any]:
    facts = described(folder)
    scores = facts.pop("scores", {})
    if (folder / FETCHED).is_file():
        fetched = json.loads((folder / FETCHED).read_text())
        metrics, tags = fetched.get("metrics", {}), fetched.get("tags", {})
        best = {name[5:]: value for name, value in metrics.items() if name.startswith("best/")}
        step = best.pop("step", None)
        of_run = {
            "run": fetched.get("run"),
            "step": None if step is None else int(step),
            "trained_on": tags.get("set", tags.get("dataset")),
            **{name: tags.get(name) for name in ("signature", "data_digest", "commit")},
        }
        facts = {name: value for name, value in of_run.items() if value is not None} | facts
        scores = ({VALIDATION: best} if best else {}) | scores
        _add(scores, metrics)
    return {**facts, "scores": scores}


def _add(scores: dict[str, dict[str, float]], metrics: Mapping[str, Any]) -> None:
    """Add the metrics that `cutslots evaluate` logs as DATASET/SPLIT/SCORE."""
    for name, value in metrics.items():
        if name.count("/") == 2:
            dataset, split, score = name.split("/")
            scores.setdefault(f"{dataset} {split}", {})[score] = float(value)


def log_scores(model: Path, source: str, split: str, scores: Mapping[str, float]) -> None:
    """Add an evaluation to the log of the run that trained `model`, if known; its status stays.

    Args:
        model: a checkpoint, or a folder that `find_model` returned.
    """
    values = {f"{source}/{split}/{name}": value for name, value in scores.items()}
    if model.is_file() and (folder := _run_folder(model)):
        step, uri = int(checkpoint.load(model)["step"]), default_uri()
        if (folder / FILE).is_file():
            sync(folder, tracking_uri=uri, metrics=values, step=step, timeout=DELIVERY_SECONDS)
        else:
            experiment = json.loads((folder / ABOUT).read_text())["experiment"]
            with RunLog(folder, experiment=experiment, run_name=folder.name) as log:
                log.metrics(step, values)
    elif (model / FETCHED).is_file():
        fetched = json.loads((model / FETCHED).read_text())
        run_id, step = fetched.get("run_id"), fetched.get("metrics", {}).get("best/step", 0)
        if run_id and not add_metrics(run_id, int(step), values):
            text = f"MLflow does not accept the scores on {source} {split} for run {run_id} now"
            print(text, file=sys.stderr)
