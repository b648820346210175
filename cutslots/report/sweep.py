"""The report of a sweep: a folder that a person opens, and other programs read, drawn from the tracking store alone."""

from __future__ import annotations

import csv
import io
import math
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from cutslots.errors import InputError
from cutslots.metrics.registry import higher_is_better
from cutslots.report.evaluation import TITLES, markdown_table, number
from cutslots.report.importance import Analysis
from cutslots.report.leaderboard import (
    NO_SETTINGS,
    SETTINGS_SHOWN,
    VALIDATION,
    clock,
    differing,
    known_differences,
    marks_of,
    set_of,
    short,
)
from cutslots.report.published import Row, rows
from cutslots.tracking import FoundRun, children, find_runs

Place = tuple[str, str]  # a name of data and a split, as scores are logged


@dataclass(frozen=True)
class Trial:
    """A run of a sweep.

    Attributes:
        number: of the trial in the sweep; None where the store does not say.
        scores: by set and split; those of the validation split are the best of training.
        settings: the parameters in which the runs of the sweep differ, without the seed.
        counts: whether it stands in means: it took all its steps, and is the last that did so with its signature.
    """

    run: FoundRun
    number: int | None
    scores: dict[Place, dict[str, float]]
    settings: dict[str, str]
    counts: bool

    @property
    def state(self) -> str:
        """finished, running, pruned, failed or interrupted."""
        return self.run.tags.get("state", self.run.status.lower())

    @property
    def seed(self) -> str:
        return self.run.params.get("train.seed", "")

    @property
    def run_hash(self) -> str:
        return self.run.tags.get("signature", "none")

    @property
    def commit(self) -> str:
        """Twelve letters of it, and whether files differed from it."""
        whole, _, dirty = self.run.tags.get("commit", "unknown").partition("-")
        return whole[:12] + (f"-{dirty}" if dirty else "")

    @property
    def name(self) -> str:
        """What the sweep calls its configuration, without the seed, else its settings."""
        label = re.sub(r"[,\s]*\bseed \d+$", "", self.run.tags.get("label", "")).strip()
        label = re.sub(r"\s{2,}", ", ", label)
        shown = [f"{name}={short(value)}" for name, value in self.settings.items()]
        more = [f"and {len(shown) - SETTINGS_SHOWN} more"] if len(shown) > SETTINGS_SHOWN else []
        settings = " ".join([*shown[:SETTINGS_SHOWN], *more])
        # The label of a sampled trial is a list of its settings.
        if label and any(label.startswith(f"{name.rpartition('.')[2]} ") for name in self.settings):
            return label
        return ": ".join(filter(None, (label, settings))) or "the same settings"


@dataclass(frozen=True)
class Configuration:
    """Runs that differ in the seed only.

    Attributes:
        trials: those that count, by seed.
        others: how many more seeds were begun, and have no result.
    """

    trials: list[Trial]
    others: int

    @property
    def name(self) -> str:
        return min(self.trials, key=lambda trial: (trial.number is None, trial.number or 0)).name

    def values(self, place: Place, score: str) -> list[float]:
        """The finite values of the seeds."""
        found = [trial.scores.get(place, {}).get(score, math.nan) for trial in self.trials]
        return [value for value in found if math.isfinite(value)]

    def mean(self, place: Place, score: str) -> float | None:
        """None without a finite value."""
        values = self.values(place, score)
        return statistics.fmean(values) if values else None

    def deviation(self, place: Place, score: str) -> float | None:
        """The sample standard deviation over seeds (n - 1); None for fewer than two."""
        values = self.values(place, score)
        return statistics.stdev(values) if len(values) > 1 else None


@dataclass(frozen=True)
class SweepRuns:
    """A sweep and what came of it.

    Attributes:
        place: the set that its models were trained on, and its validation split.
        objectives: the scores that it was after; the first orders configurations.
        parents: the sweep's own runs, newest first; empty where only its trials are there.
        configurations: best first; those without a finite objective last.
        trials: all runs, those that count first, in the order of the configurations.
    """

    name: str
    place: Place
    objectives: list[str]
    parents: list[FoundRun]
    configurations: list[Configuration]
    trials: list[Trial]

    @cached_property
    def ranked(self) -> list[Trial]:
        """The trials that count and have a finite objective, best first."""
        sign = 1 if not higher_is_better(self.objectives[0]) else -1
        valued = [(self.value(trial), trial) for trial in self.trials if trial.counts]
        return [
            trial
            for value, trial in sorted(valued, key=lambda each: sign * each[0])
            if math.isfinite(value)
        ]

    @property
    def unfinished(self) -> list[Trial]:
        """Trials without a result, those left out whose signature was finished by another run."""
        done = {
            trial.run.tags.get("signature", trial.run.run_id)
            for trial in self.trials
            if trial.counts
        }
        return [
            trial
            for trial in self.trials
            if not trial.counts and trial.run.tags.get("signature") not in done
        ]

    def value(self, trial: Trial) -> float:
        """A trial's objective; not a number where it has none."""
        return trial.scores.get(self.place, {}).get(self.objectives[0], math.nan)

    @property
    def space(self) -> dict[str, str]:
        """The distributions of what was sampled, as the sweep logged them, by the settings' whole names."""
        front = "space/"
        found = self.parents[0].params if self.parents else {}
        return {
            name.removeprefix(front): text
            for name, text in sorted(found.items())
            if name.startswith(front)
        }

    @property
    def places(self) -> list[Place]:
        """All sets and splits with scores of trials that count; validation first."""
        found = {place for trial in self.trials if trial.counts for place in trial.scores}
        return [self.place, *sorted(found - {self.place})]


