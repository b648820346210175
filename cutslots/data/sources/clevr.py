"""CLEVR with masks (DeepMind's multi_object_datasets): one GZIP TFRecord file of 100,000 scenes of up to 10 objects.

The raw data is `clevr_with_masks_train.tfrecords`, or a folder in which it is the only `*.tfrecords` file. Ids 1..n are
the entities 1..n of the record, in its order. CLEVR6 is `max_objects` 6, CLEVR10 everything.

Source: https://github.com/google-deepmind/multi_object_datasets (format). Protocol `benchmark`: Karazija, Laina,
Rupprecht, "ClevrTex" (2021). Protocol `slot-attention`: Locatello et al., "Object-Centric Learning with Slot Attention"
(2020), section 4.1, and the preprocessing of its public code: rows 29 to 221, columns 64 to 256, bilinear without
anti-aliasing, the first 70,000 records for training and 320 of the others for evaluation. It names no validation
scenes; `val` here are 320 later ones.
"""

import math
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from cutslots.data import tfrecord
from cutslots.data.places import Place
from cutslots.data.scene import Preparation, Ranges, Scene, bilinear_without_antialias
from cutslots.data.sources import naming
from cutslots.errors import InputError
from cutslots.options import option

NEEDS_RAW = True
SPLITS: dict[str, Ranges] = {
    "benchmark": {"test": (0, 15_000), "val": (15_000, 30_000), "train": (30_000, 100_000)},
    "slot-attention": {"train": (0, 70_000), "test": (70_000, 85_000), "val": (85_000, 100_000)},
}
SLOT_ATTENTION_CROP = slice(29, 221), slice(64, 256)
SLOT_ATTENTION_SCENES = 320  # of every split but train

HEIGHT, WIDTH, ENTITIES = 240, 320, 11

# The published set has no code table; this is the order of the generator's property file, with 0 for "none".
WORDS = {
    "shape": ("none", "cube", "sphere", "cylinder"),
    "size": ("none", "large", "small"),
    "material": ("none", "rubber", "metal"),
    "color": ("none", "gray", "red", "blue", "green", "brown", "purple", "cyan", "yellow"),
}


