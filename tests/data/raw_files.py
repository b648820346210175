"""Small raw datasets, written byte by byte in the published formats, and their ground truth."""

import gzip
import io
import json
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from PIL import Image

from cutslots import data

CLEVR_NAME = "clevr_with_masks_train.tfrecords"
CLEVR, CLEVRTEX, MOVI = (240, 320), (60, 80), (5, 40, 40)  # the shapes of their masks
ENTITIES = 11
MOVI_FOLDER = "movi_a/40x40/1.0.0"
MOVI_SPLITS = {"train": [3, 2], "validation": [4]}
MOVI_LABELS = {
    "shape": ["cube", "cylinder", "sphere"],
    "size": ["small", "large"],
    "color": ["blue", "brown", "cyan", "gray", "green", "purple", "red", "yellow"],
    "material": ["metal", "rubber"],
}


def truth(index: int, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, int]:
    """Image, instance ids and number of objects (2 to 4) of a record; in clips, objects move."""
    rng = np.random.default_rng(index)
    *frames, height, width = shape
    coarse = rng.integers(0, 256, (*frames, height // 5, width // 5, 3))
    image = coarse.repeat(5, -3).repeat(5, -2).astype(np.uint8)
    number, side = 2 + index % 3, height // 6
    ids = np.zeros(shape, np.uint8)
    for k in range(1, number + 1):
        top = rng.integers(height // 8, height * 5 // 8)
        left = rng.integers(width // 5, width * 3 // 5)
        for time, mask in enumerate(ids.reshape(-1, height, width)):
            mask[top : top + side, left + time : left + time + side] = k
    return image, ids, number


def varint(number: int) -> bytes:
    out = b""
    while number > 127:
        out, number = out + bytes([number & 127 | 128]), number >> 7
    return out + bytes([number])


def field(number: int, value: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(value)) + value


def bytes_list(values: Iterable[bytes]) -> bytes:
    return field(1, b"".join(field(1, value) for value in values))


def single_bytes(values: np.ndarray) -> bytes:
    """A BytesList with one string of one byte for every element."""
    encoded = np.empty((values.size, 3), np.uint8)
    encoded[:, 0], encoded[:, 1], encoded[:, 2] = 0x0A, 1, values.reshape(-1)
    return field(1, encoded.tobytes())


def float_list(values: np.ndarray) -> bytes:
    return field(2, field(1, np.asarray(values, "<f4").tobytes()))


def int_list(values: list[int]) -> bytes:
    return field(3, field(1, b"".join(map(varint, values))))


def example(features: dict[str, bytes]) -> bytes:
    pairs = features.items()
    return field(1, b"".join(field(1, field(1, k.encode()) + field(2, v)) for k, v in pairs))


def frame(payload: bytes) -> bytes:
    """One TFRecord."""

    def masked_crc(content: bytes) -> bytes:
        crc = google_crc32c.value(content)
        return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)

    length = struct.pack("<Q", len(payload))
    return length + masked_crc(length) + payload + masked_crc(payload)


def write_records(path: Path, payloads: Iterable[bytes], zipped: bool = True) -> Path:
    content = b"".join(frame(payload) for payload in payloads)
    path.write_bytes(gzip.compress(content, 1) if zipped else content)
    return path


def clevr_record(index: int, **changed: bytes) -> bytes:
    """A record of CLEVR; `changed` replaces some features."""
    image, ids, number = truth(index, CLEVR)
    rng = np.random.default_rng(1000 + index)
    visible = (np.arange(ENTITIES) <= number).astype(np.float32)
    objects = (np.arange(ENTITIES) > 0) * visible
    masks = np.stack([(ids == k) * 255 for k in range(ENTITIES)]).astype(np.uint8)
    features = {
        "image": single_bytes(image),
        "mask": single_bytes(masks),
        "visibility": float_list(visible),
        "rotation": float_list(objects * 90),
        "pixel_coords": float_list(np.outer(objects, [160, 120, 10])),
    }
    features |= {axis: float_list(objects * rng.uniform(-3, 3, ENTITIES)) for axis in "xyz"}
    for name, top in {"shape": 3, "size": 2, "material": 2, "color": 8}.items():
        codes = objects * rng.integers(1, top + 1, ENTITIES)
        features[name] = single_bytes(codes.astype(np.uint8))
    return example(features | changed)


def png(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def ids_image(ids: np.ndarray) -> Image.Image:
    """A palette image whose colors would give other numbers than its indices."""
    image = Image.fromarray(ids).convert("L")
    colors = (((k * 37 + 90) % 256, k * 91 % 256, 255 - k) for k in range(256))
    image.putpalette([channel for color in colors for channel in color])
    return image


def clevrtex_metadata(index: int, variant: str) -> dict[str, Any]:
    objects = [
        {"shape": ("cube", "sphere", "monkey")[k % 3], "rotation": 12.5 * k, "size": "small",
         "3d_coords": [1.0 * k, 2.0, 0.4], "pixel_coords": [10, 20, 11.5], "index": k,
         "color": "blue", "material": f"stone_{k}"}
        for k in range(1, truth(index, CLEVRTEX)[2] + 1)
    ]  # fmt: skip
    return {"split": variant, "ground_material": "grass_1", "objects": objects}


def clevrtex_stem(folder: Path, index: int, variant: str) -> Path:
    """The path of a number's files without their endings; three numbers to a folder."""
    return folder / f"clevrtex_{variant}" / str(index // 3) / f"CLEVRTEX_{variant}_{index:06d}"


def write_clevrtex(folder: Path, count: int, variant: str = "full") -> Path:
    for index in range(count):
        image, ids, _ = truth(index, CLEVRTEX)
        stem = clevrtex_stem(folder, index, variant)
        stem.parent.mkdir(parents=True, exist_ok=True)
        opaque = np.concatenate([image, np.full((*CLEVRTEX, 1), 255, np.uint8)], 2)
        Image.fromarray(opaque).save(f"{stem}.png")
        ids_image(ids).save(f"{stem}_flat.png")
        Path(f"{stem}.json").write_text(json.dumps(clevrtex_metadata(index, variant)))
        Image.fromarray(image).save(f"{stem}_depth_0001.png")  # the archives have more passes
    return folder


def movi_record(index: int, changed: dict[str, bytes] | None = None) -> bytes:
    """A record of MOVi-A, counted over all splits."""
    frames, ids, number = truth(index, MOVI)
    features = {
        "video": bytes_list(map(png, frames)),
        "segmentations": bytes_list(map(png, ids)),
        "metadata/num_instances": int_list([number]),
    }
    for name in ("mass", "friction", "restitution"):
        features[f"instances/{name}"] = float_list(np.arange(1, number + 1) / 4)
    for name, words in MOVI_LABELS.items():
        codes = [(index + k) % len(words) for k in range(number)]
        features[f"instances/{name}_label"] = int_list(codes)
    return example(features | (changed or {}))


def movi_name(split: str, at: int) -> str:
    return f"movi_a-{split}.tfrecord-{at:05d}-of-{len(MOVI_SPLITS[split]):05d}"


def write_movi(root: Path, changed: dict[int, bytes] | None = None) -> Path:
    """All splits as TensorFlow Datasets writes them; `changed` replaces some records."""
    folder = root / MOVI_FOLDER
    folder.mkdir(parents=True)
    payloads = iter([(changed or {}).get(number) or movi_record(number) for number in range(9)])
    splits: list[dict[str, Any]] = []
    for split, lengths in MOVI_SPLITS.items():
        splits.append({"name": split, "shardLengths": [str(length) for length in lengths]})
        for at, length in enumerate(lengths):
            records = [next(payloads) for _ in range(length)]
            write_records(folder / movi_name(split, at), records, zipped=False)
    # Older versions write no template.
    splits[0]["filepathTemplate"] = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    info = {"name": "movi_a", "version": "1.0.0", "splits": splits}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    for name, words in MOVI_LABELS.items():
        (folder / f"instances-{name}_label.labels.txt").write_text("\n".join(words) + "\n")
    return root


def reference(image: np.ndarray, ids: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """An independent implementation of the benchmark's preprocessing; of clips frame by frame."""
    if ids.ndim > 2:
        frames = [reference(*frame, size) for frame in zip(image, ids, strict=True)]
        return np.stack([f[0] for f in frames]), np.stack([f[1] for f in frames])
    height, width = ids.shape
    side = int(0.8 * min(height, width))
    box = ((width - side) // 2, (height - side) // 2, (width + side) // 2, (height + side) // 2)
    small = Image.fromarray(image).crop(box).resize((size, size), Image.Resampling.BILINEAR)
    small_ids = Image.fromarray(ids).crop(box).resize((size, size), Image.Resampling.NEAREST)
    return np.array(small), np.array(small_ids)


def assert_equal(folder: Path, shape: tuple[int, ...], id: str) -> None:
    """Compare every scene of a folder with its truth; `id` is a template of the scene's id."""
    assert data.check(folder) == []
    assert str(folder.parent) not in (folder / "manifest.json").read_text()
    for name, (start, _) in data.Manifest.load(folder).ranges.items():
        batches = data.Batches(folder, name, 1, shuffle=False)
        for position, batch in enumerate(batches.epoch(0)):
            number = start + position
            image, ids, objects = truth(number, shape)
            small, small_ids = reference(image, ids, batches.image_size[0])
            np.testing.assert_array_equal(batch.images[0].numpy(), small)
            np.testing.assert_array_equal(batch.masks[0].numpy(), small_ids)
            assert len(batches.metadata([position])[0]) == objects
            assert batches.ids([position]) == [id.format(name=name, at=position, number=number)]


def counts(manifest: data.Manifest) -> dict[str, int]:
    """The number of scenes of every split."""
    return {name: split.count for name, split in manifest.splits.items()}


def times(folder: Path) -> dict[str, int]:
    """When every shard was written."""
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.arrow")}
