"""Runs in MLflow, best first: one board per dataset and split, with published results below.

MLflow does not record everything that a fair comparison needs, so published rows have no rank;
known differences are listed.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from cutslots.errors import InputError, nearest
from cutslots.metrics.registry import higher_is_better, title
from cutslots.report.published import Row, differences, rows
from cutslots.report.tables import clock, score_text, setting_text
from cutslots.tracking import FoundRun, find_runs

VALIDATION = "val"
MORE_SCORES = ("ari_fg", "ari", "miou", "mse", "cut_ari_fg", "video_ari_fg", "video_ari")
# Parameters that are not settings, or have their own column.
NO_SETTINGS = {"num_parameters", "train.seed"}
SETTINGS_SHOWN = 8
Scored = tuple[FoundRun, dict[str, float]]  # a run and its scores on the split at hand


@dataclass(frozen=True)
class Entry:
    """A run on a board: its finite scores, and the settings in which the board's runs differ.

    `step` is that of the best checkpoint; `seconds` and `state` as in `FoundRun` and `state_of`.
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
    if limit < 1:
        raise InputError(f"--limit must be at least 1, got {limit}.")
    by_dataset: dict[str, list[Scored]] = {}
    for run in _trained_runs(sweep, model):
        for (name, scored_split), scores in scores_of(run, trained_on(run)).items():
            if scored_split == split:
                by_dataset.setdefault(name, []).append((run, scores))
    if dataset is not None and dataset not in by_dataset:
        raise InputError(
            f"--dataset {dataset}: no run has scores on its split {split!r}. "
            + _available("Scored datasets", by_dataset)
        )
    chosen = by_dataset if dataset is None else {dataset: by_dataset[dataset]}
    boards = [_board(name, split, metric, runs, limit) for name, runs in chosen.items()]
    boards = [board for board in boards if board.num_runs + board.num_unranked]
    if not boards:
        names = {name for runs in chosen.values() for _, scores in runs for name in scores}
        raise InputError(
            f"metric {metric!r}: no run has it on split {split!r}. "
            + _available("Available scores", names)
        )
    return sorted(boards, key=lambda board: (-board.num_runs, board.dataset))


def scores_of(run: FoundRun, trained_on: str) -> dict[tuple[str, str], dict[str, float]]:
    """Scores by (dataset, split); on the validation split of `trained_on` the best of training."""
    scores: dict[tuple[str, str], dict[str, float]] = {}
    best: dict[str, float] = {}
    for name, value in sorted(run.metrics.items()):
        match name.split("/"):
            case ["best", score] if score != "step":
                best[score] = value
            case [dataset, split, score]:
                scores.setdefault((dataset, split), {})[score] = value
    return scores | ({(trained_on, VALIDATION): best} if best else {})


def trained_on(run: FoundRun) -> str:
    """The dataset of a run's training data."""
    return run.tags.get("set") or run.tags.get("dataset", "unknown")


def state_of(run: FoundRun) -> str:
    """finished, running, pruned, failed or interrupted."""
    return run.tags.get("state", run.status.lower())


def _trained_runs(sweep: str | None, model: str | None) -> list[FoundRun]:
    """Training runs: neither the runs of sweeps themselves nor published results."""
    runs = [
        run
        for run in find_runs("" if sweep is None else f"tags.`sweep.{sweep}` LIKE '%'")
        if run.tags.get("kind") != "sweep" and run.tags.get("published") != "true"
    ]
    if not runs:
        if sweep is None:
            raise InputError("MLflow has no runs yet. Train a model first: cutslots train scenes")
        parents = find_runs("tags.kind = 'sweep'")
        sweeps = sorted({run.tags["sweep"] for run in parents if "sweep" in run.tags})
        hint = nearest(sweep, sweeps) if sweeps else "Run a sweep first: python sweeps/demo.py"
        raise InputError(f"--sweep {sweep} has no runs. {hint}")
    if model is None:
        return runs
    name = model.replace("-", "_")
    models = sorted({run.tags["model"] for run in runs if "model" in run.tags})
    if name not in models:
        raise InputError(f"--model {model} has no runs. {nearest(name, models)}")
    return [run for run in runs if run.tags.get("model") == name]


