"""A sweep's tables: means over seeds with the published rows beside them, what has no result, and a line a run for programs."""

import csv
import io
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from cutslots.report.analysis import Analysis
from cutslots.report.leaderboard import clock, known_differences, marks_of, smaller_is_better
from cutslots.report.published import Row, rows
from cutslots.report.scores import TITLES, markdown_table, number
from cutslots.report.sweep_runs import Configuration, Place, SweepRuns, Trial

SPEED = "train/images_per_second"
IMPORTANCE = "Importance of settings"


@dataclass(frozen=True)
class Table:
    """A table as people see it, whatever it is written in.

    Attributes:
        lines: ours, in their order.
        published: lines below ours that have no place in their order.
        best: line and column of the best value of each score.
        left: so many columns at the front are texts.
        notes: said below it.
    """

    title: str
    header: list[str]
    lines: list[list[str]]
    published: list[list[str]] = field(default_factory=list)
    best: frozenset[tuple[int, int]] = frozenset()
    left: int = 2
    notes: list[str] = field(default_factory=list)


def tables(sweep: SweepRuns) -> list[Table]:
    """A table a set and split that has scores, and one of the trials without a result."""
    found = [_scores_table(sweep, place) for place in sweep.places if sweep.configurations]
    return [*found, _unfinished(sweep)] if sweep.unfinished else found


def summary(sweep: SweepRuns) -> list[str]:
    """What the sweep was, in a few lines."""
    counts: dict[str, int] = {}
    for trial in [*(trial for trial in sweep.trials if trial.counts), *sweep.unfinished]:
        counts[trial.state] = counts.get(trial.state, 0) + 1
    order = "smallest" if smaller_is_better(sweep.objectives[0]) else "largest"
    lines = [
        f"Data: {sweep.place[0]}. Objective: {' and '.join(_titles(sweep))} on the validation split; {order} mean first."
    ]
    lines.append(
        f"Trials: {', '.join(f'{count} {state}' for state, count in sorted(counts.items()))}."
    )
    if repeated := len(sweep.trials) - sum(counts.values()):
        lines[-1] += (
            f" {repeated} further run{'s' * (repeated != 1)} of the same signatures: see runs.csv."
        )
    for parent in sweep.parents[:1]:
        params = parent.params
        fixed = f" with {params['set']}" if params.get("set") else ""
        lines.append(
            f"Preset {params.get('preset', 'unknown')}{fixed}; search {params.get('search', 'unknown')}."
        )
        digest = params.get("data_digest", "unknown")
        lines.append(
            f"Commit {Trial(parent, None, {}, {}, False).commit}, data digest {digest}, MLflow run {parent.run_id}."
        )
    return lines


def markdown(sweep: SweepRuns, analysis: Analysis | None = None) -> str:
    """The sweep as `table.md`, with what came of its settings where that is known."""
    parts = [f"# Sweep {sweep.name}", "\n".join(f"- {line}" for line in summary(sweep))]
    for table in tables(sweep):
        lines = [
            [
                f"**{cell}**" if (row, column) in table.best else cell
                for column, cell in enumerate(line)
            ]
            for row, line in enumerate(table.lines)
        ]
        parts += [
            f"## {table.title}",
            markdown_table(table.header, [*lines, *table.published], left=table.left),
        ]
        parts += ["\n".join(f"- {note}" for note in table.notes)] if table.notes else []
    if analysis:
        parts += [f"## {IMPORTANCE}", analysis.about]
        shares = [[name, f"{share:.2f}"] for name, share in analysis.importance.items()]
        parts += [markdown_table(["setting", "share"], shares, left=1)] if shares else []
    return "\n\n".join(parts) + "\n"


