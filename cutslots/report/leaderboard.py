"""The runs of the tracking store, best first, a board a set, with the published rows beside them.

Runs on different sets stand on different boards. Published rows have no rank among ours: of a run the store does not know all that
would make it comparable; what is known to differ is said.
"""

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

from cutslots.errors import InputError, nearest
from cutslots.metrics.registry import higher_is_better
from cutslots.report.evaluation import TITLES, number
from cutslots.report.published import Row, differences, rows
from cutslots.tracking import FoundRun, find_runs

VALIDATION = "val"
BESIDES = ("ari_fg", "ari", "miou", "mse", "cut_ari_fg", "video_ari_fg", "video_ari")
# What tells runs apart without being a setting of the experiment, or has a column of its own.
NO_SETTINGS = {"num_parameters", "train.seed"}
SETTINGS_SHOWN = 8


@dataclass(frozen=True)
class Entry:
    """A run's place on a board.

    Attributes:
        rank: from 1 on.
        scores: all its finite scores there, by our names.
        trained_on: the set of its training data.
        settings: the parameters in which the runs of the board differ, by the ends ending of their names that is unambiguous.
        step: of the checkpoint that was best during training.
        seconds: see `FoundRun`.
        state: finished, running, pruned, failed or interrupted.
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
    """The runs that have a score on one split of one set, best first.

    Attributes:
        num_runs: how many there are, of which `entries` are the first.
        num_unranked: how many more have the score, but not as a finite number.
        published: rows with the same score, best first.
        differs: what is known of how ours were made otherwise than the published ones.
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
    """The boards that the tracking store has runs for, the largest first.

    Args:
        metric: a score by our names; of errors the smallest is best.
        dataset: the set that the scores are of, as `cutslots evaluate` names it; None: a board for each.
        split: "val": the best validation scores of training, and of runs trained on another set what `cutslots evaluate` logged of
            that split; others: what it logged.
        sweep: only runs that this sweep uses.
        model: only runs of this model.
        limit: at most so many entries a board.

    Raises:
        InputError: the store cannot be reached, or has no such run; the message says what it has.
    """
    if limit < 1:
        raise InputError(f"--limit is {limit}; give at least 1.")
    places: dict[str, list[tuple[FoundRun, dict[str, float]]]] = {}
    for run in _runs(sweep, model):
        for place, scores in scores_of(run, split).items():
            places.setdefault(place, []).append((run, scores))
    if dataset is not None:
        if dataset not in places:
            raise InputError(
                f"--dataset {dataset}: no run has scores of its split {split!r}. {_known('Sets that have some', places)}"
            )
        places = {dataset: places[dataset]}
    boards = [_board(place, split, metric, found, limit) for place, found in places.items()]
    boards = [board for board in boards if board.num_runs + board.num_unranked]
    if not boards:
        names = {name for found in places.values() for _, scores in found for name in scores}
        raise InputError(
            f"metric {metric!r}: no run has it on split {split!r}. {_known('Scores that some have', names)}"
        )
    return sorted(boards, key=lambda board: (-board.num_runs, board.dataset))


def scores_of(run: FoundRun, split: str) -> dict[str, dict[str, float]]:
    """A run's scores on a split, by set and then by our names; see `leaderboards` for what "val" means."""
    found: dict[str, dict[str, float]] = {}
    for name, value in run.metrics.items():
        parts = name.split("/")
        if len(parts) == 3 and parts[1] == split:
            found.setdefault(parts[0], {})[parts[2]] = value
    best = {
        name.removeprefix("best/"): value
        for name, value in run.metrics.items()
        if name.startswith("best/")
    }
    if split == VALIDATION and best:
        found[set_of(run)] = {name: value for name, value in best.items() if name != "step"}
    return found