def _available(what: str, names: Collection[str]) -> str:
    if names:
        return f"{what}: {', '.join(sorted(names))}."
    return "Score runs first: cutslots evaluate RUN --data DIR --split SPLIT"


def _board(dataset: str, split: str, metric: str, runs: Sequence[Scored], limit: int) -> Board:
    sign = -1 if higher_is_better(metric) else 1
    scored = [(run, scores) for run, scores in runs if metric in scores]
    ranked = [(run, scores) for run, scores in scored if math.isfinite(scores[metric])]
    ranked.sort(key=lambda item: (sign * item[1][metric], item[0].started))
    shown = ranked[:limit]
    settings = differing_settings([run for run, _ in shown])
    entries = []
    for rank, (run, scores) in enumerate(shown, 1):
        step = run.metrics.get("best/step")
        entry = Entry(
            rank=rank,
            value=scores[metric],
            scores={name: score for name, score in scores.items() if math.isfinite(score)},
            model=run.tags.get("model", "unknown"),
            trained_on=trained_on(run),
            sweep=run.tags.get("sweep"),
            seed=run.params.get("train.seed"),
            settings=settings[run.run_id],
            step=None if step is None else int(step),
            seconds=run.seconds,
            state=state_of(run),
            name=run.name,
            run_id=run.run_id,
        )
        entries.append(entry)
    published = [row for row in rows(dataset) if metric in row.scores]
    published.sort(key=lambda row: sign * row.scores[metric])
    differs = known_differences(published, shown, split)
    unranked = len(scored) - len(ranked)
    return Board(dataset, split, metric, entries, len(ranked), unranked, published, differs)


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


def known_differences(published: Sequence[Row], runs: Sequence[Scored], split: str) -> list[str]:
    """Known differences of our runs from published rows; with a count if not all runs differ."""
    differing: dict[str, set[str]] = {}
    for row in published:
        for run, scores in runs:
            side = run.params.get("model.image_size", "")
            reasons = differences(
                replace(row, differs=()),
                image_size=int(side) if side.isdigit() else None,
                split=split,
                num_images=scores.get("num_images"),
                trained_on=trained_on(run),
            )
            for reason in reasons:
                differing.setdefault(reason, set()).add(run.run_id)
    return [
        reason if len(ids) == len(runs) else f"{reason} ({len(ids)} of {len(runs)} runs)"
        for reason, ids in differing.items()
    ]


def publication_marks(published: Sequence[Row]) -> dict[str, str]:
    """A letter per publication, in the order of the rows."""
    return {name: chr(ord("a") + i) for i, name in enumerate({r.publication: 0 for r in published})}


def published_notes(published: Sequence[Row], differs: Sequence[str]) -> list[str]:
    """Sources and protocols of published rows, and what is known to differ in our runs."""
    notes = []
    for publication, mark in publication_marks(published).items():
        group = [row for row in published if row.publication == publication]
        protocols = [row.protocol for row in group]
        texts = dict.fromkeys(protocols + [text for row in group for text in row.differs])
        notes.append(f"[{mark}] {publication}. Protocol: {'; '.join(texts)}.")
    if published:
        listed = "; ".join(differs) or "none, except possibly how the dataset was prepared"
        notes.append(f"Published rows are not ranked. Known differences of our runs: {listed}.")
    return notes


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
    marks = publication_marks(board.published)
    for row in board.published:
        name = f"published: {row.method} [{marks[row.publication]}]"
        numbers = {title(name): score_text(name, row.scores.get(name)) for name in scores}
        lines.append({"rank": "-", **numbers, "trained on": row.trained_on, "run": name})
    # Columns with the usual value in every line are left out too.
    usual = {"trained on": {board.dataset}, "state": {"finished", ""}}
    values = {name: {line.get(name, "") for line in lines} for name in header}
    header = [n for n in header if any(values[n]) and not values[n] <= usual.get(n, set())]
    return header, [[line.get(name, "") for name in header] for line in lines]


def notes(board: Board) -> list[str]:
    """The notes below a board."""
    notes = []
    if board.num_runs > len(board.entries):
        hidden = board.num_runs - len(board.entries)
        notes.append(f"{hidden} more not shown; --limit {board.num_runs} shows all")
    if board.num_unranked:
        notes.append(f"without a finite {board.metric}: {board.num_unranked}")
    return [*notes, *published_notes(board.published, board.differs)]
