"""Score a trained model."""

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cutslots.cli.common import (
    MODEL,
    batch_size_option,
    dataset_path,
    device_option,
    progress_bar,
)
from cutslots.errors import InputError
from cutslots.files import write_text

if TYPE_CHECKING:
    from cutslots.data import Batches, Manifest

FILE = click.Path(dir_okay=False, path_type=Path)


@click.command(help=f"""Score a trained model on one or several datasets, in one table.

MODEL is {MODEL}. A dataset is a folder, its name in CUTSLOTS_HOME/data, or a URI. Scores on a whole
split are logged to the model's run in MLflow.
""")  # fmt: skip
@click.argument("model", metavar="MODEL")
@click.option(
    "--data", metavar="DIR", multiple=True, required=True, help="prepared dataset; repeatable"
)
@click.option("--split", help="split to evaluate (default: test, else the only non-training split)")
@click.option(
    "--by",
    metavar="KEY",
    multiple=True,
    help="also object IoU grouped by this metadata key, such as material; repeatable",
)
@click.option("--images", type=click.IntRange(min=1), help="score at most this many images each")
@batch_size_option
@device_option
@click.option(
    "--figure",
    type=FILE,
    help="draw images with their masks (.png), clips as .gif; with several datasets one file each",
)
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
    from cutslots.files import git_commit
    from cutslots.report.evaluation import published, scores_table
    from cutslots.report.figures import clip_animation, sample_figure
    from cutslots.runs.lookup import find_model
    from cutslots.runs.provenance import log_scores, origin
    from cutslots.train import evaluate, load_model
    from cutslots.train.breakdown import Breakdown
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
    opened: list[tuple[Batches, list[str]]] = []
    for name in data:
        folder = local(dataset_path(name))
        with naming(name):
            chosen_split, notes = _split(Manifest.load(folder), split)
            batches = Batches(folder, chosen_split, batch_size, shuffle=False, drop_last=False)
            check_data(trained, batches)
        opened.append((batches, notes))
    names = _unique_names([(dataset_name(b.manifest), b.manifest.digest) for b, _ in opened])
    keys = _available_keys(opened, list(dict.fromkeys(by)))

    rows = []
    for name, (batches, notes), group_by in zip(names, opened, keys, strict=True):
        manifest = batches.manifest
        breakdown = Breakdown(batches, group_by) if group_by else None
        total = batches.num_scenes * (batches.num_frames or 1)
        label, limit = f"{name} {batches.split}", min(total, images or total)
        with progress_bar("images") as update:
            on_batch = partial(update, label, total=limit)
            scores, sample = evaluate(
                trained,
                batches,
                chosen_device,
                images,
                lambda done, report=on_batch: report(done=done),
                breakdown,
            )
        count = int(scores["num_images"])
        if count == total:
            log_scores(path, name, batches.split, scores)
        else:
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
                "digest": manifest.digest,
                "split": batches.split,
                "stored_size": manifest.image_size,
                "notes": notes,
                "scores": scores,
                "tiles": tiles_scores(batches, trained.config.num_slots, size, images),
                "objects": breakdown.means() if breakdown else None,
                "by": breakdown.groups() if breakdown else {},
                "published": published(manifest, batches.split, count, size, trained_on),
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


def _split(manifest: "Manifest", wanted: str | None) -> tuple[str, list[str]]:
    """The split to score, and a note if it is not the usual one."""
    splits = list(manifest.splits)
    if wanted in splits:
        return wanted, []
    if wanted is None and "test" in splits:
        return "test", []
    others = [name for name in splits if name != "train"]
    if wanted is None and len(others) == 1:
        return others[0], [f"It has no test split; {others[0]} is its only evaluation split"]
    raise InputError(
        f"--split must be one of {', '.join(splits)}, got {wanted or 'none (no test split)'!r}."
    )


def _unique_names(datasets: list[tuple[str, str]]) -> list[str]:
    """Names of datasets, with their digests if several have the same name."""
    digests = [digest for _, digest in datasets]
    for name, digest in datasets:
        if digests.count(digest) > 1:
            raise InputError(f"--data names {name} (digest {digest}) twice. Give it once.")
    names = [name for name, _ in datasets]
    return [n if names.count(n) == 1 else f"{n}-{digest}" for n, digest in datasets]


def _available_keys(
    opened: "list[tuple[Batches, list[str]]]", wanted: list[str]
) -> list[list[str]]:
    """The wanted metadata keys that each dataset has; adds a note where it lacks one."""
    from cutslots.train.breakdown import keys

    if not wanted:
        return [[] for _ in opened]
    available = [[] if batches.num_frames else list(keys(batches)) for batches, _ in opened]
    names = list(dict.fromkeys(key for keys_of_one in available for key in keys_of_one))
    unknown = [key for key in wanted if key not in names]
    if unknown:
        have = f"one of {', '.join(names)}" if names else "left out: the objects have no metadata"
        raise InputError(f"--by must be {have}, got {unknown[0]!r}.")
    for (batches, notes), names in zip(opened, available, strict=True):
        if batches.num_frames:
            notes.append("Objects of clips are not grouped")
        else:
            notes += [f"Its metadata have no {key}" for key in wanted if key not in names]
    return [[key for key in wanted if key in names] for names in available]
