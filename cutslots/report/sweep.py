"""A sweep's runs from MLflow, grouped by configuration, and its tables."""

import math
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from cutslots.errors import InputError
from cutslots.metrics.registry import higher_is_better, title
from cutslots.report.evaluation import SCORES
from cutslots.report.leaderboard import (
    NO_SETTINGS,
    VALIDATION,
    differing_settings,
    known_differences,
    publication_marks,
    published_notes,
    scores_of,
    settings_text,
    state_of,
    trained_on,
)
from cutslots.report.published import rows
from cutslots.report.tables import Table, clock, mean_and_deviation, score_text
from cutslots.tracking import FoundRun, children, find_runs

Split = tuple[str, str]  # the names of a dataset and a split
SPEED = "train/images_per_second"
ROWS_SHOWN = 25  # of a table on the page, besides rows with a best value


@dataclass(frozen=True)
class Trial:
    """A run of a sweep.

    Attributes:
        number: of the trial in the sweep; None if MLflow does not have it.
        scores: by dataset and split; on the validation split the best of training.
        settings: parameters that differ between the sweep's runs, without the seed.
        counts: whether it enters means: the last run with its hash that took all its steps.
    """

    run: FoundRun
    number: int | None
    scores: dict[Split, dict[str, float]]
    settings: dict[str, str]
    counts: bool

    @property
    def seed(self) -> str:
        return self.run.params.get("train.seed", "")

    @property
    def run_hash(self) -> str:
        return self.run.tags.get("signature", "none")

    @property
    def commit(self) -> str:
        return short_commit(self.run)

    @property
    def name(self) -> str:
        """The configuration's label in the sweep, without the seed, and the settings it lacks."""
        label = re.sub(r"[,\s]*\bseed \d+$", "", self.run.tags.get("label", "")).strip()
        label = re.sub(r"\s{2,}", ", ", label)
        # The label of a sampled trial is a list of its settings.
        if label and any(label.startswith(f"{name.rpartition('.')[2]} ") for name in self.settings):
            return label
        parts = filter(None, (label, settings_text(self.settings)))
        return ": ".join(parts) or "the same settings"


@dataclass(frozen=True)
class Configuration:
    """Runs that differ only in their seed.

    Attributes:
        trials: those that count, by seed.
        num_others: number of seeds that were started and have no result.
    """

    trials: list[Trial]
    num_others: int

    @property
    def name(self) -> str:
        return min(self.trials, key=lambda trial: (trial.number is None, trial.number or 0)).name

    def values(self, split: Split, score: str) -> list[float]:
        """The finite values of the seeds."""
        values = [trial.scores.get(split, {}).get(score, math.nan) for trial in self.trials]
        return [value for value in values if math.isfinite(value)]

    def mean(self, split: Split, score: str) -> float | None:
        """The mean over seeds; None without a finite value."""
        values = self.values(split, score)
        return statistics.fmean(values) if values else None


@dataclass(frozen=True)
class SweepRuns:
    """A sweep and its runs.

    Attributes:
        validation: the dataset of training and its validation split.
        objectives: names of scores; the first one orders configurations.
        parents: the runs of the sweep itself, newest first.
        configurations: best first; those without a finite objective last.
        trials: all runs; first those that count, in the order of the configurations.
    """

    name: str
    validation: Split
    objectives: list[str]
    parents: list[FoundRun]
    configurations: list[Configuration]
    trials: list[Trial]

    @cached_property
    def ranked(self) -> list[Trial]:
        """The trials that count and have a finite objective, best first."""
        sign = -1 if higher_is_better(self.objectives[0]) else 1
        finite = [t for t in self.trials if t.counts and math.isfinite(self.value(t))]
        return sorted(finite, key=lambda trial: sign * self.value(trial))

    @property
    def unfinished(self) -> list[Trial]:
        """Trials without a result, unless another run with the same hash has one."""
        done = {t.run.tags.get("signature", t.run.run_id) for t in self.trials if t.counts}
        rest = [trial for trial in self.trials if not trial.counts]
        return [trial for trial in rest if trial.run.tags.get("signature") not in done]

    def value(self, trial: Trial) -> float:
        """A trial's objective; NaN if it has none."""
        return trial.scores.get(self.validation, {}).get(self.objectives[0], math.nan)

    @property
    def objective_title(self) -> str:
        return title(self.objectives[0])

    @property
    def splits(self) -> list[Split]:
        """All splits on which counting trials have scores; validation first."""
        splits = {split for trial in self.trials if trial.counts for split in trial.scores}
        return [self.validation, *sorted(splits - {self.validation})]


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


