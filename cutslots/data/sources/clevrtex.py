"""ClevrTex: textured scenes of up to 10 objects as PNG files, 50,000 in the main set and variants of it.

The raw data is a folder with, at any depth, `CLEVRTEX_<variant>_NNNNNN.png` (image), `..._flat.png` (palette image whose
indices are the instance ids) and `....json` (metadata) for every number from 0 on; other variants and files may lie beside
them. Object k of the metadata has id k. Kept of it: what the benchmark keeps (`color` in vbg only, elsewhere it has no
effect on the image), the position, and for every object the ground's material.

Source: Karazija, Laina, Rupprecht, "ClevrTex: A Texture-Rich Benchmark for Unsupervised Multi-Object Segmentation" (2021)
and the reader in https://github.com/karazijal/clevrtex-generation (layout, splits by number, preparation).
"""

import hashlib
import json
import logging
import re
from collections import defaultdict
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, NamedTuple

from cutslots.data import images
from cutslots.data.places import Place
from cutslots.data.scene import Preparation, Ranges, Scene
from cutslots.data.sources import indices, naming
from cutslots.errors import InputError
from cutslots.options import option

NEEDS_RAW = True
VARIANTS = ("full", "pbg", "vbg", "grassbg", "camo", "outd")
NUM_FULL = 50_000
KINDS = (".png", "_flat.png", ".json")
NAME = re.compile(rf"CLEVRTEX_({'|'.join(VARIANTS)})_(\d{{6}})(\.png|_flat\.png|\.json)")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options(Preparation):
    """Which variant, and crop and size of the prepared images."""

    variant: str = option("full", "which set of images", choices=VARIANTS)


@dataclass(frozen=True)
class Found:
    """The files of a variant, complete: by number the paths of image, ids and metadata."""

    raw: Place
    paths: list[tuple[str, str, str]]


class Item(NamedTuple):
    """One scene's number and its image, ids and metadata."""

    number: int
    files: tuple[Place, Place, Place]


def find(raw: Place | None, options: Options) -> Found:
    """All files of the variant.

    Raises:
        InputError: there are none, one of a number's three is missing or there twice, or a number is left out.
    """
    assert raw is not None, "NEEDS_RAW"
    if raw.info.is_file:
        raise InputError(
            f"raw {raw} is a file. Give the folder into which the ClevrTex archives were unpacked."
        )
    by_kind, others = _index(raw, options.variant)
    numbers = {number for kind in KINDS for number in by_kind[kind]}
    if not numbers:
        there = f" There are images of {', '.join(sorted(others))}." if others else ""
        raise InputError(
            f"raw {raw} has no CLEVRTEX_{options.variant}_NNNNNN files.{there} Give --variant, or the right folder."
        )
    missing = [
        _file_name(options.variant, number, kind)
        for number in range(max(numbers) + 1)
        for kind in KINDS
        if number not in by_kind[kind]
    ]
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise InputError(
            f"raw {raw} lacks {', '.join(missing[:5])}{more}. Unpack the archives again."
        )
    image, ids, metadata = (by_kind[kind] for kind in KINDS)
    paths = [(image[number], ids[number], metadata[number]) for number in range(len(numbers))]
    return Found(raw, paths)


