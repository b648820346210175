"""A sweep's runs from MLflow, grouped by configuration, and its tables."""

import math
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial

from cutslots.errors import InputError
from cutslots.metrics.registry import higher_is_better, title
from cutslots.report import published
from cutslots.report.evaluation import SCORES
from cutslots.report.scored_run import (
    NO_SETTINGS,
    VALIDATION,
    ScoredRun,
    Split,
    best_first,
    differing_settings,
    scores_of,
    settings_text,
    short_commit,
    sweep_names,
    trained_on,
)
from cutslots.report.tables import Table, clock, mean_and_deviation, score_text
from cutslots.tracking import FoundRun, children, find_runs

SPEED = "train/images_per_second"


@dataclass(frozen=True)
class Trial(ScoredRun):
    """A run of a sweep.

    Attributes:
        number: of the trial in the sweep; None if MLflow does not have it.
        settings: parameters that differ between the sweep's runs, without the seed.
        counts: whether it enters means: the last run with its hash that took all its steps.
    """

    number: int | None
    settings: dict[str, str]
    counts: bool

    @property
    def label(self) -> str:
        """The configuration's label in the sweep, without the seed, and the settings it lacks."""
        label = re.sub(r"[,\s]*\bseed \d+$", "", self.tags.get("label", "")).strip()
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
    def label(self) -> str:
        return min(self.trials, key=lambda trial: (trial.number is None, trial.number or 0)).label

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
        parent: the newest run of the sweep itself.
        configurations: best first; those without a finite objective last.
        trials: all runs; first those that count, in the order of the configurations.
    """

    name: str
    validation: Split
    objectives: list[str]
    parent: FoundRun
    configurations: list[Configuration]
    trials: list[Trial]

    @property
    def objective(self) -> str:
        return self.objectives[0]

    def value(self, trial: Trial) -> float:
        """A trial's objective; NaN if it has none."""
        return trial.scores.get(self.validation, {}).get(self.objective, math.nan)

    @cached_property
    def ranked(self) -> list[Trial]:
        """The trials that count and have a finite objective, best first."""
        finite = [t for t in self.trials if t.counts and math.isfinite(self.value(t))]
        return sorted(finite, key=lambda trial: best_first(self.objective, self.value(trial)))

    @cached_property
    def ranks(self) -> dict[str, str]:
        """By run id, the rank of a run's configuration; empty without a finite objective."""
        ranks = {}
        for rank, configuration in enumerate(self.configurations, 1):
            mean = configuration.mean(self.validation, self.objective)
            ranks |= {t.run_id: "" if mean is None else str(rank) for t in configuration.trials}
        return ranks

    @property
    def unfinished(self) -> list[Trial]:
        """Trials without a result, unless another run with the same hash has one."""
        done = {t.tags.get("signature", t.run_id) for t in self.trials if t.counts}
        rest = [trial for trial in self.trials if not trial.counts]
        return [trial for trial in rest if trial.tags.get("signature") not in done]

    @property
    def splits(self) -> list[Split]:
        """All splits on which counting trials have scores; validation first."""
        splits = {split for trial in self.trials if trial.counts for split in trial.scores}
        return [self.validation, *sorted(splits - {self.validation})]


