"""The Optuna study of a sweep, on disk: its trials, their results, and which trial runs next.

The study is the only record of a sweep's trials; Ray Tune's own state is never read. A killed
driver leaves its trials RUNNING, and the next driver continues them before it samples new ones.
"""

import json
import math
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution, IntDistribution, distribution_to_json
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from cutslots import options
from cutslots.errors import InputError
from cutslots.metrics.registry import higher_is_better
from cutslots.sweep.spec import Baseline, Sweep
from cutslots.train.config import RunConfig

FILE = "study.log"
DEFINITION = "sweep"
OPEN = (TrialState.RUNNING, TrialState.WAITING)
# Names of Optuna's states in tables and MLflow tags.
STATES = {
    TrialState.COMPLETE: "finished",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "unfinished",
    TrialState.WAITING: "waiting",
}

# A trial to enqueue: its user attributes, and its values by option.
Request = tuple[dict[str, Any], dict[str, Any]]


@dataclass
class Trial:
    """A trial with its configuration and its progress: a row of the tables."""

    number: int  # in the study
    kind: str  # first (a baseline), grid, search, or confirm (a best configuration, another seed)
    label: str  # the name or values that distinguish it
    params: dict[str, Any]  # values of the space by option, the seed, and the name of a baseline
    config: RunConfig
    state: str = "waiting"  # or running, or how it ended: finished, pruned, interrupted, failed
    value: float | None = None  # the best objective so far
    seconds: float | None = None  # in all; None before the end
    cause: str | None = None  # of a failure or early stop
    run_dir: Path = Path()  # set by the driver
    begun: float | None = None  # when this driver started it, by `time.monotonic`

    @property
    def elapsed(self) -> float | None:
        """Seconds since its start, or its total time; None before its start."""
        running = self.seconds is None and self.begun is not None
        return time.monotonic() - (self.begun or 0.0) if running else self.seconds


