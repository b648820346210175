"""Reader of MOVi-A (Kubric).

The raw data is the folder with `dataset_info.json` and the `*.tfrecord-*` files, or one above it
that contains a single such folder, in any resolution. The published splits remain
(`validation` is `val` here); records are numbered across them in the order of `dataset_info.json`.
Id k is instance k - 1 and the same in all frames of a clip.

Source: Greff et al., "Kubric: A Scalable Dataset Generator" (2022) and the builder in
https://github.com/google-research/kubric (challenges/movi/movi_a.py); crop and size are those of
section 6.3 of the paper.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from cutslots.data import images, tfrecord
from cutslots.data.images import Preprocessing
from cutslots.data.locate import Location
from cutslots.data.record import Ranges, Scene
from cutslots.data.source import Source, naming
from cutslots.errors import InputError, listed

INFO = "dataset_info.json"
FILE_NAME = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
LABELS = ("shape", "size", "color", "material")
NUMBERS = ("mass", "friction", "restitution")


@dataclass(frozen=True)
class File:
    """One TFRecord file."""

    location: Location
    split: str
    first: int  # the number of its first clip in the split
    start: int  # the same, counted over all splits
    count: int  # of clips

    def overlaps(self, start: int, stop: int | None) -> bool:
        """Whether it contains a clip of this range, counted over all splits."""
        return start < self.start + self.count and (stop is None or stop > self.start)


class Item(NamedTuple):
    """One record: its name for messages, the clip's id, its data, the class names by label."""

    name: str
    id: str
    payload: bytes
    labels: dict[str, list[str]]


class MoviA(Source):
    """MOVi-A (Kubric): clips of 24 frames of up to 10 falling objects, from TensorFlow Datasets."""

    def find(self) -> None:
        raw = self.raw
        if raw.kind == "file":
            raise InputError(f"raw {raw} is a file. Give the folder with {INFO} in it.")
        paths = [file.path for file, _ in raw.files(recursive=True) if file.name == INFO]
        folders = [Location(raw.filesystem, path.rpartition("/")[0]) for path in paths]
        if len(folders) != 1:
            names = listed(list(map(str, folders))) or "none"
            problem = f"raw {raw} must contain one folder with {INFO}, got {names}"
            remedy = "Give the one that TensorFlow Datasets wrote, such as 128x128/1.0.0."
            raise InputError(f"{problem}. {remedy}")
        folder = folders[0]
        self.sizes = {file.name: size for file, size in folder.files()}
        with naming(folder / INFO):
            self.files = _files(folder)
        self.labels = {}
        for name in LABELS:
            file = folder / f"instances-{name}_label.labels.txt"
            if file.name not in self.sizes:
                raise InputError(f"{file} is missing. Fetch it again.")
            self.labels[name] = file.read().decode().split()
        self.num_records = sum(file.count for file in self.files)

    def splits(self) -> Ranges:
        ranges: Ranges = {}
        for file in self.files:
            start, _ = ranges.get(file.split, (file.start, None))
            ranges[file.split] = (start, file.start + file.count)
        return ranges

    def describe(self, splits: Ranges) -> dict[str, Any]:
        """Names and sizes of the files that contain records of the splits, and a fingerprint."""
        files = [f for f in self.files if any(f.overlaps(*ends) for ends in splits.values())]
        names = [file.location.name for file in files]
        if missing := [name for name in names if name not in self.sizes]:
            raise InputError(f"raw {self.raw} lacks {listed(missing, 5)}. Fetch them again.")
        return {
            "files": {name: self.sizes[name] for name in names},
            "fingerprint": tfrecord.fingerprint(files[0].location) if files else None,
        }

    def records(self, splits: Ranges, done: dict[str, int]) -> Iterator[tuple[str, Item]]:
        for name, (start, stop) in splits.items():
            begin = start + done[name]
            for file in (file for file in self.files if file.overlaps(begin, stop)):
                first = max(begin - file.start, 0)
                end = file.count if stop is None else min(stop - file.start, file.count)
                count = 0
                for number, payload in tfrecord.records(file.location, first):
                    count = number + 1
                    if payload is not None and number < end:
                        id = f"movi_a_{file.split}_{file.first + number:06d}"
                        record = f"{file.location}, record {number}"
                        yield name, Item(record, id, payload, self.labels)
                    if count > end or count == end < file.count:
                        break
                if count != end:
                    problem = f"does not contain the {file.count} records listed in {INFO}"
                    raise InputError(f"{file.location} {problem}. Fetch the file again.")

    @staticmethod
    def decode(item: Item, options: Preprocessing) -> Scene:
        with naming(item.name):
            example = tfrecord.Example(item.payload)
            objects = _objects(example, item.labels)
            video = _frames(example, "video", images.rgb)
            ids = _frames(example, "segmentations", images.ids)
            if ids.shape != video.shape[:3]:
                raise InputError(f"segmentations must be {video.shape[:3]}, got {ids.shape}.")
            if ids.max() > len(objects):
                described = f"the record describes {len(objects)} instances"
                raise InputError(f"segmentations has id {ids.max()}, but {described}.")
        return Scene(item.id, *options.apply(video, ids), objects)


def _files(folder: Location) -> list[File]:
    """The files that `dataset_info.json` names, in its order."""
    files, total = [], 0
    try:
        info = json.loads((folder / INFO).read())
        for split in info["splits"]:
            name, lengths, first = split["name"], list(map(int, split["shardLengths"])), 0
            template = split.get("filepathTemplate") or FILE_NAME
            for at, length in enumerate(lengths):
                file = template.format(
                    DATASET=info["name"],
                    SPLIT=name,
                    FILEFORMAT="tfrecord",
                    SHARD_X_OF_Y=f"{at:05d}-of-{len(lengths):05d}",
                )
                ours = "val" if name == "validation" else name
                files.append(File(folder / file, ours, first, total, length))
                first, total = first + length, total + length
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise InputError(f"it is damaged ({error!r}). Fetch it again.") from None
    if not files:
        raise InputError("it names no files.")
    return files


def _frames(
    example: tfrecord.Example, name: str, decoder: Callable[[memoryview], np.ndarray]
) -> np.ndarray:
    """The frames of a feature: uint8 (T, h, w) and channels."""
    frames = []
    for time, data in enumerate(example.bytes(name)):
        with naming(f"{name}, frame {time}"):
            frames.append(decoder(data))
            if frames[-1].shape != frames[0].shape:
                raise InputError(f"must be {frames[0].shape}, got {frames[-1].shape}.")
    if not frames:
        raise InputError(f"{name} has no frames.")
    return np.stack(frames)


def _objects(example: tfrecord.Example, labels: dict[str, list[str]]) -> tuple[dict[str, Any], ...]:
    """What is constant over a clip, for every instance."""
    columns: dict[str, list[Any]] = {}
    for name, words in labels.items():
        codes = example.ints(f"instances/{name}_label")
        if len(codes) and not 0 <= codes.min() <= codes.max() < len(words):
            limit = f"must have codes below {len(words)}"
            raise InputError(f"instances/{name}_label {limit}, got {codes.tolist()}.")
        columns[name] = [words[code] for code in codes]
    for name in NUMBERS:
        values = example.floats(f"instances/{name}")
        columns[name] = [round(float(value), 4) for value in values]
    counts = {name: len(column) for name, column in columns.items()}
    if len(set(counts.values())) != 1:
        raise InputError(f"the instances' features have different lengths: {counts}.")
    rows = zip(*columns.values(), strict=True)
    return tuple(dict(zip(columns, row, strict=True)) for row in rows)
