"""TFRecord files and tf.train.Example messages, without TensorFlow.

A record is `uint64 length, uint32 masked CRC-32C of the length, data, uint32 masked CRC-32C of the
data`, little endian; the whole file may be one GZIP stream. Records are counted from 0.

Source: https://www.tensorflow.org/tutorials/load_data/tfrecord (TFRecords format details) and
tensorflow/core/example/feature.proto with the protocol buffers' wire format,
https://protobuf.dev/programming-guides/encoding/.
"""

import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

from cutslots.data.locate import Location
from cutslots.errors import InputError

try:
    from isal import igzip as gzip
    from isal import isal_zlib as zlib
except ImportError:  # a platform without a wheel; the standard library takes three times as long
    import gzip
    import zlib

GZIP_ERRORS: tuple[type[Exception], ...] = (EOFError, zlib.error, gzip.BadGzipFile)  # pyright: ignore
MAX_RECORD_BYTES = 1 << 31
KINDS = {1: "bytes", 2: "float", 3: "int64"}

_HEADER, _CRC = struct.Struct("<QI"), struct.Struct("<I")
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def records(path: Location | Path | str, start: int = 0) -> Iterator[tuple[int, bytes | None]]:
    """Yield (record number, data) of a plain or GZIP file; data is None before record `start`.

    Skipped records are not checked, and in a plain file not read.

    Raises:
        InputError: the file is empty, truncated, not a TFRecord file, or a checksum differs.
    """
    location, number = Location.of(path), 0

    def damage(reason: str) -> InputError:
        remedy = "Fetch or copy the file again; the earlier records are good."
        return InputError(f"{location}, record {number}: {reason}. {remedy}")

    with location.open() as file:
        zipped = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        stream: Any = gzip.GzipFile(fileobj=file) if zipped else file
        try:
            while header := stream.read(_HEADER.size):
                if len(header) < _HEADER.size:
                    raise damage("the file ends inside the record's header")
                length, checksum = _HEADER.unpack(header)
                if _masked_crc(header[:8]) != checksum:
                    hint = "; is this a TFRecord file?" if number == 0 else ""
                    raise damage(f"the checksum of the record's length differs{hint}")
                if length > MAX_RECORD_BYTES:
                    maximum = f"the maximum is {MAX_RECORD_BYTES}"
                    raise damage(f"its length is {length} bytes, {maximum}")
                if number < start:
                    stream.seek(
                        length + _CRC.size - 1, 1
                    )  # past the end, which only reading notices
                    data, checksum = None, stream.read(1)
                    complete = len(checksum) == 1
                else:
                    data, checksum = stream.read(length), stream.read(_CRC.size)
                    complete = len(data) == length and len(checksum) == _CRC.size
                if not complete:
                    raise damage("the file ends inside the record's data")
                if data is not None and _masked_crc(data) != _CRC.unpack(checksum)[0]:
                    raise damage("the checksum of the record's data differs")
                yield number, data
                number += 1
        except EOFError:
            raise damage("the file is truncated: its gzip stream ends inside the record") from None
        except GZIP_ERRORS as error:
            raise damage(f"the gzip stream is damaged ({error})") from None
    if number == 0:
        raise InputError(f"{location} is empty. Fetch or copy the file again.")


def fingerprint(path: Location | Path | str) -> str:
    """8 hexadecimal digits of the first record, which remain when damage after it is repaired.

    Raises: see `records`.
    """
    return f"{google_crc32c.value(next(records(path))[1] or b''):08x}"


def _masked_crc(data: bytes) -> int:
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


