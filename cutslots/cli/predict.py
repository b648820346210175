"""Segment your own images."""

import json
import os
import re
import struct
import time
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
from PIL import Image, ImageOps

from cutslots.cli.common import (
    MODEL,
    batch_size_option,
    device_option,
    overwrite_option,
    progress_bar,
)
from cutslots.errors import InputError, listed
from cutslots.files import atomic, write_text

EXISTING = click.Path(exists=True, path_type=Path)
FOLDER = click.Path(file_okay=False, path_type=Path)
LIST = "predictions.json"
SAVE_SECONDS = 5.0
THREADS = 4  # for reading and writing images
DAMAGED = (OSError, SyntaxError, ValueError, struct.error, zlib.error)  # errors of Pillow
SUFFIXES = (".png", ".jpg", ".jpeg")


@click.command(help=f"""Write masks and overlays for your own images.

MODEL is {MODEL}. IMAGES are PNG and JPEG files, and folders of them.

Each image is rotated upright, center-cropped and resized to the model's input size; transparency
becomes white. OUT gets masks/NAME.png (palette images whose pixels are slot numbers),
overlays/NAME.png (image, masks over it, reconstruction) and predictions.json (the slots of each
image, their sizes and positions). A second run does what is missing. A video model takes the images
of each folder, in natural order, as the frames of one clip; a slot keeps its number throughout.
""")  # fmt: skip
@click.argument("model", metavar="MODEL")
@click.argument("images", metavar="IMAGES...", nargs=-1, required=True, type=EXISTING)
@click.option("--out", required=True, type=FOLDER, help="folder of the results")
@overwrite_option
@batch_size_option
@device_option
def command(
    model: str,
    images: tuple[Path, ...],
    out: Path,
    overwrite: bool,
    batch_size: int,
    device: str | None,
) -> None:
    from cutslots.report.figures import mask_image, overlay, slots, tile_side
    from cutslots.runs.lookup import find_model
    from cutslots.runs.provenance import origin
    from cutslots.train import load_model, predict
    from cutslots.train.export import weights_digest
    from cutslots.train.inputs import image_size, is_video, pick_device

    chosen_device, path = pick_device(device), find_model(model)
    trained = load_model(path, chosen_device)
    size = image_size(trained)
    weights, about = weights_digest(trained), origin(path)
    about.pop("scores", None)
    about = {"reference": model, "weights": weights, "image_size": size, **about}
    files, skipped = find_images(images, out)
    if skipped:
        names = listed([file.name for file in skipped])
        click.echo(f"skipped {len(skipped)} files that are not PNG or JPEG ({names})", err=True)
    entries = {} if overwrite else _earlier(out / LIST, weights)
    missing = [name for name in files if not _is_predicted(out, entries.get(name), files[name])]
    if is_video(trained):  # a frame that is missing repeats its clip
        clips: dict[Path, list[str]] = {}
        for name, file in files.items():
            clips.setdefault(file.parent, []).append(name)
        batches = [clip for clip in clips.values() if not set(clip).isdisjoint(missing)]
    else:
        batches = [missing[i : i + batch_size] for i in range(0, len(missing), batch_size)]

    def write(name: str, square: Square, labels: np.ndarray, reconstruction: np.ndarray) -> None:
        results = {"mask": f"masks/{name}.png", "overlay": f"overlays/{name}.png"}
        drawn = [mask_image(labels), overlay(square.shown, labels, reconstruction)]
        for file, image in zip(results.values(), drawn, strict=True):
            with atomic(out / file) as temporary:
                image.save(temporary, format="PNG")
        entries[name] = {
            "name": name,
            "image": str(files[name]),
            "size": list(square.size),
            "square": list(square.box),
            **results,
            "slots": slots(labels, square.box),
        }

    count, done, saved = sum(map(len, batches)), 0, time.monotonic()
    with progress_bar("images") as update, ThreadPoolExecutor(THREADS) as threads:
        try:
            for batch in batches:
                paths = [files[name] for name in batch]
                squares = list(threads.map(lambda path: load(path, size, tile_side(size)), paths))
                result = predict(trained, np.stack([s.pixels for s in squares]), batch_size)
                outputs = (result["masks"], result["reconstructions"])
                list(threads.map(write, batch, squares, *outputs))
                done += len(batch)
                update("predicting", done, count)
                if time.monotonic() > saved + SAVE_SECONDS:
                    _save(out / LIST, about, entries)
                    saved = time.monotonic()
        finally:
            if done:
                _save(out / LIST, about, entries)
    earlier = f", {len(files) - count} predicted earlier" if count < len(files) else ""
    click.echo(f"{count} image{'s' * (count != 1)} predicted{earlier}: {out}")


