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
from cutslots.runs.lookup import runs_dir
from cutslots.runs.train import train_run
from cutslots.sweep.cluster import Resources, resources
from cutslots.sweep.driver import RunOptions, run
from cutslots.sweep.spec import Baseline, Sweep
from cutslots.sweep.study import FILE, Study
from cutslots.train.config import preset, run_hash

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
    "--debug-trial": (str, "run a trial in this process: number, baseline, or NAME=VALUE,..."),
}
ONE_SWEEP = ("--name", "--data", "--debug-trial", "--storage")


def main(*sweeps: Sweep, arguments: Sequence[str] | None = None) -> int:
    """Run the sweeps of a file as the arguments say; returns the exit status."""

    def work() -> int:
        chosen = parse(sys.argv[1:] if arguments is None else arguments)
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
        return next(filter(None, (_run(_adjusted(s, chosen), chosen) for s in selected)), 0)

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
    return SimpleNamespace(**command.make_context(command.name, words).params)


def _adjusted(sweep: Sweep, chosen: SimpleNamespace) -> Sweep:
    """The sweep with the changes of the command line, validated."""
    sweep, baselines = sweep.smoke() if chosen.smoke else sweep, {}
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
    sweep = replace(
        sweep,
        overrides=(*sweep.overrides, *chosen.set),
        baselines=baselines,
        seeds=chosen.seeds or sweep.seeds,
        **{name: value for name, value in changes.items() if value is not None},
    )
    sweep.check()
    return sweep


def _run(sweep: Sweep, chosen: SimpleNamespace) -> int:
    """A dry run, one trial in this process, or the sweep."""
    folder = home() / "sweeps" / sweep.name
    if chosen.debug_trial is not None:
        return _debug(sweep, folder, chosen)
    size, workers = sweep.base.optim.batch_size, chosen.workers_per_trial or 1
    if size % workers:
        raise InputError(f"--workers-per-trial must divide the batch size {size}, got {workers}.")
    amounts = chosen.cpus_per_trial, chosen.gpus_per_trial
    need = resources(workers, *amounts, start=not chosen.dry_run)
    if chosen.dry_run:
        print(*describe(sweep, folder, need, chosen.data, chosen.storage), sep="\n")
        return 0
    path, tests = find_or_make(sweep, chosen.data, smoke=chosen.smoke), []
    for name in () if chosen.smoke else sweep.test_datasets:
        if test := find_dataset(name):
            tests.append(str(test))
        else:
            print(f"dataset {name!r} is not prepared: trials are not scored on it", file=sys.stderr)
    return run(
        sweep,
        folder,
        RunOptions(
            data=path,
            resources=need,
            tests=tuple(tests),
            smoke=chosen.smoke,
            resume=chosen.resume,
            retry_failed=chosen.retry_failed,
            concurrent=chosen.concurrent,
            retries=5 if chosen.retries is None else chosen.retries,
            storage=chosen.storage,
        ),
    )


def find_or_make(sweep: Sweep, given: str | None, smoke: bool = False) -> Path | str:
    """The prepared dataset of a sweep: `given`, found by name, or generated scenes.

    Raises:
        InputError: the dataset is not prepared, or its options differ from the sweep's.
    """
    if given:
        return given if is_uri(given) else Path(given).absolute()
    name, wanted = sweep.dataset, sweep.dataset_options
    if path := find_dataset(name):
        stored = data.read_manifest(path).options
        if wrong := {option: stored.get(option) for option in wanted}.items() - wanted.items():
            raise InputError(
                f"{path} has {dict(wrong)}, but sweep {sweep.name!r} needs {dict(wanted)}. Use it "
                f"anyway with --data {path}, or move it so that the sweep can generate its own."
            )
        return path
    generated = name.partition("-")[0] == "scenes"
    if smoke and not generated and getattr(sweep.base.model, "frames", 1) == 1:
        name, wanted, generated = "scenes-smoke", {"count": 400, "style": "textured"}, True
        if path := find_dataset(name):
            return path
    out = home() / "data" / name
    if not generated:
        raise InputError(
            f"dataset {name!r} is not prepared in {DATA} ({os.environ.get(DATA) or 'not set'}) or "
            f"{out.parent}. Run cutslots prepare SOURCE RAW {out}, or give its folder or URI with "
            "--data."
        )
    source_options = scenes.Options()
    for option, value in wanted.items():
        source_options = options.override(source_options, f"{option}={value}")
    print(f"generating {source_options.count:,} scenes in {out}", file=sys.stderr)
    data.prepare("scenes", None, out, source_options, workers=os.cpu_count())
    return out