def sweep_runs(name: str) -> SweepRuns:
    """The runs of a sweep.

    Raises:
        InputError: MLflow is unreachable, or has no such sweep or no trial of it.
    """
    names = sweep_names()
    if name not in names:
        raise InputError(f"MLflow has no sweep {name!r}. Known: {', '.join(names)}.")
    parents = find_runs(f"tags.sweep = '{name}'")
    parents = [run for run in parents if run.tags.get("kind") == "sweep"]
    parents.sort(key=lambda run: (-run.started, run.run_id))
    # Trials that the sweep adopted from another sweep have its tag, but not its run as parent.
    runs = [run for parent in parents for run in children(parent.run_id)]
    runs += find_runs(f"tags.`sweep.{name}` LIKE '%'")
    runs = sorted({r.run_id: r for r in runs}.values(), key=lambda r: (r.started, r.run_id))
    if not runs:
        raise InputError(f"sweep {name!r} has no trials yet.")
    params = parents[0].params
    validation = (params.get("dataset") or trained_on(runs[0]), VALIDATION)
    objectives = params.get("objective", "ari_fg").split(", ")

    finished = [run for run in runs if run.status == "FINISHED" and state_of(run) == "finished"]
    finished = [run for run in finished if any(n.startswith("best/") for n in run.metrics)]
    finished.sort(key=lambda run: run.ended or 0)
    last = {run.tags.get("signature", run.run_id): run.run_id for run in finished}
    counting = set(last.values())
    settings = differing_settings(runs)
    trials, groups = [], {}
    for run in runs:
        number = run.tags.get(f"sweep.{name}", "")
        trial = Trial(
            run,
            int(number) if number.isdigit() else None,
            scores_of(run, validation[0]),
            settings[run.run_id],
            run.run_id in counting,
        )
        trials.append(trial)
        # Equal for runs that differ only in their seed.
        identity = {tag: run.tags.get(tag, "") for tag in ("model", "train.steps", "data_digest")}
        identity |= {n: value for n, value in run.params.items() if n not in NO_SETTINGS}
        groups.setdefault(frozenset(identity.items()), []).append(trial)
    configurations = []
    for group in groups.values():
        counted = [trial for trial in group if trial.counts]
        counted.sort(key=lambda t: (int(t.seed) if t.seed.isdigit() else -1, t.run.run_id))
        if counted:
            others = {trial.seed for trial in group} - {trial.seed for trial in counted}
            configurations.append(Configuration(counted, len(others)))
    sign = -1 if higher_is_better(objectives[0]) else 1
    means = {id(c): c.mean(validation, objectives[0]) for c in configurations}
    configurations.sort(key=lambda c: (means[id(c)] is None, sign * (means[id(c)] or 0.0)))
    rest = [trial for trial in trials if not trial.counts]
    rest.sort(key=lambda trial: (trial.number or 0, trial.run.started))
    ordered = [trial for configuration in configurations for trial in configuration.trials] + rest
    return SweepRuns(name, validation, objectives, parents, configurations, ordered)


@dataclass(frozen=True)
class Section:
    """A table of the report.

    Attributes:
        published: rows below ours that have no rank.
        best: (row, column) of the best value of each score.
        notes: sentences below the table.
    """

    title: str
    table: Table
    published: Sequence[Sequence[str]] = ()
    best: frozenset[tuple[int, int]] = frozenset()
    notes: Sequence[str] = ()

    @property
    def shown(self) -> list[int]:
        """The rows that the page shows."""
        best = {row for row, _ in self.best}
        return [i for i in range(len(self.table.rows)) if i < ROWS_SHOWN or i in best]

    def markdown(self) -> str:
        """The table in Markdown, best values in bold, and its notes."""
        rows = [
            [f"**{cell}**" if (i, j) in self.best else cell for j, cell in enumerate(row)]
            for i, row in enumerate(self.table.rows)
        ]
        table = Table(self.table.columns, [*rows, *self.published], self.table.right)
        notes = "".join(f"- {note}\n" for note in self.notes)
        return "\n".join([f"## {self.title}\n", table.markdown(), *([notes] if notes else [])])


