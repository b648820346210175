"""TFRecord and CLEVR files of the tests' own making, written byte by byte in the real formats."""

import gzip
import struct
from collections.abc import Iterable
from pathlib import Path

import google_crc32c
import numpy as np

HEIGHT, WIDTH, ENTITIES = 240, 320, 11
CLEVR_NAME = "clevr_with_masks_train.tfrecords"


def varint(number: int) -> bytes:
    out = b""
    while number > 127:
        out, number = out + bytes([number & 127 | 128]), number >> 7
    return out + bytes([number])


def field(number: int, value: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(value)) + value


def byte_list(values: np.ndarray) -> bytes:
    """A Feature that holds one string of one byte for every element."""
    encoded = np.empty((values.size, 3), np.uint8)
    encoded[:, 0], encoded[:, 1], encoded[:, 2] = 0x0A, 1, values.reshape(-1)
    return field(1, encoded.tobytes())


def float_list(values: np.ndarray) -> bytes:
    return field(2, field(1, np.asarray(values, "<f4").tobytes()))


def example(features: dict[str, bytes]) -> bytes:
    return field(
        1,
        b"".join(
            field(1, field(1, name.encode()) + field(2, value)) for name, value in features.items()
        ),
    )


def masked_crc(data: bytes) -> int:
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def frame(payload: bytes) -> bytes:
    """One TFRecord."""
    length = struct.pack("<Q", len(payload))
    return (
        length
        + struct.pack("<I", masked_crc(length))
        + payload
        + struct.pack("<I", masked_crc(payload))
    )


def clevr_truth(index: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Image, instance ids and number of objects of the miniature file's record `index`."""
    rng = np.random.default_rng(index)
    image = np.kron(rng.integers(0, 256, (24, 32, 3)), np.ones((10, 10, 1))).astype(np.uint8)
    number = 3 + index % 3
    ids = np.zeros((HEIGHT, WIDTH), np.uint8)
    for k in range(1, number + 1):
        top, left = rng.integers(30, 170), rng.integers(70, 210)
        ids[top : top + 40, left : left + 40] = k
    return image, ids, number


def clevr_features(index: int) -> dict[str, bytes]:
    image, ids, number = clevr_truth(index)
    rng = np.random.default_rng(1000 + index)
    present = (np.arange(ENTITIES) <= number).astype(np.float32)
    objects = (np.arange(ENTITIES) > 0) * present
    masks = np.stack([(ids == k) * 255 for k in range(ENTITIES)]).astype(np.uint8)
    features = {
        "image": byte_list(image),
        "mask": byte_list(masks),
        "visibility": float_list(present),
    }
    features |= {axis: float_list(objects * rng.uniform(-3, 3, ENTITIES)) for axis in "xyz"}
    features["rotation"] = float_list(objects * 90)
    features["pixel_coords"] = float_list(np.outer(objects, [160, 120, 10]))
    codes = {"shape": 3, "size": 2, "material": 2, "color": 8}
    return features | {
        name: byte_list((objects * rng.integers(1, top + 1, ENTITIES)).astype(np.uint8))
        for name, top in codes.items()
    }


def write_records(path: Path, payloads: Iterable[bytes], zipped: bool = True) -> Path:
    content = b"".join(frame(payload) for payload in payloads)
    path.write_bytes(gzip.compress(content, 1) if zipped else content)
    return path