def sweep_runs(name: str) -> SweepRuns:
    """The runs of a sweep.

    Raises:
        InputError: MLflow is unreachable, or has no such sweep or no trial of it.
    """
    if name not in (names := sweep_names()):
        raise InputError(f"MLflow has no sweep {name!r}. Known: {', '.join(names)}.")
    parents = find_runs(f"tags.sweep = '{name}' and tags.kind = 'sweep'")
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

    # Of runs with the same hash the last one that took all its steps counts.
    finished = [
        run
        for run in runs
        if run.status == "FINISHED"
        and run.tags.get("state", "finished") == "finished"
        and any(metric.startswith("best/") for metric in run.metrics)
    ]
    finished.sort(key=lambda run: run.ended or 0)
    last = {run.tags.get("signature", run.run_id): run.run_id for run in finished}

    # Groups of runs that differ only in their seed.
    settings = differing_settings(runs)
    groups: dict[frozenset[tuple[str, str]], list[Trial]] = {}
    for run in runs:
        number = run.tags.get(f"sweep.{name}", "")
        trial = Trial(
            **vars(run),
            scores=scores_of(run, validation[0]),
            number=int(number) if number.isdigit() else None,
            settings=settings[run.run_id],
            counts=run.run_id in last.values(),
        )
        identity = {tag: run.tags.get(tag, "") for tag in ("model", "train.steps", "data_digest")}
        identity |= {n: value for n, value in run.params.items() if n not in NO_SETTINGS}
        groups.setdefault(frozenset(identity.items()), []).append(trial)

    configurations = []
    for group in groups.values():
        counted = [trial for trial in group if trial.counts]
        counted.sort(key=lambda t: (int(t.seed) if t.seed.isdigit() else -1, t.run_id))
        if counted:
            others = {trial.seed for trial in group} - {trial.seed for trial in counted}
            configurations.append(Configuration(counted, len(others)))
    configurations.sort(key=lambda c: best_first(objectives[0], c.mean(validation, objectives[0])))
    trials = [trial for configuration in configurations for trial in configuration.trials]
    rest = [trial for group in groups.values() for trial in group if not trial.counts]
    rest.sort(key=lambda trial: (trial.number or 0, trial.started))
    return SweepRuns(name, validation, objectives, parents[0], configurations, trials + rest)


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
    states = [trial.state for trial in sweep.trials if trial.counts]
    states += [trial.state for trial in sweep.unfinished]
    counts = ", ".join(f"{states.count(state)} {state}" for state in sorted(set(states)))
    repeated = len(sweep.trials) - len(states)
    more = f" {repeated} more with the same run hashes: see runs.csv." if repeated else ""
    objectives = " and ".join(map(title, sweep.objectives))
    order = "largest" if higher_is_better(sweep.objective) else "smallest"
    unknown = dict.fromkeys(("preset", "search", "data_digest"), "unknown")
    params = unknown | sweep.parent.params
    overrides = f" with {params['set']}" if params.get("set") else ""
    return [
        f"Data: {sweep.validation[0]}. Objective: {objectives} on the validation split; "
        f"{order} mean first.",
        f"Trials: {counts}.{more}",
        f"Preset {params['preset']}{overrides}; search {params['search']}.",
        f"Commit {short_commit(sweep.parent)}, data digest {params['data_digest']}, "
        f"MLflow run {sweep.parent.run_id}.",
    ]


def sections(sweep: SweepRuns) -> list[Section]:
    """A table per split that has scores, and one of the trials without a result."""
    tables = [_scores_section(sweep, split) for split in sweep.splits if sweep.configurations]
    lines = [
        [
            trial.state,
            trial.label,
            " ".join(trial.tags.get("cause", "").split()),
            trial.seed,
            score_text(sweep.objective, trial.metrics.get(f"val/{sweep.objective}")),
            trial.run_hash,
            short_commit(trial),
        ]
        for trial in sweep.unfinished
    ]
    if lines:
        last = f"{title(sweep.objective)}, last"
        header = ["state", "configuration", "cause", "seed", last, "run hash", "commit"]
        table = Table(header, lines, right=["seed", last])
        tables.append(Section("Without a result", table, notes=["Not included in any mean."]))
    return tables