def _runs(sweep: str | None, model: str | None) -> list[FoundRun]:
    """Runs of ours that were trained: neither sweeps themselves nor published figures."""
    where = "" if sweep is None else f"tags.`sweep.{sweep}` LIKE '%'"
    runs = [
        run
        for run in find_runs(where)
        if run.tags.get("kind") != "sweep" and run.tags.get("published") != "true"
    ]
    if not runs:
        raise InputError(_no_runs(sweep))
    if model is None:
        return runs
    name = model.replace("-", "_")
    models = sorted({run.tags["model"] for run in runs if "model" in run.tags})
    if name not in models:
        raise InputError(f"--model {model}: no run of it is there. {nearest(name, models)}")
    return [run for run in runs if run.tags.get("model") == name]


def _no_runs(sweep: str | None) -> str:
    if sweep is None:
        return "the tracking store has no runs yet. Train something first: cutslots train scenes"
    sweeps = sorted(
        {run.tags["sweep"] for run in find_runs("tags.kind = 'sweep'") if "sweep" in run.tags}
    )
    return f"--sweep {sweep}: no run of it is there. {nearest(sweep, sweeps) if sweeps else 'No sweep has been run yet.'}"


def _known(what: str, names: Collection[str]) -> str:
    return (
        f"{what}: {', '.join(sorted(names))}."
        if names
        else "Score runs first: cutslots evaluate RUN --data DIR --split SPLIT"
    )


def set_of(run: FoundRun) -> str:
    """The set of a run's training data."""
    return run.tags.get("set") or run.tags.get("dataset", "unknown")


def _board(
    dataset: str,
    split: str,
    metric: str,
    found: Sequence[tuple[FoundRun, dict[str, float]]],
    limit: int,
) -> Board:
    sign = 1 if higher_is_better(metric) else -1
    scored = [(run, scores) for run, scores in found if metric in scores]
    ranked = [(run, scores) for run, scores in scored if math.isfinite(scores[metric])]
    ranked.sort(
        key=lambda each: (-sign * each[1][metric], each[0].started)
    )  # of equals, the one that was there first
    shown = ranked[:limit]
    settings = differing([run for run, _ in shown])
    entries = [
        _entry(rank, run, scores, metric, settings[run.run_id])
        for rank, (run, scores) in enumerate(shown, 1)
    ]
    published = [row for row in rows(dataset) if metric in row.scores]
    published.sort(key=lambda row: -sign * row.scores[metric])
    return Board(
        dataset,
        split,
        metric,
        entries,
        len(ranked),
        len(scored) - len(ranked),
        published,
        known_differences(published, shown, split),
    )


def _entry(
    rank: int, run: FoundRun, scores: dict[str, float], metric: str, settings: dict[str, str]
) -> Entry:
    step = run.metrics.get("best/step")
    return Entry(
        rank=rank,
        value=scores[metric],
        scores={name: score for name, score in scores.items() if math.isfinite(score)},
        model=run.tags.get("model", "unknown"),
        trained_on=set_of(run),
        sweep=run.tags.get("sweep"),
        seed=run.params.get("train.seed"),
        settings=settings,
        step=None if step is None else int(step),
        seconds=run.seconds,
        state=run.tags.get("state", run.status.lower()),
        name=run.name,
        run_id=run.run_id,
    )


def differing(runs: Sequence[FoundRun]) -> dict[str, dict[str, str]]:
    """The parameters of each run, by its id, in which these runs differ; one that a model lacks makes no difference."""
    # How long a run is may change when it is resumed, so it is a tag; the data's digest is one too.
    extra = {"train.steps": "train.steps", "data_digest": "data"}
    settings = {
        run.run_id: run.params
        | {name: run.tags[tag] for tag, name in extra.items() if tag in run.tags}
        for run in runs
    }
    names = dict.fromkeys(name for each in settings.values() for name in each)
    values = {name: {each[name] for each in settings.values() if name in each} for name in names}
    changing = [name for name in names if len(values[name]) > 1 and name not in NO_SETTINGS]
    ends = {
        name: next(
            end for end in _endings(name) if sum(end in _endings(other) for other in names) == 1
        )
        for name in changing
    }
    return {
        run_id: {ends[name]: each[name] for name in changing if name in each}
        for run_id, each in settings.items()
    }


def _endings(path: str) -> list[str]:
    """The endings of a dotted path, the ends first."""
    parts = path.split(".")
    return [".".join(parts[at:]) for at in range(len(parts) - 1, -1, -1)]