def summary(sweep: SweepRuns) -> list[str]:
    """The sweep in a few lines."""
    states = [state_of(trial.run) for trial in sweep.trials if trial.counts]
    states += [state_of(trial.run) for trial in sweep.unfinished]
    counts = ", ".join(f"{states.count(state)} {state}" for state in sorted(set(states)))
    repeated = len(sweep.trials) - len(states)
    more = f" {repeated} more with the same run hashes: see runs.csv." if repeated else ""
    objectives = " and ".join(map(title, sweep.objectives))
    order = "largest" if higher_is_better(sweep.objectives[0]) else "smallest"
    parent = sweep.parents[0]
    params = {"preset": "unknown", "search": "unknown", "data_digest": "unknown"} | parent.params
    overrides = f" with {params['set']}" if params.get("set") else ""
    return [
        f"Data: {sweep.validation[0]}. Objective: {objectives} on the validation split; "
        f"{order} mean first.",
        f"Trials: {counts}.{more}",
        f"Preset {params['preset']}{overrides}; search {params['search']}.",
        f"Commit {short_commit(parent)}, data digest {params['data_digest']}, "
        f"MLflow run {parent.run_id}.",
    ]


def sections(sweep: SweepRuns) -> list[Section]:
    """A table per split that has scores, and one of the trials without a result."""
    tables = [_scores_section(sweep, split) for split in sweep.splits if sweep.configurations]
    if not sweep.unfinished:
        return tables
    objective, last = sweep.objectives[0], f"{sweep.objective_title}, last"
    lines = [
        [
            state_of(trial.run),
            trial.name,
            " ".join(trial.run.tags.get("cause", "").split()),
            trial.seed,
            score_text(objective, trial.run.metrics.get(f"val/{objective}")),
            trial.run_hash,
            trial.commit,
        ]
        for trial in sweep.unfinished
    ]
    header = ["state", "configuration", "cause", "seed", last, "run hash", "commit"]
    table = Table(header, lines, right=["seed", last])
    return [*tables, Section("Without a result", table, notes=["Not included in any mean."])]


def _scores_section(sweep: SweepRuns, split: Split) -> Section:
    objective = sweep.objectives[0]
    shown = [c for c in sweep.configurations if any(split in t.scores for t in c.trials)]
    trials = [t for c in shown for t in c.trials if split in t.scores]
    available = {score for trial in trials for score in trial.scores[split]}
    scores = [s for s in dict.fromkeys([*sweep.objectives, *SCORES]) if s in available]
    ranks = _ranks(sweep)
    lines = [[ranks[c.trials[0].run.run_id], *_line(c, split, scores)] for c in shown]
    best = set()
    for column, score in enumerate(scores, 2):
        means = [configuration.mean(split, score) for configuration in shown]
        finite = [mean for mean in means if mean is not None]
        top = (max if higher_is_better(score) else min)(finite, default=None)
        best |= {(i, column) for i, mean in enumerate(means) if mean is not None and mean == top}

    published = [row for row in rows(split[0]) if any(score in SCORES for score in row.scores)]
    sign = -1 if higher_is_better(objective) else 1
    published.sort(key=lambda row: sign * row.scores.get(objective, sign * math.inf))
    marks = publication_marks(published)
    below = []
    for row in published:
        # With the digits that were published.
        texts = {name: f"{value:g}" for name, value in row.scores.items()}
        texts |= {n: f"{texts[n]} +- {spread:g}" for n, spread in row.spread.items()}
        name = f"published: {row.method} [{marks[row.publication]}]"
        below.append(["-", name, *(texts.get(score, "") for score in scores), *[""] * 5])

    images = {t.scores[split]["num_images"] for t in trials if "num_images" in t.scores[split]}
    over = " or ".join(sorted(f"{count:,.0f}" for count in images))
    notes = [
        f"Mean ± sample standard deviation over n seeds{f', each over {over} images' * bool(over)};"
        " bold: the best mean of a column. Scores are of the alpha masks, cut scores of the cut"
        " masks. Time is from a run's start to its end, images/s are of its training."
    ]
    if {len(c.trials) > 1 for c in shown} == {True, False}:
        notes.append("Rows with n = 1 are single runs: their rank may be luck.")
    if split != sweep.validation:
        order = " ".join(sweep.validation)
        notes.insert(0, f"Ranks and order are those on {order}; these scores selected nothing.")
    differs = known_differences(published, [(t.run, t.scores[split]) for t in trials], split[1])
    notes += published_notes(published, differs)
    numeric = [*map(title, scores), "n", "time", "images/s"]
    table = Table(["rank", "configuration", *numeric, "run hashes", "commit"], lines, numeric)
    measured = "best of training" if split == sweep.validation else "as evaluated"
    return Section(f"{' '.join(split)} ({measured})", table, below, frozenset(best), notes)


