"""A small MOVi-A folder as TensorFlow Datasets writes one."""

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
    """Frames, ids and number of instances of a record, counted over all splits; moving squares."""
    rng = np.random.default_rng(index)
    number, blocks = 2 + index % 3, rng.integers(0, 256, (FRAMES, 8, 8, 3))
    frames = np.kron(blocks, np.ones((1, 5, 5, 1))).astype(np.uint8)
    ids = np.zeros((FRAMES, SIDE, SIDE), np.uint8)
    for k in range(1, number + 1):
        top, left = rng.integers(4, 24, 2)
        for time in range(FRAMES):
            ids[time, top : top + 8, left + time : left + time + 8] = k
    return frames, ids, number


def features(index: int) -> dict[str, bytes]:
    frames, ids, number = truth(index)
    result = {
        "video": bytes_list([png(frame) for frame in frames]),
        "segmentations": bytes_list([png(mask) for mask in ids]),
        "metadata/num_instances": int_list([number]),
    }
    for name in ("mass", "friction", "restitution"):
        result[f"instances/{name}"] = float_list(np.arange(1, number + 1) / 4)
    for name, words in LABELS.items():
        codes = [(index + k) % len(words) for k in range(number)]
        result[f"instances/{name}_label"] = int_list(codes)
    return result


def file_name(split: str, at: int) -> str:
    return f"movi_a-{split}.tfrecord-{at:05d}-of-{len(SPLITS[split]):05d}"


def write_folder(root: Path, changed: dict[int, bytes] | None = None) -> Path:
    """The folder of all splits; `changed` has other payloads for some records."""
    folder = root / FOLDER
    folder.mkdir(parents=True)
    payloads = iter([(changed or {}).get(n) or example(features(n)) for n in range(9)])
    splits: list[dict[str, Any]] = []
    for split, lengths in SPLITS.items():
        splits.append({"name": split, "shardLengths": [str(length) for length in lengths]})
        for at, length in enumerate(lengths):
            records = [next(payloads) for _ in range(length)]
            write_records(folder / file_name(split, at), records, zipped=False)
    # Older versions write no template.
    splits[0]["filepathTemplate"] = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    info = {"name": "movi_a", "version": "1.0.0", "splits": splits}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    for name, words in LABELS.items():
        (folder / f"instances-{name}_label.labels.txt").write_text("\n".join(words) + "\n")
    return folder