def known_differences(
    published: Sequence[Row], shown: Sequence[tuple[FoundRun, dict[str, float]]], split: str
) -> list[str]:
    """What differs between ours and the published rows, with the number of our runs where it is not all."""
    counted: dict[str, set[str]] = {}
    for row in published:
        for run, scores in shown:
            side = run.params.get("model.image_size", "")
            for reason in differences(
                replace(row, differs=()),
                image_size=int(side) if side.isdigit() else None,
                split=split,
                num_images=scores.get("num_images"),
                trained_on=set_of(run),
            ):
                counted.setdefault(reason, set()).add(run.run_id)
    return [
        reason if len(of) == len(shown) else f"{reason} ({len(of)} of {len(shown)} runs)"
        for reason, of in counted.items()
    ]


def cells(board: Board) -> tuple[list[str], list[list[str]]]:
    """A board as a table: its header, a line an entry, a line a published row; columns that would be empty are left out."""
    others = [
        name
        for name in BESIDES
        if name != board.metric and any(name in entry.scores for entry in board.entries)
    ]
    scores = [board.metric, *others]
    header = ["rank", *(TITLES.get(name, name) for name in scores)]
    header += [
        "model",
        "trained on",
        "sweep",
        "seed",
        "step",
        "time",
        "state",
        "run",
        "settings",
        "id",
    ]
    lines = [_line(entry, scores) for entry in board.entries]
    marks = marks_of(board.published)
    for row in board.published:
        figures = [number(name, row.scores) for name in scores]
        name = f"published: {row.method} [{marks[row.publication]}]"
        lines.append(["-", *figures, "", row.trained_on, "", "", "", "", "", name, "", ""])
    alike = {"trained on": {board.dataset}, "state": {"finished", ""}}
    kept = [
        at
        for at, title in enumerate(header)
        if any(line[at] for line in lines)
        and not (title in alike and {line[at] for line in lines} <= alike[title])
    ]
    return [header[at] for at in kept], [[line[at] for at in kept] for line in lines]


def _line(entry: Entry, scores: Sequence[str]) -> list[str]:
    settings = [f"{name}={short(value)}" for name, value in entry.settings.items()]
    more = [f"and {len(settings) - SETTINGS_SHOWN} more"] if len(settings) > SETTINGS_SHOWN else []
    return [
        str(entry.rank),
        *(number(name, entry.scores) for name in scores),
        entry.model,
        entry.trained_on,
        entry.sweep or "",
        entry.seed or "",
        "" if entry.step is None else f"{entry.step:,}",
        "" if entry.seconds is None else clock(entry.seconds),
        entry.state,
        entry.name,
        " ".join([*settings[:SETTINGS_SHOWN], *more]),
        entry.run_id,
    ]


def short(value: str) -> str:
    """A setting's text, numbers with four digits: a search draws them with seventeen."""
    try:
        return value if value.lstrip("-").isdigit() else f"{float(value):.4g}"
    except ValueError:
        return value


def marks_of(published: Sequence[Row]) -> dict[str, str]:
    """A letter for each publication, in the order of the rows."""
    return {
        name: chr(ord("a") + at)
        for at, name in enumerate(dict.fromkeys(row.publication for row in published))
    }


def clock(seconds: float) -> str:
    """Hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def notes(board: Board) -> Iterator[str]:
    """What has to be said below a board."""
    if board.num_runs > len(board.entries):
        yield f"not shown: {board.num_runs - len(board.entries)} more; --limit {board.num_runs} shows all"
    if board.num_unranked:
        yield f"without a finite {board.metric}: {board.num_unranked}"
    for publication, mark in marks_of(board.published).items():
        differs = {
            reason: None
            for row in board.published
            if row.publication == publication
            for reason in row.differs
        }
        yield f"[{mark}] {publication}" + "".join(f"; {reason}" for reason in differs)
    if board.published:
        known = (
            "; ".join(board.differs)
            or "as far as the runs tell, nothing but how the set was prepared"
        )
        yield f"Published rows are not ranked among ours. What differs in ours: {known}."