def _line(configuration: Configuration, split: Split, scores: Sequence[str]) -> list[str]:
    trials = [trial for trial in configuration.trials if split in trial.scores]
    started = len(configuration.trials) + configuration.num_others
    texts = []
    for score in scores:
        values = configuration.values(split, score)
        some = f" (n = {len(values)})" if 0 < len(values) < len(trials) else ""
        texts.append(mean_and_deviation(score, values) + some)
    times = [trial.run.seconds for trial in trials if trial.run.seconds is not None]
    speeds = [t.run.metrics[SPEED] for t in trials if SPEED in t.run.metrics]
    return [
        configuration.name,
        *texts,
        str(len(trials)) if len(trials) == started else f"{len(trials)} of {started}",
        clock(statistics.fmean(times)) if times else "",
        f"{statistics.fmean(speeds):.1f}" if speeds else "",
        " ".join(trial.run_hash for trial in trials),
        " ".join(dict.fromkeys(trial.commit for trial in trials)),
    ]


def _ranks(sweep: SweepRuns) -> dict[str, str]:
    """The rank of each counting run's configuration; empty without a finite objective."""
    ranks = {}
    for rank, configuration in enumerate(sweep.configurations, 1):
        mean = configuration.mean(sweep.validation, sweep.objectives[0])
        ranks |= {t.run.run_id: "" if mean is None else str(rank) for t in configuration.trials}
    return ranks


def runs_csv(sweep: SweepRuns) -> str:
    """A line per run: rank of its configuration, differing settings, scores, provenance."""
    settings = list(dict.fromkeys(name for trial in sweep.trials for name in trial.settings))
    splits = {split for trial in sweep.trials for split in trial.scores} - {sweep.validation}
    columns = [
        (split, score)
        for split in [sweep.validation, *sorted(splits)]
        for score in sorted({s for trial in sweep.trials for s in trial.scores.get(split, {})})
    ]
    ranks = _ranks(sweep)
    lines = []
    for trial in sweep.trials:
        run = trial.run
        line = {
            "rank": ranks.get(run.run_id, ""),
            "trial": "" if trial.number is None else trial.number,
            "configuration": trial.name,
            "model": run.tags.get("model", ""),
            "seed": trial.seed,
            "state": state_of(run),
            "cause": run.tags.get("cause", ""),
            **{name: trial.settings.get(name, "") for name in settings},
            **{
                "/".join([*s, score]): trial.scores.get(s, {}).get(score, "")
                for s, score in columns
            },
            "best_step": f"{run.metrics['best/step']:.0f}" if "best/step" in run.metrics else "",
            "seconds": "" if run.ended is None else f"{run.ended - run.started:.1f}",
            "images_per_second": run.metrics.get(SPEED, ""),
            "signature": trial.run_hash,
            "commit": run.tags.get("commit", ""),
            "run_id": run.run_id,
            "run": run.name,
        }
        lines.append({name: str(value) for name, value in line.items()})
    return Table(list(lines[0]), [list(line.values()) for line in lines]).csv()
