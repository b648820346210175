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

from cutslots.data import tfrecord
from cutslots.data.images import Preprocessing, bilinear_without_antialias
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

    def check(self) -> None:
        """Raise InputError for a crop with a protocol that has its own."""
        if self.protocol == "slot-attention" and self.crop != Preprocessing.crop:
            problem = "crop must be unset with protocol slot-attention, which has its own"
            raise InputError(f"{problem}, got {self.crop}. Leave crop out.")

    def window(self, height: int, width: int) -> tuple[slice, slice]:
        """The rows and columns that the protocol's crop keeps."""
        if self.protocol == "slot-attention":
            return SLOT_ATTENTION_CROP
        return super().window(height, width)

    def resize(self, image: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The cropped image and mask at `size`; masks by nearest neighbor in both protocols."""
        small, small_mask = super().resize(image, mask)
        if self.protocol == "slot-attention":
            small = bilinear_without_antialias(image, self.size)
        return small, small_mask


class Item(NamedTuple):
    """One record: the name of its file, its number there, and its data."""

    file: str
    number: int
    payload: bytes

    def __str__(self) -> str:
        return f"{self.file}, record {self.number}"


class Clevr(Source):
    """CLEVR with masks (DeepMind): one TFRecord file of 100,000 scenes of up to 10 objects."""

    Options = Options

    def find(self) -> None:
        self.file = self.raw
        if self.raw.kind != "file":
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
        size = self.file.filesystem.size(self.file.path)
        fingerprint = tfrecord.fingerprint(self.file)
        return {"files": {self.file.name: size}, "fingerprint": fingerprint}

    def records(self, splits: Ranges, done: dict[str, int]) -> Iterator[tuple[str, Item]]:
        """One pass over the file, up to the last record that is needed."""
        most = self.options.max_objects
        limits = {name: self.limit(name) or math.inf for name in splits}
        # With a maximum of objects, the finished scenes are found by counting from the start.
        kept = dict(done) if most is None else dict.fromkeys(splits, 0)
        firsts = {name: start + kept[name] for name, (start, _) in splits.items()}
        ends = {name: math.inf if stop is None else stop for name, (_, stop) in splits.items()}
        for number, payload in tfrecord.records(self.file, start=min(firsts.values())):
            self.num_records = number + 1
            for name in splits:
                wanted = firsts[name] <= number < ends[name] and kept[name] < limits[name]
                if wanted and payload is not None:
                    item = Item(str(self.file), number, payload)
                    if most is None or _count(item) <= most:
                        kept[name] += 1
                        if kept[name] > done[name]:
                            yield name, item
            if all(kept[name] >= limits[name] or number + 1 >= ends[name] for name in splits):
                self.num_records = max(number + 1, *(stop or 0 for _, stop in splits.values()))
                return

    @staticmethod
    def decode(item: Item, options: Any) -> Scene:
        with naming(item):
            example = tfrecord.Example(item.payload)
            window = options.window(HEIGHT, WIDTH)
            image = example.single_bytes("image", HEIGHT, WIDTH, 3)[window]
            masks = example.single_bytes("mask", ENTITIES, HEIGHT, WIDTH)[:, *window]
            objects = _objects(example)
            ids = _instance_ids(np.ascontiguousarray(masks))
            if ids.max() > len(objects):
                described = f"the record describes {len(objects)} objects"
                raise InputError(f"mask {ids.max()} has pixels, but {described}.")
            image, ids = options.resize(np.ascontiguousarray(image), ids)
        return Scene(f"clevr_{item.number:06d}", image, ids, objects)


def _count(item: Item) -> int:
    """The number of objects of a record; decodes nothing else."""
    with naming(item):
        return int((_floats(tfrecord.Example(item.payload), "visibility") > 0.5)[1:].sum())


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


def _floats(example: tfrecord.Example, name: str, *shape: int) -> np.ndarray:
    """The float32 array of a feature with a row of this shape for every entity."""
    values, count = example.floats(name), ENTITIES * math.prod(shape)
    if len(values) != count:
        raise InputError(f"feature {name!r} must have {count} elements, got {len(values)}.")
    return values.reshape(ENTITIES, *shape)


def _objects(example: tfrecord.Example) -> tuple[dict[str, Any], ...]:
    """The objects up to the last visible one, codes as words; entity 0 is the background."""
    visible = np.flatnonzero(_floats(example, "visibility") > 0.5)
    last = int(visible[-1]) if len(visible) else 0
    codes = {name: example.single_bytes(name, ENTITIES) for name in WORDS}
    for name, words in WORDS.items():
        if codes[name].max() >= len(words):
            limit = f"the maximum is {len(words) - 1}"
            raise InputError(f"feature {name!r} has code {codes[name].max()}; {limit}.")
    position = np.stack([_floats(example, axis) for axis in "xyz"], axis=1)
    pixel, rotation = _floats(example, "pixel_coords", 3), _floats(example, "rotation")
    return tuple(
        {
            **{name: words[codes[name][entity]] for name, words in WORDS.items()},
            "position": [round(float(value), 4) for value in position[entity]],
            "rotation": round(float(rotation[entity]), 4),
            "pixel_coords": [round(float(value), 4) for value in pixel[entity]],
        }
        for entity in range(1, last + 1)
    )
