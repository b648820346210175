"""Tuning instances, splits, methods, and their runs over all splits.

Settings are chosen on 15 of the 27 instances, drawn by seed (`tuning_members`), by five-fold
cross-validation (`tune`). Those 15 are never held out: a split holds out 5 of the other 12 and
trains on the other 22, so no evaluated instance has influenced a setting.
"""

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import joblib
import numpy as np
import torch

from cutslots.cora.instances import Instances, matched
from cutslots.cora.learn import (
    Decision,
    InequalityDecision,
    Objective,
    Problems,
    Settings,
    TwoStage,
    evaluate,
    train,
)
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
    every = set(range(count))
    pool = sorted(every if everywhere else every - set(tuning_members(count)))
    held = round(HELD_OUT_SHARE * count)
    if not 1 <= held <= len(pool) or held >= count:
        raise InputError(f"{count} instances are too few for splits. Prepare at least 5.")
    result = []
    for split in range(number):
        out = np.random.default_rng([split, 1]).permutation(pool)[:held].tolist()
        result.append(Split(split, tuple(sorted(every - set(out))), tuple(sorted(out))))
    return result


def run_reference(instances: Instances, split: Split, method: str) -> Run:
    """A method that learns nothing: weights are words in common, random, or the true edges."""
    generator = np.random.default_rng([split.number, 2])
    values = []
    for member in split.held_out:
        edges, (left, right) = instances.edges[member], instances.words[member].astype(np.float32)
        weights = {
            "word overlap": left @ right.T,
            "random": generator.random(edges.shape),
            "optimum": edges.astype(float),
        }
        values.append(matched(weights[method], edges))
    return Run(split, method, tuple(values), 0.0)


def run_all(
    instances: Instances, chosen: Sequence[Split], methods: Mapping[str, Settings], workers: int
) -> Iterator[Run]:
    """Every method, then the references, on one split after the other, in `workers` processes."""
    jobs = [(split, method, settings) for split in chosen for method, settings in methods.items()]
    learned = parallel(_run, instances, jobs, workers)
    for split in chosen:
        yield from itertools.islice(learned, len(methods))
        yield from (run_reference(instances, split, method) for method in REFERENCES)


def _run(problems: Problems, split: Split, method: str, settings: Settings) -> Run:
    start = time.perf_counter()
    (network,) = train(problems, split.train, settings, seed=split.number)
    values = evaluate(problems, split.held_out, network, settings)
    return Run(split, method, tuple(values), time.perf_counter() - start)


@dataclass(frozen=True)
class Candidate:
    """Settings and their cross-validated mean over the tuning instances."""

    method: str
    settings: Settings
    value: float


def grid(method: str) -> tuple[list[Settings], tuple[int, ...]]:
    """A method's settings to try, and the epochs after which to score: 64 candidates.

    A method at plain settings has one candidate.
    """
    plain = {**PLAIN, **PEER}.get(method)
    if plain is not None and not plain.swap:
        return [plain], (plain.epochs,)
    objectives: Sequence[Objective]
    stops, bounded = (8, 12, 16, 24), (True, False)
    if method == "program":
        objectives = [Decision(t, b) for t, b in itertools.product((1.0, 3.0), bounded)]
    elif method == "two-stage":
        objectives, stops = [TwoStage(w) for w in (1.0, 7.0, 20.0, 49.0)], (10, 20, 40, 60)
    else:
        objectives = [InequalityDecision(b, g) for g, b in itertools.product((0.1, 0.3), bounded)]
    sizes = itertools.product(objectives, (100, 200), (5e-4, 1e-3))
    return [Settings(*size) for size in sizes], stops


def tune(instances: Instances, methods: Iterable[str], workers: int) -> list[Candidate]:
    """Cross-validate every candidate on the tuning instances; best first per method."""
    members = tuning_members(len(instances))
    jobs = [
        (method, settings, stops, members)
        for method in methods
        for candidates, stops in [grid(method)]
        for settings in candidates
    ]
    candidates = itertools.chain(*parallel(cross_validate, instances, jobs, workers))
    return sorted(candidates, key=lambda c: (c.method, -c.value, repr(c.settings)))


def cross_validate(
    problems: Problems,
    method: str,
    settings: Settings,
    stops: Sequence[int],
    members: Sequence[int],
) -> list[Candidate]:
    """One candidate per number of epochs in `stops`, validated on all `members` in five folds."""
    scores: dict[int, list[float]] = {stop: [] for stop in stops}
    order = np.random.default_rng([0, 3]).permutation(members)
    for fold in range(FOLDS):
        out = order[fold::FOLDS].tolist()
        networks = train(problems, sorted(set(members) - set(out)), settings, 0, stops)
        for stop, network in zip(stops, networks, strict=True):
            scores[stop] += evaluate(problems, out, network, settings)
    return [
        Candidate(method, replace(settings, epochs=stop), float(np.mean(values)))
        for stop, values in scores.items()
    ]


def parallel(
    function: Callable[..., Any], instances: Instances, jobs: Iterable[tuple], workers: int
) -> Iterator[Any]:
    """`function(problems, *job)` of every job, in order, in processes of one thread each."""
    calls = (joblib.delayed(_call)(function, instances, job) for job in jobs)
    return iter(joblib.Parallel(workers, return_as="generator")(calls))  # pyright: ignore


def _call(function: Callable[..., Any], instances: Instances, job: tuple) -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more do not speed up steps this small
    try:
        return function(Problems(instances), *job)
    finally:
        torch.set_num_threads(threads)
