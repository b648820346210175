"""Train one model in this process."""

import io
import shlex
from pathlib import Path
from typing import Any

import click

from cutslots import options
from cutslots.cli.common import dataset_path, device_option, progress_bar
from cutslots.errors import InputError
from cutslots.files import home


class _Train(click.Command):
    """Its help ends with every option of every preset."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        from rich.console import Console

        from cutslots.report.tables import Table
        from cutslots.train.config import PRESETS, preset

        by_model: dict[str, dict[str, Any]] = {}
        for name in PRESETS:
            by_model.setdefault(preset(name).model_name, {})[name] = preset(name)
        console = Console(width=1000, file=io.StringIO(), soft_wrap=True)
        formatter.write("\nOptions for --set, by their full path or any unambiguous suffix:\n")
        for model, presets in by_model.items():
            values = [options.flat(config) for config in presets.values()]
            rows = []
            for option in options.describe(next(iter(presets.values()))):
                kind = ", ".join(filter(None, (options.type_name(option.type), option.range)))
                texts = [options.text(value[option.path]) for value in values]
                rows.append([option.path, *texts, f"{option.help} ({kind})"])
            with console.capture() as capture:
                console.print(Table([model, *presets, ""], rows).rich())
            lines = [line.rstrip() for line in capture.get().splitlines()]
            formatter.write("\n".join(["", *lines, ""]))


@click.command(cls=_Train)
@click.argument("source", metavar="SOURCE")
@click.option(
    "--data", metavar="DIR", help="folder, name in CUTSLOTS_HOME/data, or URI of a dataset"
)
@click.option("--preset", help="starting configuration, see `cutslots presets` (default: small)")
@click.option("--set", "assignments", metavar="NAME=VALUE", multiple=True, help="set an option")
@click.option("--steps", type=int, help="shorthand for --set train.steps=N")
@click.option("--seed", type=int, help="shorthand for --set train.seed=N")
@click.option("--name", help="run and its folder in CUTSLOTS_HOME/runs (default: with a hash)")
@click.option("--experiment", help="MLflow experiment (default: SOURCE)")
@device_option
@click.option(
    "--resume",
    is_flag=False,
    flag_value="",
    metavar="[RUN]",
    help="resume this run if it exists; with RUN, resume that run with its own options",
)
@click.option("--debug", is_flag=True, help="no data threads, no bar, anomalies and tracebacks")
def command(
    source: str,
    data: str | None,
    preset: str | None,
    assignments: tuple[str, ...],
    steps: int | None,
    seed: int | None,
    name: str | None,
    experiment: str | None,
    device: str | None,
    resume: str | None,
    debug: bool,
) -> None:
    """Train one model in this process, without Ray: breakpoints work.

    Metrics, figures and the model go to MLflow. SOURCE is a dataset source such as scenes, clevr,
    clevrtex or movi_a (`cutslots prepare --help` lists them). The default dataset is
    CUTSLOTS_HOME/data/SOURCE; the built-in `scenes` are generated if missing.
    """
    from cutslots.data import Manifest, local, prepare, sources
    from cutslots.runs.lookup import finished, new_run_dir, stored_run
    from cutslots.runs.provenance import ABOUT
    from cutslots.runs.train import train_run
    from cutslots.train.config import preset as load_preset
    from cutslots.train.config import run_hash

    run_dir: Path | None = None
    experiment_name = experiment or source
    if resume:
        if preset or name or experiment:
            raise InputError(
                "--resume RUN uses the options of RUN. Leave out --preset, --name, --experiment."
            )
        run_dir, config, about = stored_run(resume)
        path, experiment_name = dataset_path(data or about["data"]), about["experiment"]
    else:
        config = load_preset(preset or "small")
        path = dataset_path(data) if data else home() / "data" / source
        generated = not (data or sources.load(source).NEEDS_RAW)
        if generated and not Path(path, "manifest.json").exists():
            with progress_bar("scenes") as update:
                prepare(source, None, path, progress=update)
    changes = list(assignments)
    changes += [] if steps is None else [f"train.steps={steps}"]
    changes += [] if seed is None else [f"train.seed={seed}"]
    for assignment in changes:
        config = options.override(config, assignment)
    options.check(config)
    manifest = Manifest.load(local(path))
    if manifest.source != source:
        raise InputError(
            f"SOURCE must be {manifest.source}, the source of {path}, got {source}. "
            f"Run: cutslots train {manifest.source} --data {path}"
        )
    if run_dir is None:
        digest = run_hash(config, manifest.digest)
        run_dir = new_run_dir(name or f"{source}-{preset or 'small'}-{digest}", "--name")
    best = finished(run_dir, config, manifest.digest)
    color = getattr(config.model, "color", None)
    if color and config.train.steps < (needed := color.steps + color.ramp):
        click.echo(
            f"train.steps ({config.train.steps:,}) is less than color.steps + color.ramp "
            f"({needed:,}): the slots will lack detail. Train longer, or set both to 0.",
            err=True,
        )
    if best:
        click.echo(
            f"run {run_dir.name} is already finished: {run_dir}. --name or --seed starts another."
        )
    else:
        try:
            best = train_run(
                config,
                path,
                run_dir,
                experiment=experiment_name,
                device=device,
                resume=resume is not None,
                debug=debug,
            ).best
        except KeyboardInterrupt:
            if (run_dir / ABOUT).is_file():
                again = shlex.join(["cutslots", "train", source, "--resume", run_dir.name])
                click.echo(f"resume: {again}", err=True)
            raise
    metric = config.train.best_metric
    click.echo(
        f"best {metric} {best[metric]:.4f} at step {best['step']:.0f} of {config.train.steps}"
    )
    evaluate = shlex.join(["cutslots", "evaluate", run_dir.name, "--data", str(path)])
    click.echo(f"evaluate it: {evaluate}      look at it: cutslots ui")
