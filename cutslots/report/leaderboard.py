"""Runs in MLflow, best first: one board per dataset and split, with published results below.

MLflow does not record everything that a fair comparison needs, so published rows have no rank;
known differences are listed.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cutslots.errors import InputError, nearest
from cutslots.metrics.registry import title
from cutslots.report import published
from cutslots.report.published import Row, known_differences, rows
from cutslots.report.scored_run import (
    VALIDATION,
    ScoredRun,
    Split,
    best_first,
    differing_settings,
    scores_of,
    settings_text,
    sweep_names,
    trained_on,
)
from cutslots.report.tables import clock, score_text
from cutslots.tracking import find_runs

MORE_SCORES = (
    "ari_fg",
    "ari",
    "miou",
    "miou_fg",
    "mse",
    "cut_ari_fg",
    "video_ari_fg",
    "video_ari",
)


@dataclass(frozen=True)
class Entry:
    """A run on a board: its finite scores, and the settings in which the board's runs differ.

    `step` is that of the best checkpoint; `seconds` as in `FoundRun`, `state` as in `ScoredRun`.
    """

    rank: int
    value: float
    scores: dict[str, float]
    model: str
    trained_on: str
    sweep: str | None
    seed: str | None
    settings: dict[str, str]
    step: int | None
    seconds: float | None
    state: str
    name: str
    run_id: str


@dataclass(frozen=True)
class Board:
    """The first of the `num_runs` runs with a score on a split, best first, and published rows.

    `num_unranked` runs have a score that is not finite; `differs` lists known differences of our
    runs from the published rows.
    """

    dataset: str
    split: str
    metric: str
    entries: list[Entry]
    num_runs: int
    num_unranked: int
    published: list[Row]
    differs: list[str]


def leaderboards(
    metric: str = "ari_fg",
    *,
    dataset: str | None = None,
    split: str = VALIDATION,
    sweep: str | None = None,
    model: str | None = None,
    limit: int = 20,
) -> list[Board]:
    """The boards of all datasets that runs were scored on, the largest board first.

    Args:
        dataset: only this dataset, by its name in `cutslots evaluate`.
        split: "val": best validation scores of training, and scores that `cutslots evaluate`
            logged for runs trained on other data; other splits: scores of `cutslots evaluate`.
        sweep: only runs that this sweep uses.
        model: only runs of this model.
        limit: maximum number of entries per board.

    Raises:
        InputError: MLflow is unreachable or has no such run.
    """
    runs = find_runs("" if sweep is None else f"tags.`sweep.{sweep}` LIKE '%'")
    runs = [run for run in runs if run.tags.get("kind") != "sweep"]
    runs = [run for run in runs if run.tags.get("published") != "true"]
    if not runs:
        if sweep is not None:
            raise InputError(f"--sweep {sweep} has no runs. {nearest(sweep, sweep_names())}")
        raise InputError("MLflow has no runs yet. Train a model first: cutslots train scenes")
    if model is not None:
        name = model.replace("-", "_")
        models = sorted({run.tags["model"] for run in runs if "model" in run.tags})
        if name not in models:
            raise InputError(f"--model {model} has no runs. {nearest(name, models)}")
        runs = [run for run in runs if run.tags.get("model") == name]
    by_split: dict[Split, list[ScoredRun]] = {}
    for run in runs:
        scored = ScoredRun(**vars(run), scores=scores_of(run, trained_on(run)))
        for scored_split in scored.scores:
            if scored_split[1] == split:
                by_split.setdefault(scored_split, []).append(scored)
    if not by_split:
        hint = "Score runs first: cutslots evaluate RUN --data DIR --split SPLIT"
        raise InputError(f"--split {split}: no run has scores on it. {hint}")
    if dataset is not None:
        if (dataset, split) not in by_split:
            names = ", ".join(sorted(name for name, _ in by_split))
            raise InputError(
                f"--dataset {dataset}: no scores on {split}. Scored datasets: {names}."
            )
        by_split = {(dataset, split): by_split[dataset, split]}
    boards = [_board(on, metric, scored, limit) for on, scored in by_split.items()]
    boards = [board for board in boards if board.num_runs + board.num_unranked]
    if not boards:
        names = sorted({n for on, scored in by_split.items() for r in scored for n in r.scores[on]})
        hint = f"Available scores: {', '.join(names)}."
        raise InputError(f"--metric {metric}: no scores on {split}. {hint}")
    return sorted(boards, key=lambda board: (-board.num_runs, board.dataset))


def _board(split: Split, metric: str, runs: Sequence[ScoredRun], limit: int) -> Board:
    scored = [run for run in runs if metric in run.scores[split]]
    ranked = [run for run in scored if math.isfinite(run.scores[split][metric])]
    ranked.sort(key=lambda run: (best_first(metric, run.scores[split][metric]), run.started))
    shown = ranked[:limit]
    settings = differing_settings(shown)
    entries = [
        Entry(
            rank=rank,
            value=run.scores[split][metric],
            scores={name: v for name, v in run.scores[split].items() if math.isfinite(v)},
            model=run.tags.get("model", "unknown"),
            trained_on=trained_on(run),
            sweep=run.tags.get("sweep"),
            seed=run.params.get("train.seed"),
            settings=settings[run.run_id],
            step=int(run.metrics["best/step"]) if "best/step" in run.metrics else None,
            seconds=run.seconds,
            state=run.state,
            name=run.name,
            run_id=run.run_id,
        )
        for rank, run in enumerate(shown, 1)
    ]
    below = [row for row in rows(split[0]) if metric in row.scores]
    below.sort(key=lambda row: best_first(metric, row.scores[metric]))
    unranked, differs = len(scored) - len(ranked), known_differences(below, shown, split)
    return Board(*split, metric, entries, len(ranked), unranked, below, differs)


def cells(board: Board) -> tuple[list[str], list[list[str]]]:
    """A board as a header and lines, our runs first; empty columns are left out."""
    available = {name for entry in board.entries for name in entry.scores}
    others = [name for name in MORE_SCORES if name != board.metric and name in available]
    scores = [board.metric, *others]
    lines = [
        {
            "rank": str(entry.rank),
            **{title(name): score_text(name, entry.scores.get(name)) for name in scores},
            "model": entry.model,
            "trained on": entry.trained_on,
            "sweep": entry.sweep or "",
            "seed": entry.seed or "",
            "step": "" if entry.step is None else f"{entry.step:,}",
            "time": "" if entry.seconds is None else clock(entry.seconds),
            "state": entry.state,
            "run": entry.name,
            "settings": settings_text(entry.settings),
            "id": entry.run_id,
        }
        for entry in board.entries
    ]
    header = list(lines[0]) if lines else ["rank", *map(title, scores), "trained on", "run"]
    for row, label in zip(board.published, published.labels(board.published), strict=True):
        numbers = {title(name): score_text(name, row.scores.get(name)) for name in scores}
        lines.append({"rank": "-", **numbers, "trained on": row.trained_on, "run": label})
    # Columns with the usual value in every line are left out too.
    usual = {"trained on": {board.dataset}, "state": {"finished", ""}}
    values = {name: {line.get(name, "") for line in lines} for name in header}
    header = [n for n in header if any(values[n]) and not values[n] <= usual.get(n, set())]
    return header, [[line.get(name, "") for name in header] for line in lines]


def notes(board: Board) -> list[str]:
    """The notes below a board."""
    notes = published.notes(board.published, board.differs)
    if board.num_unranked:
        notes.insert(0, f"without a finite {board.metric}: {board.num_unranked}")
    if hidden := board.num_runs - len(board.entries):
        notes.insert(0, f"{hidden} more not shown; --limit {board.num_runs} shows all")
    return notes
