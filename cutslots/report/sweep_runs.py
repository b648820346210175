"""The runs of a sweep as the tracking store knows them, grouped into configurations that differ in the seed only, best first."""

import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from cutslots.errors import InputError
from cutslots.report.leaderboard import (
    NO_SETTINGS,
    SETTINGS_SHOWN,
    VALIDATION,
    differing,
    set_of,
    short,
    smaller_is_better,
)
from cutslots.runlog import FoundRun, children, find_runs

Place = tuple[str, str]  # a set and its split


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
    def signature(self) -> str:
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
        sign = 1 if smaller_is_better(self.objectives[0]) else -1
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
    sign = 1 if smaller_is_better(objectives[0]) else -1

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
