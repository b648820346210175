"""Who is trained on what: tuning instances, splits, methods, and their runs over all splits.

Settings are chosen on 15 of the 27 instances, drawn once by seed (`tuning_members`), by five-fold cross-validation inside them
(`tune`). Those 15 are never held out: a split holds out 5 of the other 12 and trains on the remaining 22, so no evaluated instance
has had a say in any setting.
"""

import itertools
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from cutslots.cora.instances import Instances, matched
from cutslots.cora.learn import (
    Decision,
    InequalityDecision,
    Problems,
    Settings,
    TwoStage,
    train,
    values,
)
from cutslots.errors import InputError

TUNING_SHARE, HELD_OUT_SHARE, FOLDS = 15 / 27, 0.2, 5

# As the publications describe it: 200 hidden units, Adam 1e-3; the 12 epochs are those of the code of Wilder et al.
PLAIN = {
    "program, plain": Settings(Decision(), swap=False),
    "two-stage, plain": Settings(TwoStage(), swap=False),
}
# What `tune` chose on the tuning instances; results/cora/tuning.csv has every candidate.
TUNED = {
    "program": Settings(Decision(temperature=3.0), epochs=24),
    "two-stage": Settings(TwoStage(positive=20.0), epochs=40),
}
PEER = {
    "inequality program, plain": Settings(InequalityDecision(), swap=False),
    "inequality program": Settings(InequalityDecision(gamma=0.3), epochs=16),
}
# Methods that learn nothing.
REFERENCES = ("word overlap", "random", "optimum")


@dataclass(frozen=True)
class Split:
    """One split: its number, which is the seed of all that is random in it, and the instances trained on and held out."""

    number: int
    train: tuple[int, ...]
    held_out: tuple[int, ...]


@dataclass(frozen=True)
class Run:
    """One method on one split: the number of true edges matched in each held-out instance, and the seconds it took."""

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
    return sorted(
        np.random.default_rng(0).permutation(count)[: round(TUNING_SHARE * count)].tolist()
    )


def splits(count: int, number: int, *, everywhere: bool = False) -> list[Split]:
    """Random splits of `count` instances, a fifth held out (5 of 27).

    Args:
        everywhere: hold out any instance, those of the tuning too: the publications' protocol, but settings have seen some of them.

    Raises:
        InputError: too few instances to hold a fifth out.
    """
    pool = (
        list(range(count)) if everywhere else sorted(set(range(count)) - set(tuning_members(count)))
    )
    held = round(HELD_OUT_SHARE * count)
    if held < 1 or held > len(pool) or held >= count:
        raise InputError(f"{count} instances are too few for splits. Prepare at least 5.")
    found = []
    for split in range(number):
        out = np.random.default_rng([split, 1]).permutation(pool)[:held]
        found.append(
            Split(
                split,
                tuple(sorted(set(range(count)) - set(out.tolist()))),
                tuple(sorted(out.tolist())),
            )
        )
    return found


def run_reference(instances: Instances, split: Split, method: str) -> list[float]:
    """Values of a method that learns nothing: words in common as weights, random weights, or the true edges as weights."""
    generator = np.random.default_rng([split.number, 2])
    found = []
    for member in split.held_out:
        edges, (left, right) = instances.edges[member], instances.words[member].astype(np.float32)
        weights = {
            "word overlap": left @ right.T,
            "random": generator.random(edges.shape),
            "optimum": edges.astype(float),
        }
        found.append(matched(weights[method], edges))
    return found


def run_all(
    instances: Instances,
    chosen: Sequence[Split],
    methods: Mapping[str, Settings],
    workers: int,
    progress: Callable[[str, int, int | None], None] | None = None,
) -> list[Run]:
    """Every method, and the references, on every split, in order of split and method.

    Args:
        workers: processes, one thread each; 1 works in this process, for a debugger.
        progress: called as progress("runs", finished, of).
    """
    jobs = [(split, method, settings) for split in chosen for method, settings in methods.items()]
    done: dict[tuple[int, str], Run] = {}
    for split, method in itertools.product(chosen, REFERENCES):
        done[split.number, method] = Run(
            split, method, tuple(run_reference(instances, split, method)), 0.0
        )
    for number, run in enumerate(_scattered(_run, instances, jobs, workers), start=1):
        done[run.split.number, run.method] = run
        if progress:
            progress("runs", number, len(jobs))
    return [done[split.number, method] for split in chosen for method in (*methods, *REFERENCES)]


