"""Reader of CLEVR with masks.

The raw data is `clevr_with_masks_train.tfrecords`, or a folder with one `*.tfrecords` file. Ids 1
to n are the entities 1 to n of the record. CLEVR6 is `max_objects` 6, CLEVR10 everything.

Source: https://github.com/google-deepmind/multi_object_datasets (format). Protocol `benchmark`:
Karazija, Laina, Rupprecht, "ClevrTex" (2021). Protocol `slot-attention`: Locatello et al.,
"Object-Centric Learning with Slot Attention" (2020), section 4.1, and the preprocessing of its
public code: rows 29 to 221, columns 64 to 256, bilinear without anti-aliasing, the first 70,000
records for training and 320 of the others for evaluation. It has no validation scenes; `val` here
are 320 later ones.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from cutslots.data import tfrecord
from cutslots.data.preprocess import Preprocessing, bilinear_without_antialias
from cutslots.data.record import Ranges, Scene
from cutslots.data.source import Source, naming
from cutslots.errors import InputError, listed
from cutslots.options import option

SPLITS: dict[str, Ranges] = {
    "benchmark": {"test": (0, 15_000), "val": (15_000, 30_000), "train": (30_000, 100_000)},
    "slot-attention": {"train": (0, 70_000), "test": (70_000, 85_000), "val": (85_000, 100_000)},
}
SLOT_ATTENTION_CROP = slice(29, 221), slice(64, 256)
SLOT_ATTENTION_SCENES = 320  # of every split but train

HEIGHT, WIDTH, ENTITIES = 240, 320, 11

# The published data has no code table; this is the order of the generator's property file, with 0
# for "none".
WORDS = {
    "shape": ("none", "cube", "sphere", "cylinder"),
    "size": ("none", "large", "small"),
    "material": ("none", "rubber", "metal"),
    "color": ("none", "gray", "red", "blue", "green", "brown", "purple", "cyan", "yellow"),
}
Features = dict[str, tfrecord.Feature]


@dataclass(frozen=True)
class Options(Preprocessing):
    """Which records, and crop and size of the prepared images."""

    protocol: str = option(
        "benchmark",
        "whose splits, crop and resize: ClevrTex's benchmark or Slot Attention",
        choices=tuple(SPLITS),
    )
    max_objects: int | None = option(
        None, "keep scenes of at most so many objects; 6 is CLEVR6", low=1, high=10
    )

    def window(self, height: int, width: int) -> tuple[slice, slice]:
        """The rows and columns that the protocol's crop keeps."""
        if self.protocol == "slot-attention":
            return SLOT_ATTENTION_CROP
        return super().window(height, width)

    def resize(self, image: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The cropped image and mask at `size`; masks by nearest neighbor in both protocols."""
        if self.protocol == "benchmark":
            return super().resize(image, mask)
        small = Image.fromarray(mask).resize((self.size, self.size), Image.Resampling.NEAREST)
        return bilinear_without_antialias(image, self.size), np.asarray(small)


class Item(NamedTuple):
    """One record: the name of its file, its number there, and its data."""

    file: str
    number: int
    payload: bytes


class Clevr(Source):
    """CLEVR with masks (DeepMind): one TFRecord file of 100,000 scenes of up to 10 objects."""

    Options = Options

    def find(self) -> None:
        """Find the one raw file."""
        assert self.raw is not None, "NEEDS_RAW"
        if self.options.protocol == "slot-attention" and self.options.crop != Preprocessing.crop:
            problem = "crop must be unset with protocol slot-attention, which has its own"
            raise InputError(f"{problem}, got {self.options.crop}. Leave crop out.")
        self.file = self.raw
        if not self.raw.is_file:
            files = [file for file, _ in self.raw.files()]
            tables = [file for file in files if file.name.endswith(".tfrecords")]
            if len(tables) != 1:
                names = listed([file.name for file in files], most=8) or "nothing"
                problem = f"must contain exactly one *.tfrecords file; it has {len(tables)}"
                raise InputError(f"raw {self.raw} {problem}. It contains {names}.")
            self.file = tables[0]

    def splits(self) -> Ranges:
        """The protocol's ranges of records; a file of fewer records needs other ranges."""
        return dict(SPLITS[self.options.protocol])

    def limit(self, split: str) -> int | None:
        """Slot Attention evaluates on few scenes."""
        limited = self.options.protocol == "slot-attention" and split != "train"
        return SLOT_ATTENTION_SCENES if limited else None

    def describe(self, splits: Ranges) -> dict[str, Any]:
        """Name and size of the raw file, and its fingerprint."""
        size = self.file.filesystem.size(self.file.path)
        fingerprint = tfrecord.fingerprint(self.file)
        return {"files": {self.file.name: size}, "fingerprint": fingerprint}

    def records(self, splits: Ranges, done: dict[str, int]) -> Iterator[tuple[str, Item]]:
        """One pass over the file, up to the last record that is needed."""
        limits = {name: self.limit(name) or math.inf for name in splits}
        # With a maximum of objects, the finished scenes are found by counting from the start.
        kept = dict(done) if self.options.max_objects is None else dict.fromkeys(splits, 0)
        firsts = {name: start + kept[name] for name, (start, _) in splits.items()}
        for number, payload in tfrecord.records(self.file, start=min(firsts.values())):
            self.num_records = number + 1
            ranges = (
                (name, range(start, stop or number + 1)) for name, (start, stop) in splits.items()
            )
            name = next((name for name, numbers in ranges if number in numbers), None)
            if (
                payload is not None
                and name
                and number >= firsts[name]
                and kept[name] < limits[name]
            ):
                item = Item(str(self.file), number, payload)
                if self.options.max_objects is None or _count(item) <= self.options.max_objects:
                    kept[name] += 1
                    if kept[name] > done[name]:
                        yield name, item
            if all(
                kept[name] >= limits[name] or (stop is not None and number + 1 >= stop)
                for name, (_, stop) in splits.items()
            ):
                self.num_records = max(number + 1, *(stop or 0 for _, stop in splits.values()))
                return

    @staticmethod
    def decode(item: Item, options: Any) -> Scene:
        """The scene of a record."""
        with naming(f"{item.file}, record {item.number}"):
            features = tfrecord.example(item.payload)
            window = options.window(HEIGHT, WIDTH)
            image = _elements(features, "image", HEIGHT, WIDTH, 3)[window]
            masks = _elements(features, "mask", ENTITIES, HEIGHT, WIDTH)[:, *window]
            objects = _objects(features)
            ids = _instance_ids(np.ascontiguousarray(masks))
            if ids.max() > len(objects):
                described = f"the record describes {len(objects)} objects"
                raise InputError(f"mask {ids.max()} has pixels, but {described}.")
            image, ids = options.resize(np.ascontiguousarray(image), ids)
        return Scene(f"clevr_{item.number:06d}", image, ids, objects)


def _count(item: Item) -> int:
    """The number of objects of a record; decodes nothing else."""
    with naming(f"{item.file}, record {item.number}"):
        visible = _floats(tfrecord.example(item.payload), "visibility") > 0.5
        return int(visible[1:].sum())


def _instance_ids(masks: np.ndarray) -> np.ndarray:
    """The index of the one mask that contains each pixel: uint8 (h, w).

    Args:
        masks: uint8 (n, h, w), 255 in exactly one mask at every pixel, else 0; this is checked.
    """
    if ((masks + np.uint8(1)) > 1).any():  # 255 wraps to 0, so only 0 and 255 remain below 2
        raise InputError("a mask has values other than 0 and 255.")
    # Modulo 256 a mask counts -1 here, so 255 means one mask; -1 is all ones, so `and` gives the
    # index.
    total = np.zeros(masks.shape[1:], np.uint8)
    ids = np.zeros(masks.shape[1:], np.uint8)
    for index, mask in enumerate(masks):
        total += mask
        ids |= mask & np.uint8(index)
    if (total != 255).any():
        raise InputError(f"{np.count_nonzero(total != 255)} pixels are in no mask or in several.")
    return ids


def _feature(features: Features, name: str, kind: str) -> tfrecord.Feature:
    return tfrecord.feature(features, name, kind, "CLEVR with masks")


def _elements(features: Features, name: str, *shape: int) -> np.ndarray:
    """The uint8 array of a feature with one string for every element."""
    payload = _feature(features, name, "bytes").payload
    with naming(f"feature {name!r}"):
        return tfrecord.one_byte_elements(payload, math.prod(shape)).reshape(shape)


def _floats(features: Features, name: str, *shape: int) -> np.ndarray:
    """The float32 array of a feature, by default (11,)."""
    shape = shape or (ENTITIES,)
    values = _feature(features, name, "float").floats()
    if len(values) != math.prod(shape):
        count = math.prod(shape)
        raise InputError(f"feature {name!r} must have {count} elements, got {len(values)}.")
    if not np.isfinite(values).all():
        raise InputError(f"feature {name!r} has a value that is not finite.")
    return values.reshape(shape)


def _objects(features: Features) -> tuple[dict[str, Any], ...]:
    """The objects up to the last visible one, codes as words; entity 0 is the background."""
    visible = np.flatnonzero(_floats(features, "visibility") > 0.5)
    last = int(visible[-1]) if len(visible) else 0
    codes = {name: _elements(features, name, ENTITIES) for name in WORDS}
    for name, words in WORDS.items():
        if codes[name].max() >= len(words):
            limit = f"the maximum is {len(words) - 1}"
            raise InputError(f"feature {name!r} has code {codes[name].max()}; {limit}.")
    position = np.stack([_floats(features, axis) for axis in "xyz"], axis=1)
    pixel = _floats(features, "pixel_coords", ENTITIES, 3)
    rotation = _floats(features, "rotation")
    return tuple(
        {
            **{name: words[codes[name][entity]] for name, words in WORDS.items()},
            "position": [round(float(value), 4) for value in position[entity]],
            "rotation": round(float(rotation[entity]), 4),
            "pixel_coords": [round(float(value), 4) for value in pixel[entity]],
        }
        for entity in range(1, last + 1)
    )
