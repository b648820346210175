"""TFRecord and CLEVR files that the tests write byte by byte in the published formats."""

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
    """A Feature with one string of one byte for every element."""
    encoded = np.empty((values.size, 3), np.uint8)
    encoded[:, 0], encoded[:, 1], encoded[:, 2] = 0x0A, 1, values.reshape(-1)
    return field(1, encoded.tobytes())


def float_list(values: np.ndarray) -> bytes:
    return field(2, field(1, np.asarray(values, "<f4").tobytes()))


def example(features: dict[str, bytes]) -> bytes:
    pairs = features.items()
    return field(1, b"".join(field(1, field(1, k.encode()) + field(2, v)) for k, v in pairs))


def frame(payload: bytes) -> bytes:
    """One TFRecord."""

    def masked_crc(data: bytes) -> bytes:
        crc = google_crc32c.value(data)
        return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)

    length = struct.pack("<Q", len(payload))
    return length + masked_crc(length) + payload + masked_crc(payload)


def write_records(path: Path, payloads: Iterable[bytes], zipped: bool = True) -> Path:
    content = b"".join(frame(payload) for payload in payloads)
    path.write_bytes(gzip.compress(content, 1) if zipped else content)
    return path


def clevr_truth(index: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Image, instance ids and number of objects (3 to 5) of record `index`."""
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
    visible = (np.arange(ENTITIES) <= number).astype(np.float32)
    objects = (np.arange(ENTITIES) > 0) * visible
    masks = np.stack([(ids == k) * 255 for k in range(ENTITIES)]).astype(np.uint8)
    features = {
        "image": byte_list(image),
        "mask": byte_list(masks),
        "visibility": float_list(visible),
        "rotation": float_list(objects * 90),
        "pixel_coords": float_list(np.outer(objects, [160, 120, 10])),
    }
    features |= {axis: float_list(objects * rng.uniform(-3, 3, ENTITIES)) for axis in "xyz"}
    for name, top in {"shape": 3, "size": 2, "material": 2, "color": 8}.items():
        codes = objects * rng.integers(1, top + 1, ENTITIES)
        features[name] = byte_list(codes.astype(np.uint8))
    return features
