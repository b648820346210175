"""Tuning instances, splits, methods, and their runs over all splits.

Settings are chosen on 15 of the 27 instances, drawn by seed (`tuning_members`), by five-fold
cross-validation (`tune`). Those 15 are never held out: a split holds out 5 of the other 12 and
trains on the other 22, so no evaluated instance has influenced a setting.
"""

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import joblib
import numpy as np
import torch

from cutslots.cora import learn
from cutslots.cora.instances import Instances, matched
from cutslots.cora.learn import Decision, InequalityDecision, Problems, Settings, TwoStage
from cutslots.errors import InputError

TUNING_SHARE, HELD_OUT_SHARE, FOLDS = 15 / 27, 0.2, 5

# As published: 200 hidden units, Adam 1e-3; 12 epochs are those of the code of Wilder et al.
PLAIN = {
    "program, plain": Settings(Decision(), swap=False),
    "two-stage, plain": Settings(TwoStage(), swap=False),
}
# Chosen by `tune`; results/cora/tuning.csv has every candidate.
TUNED = {
    "program": Settings(Decision(temperature=3.0), epochs=24),
    "two-stage": Settings(TwoStage(positive=20.0), epochs=40),
}
PEER = {
    "inequality program, plain": Settings(InequalityDecision(), swap=False),
    "inequality program": Settings(InequalityDecision(gamma=0.3), epochs=16),
}
REFERENCES = ("word overlap", "random", "optimum")  # these learn nothing


@dataclass(frozen=True)
class Split:
    """The instances trained on and held out; `number` is the seed of all randomness in it."""

    number: int
    train: tuple[int, ...]
    held_out: tuple[int, ...]


@dataclass(frozen=True)
class Run:
    """One method on one split: true edges matched in each held-out instance, and the seconds."""

    split: Split
    method: str
    values: tuple[float, ...]
    seconds: float

    @property
    def value(self) -> float:
        """The mean over the held-out instances."""
        return float(np.mean(self.values))


def tuning_members(count: int) -> list[int]:
    """The instances, of `count`, on which settings are chosen."""
    order = np.random.default_rng(0).permutation(count)
    return sorted(order[: round(TUNING_SHARE * count)].tolist())


def splits(count: int, number: int, *, everywhere: bool = False) -> list[Split]:
    """Random splits of `count` instances, a fifth held out (5 of 27).

    Args:
        everywhere: hold out any instance, tuning instances too: the publications' protocol.

    Raises:
        InputError: too few instances to hold out a fifth.
    """
    every, held, result = set(range(count)), round(HELD_OUT_SHARE * count), []
    pool = sorted(every if everywhere else every - set(tuning_members(count)))
    if not 1 <= held <= len(pool) or held >= count:
        raise InputError(f"{count} instances are too few for splits. Prepare at least 5.")
    for split in range(number):
        out = np.random.default_rng([split, 1]).permutation(pool)[:held].tolist()
        result.append(Split(split, tuple(sorted(every - set(out))), tuple(sorted(out))))
    return result


def run_all(
    instances: Instances, chosen: Sequence[Split], methods: Mapping[str, Settings], workers: int
) -> Iterator[Run]:
    """Every method, then the references, on one split after the other, in `workers` processes."""
    every = {**methods, **dict.fromkeys(REFERENCES)}
    jobs = [(split, method, settings) for split in chosen for method, settings in every.items()]
    return parallel(run, instances, jobs, workers)


def run(problems: Problems, split: Split, method: str, settings: Settings | None) -> Run:
    """One method on one split. Without settings it is a reference."""
    start, values = time.perf_counter(), []
    if settings:
        (network,) = learn.train(problems, split.train, settings, seed=split.number)
        values = learn.evaluate(problems, split.held_out, network, settings)
        return Run(split, method, tuple(values), time.perf_counter() - start)
    generator, instances = np.random.default_rng([split.number, 2]), problems.instances
    for member in split.held_out:
        edges, (left, right) = instances.edges[member], instances.words[member].astype(np.float32)
        random = generator.random(edges.shape)
        weights = {"word overlap": left @ right.T, "random": random, "optimum": edges * 1.0}
        values.append(matched(weights[method], edges))
    return Run(split, method, tuple(values), 0.0)


class Candidate(NamedTuple):
    """Settings of a method and their cross-validated mean over the tuning instances."""

    method: str
    settings: Settings
    value: float


# The objectives that `tune` tries, with two sizes and rates, and the epochs after which it scores.
SIZES, RATES = (100, 200), (5e-4, 1e-3)
GRID = {
    "program": ([Decision(t, b) for t in (1.0, 3.0) for b in (True, False)], (8, 12, 16, 24)),
    "two-stage": ([TwoStage(weight) for weight in (1.0, 7.0, 20.0, 49.0)], (10, 20, 40, 60)),
    "inequality program": (
        [InequalityDecision(b, g) for g in (0.1, 0.3) for b in (True, False)],
        (8, 12, 16, 24),
    ),
}


def tune(instances: Instances, methods: Mapping[str, Settings], workers: int) -> list[Candidate]:
    """Cross-validate every candidate on the tuning instances; best first per method.

    A method that is not in `GRID` has its own settings as the only candidate.
    """
    jobs = []
    for method, settings in methods.items():
        if method in GRID:
            objectives, stops = GRID[method]
            candidates = itertools.starmap(Settings, itertools.product(objectives, SIZES, RATES))
        else:
            candidates, stops = [settings], (settings.epochs,)
        jobs += [(method, candidate, stops) for candidate in candidates]
    results = itertools.chain(*parallel(cross_validate, instances, jobs, workers))
    return sorted(results, key=lambda c: (c.method, -c.value, repr(c.settings)))


def cross_validate(
    problems: Problems, method: str, settings: Settings, stops: Sequence[int]
) -> list[Candidate]:
    """A candidate per number of epochs in `stops`, validated on all tuning instances in folds."""
    members = tuning_members(len(problems.instances))
    scores: dict[int, list[float]] = {stop: [] for stop in stops}
    order = np.random.default_rng([0, 3]).permutation(members)
    for fold in range(FOLDS):
        out = order[fold::FOLDS].tolist()
        networks = learn.train(problems, sorted(set(members) - set(out)), settings, 0, stops)
        for stop, network in zip(stops, networks, strict=True):
            scores[stop] += learn.evaluate(problems, out, network, settings)
    tried = ((replace(settings, epochs=stop), values) for stop, values in scores.items())
    return [Candidate(method, setting, float(np.mean(values))) for setting, values in tried]


def parallel(
    function: Callable[..., Any], instances: Instances, jobs: Iterable[tuple], workers: int
) -> Iterator[Any]:
    """`function(problems, *job)` of every job, in order, in processes of one thread each."""

    def call(job: tuple) -> Any:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # more do not speed up steps this small
        try:
            return function(Problems(instances), *job)
        finally:
            torch.set_num_threads(threads)

    calls = (joblib.delayed(call)(job) for job in jobs)
    return iter(joblib.Parallel(workers, return_as="generator")(calls))  # pyright: ignore
