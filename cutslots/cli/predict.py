"""Segment your own images."""

import json
import os
import re
import struct
import time
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
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
from cutslots.errors import InputError
from cutslots.files import atomic, write_text

LIST = "predictions.json"
SAVE_SECONDS = 5.0
THREADS = 4  # for reading and writing images
SUFFIXES = (".png", ".jpg", ".jpeg")
FORMATS = ("PNG", "JPEG", "MPO")  # cameras write several JPEGs into one MPO file


@dataclass(frozen=True)
class ImageFile:
    """An image, and the name of its results: its path below the given folder, without suffix."""

    path: Path
    name: str

    @property
    def clip(self) -> str:
        """The folder of its results; for a video model its images are the frames of a clip."""
        return self.name.rpartition("/")[0]


@click.command(help=f"""Write masks and overlays for your own images.

MODEL is {MODEL}. IMAGES are PNG and JPEG files, and folders of them.

Each image is rotated upright, center-cropped and resized to the model's input size; transparency
becomes white. OUT gets masks/NAME.png (palette images whose pixels are slot numbers),
overlays/NAME.png (image, masks over it, reconstruction) and predictions.json (the slots of each
image, their sizes and positions). A second run does what is missing. A video model takes the images
of each folder, in natural order, as the frames of one clip; a slot keeps its number throughout.
""")  # fmt: skip
@click.argument("model", metavar="MODEL")
@click.argument("images", metavar="IMAGES...", nargs=-1, required=True)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="folder of the results")
@overwrite_option
@batch_size_option
@device_option
def command(
    model: str,
    images: tuple[str, ...],
    out: Path,
    overwrite: bool,
    batch_size: int,
    device: str | None,
) -> None:
    from cutslots.report.figures import tile_side
    from cutslots.runs.lookup import find_model
    from cutslots.runs.provenance import origin
    from cutslots.train import load_model, predict
    from cutslots.train.export import weights_digest
    from cutslots.train.inputs import image_size, is_video, pick_device

    chosen_device, path = pick_device(device), find_model(model)
    trained = load_model(path, chosen_device)
    size = image_size(trained)
    files, skipped = find_images(images, out)
    if skipped:
        names = ", ".join(file.name for file in skipped[:3])
        click.echo(f"skipped {len(skipped)} files that are not PNG or JPEG ({names})", err=True)
    about = {name: value for name, value in origin(path).items() if name != "scores"}
    about = {"reference": model, "weights": weights_digest(trained), "image_size": size, **about}
    predictions = Predictions(out, about, overwrite)
    if is_video(trained):
        clips: dict[tuple[str, Path], list[ImageFile]] = {}
        for file in files:
            clips.setdefault((file.clip, file.path.parent), []).append(file)
        batches = [c for c in clips.values() if not all(predictions.has(file) for file in c)]
    else:
        missing = [file for file in files if not predictions.has(file)]
        batches = [missing[i : i + batch_size] for i in range(0, len(missing), batch_size)]
    count, done = sum(map(len, batches)), 0
    with progress_bar("images") as update, ThreadPoolExecutor(THREADS) as threads:
        try:
            for batch in batches:
                squares = list(threads.map(lambda f: load(f.path, size, tile_side(size)), batch))
                result = predict(trained, np.stack([s.pixels for s in squares]), batch_size)
                outputs = (result["masks"], result["reconstructions"])
                list(threads.map(predictions.write, batch, squares, *outputs))
                done += len(batch)
                update("predicting", done, count)
                predictions.save(SAVE_SECONDS)
        finally:
            if done:
                predictions.save()
    earlier = f", {len(files) - count} predicted earlier" if count < len(files) else ""
    click.echo(f"{count} image{'s' * (count != 1)} predicted{earlier}: {out}")


def find_images(paths: Sequence[str], out: Path) -> tuple[list[ImageFile], list[Path]]:
    """All images among files and folders, in natural order within each folder, and other files.

    Raises:
        InputError: a path does not exist, a folder has no image, a file is not a PNG or JPEG image,
            or two images would have results of the same name.
    """
    images, skipped = [], []
    for path in map(Path, paths):
        if not path.exists():
            raise InputError(f"IMAGES must be PNG or JPEG files or folders, {path} does not exist.")
        if not path.is_dir():
            images.append(ImageFile(path, path.stem))
            continue
        if path.resolve() == out.resolve():
            raise InputError(f"--out must not be a folder of IMAGES, got {out}. Give another one.")
        files = []
        for folder, folders, names in os.walk(path):
            folders[:] = [
                name
                for name in folders
                if name[0] != "." and (Path(folder) / name).resolve() != out.resolve()
            ]
            files += [Path(folder) / name for name in names if name[0] != "."]
        inside = [file for file in files if file.suffix.lower() in SUFFIXES]
        if not inside:
            raise InputError(f"IMAGES: {path} contains no PNG or JPEG files. Give another folder.")
        images += [ImageFile(f, f.relative_to(path).with_suffix("").as_posix()) for f in inside]
        skipped += [file for file in files if file not in inside]
    named: dict[str, ImageFile] = {}
    for image in images:
        other = named.setdefault(image.name, image)
        if not os.path.samefile(other.path, image.path):
            raise InputError(
                f"IMAGES: {other.path} and {image.path} would both be written to {image.name}.png. "
                "Rename one, or run each with its own --out."
            )
    for image in named.values():
        with _readable(image.path), Image.open(image.path) as opened:
            if opened.format not in FORMATS:
                raise InputError(f"IMAGES must be PNG or JPEG, {image.path} is {opened.format}.")

    def natural(name: str) -> list[tuple[int, int, str]]:  # frame_2 before frame_10
        parts = re.split(r"(\d+)", name)
        return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts]

    key = {image.name: (natural(image.clip), natural(image.name)) for image in named.values()}
    return sorted(named.values(), key=lambda image: key[image.name]), skipped


