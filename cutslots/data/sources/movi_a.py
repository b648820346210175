"""MOVi-A (Kubric): clips of 24 frames of up to 10 falling objects, TFRecord files as TensorFlow Datasets writes them.

The raw data is the folder with `features.json`, `dataset_info.json` and the `*.tfrecord-*` files, or one above it that holds
a single such folder, in any resolution. The set's own splits stay (`validation` is `val` here); records are numbered
through them in the order of `dataset_info.json`. Id k is instance k - 1 and the same in all frames of a clip.

Source: Greff et al., "Kubric: A Scalable Dataset Generator" (2022) and the builder in https://github.com/google-research/kubric
(challenges/movi/movi_a.py); crop and size are those of the paper's section 6.3.
"""

import json
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from cutslots.data import images, tfrecord
from cutslots.data.places import Place
from cutslots.data.scene import Preparation, Ranges, Scene
from cutslots.data.sources import naming
from cutslots.errors import InputError

NEEDS_RAW = True
FILE_NAME = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
LABELS = ("shape", "size", "color", "material")
NUMBERS = ("mass", "friction", "restitution")


@dataclass(frozen=True)
class Options(Preparation):
    """Crop and size of the prepared frames."""


@dataclass(frozen=True)
class Format:
    """What `features.json` says of every record.

    Attributes:
        shape: frames, height and width of a clip; -1 where it is left open.
        labels: the names of the classes of every label.
    """

    shape: tuple[int, int, int]
    labels: dict[str, list[str]]


@dataclass(frozen=True)
class File:
    """One TFRecord file, the split that it is part of, the number of its first clip there and of all, and how many it has."""

    place: Place
    split: str
    first: int
    start: int
    count: int

    def holds(self, start: int, stop: int | None) -> bool:
        """Whether a clip of this range, counted over all splits, is in it."""
        return start < self.start + self.count and (stop is None or stop > self.start)


@dataclass(frozen=True)
class Found:
    """The files of all splits in order, the sizes of those that are there, and their format."""

    files: list[File]
    sizes: dict[str, int]
    format: Format


class Item(NamedTuple):
    """One record: where it is for messages, the clip's id, its data and their format."""

    where: str
    id: str
    payload: bytes
    format: Format


def find(raw: Place | None, options: Options) -> Found:
    """The folder's files.

    Raises:
        InputError: no such folder or several, or a description is missing or cannot be read.
    """
    assert raw is not None, "NEEDS_RAW"
    folder = _folder(raw)
    there = {folder.at(path).name: size for path, size in folder.files().items()}
    with naming(str(folder / "dataset_info.json")):
        files = _files(folder, _json(folder / "dataset_info.json", there))
    with naming(str(folder / "features.json")):
        shape = _shape(_json(folder / "features.json", there))
    labels = {
        name: _label_names(folder / f"instances-{name}_label.labels.txt", there) for name in LABELS
    }
    return Found(files, there, Format(shape, labels))


def splits(found: Found, options: Options) -> Ranges:
    """The set's own splits."""
    ranges: Ranges = {}
    for file in found.files:
        start, _ = ranges.get(file.split, (file.start, None))
        ranges[file.split] = (start, file.start + file.count)
    return ranges


def describe(found: Found, options: Options, splits: Ranges) -> dict[str, Any]:
    """Names and sizes of the files that hold the splits' records, and the first one's fingerprint.

    Raises:
        InputError: one of them is missing, or the first one's first record is damaged.
    """
    needed = [
        file for file in found.files if any(file.holds(*bounds) for bounds in splits.values())
    ]
    missing = [file.place.name for file in needed if file.place.name not in found.sizes]
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise InputError(
            f"raw {needed[0].place.parent} lacks {', '.join(missing[:5])}{more}. Fetch them again."
        )
    sizes = {file.place.name: found.sizes[file.place.name] for file in needed}
    return {
        "files": sizes,
        "fingerprint": tfrecord.fingerprint(needed[0].place) if needed else None,
    }


