"""A miniature MOVi-A folder of the tests' own making, as TensorFlow Datasets writes one."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from clevr_files import example, field, float_list, varint, write_records
from PIL import Image

FRAMES, SIDE = 5, 40
LABELS = {
    "shape": ["cube", "cylinder", "sphere"],
    "size": ["small", "large"],
    "color": ["blue", "brown", "cyan", "gray", "green", "purple", "red", "yellow"],
    "material": ["metal", "rubber"],
}
SPLITS = {"train": [3, 2], "validation": [4]}
FOLDER = "movi_a/40x40/1.0.0"


def bytes_list(values: list[bytes]) -> bytes:
    return field(1, b"".join(field(1, value) for value in values))


def int_list(values: list[int]) -> bytes:
    return field(3, field(1, b"".join(map(varint, values))))


def png(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def truth(index: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Frames, instance ids and number of instances of the record with this number over all splits; squares that move."""
    rng = np.random.default_rng(index)
    number = 2 + index % 3
    frames = np.kron(rng.integers(0, 256, (FRAMES, 8, 8, 3)), np.ones((1, 5, 5, 1))).astype(
        np.uint8
    )
    ids = np.zeros((FRAMES, SIDE, SIDE), np.uint8)
    for k in range(1, number + 1):
        top, left = rng.integers(4, 24, 2)
        for time in range(FRAMES):
            ids[time, top : top + 8, left + time : left + time + 8] = k
    return frames, ids, number


def features(index: int) -> dict[str, bytes]:
    frames, ids, number = truth(index)
    found = {
        "video": bytes_list([png(frame) for frame in frames]),
        "segmentations": bytes_list([png(mask) for mask in ids]),
        "metadata/video_name": bytes_list([str(index).encode()]),
        "metadata/num_instances": int_list([number]),
        **{
            f"instances/{name}": float_list(np.arange(1, number + 1) / 4)
            for name in ("mass", "friction", "restitution")
        },
    }
    for name, words in LABELS.items():
        found[f"instances/{name}_label"] = int_list(
            [(index + k) % len(words) for k in range(number)]
        )
    return found


def image_feature(channels: int, kind: str = "uint8") -> dict[str, Any]:
    return {
        "pythonClassName": "tensorflow_datasets.core.features.image_feature.Image",
        "image": {"dtype": kind, "shape": {"dimensions": [str(SIDE), str(SIDE), str(channels)]}},
    }


def description(channels: int = 3, kind: str = "uint8") -> dict[str, Any]:
    shape = [str(FRAMES), str(SIDE), str(SIDE), str(channels)]
    video = {"video": {"dtype": "uint8", "encodingFormat": "png", "shape": {"dimensions": shape}}}
    segmentations = {"sequence": {"feature": image_feature(1, kind), "length": str(FRAMES)}}
    return {"featuresDict": {"features": {"video": video, "segmentations": segmentations}}}


def file_name(split: str, at: int) -> str:
    return f"movi_a-{split}.tfrecord-{at:05d}-of-{len(SPLITS[split]):05d}"


def write_folder(root: Path, changed: dict[int, bytes] | None = None) -> Path:
    """The folder of all splits; `changed` has other payloads for some records."""
    folder = root / FOLDER
    folder.mkdir(parents=True)
    index = 0
    for split, lengths in SPLITS.items():
        for at, length in enumerate(lengths):
            numbers = range(index, index + length)
            payloads = [
                (changed or {}).get(number) or example(features(number)) for number in numbers
            ]
            write_records(folder / file_name(split, at), payloads, zipped=False)
            index += length
    splits = [
        {"name": name, "shardLengths": [str(length) for length in lengths]}
        for name, lengths in SPLITS.items()
    ]
    splits[0]["filepathTemplate"] = (
        "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"  # older versions write none
    )
    (folder / "dataset_info.json").write_text(
        json.dumps({"name": "movi_a", "version": "1.0.0", "splits": splits})
    )
    (folder / "features.json").write_text(json.dumps(description()))
    for name, words in LABELS.items():
        (folder / f"instances-{name}_label.labels.txt").write_text("\n".join(words) + "\n")
    return folder