class Square(NamedTuple):
    """The part of an image that a model sees.

    Attributes:
        pixels: for the model, uint8 (size, size, 3).
        shown: the same part for overlays, uint8 (tile, tile, 3).
        size: width and height of the upright image.
        box: left, top, right, bottom of the part in it.
    """

    pixels: np.ndarray
    shown: np.ndarray
    size: tuple[int, int]
    box: tuple[int, int, int, int]


def load(path: Path, size: int, tile: int) -> Square:
    """The center square of an upright image, resized bilinearly as `cutslots prepare` does.

    Raises:
        InputError: the file is damaged.
    """
    with _readable(path), Image.open(path) as image:
        turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)  # EXIF orientation
        width, height = reversed(image.size) if turned else image.size
        # JPEGs decode faster at a fraction of their size.
        image.draft(None, (4 * tile, 4 * tile))
        upright = _rgb(ImageOps.exif_transpose(image))
    square = upright.crop(_center(*upright.size))
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


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip
        grey = (np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    if "A" in image.mode or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    errors = (OSError, SyntaxError, ValueError, struct.error, zlib.error)
    try:
        yield
    except InputError:
        raise
    except (*errors, Image.DecompressionBombError) as error:
        raise InputError(
            f"IMAGES: {path} is not a readable PNG or JPEG image ({error}). "
            "Repair it or leave it out."
        ) from None


class Predictions:
    """The folder of results; every file is written as a whole or not at all.

    Args:
        model: facts about the model; its `weights` identify its own earlier predictions.
        overwrite: ignore earlier predictions.

    Raises:
        InputError: `out` is a file, or contains something else or another model's predictions.
    """

    def __init__(self, out: Path, model: dict[str, Any], overwrite: bool = False) -> None:
        self.out, self.model = out, model
        self._entries: dict[str, dict[str, Any]] = {}
        self._saved = time.monotonic()
        if out.exists() and not out.is_dir():
            raise InputError(f"--out must be a folder, got the file {out}.")
        if not (out / LIST).exists() or overwrite:
            return
        try:
            earlier = json.loads((out / LIST).read_text(encoding="utf-8"))
            weights = earlier["model"]["weights"]
            self._entries = {entry["name"]: entry for entry in earlier["images"]}
        except (OSError, ValueError, KeyError, TypeError):
            raise InputError(
                f"--out: {out / LIST} is not a list of predictions. "
                "Give another --out, or --overwrite."
            ) from None
        if weights != model["weights"]:
            raise InputError(
                f"--out: {out} has predictions of another model ({weights}). "
                "Give another --out, or --overwrite."
            )

    def has(self, image: ImageFile) -> bool:
        """Whether the image has predictions that are newer than itself."""
        entry = self._entries.get(image.name)
        if entry is None or entry["image"] != str(image.path):
            return False
        try:
            made = min(os.stat(self.out / entry[name]).st_mtime_ns for name in ("mask", "overlay"))
        except OSError:
            return False
        return os.stat(image.path).st_mtime_ns <= made

    def write(
        self, image: ImageFile, square: Square, labels: np.ndarray, reconstruction: np.ndarray
    ) -> None:
        """Write the files of one image and add it to the list."""
        from cutslots.report.figures import mask_image, overlay, slots

        files = {"mask": f"masks/{image.name}.png", "overlay": f"overlays/{image.name}.png"}
        drawn = {
            "mask": mask_image(labels),
            "overlay": overlay(square.shown, labels, reconstruction),
        }
        for name, result in drawn.items():
            with atomic(self.out / files[name]) as temporary:
                result.save(temporary, format="PNG")
        self._entries[image.name] = {
            "name": image.name,
            "image": str(image.path),
            "size": list(square.size),
            "square": list(square.box),
            **files,
            "slots": slots(labels, square.box),
        }

    def save(self, interval: float = 0.0) -> None:
        """Write the list, unless it was written less than `interval` seconds ago."""
        if interval and time.monotonic() - self._saved < interval:
            return
        # One line per image, to be read and compared.
        images = ",\n  ".join(json.dumps(self._entries[name]) for name in sorted(self._entries))
        text = f'{{\n "model": {json.dumps(self.model)},\n "images": [\n  {images}\n ]\n}}\n'
        write_text(self.out / LIST, text)
        self._saved = time.monotonic()