def _debug(sweep: Sweep, folder: Path, chosen: SimpleNamespace) -> int:
    """Run one trial from the start in this process, for breakpoints; the sweep is unchanged."""
    name, seed = chosen.debug_trial, sweep.seeds[0]
    if "=" in name:
        changes = [part.strip() for part in re.split(r"[,\s]+(?=\S+=)", name.strip())]
        seeded = any("seed=" in change for change in changes)
        config = sweep.config(Baseline(), changes, None if seeded else seed)
    elif name in sweep.baselines:
        config = sweep.config(sweep.baselines[name], (), seed)
    elif not name.isdecimal():
        hint = nearest(name, list(sweep.baselines))
        raise InputError(
            f"--debug-trial must be a number, a baseline or NAME=VALUE, got {name!r}. {hint}"
        )
    elif not chosen.storage and not (folder / FILE).exists():
        raise InputError(f"--debug-trial {name}: sweep {sweep.name!r} has no trials yet.")
    else:
        config = Study(sweep, folder, chosen.storage).planned(int(name)).config
    path = find_or_make(sweep, chosen.data, smoke=chosen.smoke)
    prefix = f"debug-{run_hash(config, data.read_manifest(path).digest)}"
    run_dir = runs_dir() / f"{prefix}-{1 + len(list(runs_dir().glob(f'{prefix}-*')))}"
    best = train_run(config, path, run_dir, experiment="debug", debug=True).best
    metric = config.train.best_metric
    print(f"best {metric} {best[metric]:.4f} at step {best['step']:.0f} of {config.train.steps}")
    return 0


def describe(
    sweep: Sweep, folder: Path, need: Resources, given: str | None, storage: str | None
) -> Iterator[str]:
    """Lines of --dry-run: space, trials, data, resources and progress."""
    yield f"sweep {sweep.name}: {sweep.dataset}, preset {sweep.preset} {' '.join(sweep.overrides)}"
    steps = sweep.base.train.steps
    yield f"objective {', '.join(sweep.objectives)} on the validation split; {steps:,} steps each"
    flat, width = options.flat(sweep.base), max(map(len, sweep.full_space), default=0)
    for path, domain in sweep.full_space.items():
        text = " | ".join(map(options.text, getattr(domain, "choices", ())))
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
        if sweep.reseed_best and len(sweep.seeds) > 1:
            others = ", ".join(map(str, sweep.seeds[1:]))
            yield f"the best {sweep.reseed_best} again with seeds {others}"
    if sweep.asha:
        first = sweep.asha.grace_period * steps
        yield f"ASHA: 1 in {sweep.asha.reduction_factor} trials continues, from step {first:,.0f}"
    yield f"{sweep.total} trials in all"
    yield f"data: {given or find_dataset(sweep.dataset) or 'not prepared'}"
    for name in sweep.test_datasets:
        yield f"test split of {name}: {find_dataset(name) or 'not prepared, skipped'}"
    yield f"a trial needs {need}, {'on Ray Train workers' if need.train else 'in Tune'}"
    yield f"MLflow: {tracking.without_password(tracking.default_uri())}"
    if storage:
        yield f"progress: in {tracking.without_password(storage)}, not read by a dry run"
    elif not (folder / FILE).exists():
        yield "progress: not started"
    else:
        with tempfile.TemporaryDirectory() as copy:  # opening a study enqueues missing trials
            shutil.copy(folder / FILE, copy)
            yield f"progress: {Study(sweep, Path(copy)).counts()}"