def sweep_names() -> list[str]:
    """All sweeps of the tracking store.

    Raises:
        InputError: the store cannot be reached, or has none.
    """
    names = sorted(
        {run.tags["sweep"] for run in find_runs("tags.kind = 'sweep'") if "sweep" in run.tags}
    )
    if not names:
        raise InputError(
            "the tracking store has no sweeps yet. Run one first, such as: python sweeps/demo.py"
        )
    return names


def sweep_runs(name: str) -> SweepRuns:
    """What the tracking store knows of a sweep.

    Raises:
        InputError: the store cannot be reached, has no such sweep, or no trial of it.
    """
    known = sweep_names()
    if name not in known:
        raise InputError(f"no sweep {name!r} in the tracking store. Known: {', '.join(known)}.")
    parents = [
        run for run in find_runs(f"tags.sweep = '{name}'") if run.tags.get("kind") == "sweep"
    ]
    parents.sort(key=lambda run: (-run.started, run.run_id))
    found = [run for parent in parents for run in children(parent.run_id)] + find_runs(
        f"tags.`sweep.{name}` LIKE '%'"
    )
    runs = sorted(
        {run.run_id: run for run in found}.values(), key=lambda run: (run.started, run.run_id)
    )
    if not runs:
        raise InputError(f"sweep {name!r} has no trials yet.")
    params = parents[0].params
    place = (params.get("dataset") or set_of(runs[0]), VALIDATION)
    objectives = params.get("objective", "ari_fg").split(", ")
    return _grouped(name, place, objectives, parents, _trials(name, runs, place))


def _trials(name: str, runs: Sequence[FoundRun], place: Place) -> list[Trial]:
    settings = differing(runs)
    last = {
        run.tags.get("signature", run.run_id): run
        for run in sorted(runs, key=lambda run: run.ended or 0)
        if _is_finished(run)
    }
    counted = {run.run_id for run in last.values()}
    numbers = {run.run_id: run.tags.get(f"sweep.{name}", "") for run in runs}
    return [
        Trial(
            run,
            int(numbers[run.run_id]) if numbers[run.run_id].isdigit() else None,
            _scores(run, place),
            settings[run.run_id],
            run.run_id in counted,
        )
        for run in runs
    ]


def _is_finished(run: FoundRun) -> bool:
    state = run.tags.get("state")
    return (
        run.status == "FINISHED"
        and state in (None, "finished")
        and any(name.startswith("best/") for name in run.metrics)
    )


def _scores(run: FoundRun, place: Place) -> dict[Place, dict[str, float]]:
    found: dict[Place, dict[str, float]] = {}
    for name, value in sorted(run.metrics.items()):
        front, _, score = name.rpartition("/")
        dataset, _, split = front.partition("/")
        if front == "best" and score != "step":
            found.setdefault(place, {})[score] = value
        elif dataset and split and "/" not in split and (dataset, split) != place:
            found.setdefault((dataset, split), {})[score] = value
    return found


def _grouped(
    name: str, place: Place, objectives: list[str], parents: list[FoundRun], trials: Sequence[Trial]
) -> SweepRuns:
    groups: dict[str, list[Trial]] = {}
    for trial in trials:
        groups.setdefault(_identity(trial.run), []).append(trial)
    configurations = []
    for group in groups.values():
        counted = sorted((trial for trial in group if trial.counts), key=_by_seed)
        seeds = {trial.seed for trial in counted}
        if counted:
            configurations.append(
                Configuration(counted, len({trial.seed for trial in group} - seeds))
            )
    sign = 1 if not higher_is_better(objectives[0]) else -1

    def order(configuration: Configuration) -> tuple[bool, float]:
        mean = configuration.mean(place, objectives[0])
        return mean is None, sign * (mean or 0.0)

    configurations.sort(key=order)
    counted = [trial for configuration in configurations for trial in configuration.trials]
    rest = sorted(
        (trial for trial in trials if not trial.counts),
        key=lambda trial: (trial.number or 0, trial.run.started),
    )
    return SweepRuns(name, place, objectives, parents, configurations, [*counted, *rest])


def _by_seed(trial: Trial) -> tuple[int, str]:
    return (int(trial.seed) if trial.seed.isdigit() else -1, trial.run.run_id)


def _identity(run: FoundRun) -> str:
    """The same text for runs that differ in the seed only."""
    tags = {tag: run.tags.get(tag, "") for tag in ("model", "train.steps", "data_digest")}
    params: Mapping[str, str] = {
        name: value for name, value in run.params.items() if name not in NO_SETTINGS
    }
    return repr(sorted({**tags, **params}.items()))


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
    order = "smallest" if not higher_is_better(sweep.objectives[0]) else "largest"
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
    sign = 1 if not higher_is_better(sweep.objectives[0]) else -1
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
        " ".join(trial.run_hash for trial in trials),
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
    best = min(there) if not higher_is_better(score.removeprefix("video_")) else max(there)
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
                trial.run_hash,
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
                trial.run_hash,
                run.tags.get("commit", ""),
                run.run_id,
                run.name,
            ]
        )
    return file.getvalue()


def _titles(sweep: SweepRuns) -> list[str]:
    return [TITLES.get(name, name) for name in sweep.objectives]
