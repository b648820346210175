"""The command line of the files in sweeps/."""

import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
from optuna.distributions import FloatDistribution, IntDistribution

from cutslots import data, options, tracking
from cutslots.data.locate import DATA, find_dataset, is_uri
from cutslots.data.sources import scenes
from cutslots.errors import InputError, nearest
from cutslots.exit_status import exit_status
from cutslots.files import home
from cutslots.runs.lookup import find_run_dir, runs_dir
from cutslots.runs.train import train_run
from cutslots.sweep.cluster import Resources, has_gpus
from cutslots.sweep.driver import SweepContext
from cutslots.sweep.run import RunOptions, run
from cutslots.sweep.spec import Baseline, Sweep
from cutslots.sweep.study import FILE, Study
from cutslots.train.checkpoint import CONFIG
from cutslots.train.config import RunConfig, from_json, preset, run_hash

FLAGS = {
    "--dry-run": "print the space, trials, resources and finished trials; start nothing",
    "--smoke": "test everything in minutes: a few trials of 30 steps of a small model",
    "--resume": "resume the sweep, or start it if it has not run",
    "--retry-failed": "with --resume: run failed trials again",
}
OPTIONS: dict[str, tuple[Any, str]] = {
    "--trials": (int, "number of configurations to sample"),
    "--seeds": (int, "random seeds; the search uses the first"),
    "--search": (click.Choice(["tpe", "random", "grid"]), "how configurations are chosen"),
    "--set": (str, "NAME=VALUE for all trials; can be repeated"),
    "--only": (str, "run only this sweep of the file"),
    "--name": (str, "sweep name; a new name starts a new sweep"),
    "--data": (str, f"prepared folder or URI (default: by name in {DATA} or CUTSLOTS_HOME/data)"),
    "--concurrent": (click.IntRange(1), "trials at a time (default: as many as fit)"),
    "--workers-per-trial": (click.IntRange(1), "processes that train a trial (default 1)"),
    "--gpus-per-trial": (float, "GPUs per worker, may be fractional (default: 1 if available)"),
    "--cpus-per-trial": (float, "CPUs per worker (default 1, with a GPU 2)"),
    "--retries": (click.IntRange(0), "restarts of a trial whose process or node died (default 5)"),
    "--storage": (str, "Optuna storage such as sqlite:///study.db, e.g. for its dashboard"),
    "--debug-trial": (str, "run a trial in this process: its number, or NAME=VALUE,..."),
}
ONE_SWEEP = ("--name", "--data", "--debug-trial", "--storage")


def main(*sweeps: Sweep, arguments: Sequence[str] | None = None) -> int:
    """Run the sweeps of a file as the arguments say; returns the exit status."""

    def work() -> int:
        chosen = parse(sys.argv[1:] if arguments is None else arguments)
        for sweep in _selected(sweeps, chosen):
            if status := _run(_adjusted(sweep, chosen), chosen):
                return status
        return 0

    return exit_status(work, interrupted="interrupted; --resume continues the sweep")