def _scores_table(sweep: SweepRuns, place: Place) -> Table:
    shown = [
        each for each in sweep.configurations if any(place in trial.scores for trial in each.trials)
    ]
    published = [row for row in rows(place[0]) if any(score in TITLES for score in row.scores)]
    sign = 1 if smaller_is_better(sweep.objectives[0]) else -1
    published.sort(key=lambda row: sign * row.scores.get(sweep.objectives[0], sign * math.inf))
    here = {
        score for each in shown for trial in each.trials for score in trial.scores.get(place, {})
    }
    # The objective is the column that the order is by.
    scores = list(
        dict.fromkeys(
            score for score in [sweep.objectives[0], *sweep.objectives, *TITLES] if score in here
        )
    )
    header = ["rank", "configuration", *(TITLES.get(score, score) for score in scores)]
    header += ["n", "time", "images/s", "signatures", "commit"]
    ranks = _ranks(sweep)
    lines = [_line(each, ranks[id(each)], place, scores) for each in shown]
    marks = marks_of(published)
    theirs = [
        _published_line(row, marks[row.publication], scores, len(header)) for row in published
    ]
    best = {
        (at, 2 + column) for column, score in enumerate(scores) for at in _best(shown, place, score)
    }
    measured = "best of training" if place == sweep.place else "as evaluated"
    notes = [*_notes(shown, place), *_published_notes(published, shown, place)]
    if place != sweep.place:
        notes.insert(
            0,
            f"Ranks and order are those on {' '.join(sweep.place)}: nothing was chosen by these scores.",
        )
    return Table(
        f"{place[0]} {place[1]} ({measured})", header, lines, theirs, frozenset(best), notes=notes
    )


def _ranks(sweep: SweepRuns) -> dict[int, str]:
    """By `id` of a configuration; empty for one without a finite objective, which stand last."""
    valued = {
        id(each): each.mean(sweep.place, sweep.objectives[0]) is not None
        for each in sweep.configurations
    }
    return {key: str(rank) if there else "" for rank, (key, there) in enumerate(valued.items(), 1)}


def _line(each: Configuration, rank: str, place: Place, scores: Sequence[str]) -> list[str]:
    trials = [trial for trial in each.trials if place in trial.scores]
    begun = len(each.trials) + each.others
    return [
        rank,
        each.name,
        *(mean_and_deviation(each, place, score) for score in scores),
        str(len(trials)) if len(trials) == begun else f"{len(trials)} of {begun}",
        clock(statistics.fmean(times)) if (times := [*_seconds(trials)]) else "",
        f"{statistics.fmean(speeds):.1f}"
        if (speeds := [t.run.metrics[SPEED] for t in trials if SPEED in t.run.metrics])
        else "",
        " ".join(trial.signature for trial in trials),
        " ".join(dict.fromkeys(trial.commit for trial in trials)),
    ]


def mean_and_deviation(each: Configuration, place: Place, score: str) -> str:
    """`0.8123 ± 0.0101`, with the number of seeds where some have no finite value; empty without any."""
    mean, deviation = each.mean(place, score), each.deviation(place, score)
    if mean is None:
        return ""
    text = number(score, {score: mean}) + (
        "" if deviation is None else f" ± {number(score, {score: deviation})}"
    )
    lacking = sum(place in trial.scores for trial in each.trials) - len(each.values(place, score))
    return f"{text} (n = {len(each.values(place, score))})" if lacking else text


def _seconds(trials: Sequence[Trial]) -> Iterator[float]:
    yield from (trial.run.seconds for trial in trials if trial.run.seconds is not None)


def _best(shown: Sequence[Configuration], place: Place, score: str) -> list[int]:
    means = [each.mean(place, score) for each in shown]
    there = [mean for mean in means if mean is not None]
    if not there:
        return []
    best = min(there) if smaller_is_better(score.removeprefix("video_")) else max(there)
    return [at for at, mean in enumerate(means) if mean == best]


def _notes(shown: Sequence[Configuration], place: Place) -> list[str]:
    images = sorted({f"{trial.scores[place]['num_images']:,.0f}" for each in shown for trial in each.trials
                     if "num_images" in trial.scores.get(place, {})})  # fmt: skip
    over = f", each over {' or '.join(images)} images" if images else ""
    text = f"Mean ± sample standard deviation over n seeds{over}; bold: the best mean of a column. Scores are of the alpha masks, "
    text += "cut of the cut masks. Time is from a run's start to its end, images/s of its training."
    alone = any(len(each.trials) == 1 for each in shown) and any(
        len(each.trials) > 1 for each in shown
    )
    return [
        text,
        *(
            ["Lines with n = 1 are single draws: a first place among them may be luck."]
            if alone
            else []
        ),
    ]


