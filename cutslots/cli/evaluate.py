"""score a trained model on one or several sets

Score a trained model on one or several sets, in one table. A set is a folder, its name in CUTSLOTS_HOME/data, or a URI.
"""

import argparse
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cutslots.cli._counting import Counting
from cutslots.cli._places import place
from cutslots.errors import InputError
from cutslots.files import write_text

if TYPE_CHECKING:
    from cutslots.data import Batches, Manifest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which model, on what, and what to write."""
    parser.add_argument(
        "model",
        metavar="RUN_OR_CHECKPOINT",
        help="a run's name or folder (its best checkpoint), a checkpoint, an exported folder, an MLflow run id, or "
        "models:/NAME@champion",
    )
    parser.add_argument(
        "--data",
        metavar="DIR",
        action="append",
        required=True,
        help="a prepared dataset; repeatable",
    )
    parser.add_argument(
        "--split",
        help="which split of each; default test, where there is none the only one but train",
    )
    parser.add_argument(
        "--by",
        metavar="KEY",
        action="append",
        default=[],
        help="also the IoU of objects by this key of their metadata, such as material, shape or size; repeatable",
    )
    parser.add_argument(
        "--images",
        type=int,
        help="at most this many images of each; of clips rounded up to whole ones",
    )
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--device", help="cpu, cuda, ...; default the first GPU, else the CPU")
    parser.add_argument(
        "--figure",
        metavar="PNG",
        help="draw images with their masks to this file, clips to a .gif; of several sets one file each",
    )
    parser.add_argument("--table", metavar="FILE", help="write the table to this file, as markdown")
    parser.add_argument("--json", metavar="FILE", help="write all of it to this file")


@dataclass
class _Set:
    """A set to be scored.

    Attributes:
        name: of the set, unique among those of this call.
        notes: what the table has to say of it.
        by: the keys of metadata to break down by.
    """

    name: str
    batches: "Batches"
    notes: list[str]
    by: list[str] = field(default_factory=list)


def run(chosen: argparse.Namespace) -> None:
    """Print the table, write what was asked for, and log the scores to the run they belong to."""
    from cutslots.files import git_commit
    from cutslots.report.evaluation import scores_table
    from cutslots.runs.lookup import find_model
    from cutslots.runs.provenance import origin
    from cutslots.train import load_model
    from cutslots.train.inputs import image_size, pick_device

    _check_arguments(chosen)
    device = pick_device(chosen.device)
    path = find_model(chosen.model)
    model, known = load_model(path, device), origin(path)
    found = {
        "model": chosen.model,
        **{name: known[name] for name in ("signature", "step", "data_digest") if name in known},
        "trained_on": known.get("trained_on"),
        "commit": git_commit(Path(__file__).parent),
        "architecture": type(model).__module__.rpartition(".")[2],
        "image_size": image_size(model),
    }
    # What can be refused is refused here, before the first set has taken its time.
    sets = _open(chosen, model)
    found["sets"] = [
        _score(chosen, path, model, device, each, found, alone=len(sets) == 1) for each in sets
    ]
    table = scores_table(found)
    print(table, end="")
    if chosen.table:
        write_text(Path(chosen.table), table)
    if chosen.json:
        write_text(Path(chosen.json), json.dumps(found, indent=2) + "\n")


def _check_arguments(chosen: argparse.Namespace) -> None:
    """What can be refused before anything is loaded."""
    if chosen.images is not None and chosen.images < 1:
        raise InputError(
            f"--images is {chosen.images}; give at least 1, or leave it out for all images."
        )
    if chosen.batch_size < 1:
        raise InputError(f"--batch-size is {chosen.batch_size}; give at least 1.")
    for option in ("figure", "table", "json"):
        path = getattr(chosen, option)
        if path is not None and Path(path).is_dir():
            raise InputError(f"--{option} {path} is a folder. Give the name of a file.")
    if chosen.figure and Path(chosen.figure).suffix.lower() not in (".png", ".gif"):
        raise InputError(
            f"--figure {chosen.figure}: give a name that ends in .png, or for clips in .gif."
        )


def _score(
    chosen: argparse.Namespace,
    path: Path,
    model: Any,
    device: Any,
    each: _Set,
    about: dict[str, Any],
    alone: bool,
) -> dict[str, Any]:
    """Score the model on one set, log that, and draw it if that was asked for."""
    from cutslots.report.evaluation import published
    from cutslots.report.figures import clip_animation, sample_figure
    from cutslots.runs.provenance import log_scores
    from cutslots.train import evaluate
    from cutslots.train.breakdown import Breakdown
    from cutslots.train.evaluate import tiles_scores
    from cutslots.train.video import Clips

    batches, manifest, split = each.batches, each.batches.manifest, each.batches.split
    breakdown = Breakdown(batches, each.by) if each.by else None
    total = batches.num_scenes * (batches.num_frames or 1)
    limit = min(total, chosen.images or total)
    with Counting("images") as progress:
        scores, sample = evaluate(
            model,
            batches,
            device,
            chosen.images,
            lambda done: progress(f"{each.name} {split}", done, limit),
            breakdown,
        )
    count = int(scores["num_images"])
    log_scores(path, each.name, split, scores, partial=count < total)
    notes = (
        [*each.notes, f"The first {count:,} of its {total:,} images"]
        if count < total
        else each.notes
    )
    if chosen.figure:
        figure = Path(chosen.figure)
        figure = figure if alone else figure.with_stem(f"{figure.stem}-{each.name}")
        if isinstance(sample, Clips):
            clip_animation(sample, figure.with_suffix(".gif"))
        else:
            sample_figure(sample, figure)
    return {
        "name": each.name,
        "source": manifest.source,
        "digest": manifest.digest,
        "split": split,
        "stored_size": manifest.image_size,
        "notes": notes,
        "scores": scores,
        "tiles": tiles_scores(batches, model.config.num_slots, about["image_size"], chosen.images),
        "objects": breakdown.means() if breakdown else None,
        "by": breakdown.groups() if breakdown else {},
        "published": published(manifest, split, count, about["image_size"], about["trained_on"]),
    }


def _open(chosen: argparse.Namespace, model: Any) -> list[_Set]:
    """The sets, every one fit for the model."""
    from cutslots.data import Batches, Manifest, local
    from cutslots.data.sources import naming
    from cutslots.report.evaluation import set_name
    from cutslots.train.inputs import check_data

    sets = []
    for where in chosen.data:
        folder = local(place(where))
        manifest = Manifest.load(folder)
        with naming(where):
            split, notes = _split(manifest, chosen.split)
            batches = Batches(folder, split, chosen.batch_size, shuffle=False, drop_last=False)
            check_data(model, batches)
        sets.append(_Set(set_name(manifest), batches, notes))
    _tell_apart(sets)
    _choose_keys(sets, list(dict.fromkeys(chosen.by)))
    return sets


def _split(manifest: "Manifest", asked: str | None) -> tuple[str, list[str]]:
    """The split to score, and a note where it is not the usual one."""
    there = list(manifest.splits)
    if asked:
        if asked not in there:
            raise InputError(f"there is no split {asked!r}. It has: {', '.join(there)}.")
        return asked, []
    if "test" in there:
        return "test", []
    others = [name for name in there if name != "train"]
    if len(others) != 1:
        raise InputError(
            f"there is no split 'test'. Choose with --split one of: {', '.join(there)}."
        )
    return others[0], [f"It has no test split; {others[0]} is the only one for evaluation"]


def _tell_apart(sets: list[_Set]) -> None:
    """Put the digests behind names that several sets have."""
    digests = [each.batches.manifest.digest for each in sets]
    twice = next(
        (each for each, digest in zip(sets, digests, strict=True) if digests.count(digest) > 1),
        None,
    )
    if twice:
        raise InputError(
            f"--data names {twice.name}, digest {twice.batches.manifest.digest}, more than once. Give every set once."
        )
    names = [each.name for each in sets]
    for each, digest in zip(sets, digests, strict=True):
        if names.count(each.name) > 1:
            each.name = f"{each.name}-{digest}"


def _choose_keys(sets: list[_Set], asked: list[str]) -> None:
    """Give every set those keys of metadata that were asked for and that it has."""
    from cutslots.train.breakdown import keys

    known: dict[str, None] = {}
    for each in sets if asked else []:
        if each.batches.num_frames:
            each.notes.append("Objects of clips are not broken down")
            continue
        there = keys(each.batches)
        known |= dict.fromkeys(there)
        each.by = [key for key in asked if key in there]
        each.notes += [f"Its metadata have no {key}" for key in asked if key not in there]
    unknown = [key for key in asked if key not in known]
    if unknown:
        have = f"Known: {', '.join(known)}." if known else "They have none; leave out --by."
        raise InputError(
            f"--by {unknown[0]}: there is no such key in the metadata of the sets. {have}"
        )