def parse(arguments: Sequence[str]) -> SimpleNamespace:
    """The option values; None for options that are not given."""
    words: list[str] = []
    for word in arguments:  # click can parse `--seeds 0 --seeds 1`, but not `--seeds 0 1`
        repeat = word.isdigit() and words[-2:-1] == ["--seeds"]
        words += ["--seeds", word] if repeat else [word]
    params: list[click.Parameter] = [
        click.Option([name], is_flag=True, help=text) for name, text in FLAGS.items()
    ]
    params += [
        click.Option([name], type=kind, help=text, multiple=name in ("--seeds", "--set"))
        for name, (kind, text) in OPTIONS.items()
    ]
    text = (sys.modules["__main__"].__doc__ or "").strip()
    command = click.Command(
        Path(sys.argv[0]).name,
        params=params,
        help=f"\b\n{text}".replace("\n\n", "\n\n\b\n"),
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    context = command.make_context(command.name, words)
    return SimpleNamespace(**context.params)


def _selected(sweeps: Sequence[Sweep], chosen: SimpleNamespace) -> list[Sweep]:
    """All sweeps of the file, or the one of --only."""
    names = [sweep.name for sweep in sweeps]
    if chosen.only is not None and chosen.only not in names:
        raise InputError(f"--only {chosen.only}: no such sweep. {nearest(chosen.only, names)}")
    selected = [sweep for sweep in sweeps if chosen.only in (None, sweep.name)]
    for option in ONE_SWEEP if len(selected) > 1 else ():
        if getattr(chosen, option[2:].replace("-", "_")) is not None:
            raise InputError(
                f"{option} needs one sweep, and this file has {len(names)}. Choose one: --only "
                f"{' or '.join(names)}."
            )
    return selected


def _adjusted(sweep: Sweep, chosen: SimpleNamespace) -> Sweep:
    """The sweep with the changes of the command line."""
    sweep = sweep.smoke() if chosen.smoke else sweep
    baselines = {}
    for name, baseline in sweep.baselines.items():
        applicable = []
        for assignment in chosen.set if baseline.preset else ():
            try:
                options.resolve(preset(str(baseline.preset)), assignment.partition("=")[0].strip())
                applicable.append(assignment)
            except InputError:
                print(
                    f"--set {assignment} does not apply to {name}: preset {baseline.preset} has no "
                    "such option",
                    file=sys.stderr,
                )
        baselines[name] = replace(baseline, overrides=(*baseline.overrides, *applicable))
    changes = {"trials": chosen.trials, "search": chosen.search, "name": chosen.name}
    return replace(
        sweep,
        overrides=(*sweep.overrides, *chosen.set),
        baselines=baselines,
        seeds=chosen.seeds or sweep.seeds,
        **{name: value for name, value in changes.items() if value is not None},
    )


def _run(sweep: Sweep, chosen: SimpleNamespace) -> int:
    """A dry run, one trial in this process, or the sweep."""
    sweep.check()
    folder = home() / "sweeps" / sweep.name
    if chosen.dry_run:
        print(*describe(sweep, folder, _resources(chosen), chosen.data, chosen.storage), sep="\n")
        return 0
    path = find_or_make(sweep, chosen.data, smoke=chosen.smoke)
    manifest = data.read_manifest(path)
    if chosen.debug_trial is not None:
        return _debug(sweep, folder, path, manifest.digest, chosen)
    context = SweepContext(path, data.dataset_name(manifest), "smoke")
    if not chosen.smoke:
        tests = {name: find_dataset(name) for name in sweep.test_datasets}
        for name in (name for name, test in tests.items() if test is None):
            print(f"dataset {name!r} is not prepared: trials are not scored on it", file=sys.stderr)
        context = replace(
            context,
            experiment=manifest.source,
            registered_model=f"cutslots-{context.dataset_name}",
            tests=tuple(str(test) for test in tests.values() if test is not None),
        )
    resources = _resources(chosen)
    if not resources.gpus:
        context = replace(context, threads=max(1, int(resources.cpus)), device="cpu")
    retries = 5 if chosen.retries is None else chosen.retries
    how = (chosen.resume, chosen.retry_failed, chosen.concurrent, retries, chosen.storage)
    return run(sweep, folder, context, RunOptions(resources, *how))


def _resources(chosen: SimpleNamespace) -> Resources:
    gpus, cpus, workers = (
        chosen.gpus_per_trial,
        chosen.cpus_per_trial,
        chosen.workers_per_trial or 1,
    )
    gpus = float(has_gpus()) if gpus is None else gpus
    cpus = (2.0 if gpus else 1.0) if cpus is None else cpus
    if not 0 <= gpus <= 1 or (workers > 1 and 0 < gpus < 1):
        raise InputError(
            f"--gpus-per-trial must be 0, 1 or, with one worker, a fraction, got {gpus:g}. "
            "Use several GPUs with --workers-per-trial."
        )
    if cpus <= 0:
        raise InputError(f"--cpus-per-trial must be positive, got {cpus:g}.")
    return Resources(workers, cpus, gpus)


def find_or_make(sweep: Sweep, given: str | None, smoke: bool = False) -> Path | str:
    """The prepared dataset of a sweep: `given`, found by name, or generated scenes.

    Raises:
        InputError: the dataset is not prepared, or its options differ from the sweep's.
    """
    if given:
        return given if is_uri(given) else Path(given).absolute()
    path, wanted = find_dataset(sweep.dataset), sweep.dataset_options
    if path is not None:
        stored = data.read_manifest(path).options
        wrong = [
            f"{name} is {stored.get(name)}, the sweep needs {value}"
            for name, value in wanted.items()
            if stored.get(name) != value
        ]
        if wrong:
            raise InputError(
                f"{path} is not the dataset of sweep {sweep.name!r}: {'; '.join(wrong)}. Use it "
                f"anyway with --data {path}, or move it so that the sweep can generate its own."
            )
        return path
    name = sweep.dataset
    if smoke and name.partition("-")[0] != "scenes" and getattr(sweep.base.model, "frames", 1) == 1:
        name, wanted = "scenes-smoke", {"count": 400, "style": "textured"}
        if path := find_dataset(name):
            return path
    out = home() / "data" / name
    if name.partition("-")[0] != "scenes":
        raise InputError(
            f"dataset {name!r} is not prepared in {DATA} ({os.environ.get(DATA) or 'not set'}) or "
            f"{home() / 'data'}. Run cutslots prepare SOURCE RAW {out}, or give its folder or URI "
            "with --data."
        )
    source_options = scenes.Options()
    for option, value in wanted.items():
        source_options = options.override(source_options, f"{option}={value}")
    print(f"generating {source_options.count:,} scenes in {out}", file=sys.stderr)
    data.prepare("scenes", None, out, source_options, workers=os.cpu_count())
    return out


def _debug(sweep: Sweep, folder: Path, path: Path | str, digest: str, chosen: Any) -> int:
    """Run one trial from the start in this process, for breakpoints; the sweep is unchanged."""
    config = _debug_config(sweep, folder, chosen.debug_trial, chosen.storage)
    name = f"debug-{run_hash(config, digest)}"
    run_dir = runs_dir() / f"{name}-{1 + len(list(runs_dir().glob(f'{name}-*')))}"
    best = train_run(config, path, run_dir, experiment="debug", debug=True).best
    metric = config.train.best_metric
    print(f"best {metric} {best[metric]:.4f} at step {best['step']:.0f} of {config.train.steps}")
    return 0


def _debug_config(sweep: Sweep, folder: Path, name: str, storage: str | None) -> RunConfig:
    if "=" in name:
        changes = [part.strip() for part in re.split(r"[,\s]+(?=\S+=)", name.strip())]
        seeded = any("seed=" in change for change in changes)
        return sweep.config(Baseline(), changes, None if seeded else sweep.seeds[0])
    if name in sweep.baselines:
        return sweep.config(sweep.baselines[name], (), sweep.seeds[0])
    if not name.isdigit() or len(name) > 8:
        return from_json((find_run_dir(name) / CONFIG).read_text())
    if not storage and not (folder / FILE).exists():
        raise InputError(f"--debug-trial {name}: sweep {sweep.name!r} has no trials yet.")
    return Study(sweep, folder, storage).planned(int(name)).config


def describe(
    sweep: Sweep, folder: Path, resources: Resources, given: str | None, storage: str | None
) -> Iterator[str]:
    """Lines of --dry-run: space, trials, data, resources and progress."""
    yield f"sweep {sweep.name}: {sweep.dataset}, preset {sweep.preset} {' '.join(sweep.overrides)}"
    steps = sweep.base.train.steps
    yield f"objective {', '.join(sweep.objectives)} on the validation split; {steps:,} steps each"
    flat, width = options.flat(sweep.base), max(map(len, sweep.full_space), default=0)
    for path, domain in sweep.full_space.items():
        values: Any = getattr(domain, "choices", None)
        text = " | ".join(map(options.text, values or ()))
        if isinstance(domain, FloatDistribution | IntDistribution):
            text = f"{domain.low} to {domain.high}{', logarithmic' if domain.log else ''}"
            text += f", step {domain.step}" if domain.step not in (None, 1) else ""
        yield f"  {path:<{width}}  {text}   (preset: {options.text(flat[path])})"
    seeds = ", ".join(map(str, sweep.seeds))
    for name, baseline in sweep.baselines.items():
        words = " ".join((f"preset {baseline.preset or sweep.preset}", *baseline.overrides))
        yield f"baseline {name}: {words}, with seeds {seeds}"
    if sweep.search == "grid":
        yield f"grid: {len(sweep.grid)} combinations, with seeds {seeds}"
    else:
        yield f"search: {sweep.trials} trials by {sweep.search}, with seed {sweep.seeds[0]}"
    if sweep.asha:
        first = sweep.asha.grace_period * steps
        yield f"ASHA: 1 in {sweep.asha.reduction_factor} trials continues, from step {first:,.0f}"
    if sweep.reseed_best and len(sweep.seeds) > 1 and sweep.search != "grid":
        others = ", ".join(map(str, sweep.seeds[1:]))
        yield f"the best {sweep.reseed_best} again with seeds {others}"
    with tempfile.TemporaryDirectory() as copy:  # opening a study enqueues missing trials
        if storage:
            state = f"progress: in {tracking.without_password(storage)}, not read by a dry run"
        elif (folder / FILE).exists():
            shutil.copy(folder / FILE, copy)
            state = f"progress: {Study(sweep, Path(copy)).counts()}"
        else:
            state = "progress: not started"
        yield f"{Study(sweep, Path(copy) / 'empty').total} trials in all"
    yield f"data: {given or find_dataset(sweep.dataset) or 'not prepared'}"
    for name in sweep.test_datasets:
        yield f"test split of {name}: {find_dataset(name) or 'not prepared, skipped'}"
    yield f"a trial needs {resources}, {'on Ray Train workers' if resources.train else 'in Tune'}"
    yield f"MLflow: {tracking.without_password(tracking.default_uri())}"
    yield state
