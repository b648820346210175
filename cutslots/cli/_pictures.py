"""A person's own pictures: which files there are, and what a model is given of one."""

import os
import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from cutslots.errors import InputError

SUFFIXES = (".png", ".jpg", ".jpeg")
FORMATS = (
    "PNG",
    "JPEG",
    "MPO",
)  # the last is what cameras write that put several JPEGs into one file
ORIENTATION = 0x0112  # of EXIF; from 5 on the camera was held upright


@dataclass(frozen=True)
class Picture:
    """A picture file.

    Attributes:
        name: of its results: its path below the folder it was found in, else its file's name; without the suffix.
    """

    path: Path
    name: str

    @property
    def clip(self) -> str:
        """The folder of its results: pictures with the same one are the frames of a clip, for a model of video."""
        return self.name.rpartition("/")[0]


class Found(NamedTuple):
    """The pictures, in natural order within every folder, and the files of folders that are none."""

    pictures: list[Picture]
    others: list[Path]


class Square(NamedTuple):
    """What a model sees of a picture.

    Attributes:
        pixels: uint8 (size, size, 3).
        shown: the same part as uint8 (tile, tile, 3), for people.
        size: width and height of the picture, upright.
        box: left, top, right, bottom of the part in it.
    """

    pixels: np.ndarray
    shown: np.ndarray
    size: tuple[int, int]
    box: tuple[int, int, int, int]


def find(arguments: Sequence[str], besides: Path) -> Found:
    """All pictures among files and folders, the latter with everything below them.

    Args:
        besides: a folder in which none are looked for: the results'.

    Raises:
        InputError: something does not exist, a folder has no picture, a file is no PNG or JPEG image, or the results of two
            pictures would have the same name.
    """
    found, others = [], []
    for argument in arguments:
        path = Path(argument)
        if path.is_dir() and path.resolve() == besides.resolve():
            raise InputError(
                f"--out {besides} is also a folder of pictures. Give another one for the results."
            )
        if path.is_dir():
            below = list(_below(path, besides.resolve()))
            inside = [
                Picture(file, file.relative_to(path).with_suffix("").as_posix())
                for file in below
                if _is_picture(file)
            ]
            if not inside:
                raise InputError(
                    f"{argument} has no PNG or JPEG images in it. Give a folder that has some, or the files."
                )
            others += [file for file in below if not _is_picture(file)]
            found += inside
        elif path.exists():
            found.append(Picture(path, path.stem))
        else:
            raise InputError(
                f"{argument} does not exist. Give PNG or JPEG files, or folders of them."
            )
    named: dict[str, Path] = {}
    for picture in found:
        if picture.name in named and not os.path.samefile(named[picture.name], picture.path):
            raise InputError(
                f"{named[picture.name]} and {picture.path} would both be written as {picture.name}.png. "
                "Rename one of them, or give them apart, each with its own --out."
            )
        named[picture.name] = picture.path
    for path in named.values():
        _check(path)
    pictures = [Picture(path, name) for name, path in named.items()]
    return Found(
        sorted(pictures, key=lambda each: (_natural(each.clip), _natural(each.name))), others
    )


def load(picture: Picture, size: int, tile: int) -> Square:
    """The upright picture's middle square, resized as `cutslots prepare` does (bilinear), for the model and for people.

    Grey becomes RGB, and what is transparent stands on white.

    Raises:
        InputError: the file is damaged.
    """
    with reading(picture.path), Image.open(picture.path) as image:
        turned = image.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8)
        width, height = reversed(image.size) if turned else image.size
        image.draft(
            None, (4 * tile, 4 * tile)
        )  # JPEGs are decoded at a fraction of their size where that is more than enough
        upright = _rgb(ImageOps.exif_transpose(image))
    square = upright.crop(_middle(*upright.size))
    box = _middle(width, height)
    # Enlarged pixels stay what they are: the masks have no finer ones either.
    shown = Image.Resampling.NEAREST if 2 * (box[2] - box[0]) <= tile else Image.Resampling.BILINEAR
    return Square(
        pixels=np.asarray(square.resize((size, size), Image.Resampling.BILINEAR)),
        shown=np.asarray(square.resize((tile, tile), shown)),
        size=(width, height),
        box=box,
    )


def _middle(width: int, height: int) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of the middle square."""
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits of grey, which Pillow's own conversion clips
        return Image.fromarray(
            (np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
        ).convert("RGB")
    if "A" in image.mode or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _below(folder: Path, besides: Path) -> Iterator[Path]:
    for path, folders, files in os.walk(folder):
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".") and (Path(path) / name).resolve() != besides
        ]
        yield from (Path(path) / name for name in files if not name.startswith("."))


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES


def _natural(name: str) -> list[tuple[int, int, str]]:
    """A key by which frame_2 comes before frame_10."""
    return [
        (0, int(part), "") if part.isdecimal() else (1, 0, part)
        for part in re.split(r"(\d+)", name)
    ]


def _check(path: Path) -> None:
    """Refuse a file whose head is not that of a PNG or JPEG image."""
    with reading(path), Image.open(path) as image:
        kind = image.format
    if kind not in FORMATS:
        raise InputError(f"{path} is a {kind} image. Give PNG or JPEG.")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """What Pillow raises for a file, as the user's to mend."""
    try:
        yield
    except (
        OSError,
        SyntaxError,
        ValueError,
        struct.error,
        zlib.error,
        Image.DecompressionBombError,
    ) as error:
        raise InputError(
            f"{path} is not a readable PNG or JPEG image ({error}). Leave it out, or mend it."
        ) from None