def _run(problems: Problems, split: Split, method: str, settings: Settings) -> Run:
    start = time.perf_counter()
    (network,) = train(problems, split.train, settings, seed=split.number)
    found = values(problems, split.held_out, network, settings)
    return Run(split, method, tuple(found), time.perf_counter() - start)


# ---- choice of settings


@dataclass(frozen=True)
class Candidate:
    """Settings tried: the mean over tuning instances and repetitions, each instance predicted by a network that did not see it."""

    method: str
    settings: Settings
    value: float


def grid(method: str) -> tuple[list[Settings], tuple[int, ...]]:
    """The settings tried for a method, and the epochs after which each is scored: 64 candidates; for a plain one itself alone."""
    plain = {**PLAIN, **PEER}.get(method)
    if plain is not None and not plain.swap:
        return [plain], (plain.epochs,)
    sizes = [
        {"hidden": hidden, "learning_rate": rate}
        for hidden, rate in itertools.product((100, 200), (5e-4, 1e-3))
    ]
    if method == "two-stage":
        objectives: list[Any] = [TwoStage(positive) for positive in (1.0, 7.0, 20.0, 49.0)]
        stops = (10, 20, 40, 60)
    elif method == "program":
        objectives, stops = (
            [
                Decision(temperature, bounded)
                for temperature in (1.0, 3.0)
                for bounded in (True, False)
            ],
            (8, 12, 16, 24),
        )
    else:
        objectives, stops = (
            [
                InequalityDecision(bounded, gamma)
                for gamma in (0.1, 0.3)
                for bounded in (True, False)
            ],
            (8, 12, 16, 24),
        )
    return [Settings(objective, **size) for objective in objectives for size in sizes], stops


def tune(
    instances: Instances,
    methods: Iterable[str],
    workers: int,
    repetitions: int = 1,
    progress: Callable[[str, int, int | None], None] | None = None,
) -> list[Candidate]:
    """Cross-validate every candidate inside the tuning instances; best first within each method."""
    members = tuning_members(len(instances))
    jobs = [
        (method, tried, stops, members, repetitions)
        for method in methods
        for tried, stops in [grid(method)]
        for tried in tried
    ]
    found: list[Candidate] = []
    for number, candidates in enumerate(
        _scattered(_cross_validate, instances, jobs, workers), start=1
    ):
        found += candidates
        if progress:
            progress("settings", number, len(jobs))
    return sorted(
        found, key=lambda candidate: (candidate.method, -candidate.value, repr(candidate.settings))
    )


def _cross_validate(
    problems: Problems,
    method: str,
    settings: Settings,
    stops: Sequence[int],
    members: Sequence[int],
    repetitions: int,
) -> list[Candidate]:
    scores: dict[int, list[float]] = {stop: [] for stop in stops}
    for repetition in range(repetitions):
        order = np.random.default_rng([repetition, 3]).permutation(members)
        for fold in range(FOLDS):
            out = order[fold::FOLDS].tolist()
            rest = sorted(set(members) - set(out))
            for stop, network in zip(
                stops, train(problems, rest, settings, repetition, stops), strict=True
            ):
                scores[stop] += values(problems, out, network, settings)
    return [
        Candidate(method, replace(settings, epochs=stop), float(np.mean(found)))
        for stop, found in scores.items()
    ]


# ---- processes

_problems: Problems


def _start(instances: Instances) -> None:
    global _problems
    torch.set_num_threads(1)
    _problems = Problems(instances)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that was killed cannot end its pool; without this its processes would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _call(function: Callable[..., Any], job: tuple) -> Any:
    return function(_problems, *job)


def _scattered(
    function: Callable[..., Any], instances: Instances, jobs: Sequence[tuple], workers: int
) -> Iterator[Any]:
    """`function(problems, *job)` of every job, as they finish, in processes of one thread each: small steps gain from no more."""
    if workers == 1:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            problems = Problems(instances)
            yield from (function(problems, *job) for job in jobs)
        finally:
            torch.set_num_threads(threads)
        return
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        workers, mp_context=spawn, initializer=_start, initargs=(instances,)
    ) as pool:
        try:
            for future in as_completed([pool.submit(_call, function, job) for job in jobs]):
                yield future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
