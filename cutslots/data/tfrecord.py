"""TFRecord files and tf.train.Example messages, without TensorFlow.

A record is `uint64 length, uint32 masked CRC-32C of the length, data, uint32 masked CRC-32C of the
data`, little endian; the whole file may be one GZIP stream. Records are counted from 0.

Source: https://www.tensorflow.org/tutorials/load_data/tfrecord (TFRecords format details) and
tensorflow/core/example/feature.proto with the protocol buffers' wire format,
https://protobuf.dev/programming-guides/encoding/.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

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
    with location.open() as file:
        zipped = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        stream: Any = gzip.GzipFile(fileobj=file) if zipped else file
        try:
            while header := stream.read(_HEADER.size):
                yield number, _record(stream, header, number, skip=number < start)
                number += 1
        except (_DamageError, *GZIP_ERRORS) as error:
            reason = str(error)
            if isinstance(error, EOFError):
                reason = "the file is truncated: its gzip stream ends inside the record"
            elif not isinstance(error, _DamageError):
                reason = f"the gzip stream is damaged ({error})"
            remedy = "Fetch or copy the file again; the earlier records are good."
            raise InputError(f"{location}, record {number}: {reason}. {remedy}") from None
    if number == 0:
        raise InputError(f"{location} is empty. Fetch or copy the file again.")


def fingerprint(path: Location | Path | str) -> str:
    """8 hexadecimal digits of the first record, which remain when damage after it is repaired.

    Raises: see `records`.
    """
    return f"{google_crc32c.value(next(records(path))[1] or b''):08x}"


class _DamageError(Exception):
    """A record that cannot be read; `records` adds its number."""


def _record(stream: IO[bytes], header: bytes, number: int, skip: bool) -> bytes | None:
    if len(header) < _HEADER.size:
        raise _DamageError("the file ends inside the record's header")
    length, checksum = _HEADER.unpack(header)
    if _masked_crc(header[:8]) != checksum:
        hint = "; is this a TFRecord file?" if number == 0 else ""
        raise _DamageError(f"the checksum of the record's length differs{hint}")
    if length > MAX_RECORD_BYTES:
        raise _DamageError(f"its length is {length} bytes, the maximum is {MAX_RECORD_BYTES}")
    if skip:
        stream.seek(length + _CRC.size - 1, 1)  # past the end, which only reading notices
        if not stream.read(1):
            raise _DamageError("the file ends inside the record's data")
        return None
    data, checksum = stream.read(length), stream.read(_CRC.size)
    if len(data) < length or len(checksum) < _CRC.size:
        raise _DamageError("the file ends inside the record's data")
    if _masked_crc(data) != _CRC.unpack(checksum)[0]:
        raise _DamageError("the checksum of the record's data differs")
    return data


def _masked_crc(data: bytes) -> int:
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


@dataclass(frozen=True)
class Feature:
    """One feature of an Example, still encoded."""

    kind: str  # "bytes", "float" or "int64"
    payload: memoryview  # the encoded list, a view into the record

    def bytes(self) -> list[memoryview]:
        """The elements of a BytesList, views into the record."""
        fields = self._fields("bytes")
        return [value for field, wire, value in fields if field == 1 and wire == _BYTES]

    def floats(self) -> np.ndarray:
        """The elements of a FloatList, packed or not: float32 (n,)."""
        fields = self._fields("float")
        values = b"".join(
            v for field, wire, v in fields if field == 1 and wire in (_BYTES, _FIXED32)
        )
        if len(values) % 4:
            raise InputError("not a tf.train.Example: the size of a FloatList is not 4 n bytes.")
        return np.frombuffer(values, "<f4")

    def ints(self) -> np.ndarray:
        """The elements of an Int64List, packed or not: int64 (n,)."""
        numbers: list[int] = []
        for field, wire, value in self._fields("int64"):
            at = 0
            while field == 1 and wire in (_BYTES, _VARINT) and at < len(value):
                number, at = _varint(value, at)
                numbers.append(number - (1 << 64) if number >> 63 else number)
        return np.array(numbers, np.int64)

    def _fields(self, kind: str) -> Iterator[tuple[int, int, memoryview]]:
        if self.kind != kind:
            raise InputError(f"a feature must be a list of {kind}, got a list of {self.kind}.")
        return _fields(self.payload)


def example(payload: bytes | memoryview) -> dict[str, Feature]:
    """The features of a serialized tf.train.Example by name; no list is decoded yet."""
    features = {}
    for message in _messages(memoryview(payload), 1):
        for entry in _messages(message, 1):
            names, values = list(_messages(entry, 1)), list(_messages(entry, 2))
            try:
                name = str(names[-1], "utf-8") if names else ""
            except UnicodeDecodeError:
                raise InputError("not a tf.train.Example: a name is not UTF-8.") from None
            for field, wire, value in _fields(values[-1] if values else memoryview(b"")):
                if wire == _BYTES and field in KINDS:
                    features[name] = Feature(KINDS[field], value)
    return features


def feature(features: dict[str, Feature], name: str, kind: str, dataset: str) -> Feature:
    """The feature of this name and kind; InputError if this is not a record of `dataset`."""
    if name not in features or features[name].kind != kind:
        others = ", ".join(f"{key} ({value.kind})" for key, value in sorted(features.items()))
        raise InputError(f"not a {dataset} record: no {kind} feature {name!r}, but {others}.")
    return features[name]


def one_byte_elements(payload: memoryview | bytes, count: int) -> np.ndarray:
    """A BytesList of `count` strings of one byte each: uint8 (count,), a view with stride 3.

    Each element is encoded as `0x0a 0x01 value` (field 1, length 1), so the values are every third
    byte; the other two are checked.

    Raises:
        InputError: another number of elements, or an element of another length.
    """
    encoded = np.frombuffer(payload, np.uint8)
    if len(encoded) != 3 * count:
        raise InputError(f"a list has {len(encoded)} bytes, expected {count} elements of one byte.")
    # Rows of 1,024 elements have their tags at equal positions. All rows are tested at once: their
    # bitwise `or` and `and` equal the tags only if each row has them. Four times as fast as a
    # strided comparison.
    aligned = len(encoded) // 3072 * 3072
    good = bool(np.all(encoded[aligned:].reshape(-1, 3)[:, :2] == (0x0A, 0x01)))
    if aligned:
        rows = encoded[:aligned].view("<u8").reshape(-1, 384)
        for combined in (np.bitwise_or.reduce(rows), np.bitwise_and.reduce(rows)):
            good &= bool(np.all(combined.view(np.uint8).reshape(-1, 3)[:, :2] == (0x0A, 0x01)))
    if not good:
        raise InputError("an element of a list does not have exactly one byte.")
    return encoded[2::3]


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
