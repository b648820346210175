"""Score a trained model."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import click

from cutslots.cli.common import (
    MODEL,
    POSITIVE,
    batch_size_option,
    dataset_path,
    device_option,
    progress_bar,
)
from cutslots.errors import InputError
from cutslots.files import git_commit, write_text

FILE = click.Path(dir_okay=False, path_type=Path)


@click.command(help=f"""Score a trained model on one or several datasets, in one table.

MODEL is {MODEL}. A dataset is a folder, its name in CUTSLOTS_HOME/data, or a URI. With several
datasets, each gets its own figure. Scores on a whole split go to the model's run in MLflow.
""")  # fmt: skip
@click.argument("model", metavar="MODEL")
@click.option("--data", metavar="DIR", multiple=True, required=True, help="dataset; repeatable")
@click.option("--split", help="split to evaluate (default: test, else the only non-training split)")
@click.option("--by", metavar="KEY", multiple=True, help="object IoU by metadata key; repeatable")
@click.option("--images", type=POSITIVE, help="score at most this many images each")
@batch_size_option
@device_option
@click.option("--figure", type=FILE, help="draw images and masks (.png), clips as .gif")
@click.option("--table", type=FILE, help="write the table as Markdown")
@click.option("--json", "json_file", type=FILE, help="write everything as JSON")
def command(
    model: str,
    data: tuple[str, ...],
    split: str | None,
    by: tuple[str, ...],
    images: int | None,
    batch_size: int,
    device: str | None,
    figure: Path | None,
    table: Path | None,
    json_file: Path | None,
) -> None:
    from cutslots.data import Batches, Manifest, dataset_name, local
    from cutslots.data.sources import naming
    from cutslots.report.evaluation import published, scores_table
    from cutslots.report.figures import clip_animation, sample_figure
    from cutslots.runs.lookup import find_model
    from cutslots.runs.provenance import log_scores, origin
    from cutslots.train import evaluate, load_model
    from cutslots.train.breakdown import Breakdown, keys
    from cutslots.train.evaluate import tiles_scores
    from cutslots.train.inputs import check_data, image_size, pick_device
    from cutslots.train.video import Clips

    if figure and figure.suffix.lower() not in (".png", ".gif"):
        raise InputError(f"--figure must end in .png, or .gif for clips, got {figure}.")
    chosen_device = pick_device(device)
    path = find_model(model)
    trained: Any = load_model(path, chosen_device)
    about = origin(path)
    size = image_size(trained)

    # Refuse all bad input before the first dataset takes its time.
    opened: dict[str, Batches] = {}  # by digest
    for name in data:
        folder = local(dataset_path(name))
        with naming(name):
            manifest = Manifest.load(folder)
            chosen_split = _split(list(manifest.splits), split)
            batches = Batches(folder, chosen_split, batch_size, shuffle=False, drop_last=False)
            check_data(trained, batches)
        if manifest.digest in opened:
            raise InputError(f"--data has {name} twice (digest {manifest.digest}). Give it once.")
        opened[manifest.digest] = batches
    by = tuple(dict.fromkeys(by))
    groups = {digest: list[str]() for digest in opened}
    if by:
        groups = {d: [] if b.num_frames else keys(b) for d, b in opened.items()}
        names = sorted({key for available in groups.values() for key in available})
        for key in by:
            if key not in names:
                options = ", ".join(names) or "left out: the objects have no metadata"
                raise InputError(f"--by must be one of {options}, got {key!r}.")

    rows = []
    names = [dataset_name(batches.manifest) for batches in opened.values()]
    for base_name, (digest, batches) in zip(names, opened.items(), strict=True):
        manifest, used_split = batches.manifest, batches.split
        name = base_name if names.count(base_name) == 1 else f"{base_name}-{digest}"
        group_by = [key for key in by if key in groups[digest]]
        breakdown = Breakdown(batches, group_by) if group_by else None
        total = batches.num_scenes * (batches.num_frames or 1)
        with progress_bar("images") as update:
            on_batch = partial(update, f"{name} {used_split}", total=min(total, images or total))
            scores, sample = evaluate(trained, batches, chosen_device, images, on_batch, breakdown)
        count = int(scores["num_images"])
        if count == total:
            log_scores(path, name, used_split, scores)
        notes = []
        if split is None and used_split != "test":
            notes.append(f"It has no test split; {used_split} is its only evaluation split")
        if by and batches.num_frames:
            notes.append("Objects of clips are not grouped")
        elif by:
            notes += [f"Its metadata have no {key}" for key in by if key not in group_by]
        if count < total:
            notes.append(f"The first {count:,} of its {total:,} images")
        if figure:
            file = figure if len(names) == 1 else figure.with_stem(f"{figure.stem}-{name}")
            if isinstance(sample, Clips):
                clip_animation(sample, file.with_suffix(".gif"))
            else:
                sample_figure(sample, file)
        trained_on = about.get("trained_on")
        rows.append(
            {
                "name": name,
                "source": manifest.source,
                "digest": digest,
                "split": used_split,
                "stored_size": manifest.image_size,
                "notes": notes,
                "scores": scores,
                "tiles": tiles_scores(batches, trained.config.num_slots, size, images),
                "objects": breakdown.means() if breakdown else None,
                "by": breakdown.groups() if breakdown else {},
                "published": published(manifest, used_split, count, size, trained_on),
            }
        )
    result: dict[str, Any] = {
        "model": model,
        **{name: about[name] for name in ("signature", "step", "data_digest") if name in about},
        "trained_on": about.get("trained_on"),
        "commit": git_commit(Path(__file__).parent),
        "architecture": type(trained).__module__.rpartition(".")[2],
        "image_size": size,
        "sets": rows,
    }
    text = scores_table(result)
    click.echo(text, nl=False)
    if table:
        write_text(table, text)
    if json_file:
        write_text(json_file, json.dumps(result, indent=2) + "\n")


def _split(splits: list[str], wanted: str | None) -> str:
    """The wanted split; by default test, or else the only one that is not for training."""
    others = [name for name in splits if name != "train"]
    default = others[0] if len(others) == 1 else "test"
    name = wanted or ("test" if "test" in splits else default)
    if name not in splits:
        got = wanted or "none (no test split)"
        raise InputError(f"--split must be one of {', '.join(splits)}, got {got!r}.")
    return name
