"""train one model in this process

Train one model in this process, without Ray: breakpoints work. Metrics, figures and the model go to MLflow.
"""

import argparse
import shlex
import sys
from pathlib import Path

from cutslots import options
from cutslots.cli._counting import Counting
from cutslots.cli._places import place
from cutslots.cli._texts import options_table
from cutslots.errors import InputError
from cutslots.files import home


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to train on, from which preset, with which options, under which name."""
    from cutslots.data import sources
    from cutslots.train.config import PRESETS

    parser.epilog = options_table()
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "source", metavar="SOURCE", help=f"which dataset: {', '.join(sources.names())}"
    )
    parser.add_argument(
        "--data",
        metavar="DIR",
        help="its prepared folder, the name of one in CUTSLOTS_HOME/data, or the URI of one; default SOURCE, and the built-in "
        "`scenes` are made when they are missing",
    )
    parser.add_argument(
        "--preset", help=f"the settings to start from: {', '.join(PRESETS)} (default small)"
    )
    parser.add_argument(
        "--set",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        dest="sets",
        help="change an option (below); repeatable",
    )
    parser.add_argument("--steps", type=int, help="short for --set train.steps=N")
    parser.add_argument("--seed", type=int, help="short for --set train.seed=N")
    parser.add_argument(
        "--name",
        help="the run's name and folder under CUTSLOTS_HOME/runs; default SOURCE-PRESET-SIGNATURE",
    )
    parser.add_argument("--experiment", help="the MLflow experiment; default SOURCE")
    parser.add_argument(
        "--device", help="cpu, cuda, cuda:1...; default the first GPU, else the CPU"
    )
    parser.add_argument(
        "--resume",
        nargs="?",
        const="",
        metavar="RUN",
        help="continue this run if it was begun; with RUN, that run with its own settings",
    )
    parser.add_argument(
        "--debug",
        action="store_true",
        help="no data threads, no live bar, anomaly detection, tracebacks in full",
    )


def run(chosen: argparse.Namespace) -> None:
    """Train, or go on with, one run; print where it is and how good."""
    from cutslots.data import Manifest, local
    from cutslots.runs.lookup import finished, runs_dir, stored_run
    from cutslots.runs.provenance import ABOUT
    from cutslots.runs.train import train_run
    from cutslots.train.config import preset, run_hash

    if chosen.resume:
        run_dir, config, about = stored_run(chosen.resume)
        data, experiment = place(chosen.data or about["data"]), about["experiment"]
        if chosen.preset or chosen.name or chosen.experiment:
            raise InputError(
                "--resume RUN takes RUN's own settings; leave out --preset, --name and --experiment."
            )
    else:
        config = preset(chosen.preset or "small")
        data, experiment, run_dir = _data(chosen), chosen.experiment or chosen.source, None
    for assignment in [
        *chosen.sets,
        *_short("train.steps", chosen.steps),
        *_short("train.seed", chosen.seed),
    ]:
        config = options.override(config, assignment)
    options.check(config)
    manifest = Manifest.load(local(data))
    if manifest.source != chosen.source:
        raise InputError(
            f"{data} holds {manifest.source}, not {chosen.source}. Run: cutslots train {manifest.source} --data {data}"
        )
    if run_dir is None:
        if chosen.name and (Path(chosen.name).name != chosen.name or chosen.name.startswith(".")):
            raise InputError(
                f"--name is {chosen.name!r}; give the name of a folder, without / and not beginning with a dot."
            )
        name = (
            chosen.name
            or f"{chosen.source}-{chosen.preset or 'small'}-{run_hash(config, manifest.digest)}"
        )
        run_dir = runs_dir() / name
    best = finished(run_dir, config, manifest.digest)
    if best:
        print(
            f"run {run_dir.name} is finished already, in {run_dir}; --name or --seed makes another"
        )
    else:
        resume = chosen.resume is not None
        try:
            best = train_run(
                config,
                data,
                run_dir,
                experiment=experiment,
                device=chosen.device,
                resume=resume,
                debug=chosen.debug,
            ).best
        except KeyboardInterrupt:
            if (run_dir / ABOUT).is_file():
                print(
                    f"go on: cutslots train {manifest.source} --resume {shlex.quote(run_dir.name)}",
                    file=sys.stderr,
                )
            raise
    metric = config.train.best_metric
    print(f"best {metric} {best[metric]:.4f} at step {best['step']:.0f} of {config.train.steps}")
    evaluate = shlex.join(["cutslots", "evaluate", run_dir.name, "--data", str(data)])
    print(f"evaluate it: {evaluate}      look at it: cutslots ui")


def _short(path: str, value: int | None) -> list[str]:
    return [] if value is None else [f"{path}={value}"]


def _data(chosen: argparse.Namespace) -> Path | str:
    from cutslots.data import sources
    from cutslots.sweep.prepare import prepare

    if chosen.data:
        return place(chosen.data)
    source = sources.load(chosen.source)
    default = home() / "data" / chosen.source
    if not source.NEEDS_RAW and not (default / "manifest.json").exists():
        with Counting("scenes") as progress:
            prepare(chosen.source, None, default, progress=progress)
    if not default.exists():
        raise InputError(
            f"--data is missing. Prepare the set first: cutslots prepare {chosen.source} RAW {default}"
        )
    return default