@dataclass(frozen=True)
class Options(Preparation):
    """Which records, and crop and size of the prepared images."""

    protocol: str = option(
        "benchmark",
        "whose splits, crop and resize: ClevrTex's benchmark or Slot Attention",
        choices=tuple(SPLITS),
    )
    max_objects: int | None = option(
        None, "keep scenes of at most so many objects; 6 is CLEVR6", low=1, high=10
    )

    def limit(self, split: str) -> int | None:
        """Slot Attention evaluates on few."""
        return (
            SLOT_ATTENTION_SCENES
            if self.protocol == "slot-attention" and split != "train"
            else None
        )

    def window(self, height: int, width: int) -> tuple[slice, slice]:
        """The rows and columns that the protocol's crop keeps."""
        return (
            SLOT_ATTENTION_CROP
            if self.protocol == "slot-attention"
            else super().window(height, width)
        )

    def resize(self, image: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The cropped image and mask at `size`, as the protocol does it; masks nearest in both."""
        if self.protocol == "benchmark":
            return super().resize(image, mask)
        small = Image.fromarray(mask).resize((self.size, self.size), Image.Resampling.NEAREST)
        return bilinear_without_antialias(image, self.size), np.asarray(small)


class Item(NamedTuple):
    """One record: the file's name, its number there, and its data."""

    file: str
    number: int
    payload: bytes


def find(raw: Place | None, options: Options) -> Place:
    """The one raw file.

    Raises:
        InputError: there is none or more than one, or the options contradict each other.
    """
    assert raw is not None, "NEEDS_RAW"
    if options.protocol == "slot-attention" and options.crop != Preparation.crop:
        raise InputError(
            f"crop is {options.crop}, but the protocol slot-attention has a crop of its own. Leave crop out."
        )
    if raw.info.is_file:
        return raw
    found = raw.files()
    tables = [path for path in found if path.endswith(".tfrecords")]
    if len(tables) == 1:
        return raw.at(tables[0])
    there = [raw.at(path).name for path in found]
    what = (
        ", ".join(there[:8]) + (f" and {len(there) - 8} more" if len(there) > 8 else "")
        if there
        else "nothing"
    )
    raise InputError(
        f"raw {raw} must hold exactly one *.tfrecords file; it has {len(tables)}. In it: {what}."
    )


def splits(found: Place, options: Options) -> Ranges:
    """The protocol's record ranges; for a file of fewer records give your own."""
    return dict(SPLITS[options.protocol])


def describe(found: Place, options: Options, splits: Ranges) -> dict[str, Any]:
    """Name and size of the raw file, and its fingerprint."""
    return {"files": {found.name: found.info.size}, "fingerprint": tfrecord.fingerprint(found)}


def records(
    found: Place, options: Options, splits: Ranges, done: dict[str, int]
) -> Generator[tuple[str, Item], None, int]:
    """One pass over the file.

    Raises:
        InputError: the file is damaged.
    """
    limits = {name: options.limit(name) or math.inf for name in splits}
    # Which records of fewer objects the finished scenes were is found by counting again.
    passed = done if options.max_objects is None else dict.fromkeys(splits, 0)
    firsts = {name: start + passed[name] for name, (start, _) in splits.items()}
    kept = dict(passed)
    source = tfrecord.records(found, start=min(firsts.values()))
    while True:
        try:
            number, payload = next(source)
        except StopIteration as end:
            return end.value
        name = _split_of(number, splits)
        if (
            name
            and number >= firsts[name]
            and kept[name] < limits[name]
            and _wanted(Item(str(found), number, payload), options)
        ):
            kept[name] += 1
            if kept[name] > done[name]:
                yield name, Item(str(found), number, payload)
        if all(
            kept[name] >= limits[name] or (stop is not None and number + 1 >= stop)
            for name, (_, stop) in splits.items()
        ):
            return max(number + 1, *(stop or 0 for _, stop in splits.values()))


def decode(item: Item, options: Options) -> Scene:
    """The scene that a record holds, prepared.

    Raises:
        InputError: the record is not as the format says.
    """
    with naming(f"{item.file}, record {item.number}"):
        return scene(item.payload, f"clevr_{item.number:06d}", options)


def _split_of(number: int, splits: Ranges) -> str | None:
    return next(
        (
            name
            for name, (start, stop) in splits.items()
            if start <= number and (stop is None or number < stop)
        ),
        None,
    )


def _wanted(item: Item, options: Options) -> bool:
    """Whether a record's objects are few enough; without a limit it is not looked at."""
    if options.max_objects is None:
        return True
    with naming(f"{item.file}, record {item.number}"):
        visible = _floats(tfrecord.example(item.payload), "visibility") > 0.5
        return int(visible[1:].sum()) <= options.max_objects


def scene(payload: bytes | memoryview, id: str, preparation: Preparation) -> Scene:
    """The scene of a record's data.

    Raises:
        InputError: the record is not as the format says.
    """
    features = tfrecord.example(payload)
    rows, columns = preparation.window(HEIGHT, WIDTH)
    image = _elements(features, "image", HEIGHT * WIDTH * 3).reshape(HEIGHT, WIDTH, 3)[
        rows, columns
    ]
    masks = _masks(features)[:, rows, columns]
    objects = _objects(features)
    ids = instance_ids(np.ascontiguousarray(masks))
    if ids.max() > len(objects):
        raise InputError(
            f"mask {ids.max()} has pixels, but the record describes {len(objects)} objects."
        )
    prepared_image, prepared_mask = preparation.resize(np.ascontiguousarray(image), ids)
    return Scene(id, prepared_image, prepared_mask, objects)


def instance_ids(masks: np.ndarray) -> np.ndarray:
    """The index of the one mask that has each pixel.

    Args:
        masks: uint8 (n, h, w), 255 in exactly one mask at every pixel, else 0.

    Returns:
        uint8 (h, w), 0 to n - 1.

    Raises:
        InputError: another value, or a pixel in no mask or in several.
    """
    if ((masks + np.uint8(1)) > 1).any():  # 255 wraps to 0, so that 0 and 255 alone stay below 2
        raise InputError("a mask has values other than 0 and 255.")
    # Modulo 256 a mask counts -1 here, so 255 means one mask; -1 is all ones, so `and` picks the index.
    total = np.zeros(masks.shape[1:], np.uint8)
    ids = np.zeros(masks.shape[1:], np.uint8)
    for index, mask in enumerate(masks):
        total += mask
        ids |= mask & np.uint8(index)
    if (total != 255).any():
        raise InputError(f"{np.count_nonzero(total != 255)} pixels are in no mask or in several.")
    return ids


def _elements(features: dict[str, tfrecord.Feature], name: str, count: int) -> np.ndarray:
    feature = _feature(features, name, "bytes")
    try:
        return tfrecord.one_byte_elements(feature.payload, count)
    except InputError as error:
        raise InputError(f"feature {name!r}: {error}") from None


def _feature(features: dict[str, tfrecord.Feature], name: str, kind: str) -> tfrecord.Feature:
    if name not in features or features[name].kind != kind:
        there = ", ".join(
            f"{known} ({feature.kind})" for known, feature in sorted(features.items())
        )
        raise InputError(
            f"there is no {kind} feature {name!r}, so this is no CLEVR with masks. There are: {there}."
        )
    return features[name]


def _masks(features: dict[str, tfrecord.Feature]) -> np.ndarray:
    """uint8 (11, 240, 320)."""
    pixels = HEIGHT * WIDTH
    entities, rest = divmod(len(_feature(features, "mask", "bytes").payload), 3 * pixels)
    if entities > ENTITIES and not rest:
        raise InputError(
            f"there are {entities - 1} object masks; CLEVR has at most {ENTITIES - 1} objects."
        )
    return _elements(features, "mask", ENTITIES * pixels).reshape(ENTITIES, HEIGHT, WIDTH)


def _objects(features: dict[str, tfrecord.Feature]) -> tuple[dict[str, Any], ...]:
    """The objects up to the last one that is present, codes in words; entity 0 is the background."""
    present = np.flatnonzero(_floats(features, "visibility") > 0.5)
    last = int(present[-1]) if len(present) else 0
    codes = {name: _elements(features, name, ENTITIES) for name in WORDS}
    for name, words in WORDS.items():
        if codes[name].max() >= len(words):
            raise InputError(
                f"feature {name!r} has code {codes[name].max()}; the last known one is {len(words) - 1}."
            )
    place = np.stack([_floats(features, axis) for axis in "xyz"], axis=1)
    pixel = _floats(features, "pixel_coords", 3 * ENTITIES).reshape(ENTITIES, 3)
    rotation = _floats(features, "rotation")
    return tuple(
        {
            **{name: words[codes[name][entity]] for name, words in WORDS.items()},
            "position": _rounded(place[entity]),
            "rotation": round(float(rotation[entity]), 4),
            "pixel_coords": _rounded(pixel[entity]),
        }
        for entity in range(1, last + 1)
    )


def _floats(features: dict[str, tfrecord.Feature], name: str, count: int = ENTITIES) -> np.ndarray:
    values = _feature(features, name, "float").floats()
    if len(values) != count:
        raise InputError(f"feature {name!r} has {len(values)} elements; the format has {count}.")
    if not np.isfinite(values).all():
        raise InputError(f"feature {name!r} has a value that is not finite.")
    return values


def _rounded(values: np.ndarray) -> list[float]:
    return [round(float(value), 4) for value in values]