def find_images(paths: Iterable[Path], out: Path) -> tuple[dict[str, Path], list[Path]]:
    """All images among files and folders, and the files in the folders that are not images.

    Returns:
        The images by the names of their results (the path in the given folder, without suffix), in
        natural order; and the other files.

    Raises:
        InputError: a folder has no image, or two images have results of the same name.
    """
    named, skipped = [], []
    for path in paths:
        if not path.is_dir():
            named.append((path.stem, path))
            continue
        results = path / os.path.relpath(out.resolve(), path.resolve())
        inside = [
            file
            for file in path.rglob("*")
            if file.is_file()
            and results not in file.parents
            and not any(part.startswith(".") for part in file.relative_to(path).parts)
        ]
        images = [file for file in inside if file.suffix.lower() in SUFFIXES]
        if not images:
            raise InputError(f"IMAGES: {path} contains no PNG or JPEG files outside --out.")
        named += [(file.relative_to(path).with_suffix("").as_posix(), file) for file in images]
        skipped += sorted(set(inside) - set(images))

    def natural(name: str) -> list[Any]:  # frame_2 before frame_10
        parts = re.split(r"(\d+)", name)
        return [int(part) if index % 2 else part for index, part in enumerate(parts)]

    files: dict[str, Path] = {}
    for name, file in sorted(named, key=lambda image: natural(image[0])):
        other = files.setdefault(name, file)
        if other != file and not other.samefile(file):
            raise InputError(
                f"IMAGES: {other} and {file} would both be written to {name}.png. "
                "Rename one, or run each with its own --out."
            )
    return files, skipped


class Square(NamedTuple):
    """The part of an image that a model sees."""

    pixels: np.ndarray  # for the model, uint8 (size, size, 3)
    shown: np.ndarray  # the same part for overlays, uint8 (tile, tile, 3)
    size: tuple[int, int]  # width and height of the upright image
    box: tuple[int, int, int, int]  # left, top, right, bottom of the part in it


def load(path: Path, size: int, tile: int) -> Square:
    """The center square of an upright image, resized bilinearly as `cutslots prepare` does.

    Raises:
        InputError: the file is damaged, or not a PNG or JPEG image.
    """
    try:
        with Image.open(path, formats=("PNG", "JPEG")) as image:
            turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)  # EXIF orientation
            width, height = reversed(image.size) if turned else image.size
            # JPEGs decode faster at a fraction of their size.
            image.draft(None, (4 * tile, 4 * tile))
            upright = ImageOps.exif_transpose(image)
    except (*DAMAGED, Image.DecompressionBombError) as error:
        raise InputError(
            f"IMAGES: {path} is not a readable PNG or JPEG image ({error}). "
            "Repair it or leave it out."
        ) from None
    if upright.mode.startswith("I"):  # 16-bit grey, which Pillow would clip
        grey = (np.asarray(upright).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
        upright = Image.fromarray(grey)
    elif "A" in upright.mode or "transparency" in upright.info:
        upright = upright.convert("RGBA")
        white = Image.new("RGBA", upright.size, "white")
        upright = Image.alpha_composite(white, upright)
    square = upright.convert("RGB").crop(_center(*upright.size))
    box = _center(width, height)
    # Nearest keeps the pixels of small images visible, as the masks have them.
    large = 2 * (box[2] - box[0]) > tile
    resample = Image.Resampling.BILINEAR if large else Image.Resampling.NEAREST
    return Square(
        pixels=np.asarray(square.resize((size, size), Image.Resampling.BILINEAR)),
        shown=np.asarray(square.resize((tile, tile), resample)),
        size=(width, height),
        box=box,
    )


def _center(width: int, height: int) -> tuple[int, int, int, int]:
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


def _earlier(path: Path, weights: str) -> dict[str, dict[str, Any]]:
    """The entries of an earlier run with the same weights, by image name."""
    if not path.exists():
        return {}
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["model"]["weights"] == weights:
            return {entry["name"]: entry for entry in stored["images"]}
        problem = f"is of another model ({stored['model']['weights']})"
    except (ValueError, KeyError, TypeError):
        problem = "is not a list of predictions"
    raise InputError(f"--out: {path} {problem}. Give another --out, or --overwrite.")


def _is_predicted(out: Path, entry: dict[str, Any] | None, path: Path) -> bool:
    """Whether an image has predictions that are newer than itself."""
    if entry is None or entry["image"] != str(path):
        return False
    results = [out / entry["mask"], out / entry["overlay"]]
    newest = path.stat().st_mtime_ns
    return all(file.exists() and file.stat().st_mtime_ns >= newest for file in results)


def _save(path: Path, about: dict[str, Any], entries: dict[str, dict[str, Any]]) -> None:
    """Write predictions.json, one line per image, to be read and compared."""
    images = ",\n  ".join(json.dumps(entries[name]) for name in sorted(entries))
    write_text(path, f'{{\n "model": {json.dumps(about)},\n "images": [\n  {images}\n ]\n}}\n')