def _published_line(row: Row, mark: str, scores: Sequence[str], width: int) -> list[str]:
    # As they were published: no figure gains digits here.
    figures = [
        f"{row.scores[score]:g}{_spread(row, score)}" if score in row.scores else ""
        for score in scores
    ]
    line = ["-", f"published: {row.method} [{mark}]", *figures]
    return line + [""] * (width - len(line))


def _spread(row: Row, score: str) -> str:
    return f" +- {row.spread[score]:g}" if score in row.spread else ""


def _published_notes(
    published: Sequence[Row], shown: Sequence[Configuration], place: Place
) -> Iterator[str]:
    if not published:
        return
    for publication, mark in marks_of(published).items():
        of = [row for row in published if row.publication == publication]
        differs = dict.fromkeys(reason for row in of for reason in row.differs)
        protocols = dict.fromkeys(row.protocol for row in of)
        yield f"[{mark}] {publication}. Protocol: {'; '.join([*protocols, *differs])}."
    ours = [
        (trial.run, trial.scores[place])
        for each in shown
        for trial in each.trials
        if place in trial.scores
    ]
    known = (
        "; ".join(known_differences(published, ours, place[1]))
        or "as far as the runs tell, nothing but how the set was prepared"
    )
    yield f"Published rows are not ranked among ours. What differs in ours: {known}."


def _unfinished(sweep: SweepRuns) -> Table:
    header = [
        "state",
        "configuration",
        "cause",
        "seed",
        _titles(sweep)[0] + ", last",
        "signature",
        "commit",
    ]
    lines = []
    for trial in sweep.unfinished:
        last = trial.run.metrics.get(f"val/{sweep.objectives[0]}")
        value = "" if last is None else number(sweep.objectives[0], {sweep.objectives[0]: last})
        lines.append(
            [
                trial.state,
                trial.name,
                " ".join(trial.run.tags.get("cause", "").split()),
                trial.seed,
                value,
                trial.signature,
                trial.commit,
            ]
        )
    return Table("Without a result", header, lines, left=3, notes=["These stand in no mean."])


def runs_csv(sweep: SweepRuns) -> str:
    """A line a run: its configuration's rank (empty where it counts in none), the settings that differ, scores, and its origin."""
    settings = list(dict.fromkeys(name for trial in sweep.trials for name in trial.settings))
    places = dict.fromkeys(
        [sweep.place, *sorted({place for trial in sweep.trials for place in trial.scores})]
    )
    columns = {
        (place, score): "/".join([*place, score])
        for place in places
        for score in sorted(
            {score for trial in sweep.trials for score in trial.scores.get(place, {})}
        )
    }
    ranks = _ranks(sweep)
    rank_of = {
        trial.run.run_id: ranks[id(each)] for each in sweep.configurations for trial in each.trials
    }
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    head = [
        "rank",
        "trial",
        "configuration",
        "model",
        "seed",
        "state",
        "cause",
        *settings,
        *columns.values(),
    ]
    writer.writerow(
        [*head, "best_step", "seconds", "images_per_second", "signature", "commit", "run_id", "run"]
    )
    for trial in sweep.trials:
        run = trial.run
        writer.writerow(
            [
                rank_of.get(run.run_id, ""),
                "" if trial.number is None else trial.number,
                trial.name,
                run.tags.get("model", ""),
                trial.seed,
                trial.state,
                run.tags.get("cause", ""),
                *(trial.settings.get(name, "") for name in settings),
                *(trial.scores.get(place, {}).get(score, "") for place, score in columns),
                f"{run.metrics['best/step']:.0f}" if "best/step" in run.metrics else "",
                "" if run.ended is None else f"{run.ended - run.started:.1f}",
                run.metrics.get(SPEED, ""),
                trial.signature,
                run.tags.get("commit", ""),
                run.run_id,
                run.name,
            ]
        )
    return file.getvalue()


def _titles(sweep: SweepRuns) -> list[str]:
    return [TITLES.get(name, name) for name in sweep.objectives]
