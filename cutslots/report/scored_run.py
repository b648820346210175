"""A training run from MLflow as reports see it, and the settings in which such runs differ."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cutslots.errors import InputError
from cutslots.metrics.registry import higher_is_better
from cutslots.report.tables import setting_text
from cutslots.tracking import FoundRun, find_runs

VALIDATION = "val"
# Parameters that are not settings, or have their own column.
NO_SETTINGS = {"num_parameters", "train.seed"}
SETTINGS_SHOWN = 8
Split = tuple[str, str]  # the names of a dataset and a split


@dataclass(frozen=True)
class ScoredRun(FoundRun):
    """A training run with its scores by dataset and split.

    On the validation split of the training data they are the best scores of training.
    """

    scores: dict[Split, dict[str, float]]

    @property
    def state(self) -> str:
        """finished, running, pruned, failed or interrupted."""
        return self.tags.get("state", self.status.lower())

    @property
    def seed(self) -> str:
        return self.params.get("train.seed", "")

    @property
    def run_hash(self) -> str:
        return self.tags.get("signature", "none")


def scores_of(run: FoundRun, trained_on: str) -> dict[Split, dict[str, float]]:
    """The scores of `ScoredRun`, from the metrics best/SCORE and DATASET/SPLIT/SCORE."""
    scores: dict[Split, dict[str, float]] = {}
    best: dict[str, float] = {}
    for name, value in sorted(run.metrics.items()):
        match name.split("/"):
            case ["best", score] if score != "step":
                best[score] = value
            case [dataset, split, score]:
                scores.setdefault((dataset, split), {})[score] = value
    return scores | ({(trained_on, VALIDATION): best} if best else {})


def trained_on(run: FoundRun) -> str:
    """The dataset of a run's training data; runs of an earlier version have no tag `set`."""
    return run.tags.get("set") or run.tags.get("dataset", "unknown")


def short_commit(run: FoundRun) -> str:
    """Twelve digits of a run's commit, with `-dirty` if files differed from it."""
    commit, _, dirty = run.tags.get("commit", "unknown").partition("-")
    return commit[:12] + (f"-{dirty}" if dirty else "")


def sweep_names() -> list[str]:
    """All sweeps in MLflow.

    Raises:
        InputError: MLflow is unreachable or has no sweeps.
    """
    parents = find_runs("tags.kind = 'sweep'")
    names = sorted({run.tags["sweep"] for run in parents if "sweep" in run.tags})
    if not names:
        raise InputError("MLflow has no sweeps yet. Run one first: python sweeps/demo.py")
    return names


def best_first(score: str, value: float | None) -> float:
    """A sort key: the best value of a score first, None last."""
    return math.inf if value is None else -value if higher_is_better(score) else value


def differing_settings(runs: Sequence[FoundRun]) -> dict[str, dict[str, str]]:
    """By run id, the parameters in which these runs differ, under their shortest unambiguous names.

    A parameter that some model lacks does not count as different.
    """
    # The number of steps may change when a run resumes, so it is a tag; the data digest is too.
    tags = {"train.steps": "train.steps", "data_digest": "data"}
    settings = {
        run.run_id: run.params
        | {new: run.tags[tag] for tag, new in tags.items() if tag in run.tags}
        for run in runs
    }
    values: dict[str, set[str]] = {}
    for params in settings.values():
        for name, value in params.items():
            values.setdefault(name, set()).add(value)
    short = {}
    for name in values:
        if len(values[name]) > 1 and name not in NO_SETTINGS:
            parts = name.split(".")
            suffixes = (".".join(parts[i:]) for i in range(len(parts) - 1, 0, -1))
            short[name] = next(
                (s for s in suffixes if sum(f".{n}".endswith(f".{s}") for n in values) == 1), name
            )
    return {
        run_id: {short[name]: params[name] for name in short if name in params}
        for run_id, params in settings.items()
    }


def settings_text(settings: dict[str, str]) -> str:
    """`gamma=0.5 learning_rate=0.001 and 3 more`."""
    texts = [f"{name}={setting_text(value)}" for name, value in settings.items()]
    more = len(texts) - SETTINGS_SHOWN
    return " ".join([*texts[:SETTINGS_SHOWN], *([f"and {more} more"] if more > 0 else [])])
