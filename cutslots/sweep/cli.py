"""The command line of every file in sweeps/."""

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cutslots import data, options
from cutslots.errors import InputError, nearest
from cutslots.exit_status import exit_status
from cutslots.files import home
from cutslots.report.evaluation import set_name
from cutslots.runs.lookup import find_run_dir, runs_dir
from cutslots.runs.train import train_run
from cutslots.sweep.cluster import Resources, has_gpus
from cutslots.sweep.describe import describe
from cutslots.sweep.driver import How, Plan, run
from cutslots.sweep.sets import DATA, find_or_make, find_set
from cutslots.sweep.spec import Setting, Sweep
from cutslots.sweep.study import FILE, Study
from cutslots.train.checkpoint import CONFIG
from cutslots.train.config import RunConfig, from_json, preset, run_hash


def main(*sweeps: Sweep, arguments: Sequence[str] | None = None) -> int:
    """Do what the arguments say with one sweep after the other; returns the exit status."""
    chosen = parser().parse_args(arguments)
    return exit_status(
        lambda: _run_all(sweeps, chosen), interrupted="interrupted; --resume goes on"
    )


def _run_all(sweeps: Sequence[Sweep], chosen: argparse.Namespace) -> int:
    for sweep in _wanted_sweeps(sweeps, chosen):
        if status := _run(chosen, _adjusted(sweep, chosen)):
            return status
    return 0


def _run(chosen: argparse.Namespace, sweep: Sweep) -> int:
    """A dry run, one trial in this process, or the sweep."""
    sweep.check()
    folder = home() / "sweeps" / sweep.name
    if chosen.dry_run:
        print(describe(sweep, folder, _resources(chosen), chosen.data, chosen.storage))
        return 0
    plan = _plan(sweep, chosen)
    if chosen.debug_trial is not None:
        return _debug(sweep, folder, plan, chosen)
    resources = _resources(chosen)
    if not resources.gpus:
        plan = replace(plan, threads=max(1, int(resources.cpus)), device="cpu")
    how = How(
        resources,
        chosen.resume,
        chosen.retry_failed,
        chosen.concurrent,
        chosen.retries,
        chosen.storage,
    )
    return run(sweep, folder, plan, how)