def splits(found: Found, options: Options) -> Ranges:
    """The benchmark's: a tenth for testing, a tenth for validation, the rest for training; outd is for testing only."""
    count = len(found.paths)
    if options.variant == "outd":
        return {"test": (0, count)}
    if options.variant == "full" and count != NUM_FULL:
        log.warning(
            "%s has %d images, the published main set %d: the splits are tenths of what is there",
            found.raw,
            count,
            NUM_FULL,
        )
    return {
        "test": (0, count // 10),
        "val": (count // 10, count // 5),
        "train": (count // 5, count),
    }


def describe(found: Found, options: Options, splits: Ranges) -> dict[str, Any]:
    """The number of images, and a fingerprint of the first and the last one's metadata."""
    texts = []
    for *_, path in (found.paths[0], found.paths[-1]):
        texts.append(found.raw.at(path).read())
        with naming(str(found.raw.at(path))):
            _objects(texts[-1], options.variant)  # mended later, it would pass for another set's
    return {
        "images": len(found.paths),
        "fingerprint": hashlib.sha256(b"".join(texts)).hexdigest()[:8],
    }


def records(
    found: Found, options: Options, splits: Ranges, done: dict[str, int]
) -> Generator[tuple[str, Item], None, int]:
    """The files of every scene; they are read where they are decoded."""
    for name, number in indices(splits, done, len(found.paths)):
        image, ids, metadata = map(found.raw.at, found.paths[number])
        yield name, Item(number, (image, ids, metadata))
    return len(found.paths)


def decode(item: Item, options: Options) -> Scene:
    """The scene in a number's three files, prepared.

    Raises:
        InputError: a file is damaged, or they do not fit each other.
    """
    image_file, ids_file, metadata_file = item.files
    with naming(str(image_file)):
        image = images.rgb(image_file.read())
    with naming(str(metadata_file)):
        objects = _objects(metadata_file.read(), options.variant)
    with naming(str(ids_file)):
        ids = images.ids(ids_file.read())
        if ids.shape != image.shape[:2]:
            raise InputError(
                f"it is {ids.shape[1]} x {ids.shape[0]}, its image {image.shape[1]} x {image.shape[0]}."
            )
        if ids.max() > len(objects):
            raise InputError(
                f"it has id {ids.max()}, but {metadata_file.name} describes {len(objects)} objects."
            )
    return Scene(
        f"clevrtex_{options.variant}_{item.number:06d}", *options.apply(image, ids), objects
    )


def _index(raw: Place, variant: str) -> tuple[dict[str, dict[int, str]], set[str]]:
    """The paths by kind and number, and the other variants that there are."""
    found: dict[str, dict[int, str]] = defaultdict(dict)
    others = set()
    for path in raw.files(recursive=True):
        match = NAME.fullmatch(path.rpartition("/")[2])
        if not match:
            continue
        theirs, digits, kind = match.groups()
        if theirs != variant:
            others.add(theirs)
            continue
        number = int(digits)
        if number in found[kind]:
            raise InputError(
                f"number {number} is there twice: {found[kind][number]} and {path}. Remove one."
            )
        found[kind][number] = path
    return found, others


def _file_name(variant: str, number: int, kind: str) -> str:
    return f"CLEVRTEX_{variant}_{number:06d}{kind}"


def _objects(text: bytes, variant: str) -> tuple[dict[str, Any], ...]:
    """The objects in the order of their ids."""
    try:
        found = json.loads(text)
        ground, objects = found["ground_material"], found["objects"]
        described = [_describe(entry, ground, variant) for entry in objects]
        order = [entry.get("index", at) for at, entry in enumerate(objects, start=1)]
        json.dumps(described, allow_nan=False)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"it is not ClevrTex metadata ({error!r}). Fetch or copy it again."
        ) from None
    if order != list(range(1, len(order) + 1)):
        raise InputError(
            f"its objects have the indices {order}; they must be 1 to {len(order)} in order."
        )
    return tuple(described)


def _describe(entry: dict[str, Any], ground: str, variant: str) -> dict[str, Any]:
    words = {name: entry[name] for name in ("shape", "size", "material")}
    if strange := [
        value for value in (*words.values(), ground) if not isinstance(value, str | int | float)
    ]:
        raise TypeError(f"{strange[0]} is no word")
    color = {"color": entry["color"]} if variant == "vbg" else {}
    return {
        **words,
        **color,
        "position": [round(float(value), 4) for value in entry["3d_coords"]],
        "rotation": round(float(entry["rotation"]), 4),
        "ground_material": ground,
    }