class Study:
    """An Optuna study with the trials of a sweep, for one driver and one thread at a time.

    Args:
        folder: gets `study.log` unless `storage` is given.
        storage: an Optuna storage instead: the URL of a database, or the path of a journal file.
        digest: of the data, if the trials are to run.

    Raises:
        InputError: the study was begun with another definition or other data, or the storage
            cannot be opened.
    """

    def __init__(
        self, sweep: Sweep, folder: Path, storage: str | None = None, digest: str | None = None
    ) -> None:
        self.sweep, self.space = sweep, sweep.full_space
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        folder.mkdir(parents=True, exist_ok=True)
        maximize = map(higher_is_better, sweep.objectives)
        try:
            if storage and "://" in storage:
                self._storage: Any = optuna.storages.get_storage(storage)
            else:
                path = Path(storage) if storage else folder / FILE
                backend = JournalFileBackend(str(path.absolute()))
                self._storage = optuna.storages.JournalStorage(backend)
            self.optuna = optuna.create_study(
                storage=self._storage,
                study_name=sweep.name,
                directions=["maximize" if larger else "minimize" for larger in maximize],
                load_if_exists=True,
            )
        except Exception as error:  # each database driver has its own classes
            raise InputError(
                f"the study of sweep {sweep.name!r} cannot be opened: {error}"
            ) from error
        self._claim_definition(digest)
        # A sampler does not save its random state. With the same seed again, a resumed sweep would
        # sample its first trials twice.
        seed = sweep.seeds[0] + 1000 * len(self.trials())
        if sweep.search == "tpe":
            startup = max(4, min(10, sweep.trials // 4))
            self.optuna.sampler = optuna.samplers.TPESampler(
                seed=seed, constant_liar=True, n_startup_trials=startup
            )
        else:
            self.optuna.sampler = optuna.samplers.RandomSampler(seed=seed)
        if sweep.asha:
            steps = max(1, round(sweep.asha.grace_period * sweep.base.train.steps))
            self.optuna.pruner = optuna.pruners.SuccessiveHalvingPruner(
                steps, sweep.asha.reduction_factor
            )
        self._left_running = [trial.number for trial in self.trials(TrialState.RUNNING)]
        self._fixed = list(self._fixed_requests())
        self._enqueue_missing()

    def _claim_definition(self, digest: str | None) -> None:
        """Refuse a changed definition; baselines, trials and seeds may be added."""
        data = self.optuna.user_attrs.get("data_digest", digest)
        if digest not in (None, data):
            raise InputError(
                f"sweep {self.sweep.name!r} was begun on data with digest {data}, got data with "
                f"digest {digest}. Use the same data, or a new --name."
            )
        if digest is not None:
            self.optuna.set_user_attr("data_digest", digest)
        sweep, asha = self.sweep, self.sweep.halving
        space = {path: json.loads(distribution_to_json(d)) for path, d in self.space.items()}
        now = {  # stored: the keys and values stay those of the first version
            "dataset": sweep.dataset,
            "preset": sweep.preset,
            "set": list(sweep.overrides),
            "space": space,
            "first": {name: [b.preset, list(b.overrides)] for name, b in sweep.baselines.items()},
            "objectives": list(sweep.objectives),
            "search": sweep.search,
            "halving": asha and {"first": asha.grace_period, "factor": asha.reduction_factor},
        }
        before = self.optuna.user_attrs.get(DEFINITION)
        if before is None:
            self.optuna.set_user_attr(DEFINITION, now)
            return
        changed = [name for name in now if before.get(name) != now[name]]
        if all(now["first"].get(name) == old for name, old in before["first"].items()):
            changed = [name for name in changed if name != "first"]
        if changed:
            texts = [f"{name} was {before.get(name)}, now {now[name]}" for name in changed]
            raise InputError(
                f"sweep {sweep.name!r} was begun with another definition: {'; '.join(texts)}. "
                "Give this sweep a new --name."
            )

    def trials(self, *states: TrialState) -> list[FrozenTrial]:
        """The trials in these states (default: all), by number. Do not modify them."""
        return self.optuna.get_trials(deepcopy=False, states=states or None)

    # The next trial

    def next(self) -> Trial | None:
        """The next trial to run; None if there is none at present, see `exhausted`."""
        if self._left_running:
            return self.planned(self._left_running.pop(0))
        if not self.trials(TrialState.WAITING):
            self._enqueue_missing()
        if not self.trials(TrialState.WAITING) and not self._samples_left:
            return None
        trial = self.optuna.ask()
        if "kind" not in trial.user_attrs:
            self.annotate(trial.number, kind="search", name="", seed=self.sweep.seeds[0])
        return self.planned(trial.number)

    @property
    def exhausted(self) -> bool:
        """Whether `next` returns no trial, even after all running trials have ended."""
        return not (
            self._left_running or self._samples_left or self.trials(*OPEN) or self._missing()
        )

    @property
    def total(self) -> int:
        """How many trials the complete sweep has, retries of failed ones included."""
        return self.sweep.total + sum("again" in trial.user_attrs for trial in self.trials())

    @property
    def _samples_left(self) -> int:
        """How many search trials have not been sampled yet."""
        sampled = [t for t in self.trials() if _kind(t) == "search" and "again" not in t.user_attrs]
        return max(0, self.sweep.num_samples - len(sampled))

    def _fixed_requests(self) -> Iterator[Request]:
        """Baselines and the grid: trials that do not depend on results."""
        for seed in self.sweep.seeds:
            for name, baseline in self.sweep.baselines.items():
                flat = options.flat(self.sweep.config(baseline))
                # A baseline of the same preset has a value for every option of the space, and the
                # sampler learns from those in range.
                same_preset = baseline.preset in (None, self.sweep.preset)
                values = {
                    path: flat[path]
                    for path, distribution in self.space.items()
                    if same_preset and _contains(distribution, flat[path])
                }
                yield {"kind": "first", "name": name, "seed": seed}, values
        for values in self.sweep.grid:
            for seed in self.sweep.seeds:
                yield {"kind": "grid", "name": "", "seed": seed}, values

    def _missing(self) -> list[Request]:
        """The trials besides samples that the study lacks.

        After all others have ended these are the best sampled configurations with the other seeds.
        """
        requests = list(self._fixed)
        if not self._samples_left and not self.trials(*OPEN):
            best = [trial for trial in self.ranked() if _kind(trial) == "search"]
            for trial in best[: self.sweep.reseed_best]:
                names = {"kind": "confirm", "name": str(trial.number)}
                requests += [({**names, "seed": s}, trial.params) for s in self.sweep.seeds[1:]]

        def key(attributes: Mapping[str, Any], values: Mapping[str, Any]) -> str:
            named = {name: attributes.get(name) for name in ("kind", "name", "seed", "again")}
            unnamed = named["kind"] not in ("first", "confirm")
            return json.dumps([named, dict(values) if unnamed else {}], sort_keys=True)

        existing = {
            key(trial.user_attrs, trial.system_attrs.get("fixed_params", trial.params))
            for trial in self.trials()
        }
        return [request for request in requests if key(*request) not in existing]

    def _enqueue_missing(self) -> None:
        for attributes, values in self._missing():
            self.optuna.enqueue_trial(values, user_attrs=attributes)

    def retry_failed(self) -> None:
        """Enqueue every failed trial once more, as a new trial."""
        retried = {trial.user_attrs.get("again") for trial in self.trials()}
        for trial in self.trials(TrialState.FAIL):
            if trial.number not in retried:
                names = [name for name in ("kind", "name", "seed") if name in trial.user_attrs]
                attributes = {name: trial.user_attrs[name] for name in names}
                self.optuna.enqueue_trial(
                    trial.params, user_attrs={**attributes, "again": trial.number}
                )

    def planned(self, number: int) -> Trial:
        """The trial with this number; samples its values if it is running and has none yet.

        Raises:
            InputError: no such trial, or its baseline is no longer declared.
        """
        sweep = self.sweep
        if not 0 <= number < len(self.trials()):
            raise InputError(
                f"sweep {sweep.name!r} has {len(self.trials())} trials, got number {number}."
            )
        frozen = self.trials()[number]
        kind, attributes = _kind(frozen), frozen.user_attrs
        name, seed = attributes.get("name", ""), attributes.get("seed", sweep.seeds[0])
        enqueued = frozen.system_attrs.get("fixed_params", {})
        if kind == "first" and name not in sweep.baselines:
            raise InputError(
                f"trial {number} of sweep {sweep.name!r} is baseline {name!r}, which is not "
                "declared any more. Declare it again, or give this sweep a new --name."
            )
        values = frozen.params or (enqueued if kind != "first" else {})
        if frozen.state == TrialState.RUNNING:
            trial, paths = self._trial(number), enqueued if kind == "first" else self.space
            values = {path: _suggest(trial, path, self.space[path]) for path in paths}
        if kind == "first":
            label, names = name, {"baseline": name}
            config = sweep.config(sweep.baselines[name], (), seed)
        else:
            ends, words = [path.rpartition(".")[2] for path in values], []
            for end, (path, value) in zip(ends, values.items(), strict=True):
                text = f"{value:.3g}" if isinstance(value, float) else options.text(value)
                words.append(f"{end if ends.count(end) == 1 else path} {text}")
            label, names = "  ".join(words), {}
            assignments = [f"{path}={options.text(value)}" for path, value in values.items()]
            config = sweep.config(Baseline(), assignments, seed)
        if len(sweep.seeds) > 1:
            separator = ", " if kind == "first" else "  "
            label = separator.join(filter(None, (label, f"seed {seed}")))
        return Trial(
            number=number,
            kind=kind,
            label=label,
            params={**names, **values, "seed": seed},
            config=config,
            state=STATES[frozen.state] if frozen.state.is_finished() else "waiting",
            value=attributes.get("scores", {}).get(sweep.objectives[0]),
            seconds=attributes.get("seconds"),
            cause=attributes.get("cause"),
        )

    # Results

    def report(self, number: int, step: int, scores: Mapping[str, float]) -> bool:
        """Record an evaluation; returns whether the trial should be stopped now."""
        value = scores.get(self.sweep.objectives[0], math.nan)
        if len(self.sweep.objectives) > 1 or not math.isfinite(value):
            return False
        trial, frozen = self._trial(number), self.trials()[number]
        if step not in frozen.intermediate_values:  # a resumed trial repeats evaluations
            trial.report(value, step)
        return (
            self.sweep.asha is not None
            and _kind(frozen) == "search"
            and step < self.sweep.base.train.steps
            and trial.should_prune()
        )

    def annotate(self, number: int, **attributes: Any) -> None:
        """Set user attributes of a trial that has not ended."""
        trial = self._trial(number)
        for name, value in attributes.items():
            trial.set_user_attr(name, value)

    def end(self, number: int, state: str, scores: Mapping[str, float]) -> str:
        """End a trial; returns its state: "failed" if a finished one has no finite objective."""
        values = [float(scores.get(name, math.nan)) for name in self.sweep.objectives]
        if state == "finished" and all(map(math.isfinite, values)):
            self.optuna.tell(number, values)
        elif state == "pruned":
            self.optuna.tell(number, state=TrialState.PRUNED)
        else:
            state = "failed"
            self.optuna.tell(number, state=TrialState.FAIL)
        return state

    def counts(self) -> str:
        """The number of trials by state, as text."""
        counts = {name: len(self.trials(state)) for state, name in STATES.items()}
        return ", ".join(f"{n} {name}" for name, n in counts.items() if n) or "no trials yet"

    def front(self) -> set[int]:
        """Numbers of the trials on the Pareto front; empty with one objective."""
        several = len(self.sweep.objectives) > 1 and self.trials(TrialState.COMPLETE)
        return {trial.number for trial in self.optuna.best_trials} if several else set()

    def ranked(self) -> list[FrozenTrial]:
        """Finished trials, best first; with several objectives the Pareto front comes first."""
        sign = -1 if higher_is_better(self.sweep.objectives[0]) else 1
        front = self.front()
        return sorted(
            self.trials(TrialState.COMPLETE),
            key=lambda trial: (trial.number not in front, sign * trial.values[0], trial.number),
        )

    def _trial(self, number: int) -> optuna.trial.Trial:
        """The trial as an object that can sample and report, also if an earlier driver began it."""
        study_id = self._storage.get_study_id_from_name(self.sweep.name)
        trial_id = self._storage.get_trial_id_from_study_id_trial_number(study_id, number)
        return optuna.trial.Trial(self.optuna, trial_id)


def _suggest(trial: optuna.trial.Trial, path: str, distribution: Any) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return trial.suggest_categorical(path, distribution.choices)
    integer = isinstance(distribution, IntDistribution)
    suggest = trial.suggest_int if integer else trial.suggest_float
    low, high, step, log = distribution.low, distribution.high, distribution.step, distribution.log
    return suggest(path, low, high, step=step, log=log)


def _contains(distribution: Any, value: Any) -> bool:
    """Whether a value is in the range."""
    if isinstance(distribution, CategoricalDistribution):
        return value in distribution.choices
    if not isinstance(value, float | int) or not distribution.low <= value <= distribution.high:
        return False
    steps = (value - distribution.low) / distribution.step if distribution.step else 0
    return abs(steps - round(steps)) < 1e-8


def _kind(trial: FrozenTrial) -> str:
    # A driver that dies before it writes the kind of a trial was sampling it.
    return trial.user_attrs.get("kind", "search")