def parser() -> argparse.ArgumentParser:
    """What a sweep file understands."""
    sweeps = argparse.ArgumentParser(
        description=sys.modules["__main__"].__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = sweeps.add_argument
    add(
        "--dry-run",
        action="store_true",
        help="print the space, the trials, the resources and what is finished; start nothing",
    )
    add(
        "--smoke",
        action="store_true",
        help="a few trials of 30 steps of a small model: does all of it run?",
    )
    add(
        "--resume",
        action="store_true",
        help="go on with this sweep where it stopped; begins it when there is nothing yet",
    )
    add("--retry-failed", action="store_true", help="with --resume: run failed trials again")
    add("--trials", type=int, metavar="N", help="settings that are sampled")
    add("--seeds", type=int, nargs="+", metavar="SEED", help="the first is the search's")
    add("--search", choices=("tpe", "random", "grid"), help="how settings are chosen")
    add(
        "--set",
        action="append",
        default=[],
        dest="sets",
        metavar="NAME=VALUE",
        help="an option of all trials; repeatable",
    )
    add("--only", metavar="NAME", help="of a file with several sweeps this one")
    add("--name", help="the sweep's name; another one is another sweep")
    add(
        "--data",
        help=f"the prepared set, a folder or URI; default: by its name in {DATA} or CUTSLOTS_HOME/data",
    )
    add("--concurrent", type=int, metavar="N", help="trials at a time; default as many as fit")
    add(
        "--workers-per-trial",
        type=int,
        default=1,
        metavar="N",
        help="processes that share a trial's batches (default 1)",
    )
    add(
        "--gpus-per-trial",
        type=float,
        metavar="N",
        help="GPUs of each of them, or a fraction; default 1 where there are any",
    )
    add(
        "--cpus-per-trial",
        type=float,
        metavar="N",
        help="CPUs of each of them; default 1, with a GPU 2",
    )
    add(
        "--retries",
        type=int,
        default=5,
        metavar="N",
        help="restarts of a trial whose process or node died (default 5)",
    )
    add(
        "--storage",
        metavar="URL",
        help="Optuna storage, such as sqlite:///study.db, which its dashboard can watch",
    )
    add(
        "--debug-trial",
        metavar="WHAT",
        help="run one trial in this process: its number, a run's name or MLflow id, or NAME=VALUE,...",
    )
    return sweeps


def _wanted_sweeps(sweeps: Sequence[Sweep], chosen: argparse.Namespace) -> list[Sweep]:
    """All of a file, or the one that is asked for."""
    names = [sweep.name for sweep in sweeps]
    if chosen.only is not None and chosen.only not in names:
        raise InputError(
            f"--only {chosen.only}: this file has no such sweep. {nearest(chosen.only, names)}"
        )
    wanted = [sweep for sweep in sweeps if chosen.only in (None, sweep.name)]
    one = {
        "--name": chosen.name,
        "--data": chosen.data,
        "--debug-trial": chosen.debug_trial,
        "--storage": chosen.storage,
    }
    for option, value in one.items():
        if value is not None and len(wanted) > 1:
            raise InputError(
                f"{option} {value}: this file has {len(names)} sweeps. Choose one: --only {' or '.join(names)}."
            )
    return wanted


def _adjusted(sweep: Sweep, chosen: argparse.Namespace) -> Sweep:
    """The sweep with what the command line changes."""
    if chosen.smoke:
        sweep = sweep.smaller()
    changes = {"trials": chosen.trials, "search": chosen.search, "name": chosen.name}
    changes |= {
        "seeds": tuple(chosen.seeds) if chosen.seeds else None,
        "set": (*sweep.set, *chosen.sets),
    }
    changes["first"] = {
        name: _also_set(name, each, chosen.sets) for name, each in sweep.first.items()
    }
    sweep = replace(sweep, **{name: value for name, value in changes.items() if value is not None})
    if chosen.retries < 0 or (chosen.concurrent is not None and chosen.concurrent < 1):
        raise InputError(
            f"--retries {chosen.retries}, --concurrent {chosen.concurrent}: give at least 0 and 1."
        )
    return sweep


def _also_set(name: str, setting: Setting, sets: Sequence[str]) -> Setting:
    """A first setting with the command line's options too; those of another preset know what their model has."""
    if setting.preset is None:
        return setting  # it has the sweep's
    known = []
    for assignment in sets:
        try:
            options.resolve(preset(setting.preset), assignment.partition("=")[0].strip())
            known.append(assignment)
        except InputError:
            print(
                f"--set {assignment} is not for {name}: preset {setting.preset} has no such option",
                file=sys.stderr,
            )
    return replace(setting, set=(*setting.set, *known))


def _plan(sweep: Sweep, chosen: argparse.Namespace) -> Plan:
    where = find_or_make(sweep, chosen.data, stand_in=chosen.smoke)
    manifest = data.manifest(where)
    name = set_name(manifest)
    tests = {} if chosen.smoke else {each: find_set(each) for each in sweep.evaluate}
    for missing in (each for each, place in tests.items() if place is None):
        print(f"no prepared set {missing!r}: trials are not scored on it", file=sys.stderr)
    found = tuple(str(place) for place in tests.values() if place is not None)
    if chosen.smoke:
        return Plan(where, name, experiment="smoke")
    return Plan(where, name, manifest.source, registers=f"cutslots-{name}", tests=found)


def _resources(chosen: argparse.Namespace) -> Resources:
    gpus = chosen.gpus_per_trial if chosen.gpus_per_trial is not None else float(has_gpus())
    cpus = chosen.cpus_per_trial if chosen.cpus_per_trial is not None else (2.0 if gpus else 1.0)
    if gpus > 1 or (chosen.workers_per_trial > 1 and 0 < gpus < 1):
        raise InputError(
            f"--workers-per-trial {chosen.workers_per_trial}, --gpus-per-trial {gpus:g}: a worker uses one GPU, and workers of one "
            "trial each need their own. Several GPUs are --workers-per-trial N; a fraction is for a trial of one worker."
        )
    if chosen.workers_per_trial < 1 or gpus < 0 or cpus <= 0:
        raise InputError(
            f"--workers-per-trial {chosen.workers_per_trial}, --gpus-per-trial {gpus:g}, --cpus-per-trial {cpus:g}: give at least "
            "one worker, more than 0 CPU, and whole GPUs or a fraction of one."
        )
    return Resources(chosen.workers_per_trial, cpus, gpus)


def _debug(sweep: Sweep, folder: Path, plan: Plan, chosen: argparse.Namespace) -> int:
    """One trial from its start in this process: breakpoints stop, errors point at their cause, nothing of the sweep changes."""
    config = _wanted(sweep, folder, chosen.debug_trial, chosen)
    name = f"debug-{run_hash(config, data.manifest(plan.data).digest)}"
    number = 1 + sum(path.name.startswith(f"{name}-") for path in runs_dir().glob(f"{name}-*"))
    run_dir = runs_dir() / f"{name}-{number}"
    best = train_run(config, plan.data, run_dir, experiment="debug", debug=True).best
    metric = config.train.best_metric
    print(f"best {metric} {best[metric]:.4f} at step {best['step']:.0f} of {config.train.steps}")
    return 0


def _wanted(sweep: Sweep, folder: Path, reference: str, chosen: argparse.Namespace) -> RunConfig:
    """The configuration that a person means."""
    if "=" in reference:
        changes = [part.strip() for part in re.split(r"[,\s]+(?=\S+=)", reference.strip())]
        return sweep.config(
            Setting(), changes, None if any("seed=" in each for each in changes) else sweep.seeds[0]
        )
    if reference in sweep.first:
        return sweep.config(sweep.first[reference], (), sweep.seeds[0])
    if reference.isdigit() and len(reference) < 8:
        if not (folder / FILE).exists() and not chosen.storage:
            raise InputError(
                f"--debug-trial {reference}: sweep {sweep.name!r} has not begun, so it has no trials."
            )
        return Study(sweep, folder, chosen.storage).planned(int(reference)).config
    run_dir = find_run_dir(reference)
    return from_json((run_dir / CONFIG).read_text())
