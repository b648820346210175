"""masks and overlays for your own pictures

Takes PNG and JPEG files of any size, and folders with everything below them. Of each picture, upright, the model sees the middle
square, resized to its own size; what is transparent stands on white. OUT gets masks/NAME.png (palette images of the model's size,
whose pixels are slot numbers), overlays/NAME.png (picture, masks over it, reconstruction) and predictions.json (the slots there,
how large, and where in the picture). Run again, it does what is missing. A model of video takes the pictures of each folder, in
natural order, as the frames of one clip; slot numbers are identities over all of it.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cutslots.cli._counting import Counting
from cutslots.errors import InputError

if TYPE_CHECKING:
    from cutslots.cli._pictures import Picture
    from cutslots.cli._predictions import Predictions

THREADS = 4  # that read and write pictures


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which model, on what, and where to."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a run's name or folder, a checkpoint, an exported folder, an MLflow run id, or models:/NAME@champion",
    )
    parser.add_argument(
        "images", metavar="IMAGES", nargs="+", help="PNG and JPEG files, and folders of them"
    )
    parser.add_argument("--out", metavar="OUT", required=True, help="the folder for the results")
    parser.add_argument(
        "--overwrite", action="store_true", help="do all of it anew, whatever is there"
    )
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--device", help="cpu, cuda, ...; default the first GPU, else the CPU")


def run(chosen: argparse.Namespace) -> None:
    """Write what is missing, and say how much that was."""
    from cutslots.cli._pictures import find
    from cutslots.cli._predictions import Predictions
    from cutslots.runs.lookup import find_model
    from cutslots.train import load_model
    from cutslots.train.inputs import is_video, pick_device

    if chosen.batch_size < 1:
        raise InputError(f"--batch-size is {chosen.batch_size}; give at least 1.")
    device, out = pick_device(chosen.device), Path(chosen.out)
    path = find_model(chosen.model)
    model = load_model(path, device)
    found = find(chosen.images, out)
    if found.others:
        names = ", ".join(other.name for other in found.others[:3])
        print(
            f"left aside, being no PNG or JPEG: {len(found.others)}, such as {names}",
            file=sys.stderr,
        )
    predictions = Predictions(out, _about(chosen.model, path, model), chosen.overwrite)
    groups = (
        _clips(found.pictures) if is_video(model) else [[picture] for picture in found.pictures]
    )
    missing = [group for group in groups if not all(predictions.has(picture) for picture in group)]
    batches = (
        missing
        if is_video(model)
        else _batches([picture for group in missing for picture in group], chosen.batch_size)
    )
    count = sum(map(len, missing))
    with Counting("pictures") as progress, ThreadPoolExecutor(THREADS) as threads:
        done = 0
        try:
            for batch in batches:
                _predict(model, batch, chosen.batch_size, predictions, threads)
                done += len(batch)
                progress("predicting", done, count)
                predictions.save(now=False)
        finally:
            if done:
                predictions.save()
    there = len(found.pictures) - count
    print(
        f"{count} picture{'s' * (count != 1)} predicted"
        + (f", {there} were there already" if there else "")
        + f": {out}"
    )


def _about(reference: str, path: Path, model: Any) -> dict[str, Any]:
    from cutslots.runs.provenance import origin
    from cutslots.train.export import weights_digest
    from cutslots.train.inputs import image_size

    known = {name: value for name, value in origin(path).items() if name != "scores"}
    return {
        "reference": reference,
        "weights": weights_digest(model),
        "image_size": image_size(model),
        **known,
    }


def _clips(pictures: Sequence["Picture"]) -> list[list["Picture"]]:
    clips: dict[tuple[str, Path], list[Picture]] = {}
    for picture in pictures:
        clips.setdefault((picture.clip, picture.path.parent), []).append(picture)
    return list(clips.values())


def _batches(pictures: list["Picture"], size: int) -> Iterator[list["Picture"]]:
    for start in range(0, len(pictures), size):
        yield pictures[start : start + size]


def _predict(
    model: Any,
    pictures: Sequence["Picture"],
    batch_size: int,
    predictions: "Predictions",
    threads: ThreadPoolExecutor,
) -> None:
    """Read, predict and write some pictures."""
    from cutslots.cli._pictures import load
    from cutslots.report.figures import tile_side
    from cutslots.train import predict
    from cutslots.train.inputs import image_size

    size = image_size(model)
    squares = list(threads.map(lambda picture: load(picture, size, tile_side(size)), pictures))
    found = predict(model, np.stack([square.pixels for square in squares]), batch_size)
    list(
        threads.map(predictions.write, pictures, squares, found["masks"], found["reconstructions"])
    )
