"""What a sweep would do, for --dry-run, without starting or writing anything."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from optuna.distributions import CategoricalDistribution

from cutslots import options, tracking
from cutslots.sweep.cluster import Resources
from cutslots.sweep.sets import find_set
from cutslots.sweep.spec import Sweep
from cutslots.sweep.study import FILE, Study


def describe(
    sweep: Sweep,
    folder: Path,
    resources: Resources,
    given: str | None = None,
    storage: str | None = None,
) -> str:
    """The space, the trials, the data, the resources, and what is finished.

    Args:
        given: the data that a person named in place of the sweep's.
        storage: Optuna storage that holds the study in place of the folder; it is not looked at.
    """
    return "\n".join(
        [
            *_space(sweep),
            "",
            *_trials(sweep),
            "",
            *_data(sweep, given),
            *_rest(sweep, folder, resources, storage),
        ]
    )


def _space(sweep: Sweep) -> Iterator[str]:
    yield f"sweep {sweep.name}: {sweep.dataset}, preset {sweep.preset} {' '.join(sweep.set)}".rstrip()
    yield f"objective {', '.join(sweep.objectives)} on the validation split; {sweep.base.train.steps:,} steps a trial"
    base, space = options.flat(sweep.base), sweep.resolved()
    width = max(map(len, space), default=0)
    yield from (
        f"  {path:<{width}}  {_range(each)}   (preset: {options.text(base[path])})"
        for path, each in space.items()
    )


def _trials(sweep: Sweep) -> Iterator[str]:
    for name, setting in sweep.first.items():
        changes = f", {' '.join(setting.set)}" if setting.set else ""
        yield f"first: {name} (preset {setting.preset or sweep.preset}{changes}), with seeds {_listed(sweep.seeds)}"
    if sweep.search == "grid":
        yield f"then: all {len(sweep.grid())} combinations, with seeds {_listed(sweep.seeds)}"
    else:
        yield f"then: {sweep.trials} settings sampled by {sweep.search}, with seed {sweep.seeds[0]}"
        if sweep.halving and len(sweep.objectives) == 1:
            ends = sweep.halving.first * sweep.base.train.steps
            yield f"      ASHA ends them early: one in {sweep.halving.factor} goes on, from step {ends:,.0f}"
        if sweep.confirm and len(sweep.seeds) > 1:
            yield f"then: the best {sweep.confirm} of them again, with seeds {_listed(sweep.seeds[1:])}"
    with tempfile.TemporaryDirectory() as empty:
        yield f"{Study(sweep, Path(empty)).total} trials in all"


def _data(sweep: Sweep, given: str | None) -> Iterator[str]:
    yield f"data: {given or find_set(sweep.dataset) or 'not prepared yet'}"
    for name in sweep.evaluate:
        yield f"scored on the test split of {name}: {find_set(name) or 'not prepared, left out'}"


def _rest(sweep: Sweep, folder: Path, resources: Resources, storage: str | None) -> Iterator[str]:
    how = "Ray Train workers" if resources.train else "a Tune function"
    yield f"each trial takes {resources}, in {how}"
    yield f"MLflow: {tracking.without_password(tracking.default_uri())}"
    if storage:
        yield f"what is finished stands in {tracking.without_password(storage)}, which a dry run does not open"
        return
    if not (folder / FILE).exists():
        yield "finished so far: nothing"
        return
    with tempfile.TemporaryDirectory() as copy:  # opening a study enqueues what it lacks
        shutil.copy(folder / FILE, copy)
        yield f"so far: {Study(sweep, Path(copy)).counts()}"


def _listed(seeds: tuple[int, ...]) -> str:
    return ", ".join(map(str, seeds))


def _range(distribution: Any) -> str:
    if isinstance(distribution, CategoricalDistribution):
        return " | ".join(options.text(value) for value in distribution.choices)
    step = f", step {distribution.step}" if distribution.step not in (None, 1) else ""
    return f"{distribution.low} to {distribution.high}{', logarithmic' if distribution.log else ''}{step}"
