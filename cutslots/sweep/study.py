"""The memory of a sweep: an Optuna study on disk that knows every trial, what became of it, and which one is next.

The study is the only record of which trials a sweep has. A driver that died left its trials in the state RUNNING; the next driver
takes them up again before it asks for new ones. Ray Tune's own experiment state is not read.
"""

import json
import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import distribution_to_json
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from cutslots import options
from cutslots.errors import InputError
from cutslots.metrics.registry import higher_is_better
from cutslots.sweep.spec import Setting, Sweep
from cutslots.train.config import RunConfig

FILE = "study.log"
DEFINITION = "sweep"
OPEN = (TrialState.RUNNING, TrialState.WAITING)


@dataclass(frozen=True)
class Planned:
    """A trial that is to run.

    Attributes:
        number: in the study.
        kind: first, grid, search or confirm.
        label: what distinguishes it, for people.
        may_stop: whether it may be ended early.
    """

    number: int
    kind: str
    label: str
    config: RunConfig
    may_stop: bool


class Study:
    """Which trial is next, and what became of all others. One driver at a time; not safe for several threads.

    Args:
        folder: gets `study.log`, unless `storage` is given.
        storage: an Optuna storage: a database's URL, or the path of a journal file.

    Raises:
        InputError: the study is of a sweep that asked something else, or the storage cannot be used.
    """

    def __init__(self, sweep: Sweep, folder: Path, storage: str | None = None) -> None:
        sweep.check()
        self.sweep, self.space = sweep, sweep.resolved()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            self.optuna = optuna.create_study(
                storage=_storage(storage or str(folder / FILE)),
                study_name=sweep.name,
                directions=[
                    "minimize" if not higher_is_better(name) else "maximize"
                    for name in sweep.objectives
                ],
                load_if_exists=True,
            )
        except Exception as error:  # of a database's driver, which is anyone's
            raise InputError(
                f"the study of sweep {sweep.name!r} cannot be opened: {error}"
            ) from error
        self._claim()
        self.optuna.sampler = self._sampler()
        if self._halves:
            assert sweep.halving is not None
            steps = max(1, round(sweep.halving.first * sweep.base.train.steps))
            self.optuna.pruner = optuna.pruners.SuccessiveHalvingPruner(steps, sweep.halving.factor)
        self._adopted = [trial.number for trial in self.trials(TrialState.RUNNING)]
        self._enqueue(self._wanted())

    @property
    def _halves(self) -> bool:
        return (
            self.sweep.halving is not None
            and len(self.sweep.objectives) == 1
            and self.sweep.search != "grid"
        )

    def _claim(self) -> None:
        """Refuse to mix two questions in one study."""
        now = definition(self.sweep)
        before = self.optuna.user_attrs.get(DEFINITION)
        if before is None:
            self.optuna.set_user_attr(DEFINITION, now)
        elif changed := [name for name in now if not _goes_on(name, before.get(name), now[name])]:
            listed = "; ".join(
                f"{name} was {before.get(name)}, now {now[name]}" for name in changed
            )
            raise InputError(
                f"sweep {self.sweep.name!r} has begun with another definition: {listed}. Give this one another --name."
            )

    def claim_data(self, digest: str, where: str) -> None:
        """Refuse to mix trials on different data.

        Raises:
            InputError: the sweep was begun on data with another digest.
        """
        before = self.optuna.user_attrs.get("data_digest")
        if before is None:
            self.optuna.set_user_attr("data_digest", digest)
        elif before != digest:
            raise InputError(
                f"sweep {self.sweep.name!r} was begun on data with digest {before}; {where} has {digest}. "
                "Give the data it was begun on, or a new --name."
            )

    def _sampler(self) -> optuna.samplers.BaseSampler:
        # A sampler does not keep its random state; with the same seed again, a resumed sweep would draw its first trials twice.
        seed = self.sweep.seeds[0] + 1000 * len(self.trials())
        if self.sweep.search == "tpe":
            return optuna.samplers.TPESampler(
                seed=seed,
                constant_liar=True,
                n_startup_trials=max(4, min(10, self.sweep.trials // 4)),
            )
        return optuna.samplers.RandomSampler(seed=seed)

    def trials(self, *states: TrialState) -> list[FrozenTrial]:
        """All trials in these states (all without any), in order. Not to be changed."""
        return self.optuna.get_trials(deepcopy=False, states=states or None)

    def _wanted(self) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """What does not wait for results: attributes and values of trials."""
        for seed in self.sweep.seeds:
            for name, setting in self.sweep.first.items():
                yield (
                    {"kind": "first", "name": name, "seed": seed},
                    self._values(self.sweep.config(setting), setting),
                )
        if self.sweep.search == "grid":
            for values in self.sweep.grid():
                for seed in self.sweep.seeds:
                    yield {"kind": "grid", "name": "", "seed": seed}, values

    def _values(self, config: RunConfig, setting: Setting) -> dict[str, Any]:
        """What a first setting says of the space, for the sampler to learn from; nothing when it is of another preset."""
        if setting.preset not in (None, self.sweep.preset):
            return {}
        flat = options.flat(config)
        return {
            path: flat[path]
            for path, distribution in self.space.items()
            if _contains(distribution, flat[path])
        }

    def _enqueue(self, wanted: Iterator[tuple[dict[str, Any], dict[str, Any]]]) -> None:
        known = {
            _key(trial.user_attrs, trial.system_attrs.get("fixed_params", trial.params))
            for trial in self.trials()
        }
        for attributes, values in wanted:
            if _key(attributes, values) not in known:
                self.optuna.enqueue_trial(values, user_attrs=attributes)

    def next(self) -> Planned | None:
        """The next trial to run, None when there is none at present; see `exhausted`."""
        if self._adopted:
            return self._planned(self._adopted.pop(0))
        if not self.trials(TrialState.WAITING):
            self._enqueue(self._confirmations())
        if self.trials(TrialState.WAITING) or self._sampled < self._samples:
            trial = self.optuna.ask()
            if "kind" not in trial.user_attrs:
                for name, value in {
                    "kind": "search",
                    "name": "",
                    "seed": self.sweep.seeds[0],
                }.items():
                    trial.set_user_attr(name, value)
            return self._planned(trial.number)
        return None

    @property
    def exhausted(self) -> bool:
        """Whether `next` has nothing to give, now and after all running trials have ended."""
        return (
            not self._adopted
            and not self.trials(*OPEN)
            and self._sampled >= self._samples
            and not any(self._confirmations())
        )

    @property
    def total(self) -> int:
        """How many trials there will be when all is done; more where failed ones are run again."""
        sweep = self.sweep
        grid = len(sweep.grid()) if sweep.search == "grid" else 0
        again = sum("again" in trial.user_attrs for trial in self.trials())
        confirmed = min(sweep.confirm, self._samples) * (len(sweep.seeds) - 1)
        return (len(sweep.first) + grid) * len(sweep.seeds) + self._samples + confirmed + again

    @property
    def _samples(self) -> int:
        return 0 if self.sweep.search == "grid" else self.sweep.trials

    @property
    def _sampled(self) -> int:
        # A trial without a kind is one whose driver died before it could say so: a sampled one.
        return sum(
            _kind(trial) == "search" and "again" not in trial.user_attrs for trial in self.trials()
        )

    def _confirmations(self) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """The best settings found, with the seeds that the search left out; only when all trials have ended."""
        if self.trials(*OPEN) or self._sampled < self._samples:
            return
        found = [trial for trial in self.ranked() if _kind(trial) == "search"]
        done = {
            (trial.user_attrs["name"], trial.user_attrs["seed"])
            for trial in self.trials()
            if _kind(trial) == "confirm"
        }
        for trial in found[: self.sweep.confirm]:
            for seed in self.sweep.seeds[1:]:
                if (str(trial.number), seed) not in done:
                    yield {"kind": "confirm", "name": str(trial.number), "seed": seed}, trial.params

    def planned(self, number: int) -> Planned:
        """A trial that the study has already."""
        if not 0 <= number < len(self.trials()):
            raise InputError(
                f"sweep {self.sweep.name!r} has no trial {number}; it has {len(self.trials())}."
            )
        return self._planned(number)

    def _planned(self, number: int) -> Planned:
        """The trial with all its values: sampled now, or read again when they have been already."""
        frozen = self.trials()[number]
        attributes = frozen.user_attrs
        kind, name = attributes.get("kind", "search"), attributes.get("name", "")
        seed = attributes.get("seed", self.sweep.seeds[0])
        if kind == "first" and name not in self.sweep.first:
            raise InputError(
                f"sweep {self.sweep.name!r} has trial {number} with the first setting {name!r}, which it no longer declares. "
                "Declare it again, or give this sweep a new --name."
            )
        setting = self.sweep.first[name] if kind == "first" else Setting()
        wanted = frozen.system_attrs.get("fixed_params", {}) if kind == "first" else self.space
        trial = optuna.trial.Trial(self.optuna, frozen._trial_id)
        values = frozen.params or (
            frozen.system_attrs.get("fixed_params", {}) if kind != "first" else {}
        )  # of one that waits
        if frozen.state == TrialState.RUNNING:
            values = {path: _suggest(trial, path, self.space[path]) for path in wanted}
        changes = [] if kind == "first" else self.sweep.changes(values)
        return Planned(
            number,
            kind,
            self._label(kind, name, values, seed),
            self.sweep.config(setting, changes, seed),
            kind == "search",
        )

    def _label(self, kind: str, name: str, values: Mapping[str, Any], seed: int) -> str:
        seeded = f"seed {seed}" if len(self.sweep.seeds) > 1 else ""
        if kind == "first":
            return ", ".join(filter(None, (name, seeded)))
        ends = [path.rpartition(".")[2] for path in values]
        names = [
            end if ends.count(end) == 1 else path for end, path in zip(ends, values, strict=True)
        ]
        shown = "  ".join(
            f"{name} {_brief(value)}" for name, value in zip(names, values.values(), strict=True)
        )
        return "  ".join(filter(None, (shown, seeded)))

    def report(self, number: int, step: int, scores: Mapping[str, float]) -> bool:
        """Keep an evaluation's scores; returns whether the trial should end now."""
        trial = optuna.trial.Trial(self.optuna, self.trials()[number]._trial_id)
        value = scores.get(self.sweep.objectives[0], math.nan)
        if len(self.sweep.objectives) > 1 or not math.isfinite(value):
            return False
        if (
            step not in self.trials()[number].intermediate_values
        ):  # a resumed trial repeats evaluations; the first one counts
            trial.report(value, step)
        return (
            self._halves
            and _kind(self.trials()[number]) == "search"
            and step < self.sweep.base.train.steps
            and trial.should_prune()
        )

    def note(self, number: int, **attributes: Any) -> None:
        """Keep something about a trial that is open."""
        trial = optuna.trial.Trial(self.optuna, self.trials()[number]._trial_id)
        for name, value in attributes.items():
            trial.set_user_attr(name, value)

    def end(self, number: int, state: str, scores: Mapping[str, float]) -> str:
        """Close a trial; returns its state, which is "failed" where a finished one has no usable value."""
        values = [float(scores.get(name, math.nan)) for name in self.sweep.objectives]
        if state == "finished" and all(map(math.isfinite, values)):
            self.optuna.tell(number, values)
        elif state == "pruned":
            self.optuna.tell(number, state=TrialState.PRUNED)
        else:
            state = "failed"
            self.optuna.tell(number, state=TrialState.FAIL)
        return state

    def retry_failed(self) -> None:
        """Enqueue every failed trial once more, as a new one."""
        retried = {trial.user_attrs.get("again") for trial in self.trials()}
        for trial in self.trials(TrialState.FAIL):
            if trial.number not in retried:
                kept = {
                    name: trial.user_attrs[name]
                    for name in ("kind", "name", "seed")
                    if name in trial.user_attrs
                }
                self.optuna.enqueue_trial(trial.params, user_attrs={**kept, "again": trial.number})

    def counts(self) -> str:
        """How many trials are in which state, for people."""
        names = {
            "COMPLETE": "finished",
            "PRUNED": "pruned",
            "FAIL": "failed",
            "RUNNING": "unfinished",
            "WAITING": "waiting",
        }
        found = [(name, len(self.trials(TrialState[state]))) for state, name in names.items()]
        return ", ".join(f"{count} {name}" for name, count in found if count) or "nothing yet"

    def ranked(self) -> list[FrozenTrial]:
        """Trials that ran to the end, best first; with several objectives the Pareto front before all others."""
        complete = self.trials(TrialState.COMPLETE)
        sign = -1 if higher_is_better(self.sweep.objectives[0]) else 1
        front = (
            {trial.number for trial in self.optuna.best_trials}
            if len(self.sweep.objectives) > 1 and complete
            else set()
        )
        return sorted(
            complete,
            key=lambda trial: (trial.number not in front, sign * trial.values[0], trial.number),
        )


def definition(sweep: Sweep) -> dict[str, Any]:
    """What may not change while a sweep goes on. More trials, seeds or first settings may come."""
    return {
        "dataset": sweep.dataset,
        "preset": sweep.preset,
        "set": list(sweep.set),
        "space": {
            path: json.loads(distribution_to_json(distribution))
            for path, distribution in sweep.resolved().items()
        },
        "first": {
            name: [setting.preset, list(setting.set)] for name, setting in sweep.first.items()
        },
        "objectives": list(sweep.objectives),
        "search": sweep.search,
        "halving": asdict(sweep.halving) if sweep.halving else None,
    }


def _goes_on(name: str, before: Any, now: Any) -> bool:
    """Whether a part of the definition is as it was; first settings may be added."""
    if name == "first" and isinstance(before, dict):
        return all(now.get(each) == setting for each, setting in before.items())
    return before == now


def _storage(where: str) -> optuna.storages.BaseStorage:
    if "://" in where:
        return optuna.storages.RDBStorage(where)
    return optuna.storages.JournalStorage(JournalFileBackend(str(Path(where).absolute())))


def _suggest(trial: optuna.trial.Trial, path: str, distribution: Any) -> Any:
    match distribution:
        case optuna.distributions.CategoricalDistribution():
            return trial.suggest_categorical(path, distribution.choices)
        case optuna.distributions.IntDistribution():
            return trial.suggest_int(
                path,
                distribution.low,
                distribution.high,
                step=distribution.step,
                log=distribution.log,
            )
        case _:
            return trial.suggest_float(
                path,
                distribution.low,
                distribution.high,
                step=distribution.step,
                log=distribution.log,
            )


def _contains(distribution: Any, value: Any) -> bool:
    try:
        return bool(distribution._contains(distribution.to_internal_repr(value)))
    except (ValueError, TypeError):
        return False


def _kind(trial: FrozenTrial) -> str:
    return trial.user_attrs.get("kind", "search")


def _key(attributes: Mapping[str, Any], values: Mapping[str, Any]) -> str:
    named = {name: attributes.get(name) for name in ("kind", "name", "seed", "again")}
    values = {} if named["kind"] in ("first", "confirm") else dict(values)
    return json.dumps([named, values], sort_keys=True)


def _brief(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else options.text(value)