class Example:
    """A serialized tf.train.Example, whose features are decoded when they are asked for.

    Raises:
        InputError: another message; the methods also for a missing feature.
    """

    def __init__(self, payload: bytes | memoryview):
        self._features: dict[str, tuple[str, memoryview]] = {}
        for message in _messages(memoryview(payload), 1):
            for entry in _messages(message, 1):
                names, values = list(_messages(entry, 1)), list(_messages(entry, 2))
                try:
                    name = str(names[-1], "utf-8") if names else ""
                except UnicodeDecodeError:
                    raise InputError("not a tf.train.Example: a name is not UTF-8.") from None
                for field, wire, value in _fields(values[-1] if values else memoryview(b"")):
                    if wire == _BYTES and field in KINDS:
                        self._features[name] = KINDS[field], value

    def _encoded(self, name: str, kind: str) -> memoryview:
        """The encoded list of a feature, a view into the record."""
        has, encoded = self._features.get(name, (None, memoryview(b"")))
        if has != kind:
            others = ", ".join(f"{key} ({has})" for key, (has, _) in sorted(self._features.items()))
            dataset = "Is it a record of another dataset?"
            raise InputError(f"no {kind} feature {name!r}, but {others}. {dataset}")
        return encoded

    def bytes(self, name: str) -> list[memoryview]:
        """The elements of a BytesList, views into the record."""
        return list(_messages(self._encoded(name, "bytes"), 1))

    def floats(self, name: str) -> np.ndarray:
        """The elements of a FloatList, packed or not: float32 (n,); all must be finite."""
        fields = _fields(self._encoded(name, "float"))
        encoded = b"".join(v for n, wire, v in fields if n == 1 and wire in (_BYTES, _FIXED32))
        if len(encoded) % 4:
            raise InputError("not a tf.train.Example: the size of a FloatList is not 4 n bytes.")
        values = np.frombuffer(encoded, "<f4")
        if not np.isfinite(values).all():
            raise InputError(f"feature {name!r} has a value that is not finite.")
        return values

    def ints(self, name: str) -> np.ndarray:
        """The elements of an Int64List, packed or not: int64 (n,)."""
        numbers: list[int] = []
        for field, wire, value in _fields(self._encoded(name, "int64")):
            at = 0
            while field == 1 and wire in (_BYTES, _VARINT) and at < len(value):
                number, at = _varint(value, at)
                numbers.append(number - (1 << 64) if number >> 63 else number)
        return np.array(numbers, np.int64)

    def single_bytes(self, name: str, *shape: int) -> np.ndarray:
        """A BytesList of strings of one byte each: uint8 with this shape, a view with stride 3.

        Each element is encoded as `0x0a 0x01 value` (field 1, length 1), so the values are every
        third byte; the other two are checked.

        Raises:
            InputError: another number of elements, or an element of another length.
        """
        encoded, count = np.frombuffer(self._encoded(name, "bytes"), np.uint8), math.prod(shape)
        if len(encoded) != 3 * count:
            expected = f"expected {count} elements of one byte"
            raise InputError(f"feature {name!r} has {len(encoded)} bytes, {expected}.")
        # Rows of 1,024 elements have their tags at equal positions. All rows are tested at once:
        # their bitwise `or` and `and` equal the tags only if each row has them. Five times as fast
        # as strided comparisons.
        aligned = len(encoded) // 3072 * 3072
        good = bool(np.all(encoded[aligned:].reshape(-1, 3)[:, :2] == (0x0A, 0x01)))
        if aligned:
            rows = encoded[:aligned].view("<u8").reshape(-1, 384)
            for combined in (np.bitwise_or.reduce(rows), np.bitwise_and.reduce(rows)):
                good &= bool(np.all(combined.view(np.uint8).reshape(-1, 3)[:, :2] == (0x0A, 0x01)))
        if not good:
            raise InputError(f"feature {name!r} has an element that is not exactly one byte.")
        return encoded[2::3].reshape(shape)


def _messages(message: memoryview, wanted: int) -> Iterator[memoryview]:
    return (value for field, wire, value in _fields(message) if field == wanted and wire == _BYTES)


def _fields(message: memoryview) -> Iterator[tuple[int, int, memoryview]]:
    """(field number, wire type, encoded value) of all fields of a message, in order."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        field, wire = tag >> 3, tag & 7
        if wire == _VARINT:
            end = _varint(message, at)[1]
        elif wire == _BYTES:
            length, at = _varint(message, at)
            end = at + length
        elif wire in (_FIXED64, _FIXED32):
            end = at + (8 if wire == _FIXED64 else 4)
        else:
            raise InputError(f"not a tf.train.Example: a field has wire type {wire}.")
        if end > len(message):
            raise InputError("not a tf.train.Example: a field is longer than its message.")
        yield field, wire, message[at:end]
        at = end


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """The number that starts at `at`, and the position after it."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            break
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & (1 << 64) - 1, at
    raise InputError("not a tf.train.Example: a number does not end.")
