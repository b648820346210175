"""Import a checkpoint of the model published with the paper."""

import json
import shlex
from pathlib import Path

import click

from cutslots.errors import InputError


@click.command
@click.argument("checkpoint", type=click.Path(dir_okay=False, path_type=Path))
@click.argument("name")
def command(checkpoint: Path, name: str) -> None:
    """Import a checkpoint of the published ClevrTex model as the run NAME.

    CHECKPOINT is a torch or Lightning file of https://github.com/alpz/graph-ocl. evaluate, predict,
    export and the registry take the run like one that was trained here.
    """
    from cutslots import __version__, options
    from cutslots.files import write_text
    from cutslots.runs.lookup import new_run_dir
    from cutslots.runs.mlflow_callback import DELIVERY_SECONDS, log_model
    from cutslots.runs.provenance import ABOUT
    from cutslots.tracking import RunLog
    from cutslots.train import preset
    from cutslots.train.checkpoint import CHECKPOINTS, CONFIG, mark_best, path_of, save
    from cutslots.train.config import run_hash, to_json
    from cutslots.train.published import PRESET, load_published, read_published

    run_dir, config, source = new_run_dir(name), preset(PRESET), "clevrtex"
    if (run_dir / CONFIG).exists():
        raise InputError(f"the run {run_dir} exists. Give another name.")
    state_dict, step = read_published(checkpoint)
    model = load_published(state_dict)
    # The data that it was trained on are unknown: `train --resume` refuses them by this digest.
    digest = "published"
    signature = run_hash(config, digest)
    path = path_of(run_dir / CHECKPOINTS, step)
    state = {"config": to_json(config), "signature": signature, "data_digest": digest, "step": step}
    save(path, {**state, "model": model.state_dict(), "best": {}}, keep_last=1)
    mark_best(path)
    about = {"source": source, "set": source, "data": source, "experiment": source}
    write_text(run_dir / ABOUT, json.dumps(about, indent=2) + "\n")
    write_text(run_dir / CONFIG, to_json(config))

    log = RunLog(run_dir, experiment=source, run_name=name)
    count = sum(parameter.numel() for parameter in model.parameters())
    log.params({**options.flat(config), "num_parameters": count})
    log.tags(
        {
            "dataset": source,
            "set": source,
            "data_digest": digest,
            "model": config.model_name,
            "signature": signature,
            "cutslots.version": __version__,
            "checkpoints": run_dir / CHECKPOINTS,
            "imported": checkpoint.resolve(),
            "state": "finished",
        }
    )
    log.artifact(run_dir / CONFIG)
    log_model(log, run_dir)
    log.close("FINISHED", DELIVERY_SECONDS)
    click.echo(f"imported {count:,} parameters of step {step:,}: {run_dir}")
    click.echo(f"evaluate it: {shlex.join(['cutslots', 'evaluate', name, '--data', source])}")