def _scores_section(sweep: SweepRuns, split: Split) -> Section:
    shown = [c for c in sweep.configurations if any(split in t.scores for t in c.trials)]
    trials = [t for c in shown for t in c.trials if split in t.scores]
    available = {score for trial in trials for score in trial.scores[split]}
    scores = [s for s in dict.fromkeys([*sweep.objectives, *SCORES]) if s in available]

    # Our configurations, a line each.
    lines = []
    for configuration in shown:
        scored = [trial for trial in configuration.trials if split in trial.scores]
        texts = []
        for score in scores:
            values = configuration.values(split, score)
            some = f" (n = {len(values)})" if 0 < len(values) < len(scored) else ""
            texts.append(mean_and_deviation(score, values) + some)
        started = len(configuration.trials) + configuration.num_others
        times = [trial.seconds for trial in scored if trial.seconds is not None]
        speeds = [trial.metrics[SPEED] for trial in scored if SPEED in trial.metrics]
        lines.append(
            [
                sweep.ranks[configuration.trials[0].run_id],
                configuration.label,
                *texts,
                str(len(scored)) if len(scored) == started else f"{len(scored)} of {started}",
                clock(statistics.fmean(times)) if times else "",
                f"{statistics.fmean(speeds):.1f}" if speeds else "",
                " ".join(trial.run_hash for trial in scored),
                " ".join(dict.fromkeys(map(short_commit, scored))),
            ]
        )
    best = set()
    for column, score in enumerate(scores, 2):
        means = [configuration.mean(split, score) for configuration in shown]
        top = min(means, key=partial(best_first, score))
        best |= {(i, column) for i, mean in enumerate(means) if mean is not None and mean == top}

    # Published results, with the digits that were published.
    rows = [r for r in published.rows(split[0]) if any(score in SCORES for score in r.scores)]
    rows.sort(key=lambda row: best_first(sweep.objective, row.scores.get(sweep.objective)))
    below = []
    for row, label in zip(rows, published.labels(rows), strict=True):
        texts = {name: f"{value:g}" for name, value in row.scores.items()}
        texts |= {n: f"{texts[n]} +- {spread:g}" for n, spread in row.spread.items()}
        below.append(["-", label, *(texts.get(score, "") for score in scores), *[""] * 5])

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
    notes += published.notes(rows, published.known_differences(rows, trials, split))
    numeric = [*map(title, scores), "n", "time", "images/s"]
    table = Table(["rank", "configuration", *numeric, "run hashes", "commit"], lines, numeric)
    measured = "best of training" if split == sweep.validation else "as evaluated"
    return Section(f"{' '.join(split)} ({measured})", table, below, frozenset(best), notes)


def runs_csv(sweep: SweepRuns) -> str:
    """A line per run: rank of its configuration, differing settings, scores, provenance."""
    settings = list(dict.fromkeys(name for trial in sweep.trials for name in trial.settings))
    splits = {split for trial in sweep.trials for split in trial.scores} - {sweep.validation}
    columns = [
        (split, score)
        for split in [sweep.validation, *sorted(splits)]
        for score in sorted({s for trial in sweep.trials for s in trial.scores.get(split, {})})
    ]
    lines = []
    for trial in sweep.trials:
        step = trial.metrics.get("best/step")
        line = {
            "rank": sweep.ranks.get(trial.run_id, ""),
            "trial": "" if trial.number is None else trial.number,
            "configuration": trial.label,
            "model": trial.tags.get("model", ""),
            "seed": trial.seed,
            "state": trial.state,
            "cause": trial.tags.get("cause", ""),
            **{name: trial.settings.get(name, "") for name in settings},
            **{f"{s[0]}/{s[1]}/{n}": trial.scores.get(s, {}).get(n, "") for s, n in columns},
            "best_step": "" if step is None else f"{step:.0f}",
            "seconds": "" if trial.ended is None else f"{trial.ended - trial.started:.1f}",
            "images_per_second": trial.metrics.get(SPEED, ""),
            "signature": trial.run_hash,
            "commit": trial.tags.get("commit", ""),
            "run_id": trial.run_id,
            "run": trial.name,
        }
        lines.append({name: str(value) for name, value in line.items()})
    return Table(list(lines[0]), [list(line.values()) for line in lines]).csv()