def records(
    found: Found, options: Options, splits: Ranges, done: dict[str, int]
) -> Generator[tuple[str, Item], None, int]:
    """The records of every range, file by file.

    Raises:
        InputError: a file is damaged or has another number of records than `dataset_info.json` says.
    """
    for name, (start, stop) in splits.items():
        begin = start + done[name]
        for file in (file for file in found.files if file.holds(begin, stop)):
            for number, payload in _clips(file, max(begin - file.start, 0)):
                if stop is not None and file.start + number >= stop:
                    break
                id = f"movi_a_{file.split}_{file.first + number:06d}"
                yield name, Item(f"{file.place}, record {number}", id, payload, found.format)
    return sum(file.count for file in found.files)


def decode(item: Item, options: Options) -> Scene:
    """The clip that a record holds, prepared.

    Raises:
        InputError: the record is not as the format says.
    """
    with naming(item.where):
        features = tfrecord.example(item.payload)
        number, *size = item.format.shape
        objects = _objects(features, item.format.labels)
        video = _frames(features, "video", number, images.rgb, size)
        ids = _frames(features, "segmentations", len(video), images.ids, video.shape[1:3])
        if ids.max() > len(objects):
            raise InputError(
                f"segmentations has id {ids.max()}, but the record describes {len(objects)} instances."
            )
    return Scene(item.id, *options.apply(video, ids), objects)


def _clips(file: File, start: int) -> Generator[tuple[int, bytes], None, None]:
    """The records of a file from `start` on, their number checked when its end is reached."""
    number = start - 1
    for number, payload in tfrecord.records(file.place, start):
        if number >= file.count:
            break
        yield number, payload
    if number + 1 != file.count:
        raise InputError(
            f"{file.place} has not the {file.count} records that dataset_info.json says. Fetch the file again."
        )


def _folder(raw: Place) -> Place:
    """The folder with features.json."""
    if raw.info.is_file:
        raise InputError(
            f"raw {raw} is a file. Give the folder of the MOVi-A data, with features.json in it."
        )
    found = [
        raw.at(path).parent
        for path in raw.files(recursive=True)
        if raw.at(path).name == "features.json"
    ]
    if not found:
        raise InputError(
            f"raw {raw} has no features.json. Give the folder that TensorFlow Datasets wrote, such as 128x128/1.0.0."
        )
    if len(found) > 1:
        raise InputError(
            f"raw {raw} holds several sets: {', '.join(map(str, found))}. Give one of them."
        )
    return found[0]


def _json(place: Place, there: dict[str, int]) -> Any:
    if place.name not in there:
        raise InputError(
            "it is missing. Fetch it again: it is part of what TensorFlow Datasets writes."
        )
    try:
        return json.loads(place.read())
    except ValueError as error:
        raise InputError(f"it is damaged ({error}). Fetch it again.") from None


def _files(folder: Place, info: Any) -> list[File]:
    """The files that `dataset_info.json` names, in its order."""
    files = []
    try:
        for split in info["splits"]:
            lengths = [int(length) for length in split["shardLengths"]]
            for at, length in enumerate(lengths):
                name = (split.get("filepathTemplate") or FILE_NAME).format(
                    DATASET=info["name"],
                    SPLIT=split["name"],
                    FILEFORMAT="tfrecord",
                    SHARD_X_OF_Y=f"{at:05d}-of-{len(lengths):05d}",
                )
                theirs = "val" if split["name"] == "validation" else split["name"]
                files.append(
                    File(
                        folder / name,
                        theirs,
                        sum(lengths[:at]),
                        sum(file.count for file in files),
                        length,
                    )
                )
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise InputError(
            f"it has not the form that TensorFlow Datasets writes ({error!r})."
        ) from None
    if not files:
        raise InputError("it names no files.")
    return files


def _shape(description: Any) -> tuple[int, int, int]:
    """Frames, height and width that `features.json` states, in any of the forms that its writer has had."""
    try:
        features = (
            description["featuresDict"]["features"]
            if "featuresDict" in description
            else description["content"]
        )
        shapes = {name: _stated(features[name]) for name in ("video", "segmentations")}
        kinds = {name: _first(features[name], "dtype") or "uint8" for name in shapes}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"it is not as TensorFlow Datasets writes it for MOVi-A ({error!r})."
        ) from None
    for name, channels in (("video", 3), ("segmentations", 1)):
        if shapes[name][-1] not in (-1, channels) or kinds[name] != "uint8":
            raise InputError(
                f"{name} is {kinds[name]} with {shapes[name][-1]} channels; MOVi-A has uint8 with {channels}."
            )
    frames, height, width, _ = shapes["video"]
    return frames, height, width


def _stated(feature: Any) -> list[int]:
    """Frames, height, width and channels of a video or a sequence of images; -1 where it is left open."""
    shape = _first(feature, "shape") or [-1, -1, -1]
    lengths = [
        int(length or -1) for length in (shape["dimensions"] if isinstance(shape, dict) else shape)
    ]
    return lengths if len(lengths) == 4 else [int(_first(feature, "length") or -1), *lengths]


def _first(description: Any, key: str) -> Any:
    """The first value of this key at any depth of a JSON object, also of one in a string; None without one."""
    if isinstance(description, str) and description.startswith("{"):
        description = json.loads(description)
    if not isinstance(description, dict):
        return None
    if key in description:
        return description[key]
    return next(
        (found for value in description.values() if (found := _first(value, key)) is not None), None
    )


def _label_names(place: Place, there: dict[str, int]) -> list[str]:
    with naming(str(place)):
        if place.name not in there:
            raise InputError(
                "it is missing. Fetch it again: it is part of what TensorFlow Datasets writes."
            )
    return place.read().decode().split()


def _frames(
    features: dict[str, tfrecord.Feature],
    name: str,
    number: int,
    decoder: Callable[[memoryview], np.ndarray],
    size: Sequence[int],
) -> np.ndarray:
    """The frames of a feature: uint8 (T, h, w) and channels; -1 in `number` or `size` takes any."""
    encoded = _feature(features, name, "bytes").bytes()
    if not encoded or number not in (-1, len(encoded)):
        raise InputError(f"{name} has {len(encoded)} frames; there must be {number}.")
    frames = []
    for time, data in enumerate(encoded):
        with naming(f"{name}, frame {time}"):
            frames.append(decoder(data))
            wanted = tuple(
                frames[0].shape[at] if length == -1 else length for at, length in enumerate(size)
            )
            if frames[-1].shape[:2] != wanted:
                raise InputError(f"it is {frames[-1].shape[:2]}; it must be {wanted}.")
    return np.stack(frames)


def _feature(features: dict[str, tfrecord.Feature], name: str, kind: str) -> tfrecord.Feature:
    if name not in features or features[name].kind != kind:
        raise InputError(f"there is no {kind} feature {name!r}, so this is no MOVi-A record.")
    return features[name]


def _objects(
    features: dict[str, tfrecord.Feature], labels: dict[str, list[str]]
) -> tuple[dict[str, Any], ...]:
    """What stays the same over a clip, of every instance."""
    columns: dict[str, list[Any]] = {}
    for name, words in labels.items():
        codes = _feature(features, f"instances/{name}_label", "int64").ints()
        if len(codes) and not 0 <= codes.min() <= codes.max() < len(words):
            raise InputError(
                f"instances/{name}_label has codes {codes.min()} to {codes.max()}; there are {len(words)} names."
            )
        columns[name] = [words[code] for code in codes]
    for name in NUMBERS:
        values = _feature(features, f"instances/{name}", "float").floats()
        if not np.isfinite(values).all():
            raise InputError(f"instances/{name} has a value that is not finite.")
        columns[name] = [round(float(value), 4) for value in values]
    counts = {name: len(column) for name, column in columns.items()}
    if len(set(counts.values())) != 1:
        raise InputError(f"the instances' features have different lengths: {counts}.")
    return tuple(
        dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)
    )
