"""TFRecord files and tf.train.Example messages, without TensorFlow.

A record is `uint64 length, uint32 masked CRC-32C of the length, data, uint32 masked CRC-32C of the data`, little
endian; the whole file may be one GZIP stream. Every fault names the file and the record, counted from 0.

Source: https://www.tensorflow.org/tutorials/load_data/tfrecord (TFRecords format details) and tensorflow/core/example/
feature.proto with the protocol buffers' wire format, https://protobuf.dev/programming-guides/encoding/.
"""

import struct
import zlib
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import google_crc32c
import numpy as np

from cutslots.data.places import Place
from cutslots.errors import InputError

GZIP_MAGIC = b"\x1f\x8b"
READ_BYTES = 1 << 18
MAX_RECORD_BYTES = 1 << 31
KINDS = {1: "bytes", 2: "float", 3: "int64"}

_HEADER = struct.Struct("<QI")
_CRC = struct.Struct("<I")
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def records(where: Place | Path | str, start: int = 0) -> Generator[tuple[int, bytes], None, int]:
    """Yield (record number, data) of a plain or GZIP file from record `start` on; return how many records there are.

    Skipped records cost no checksum of their data, and in a plain file no reading either.

    Raises:
        InputError: the file is empty, is no TFRecord file, ends inside a record, or a checksum does not fit.
    """
    place, number = Place.of(where), 0
    with place.open() as file:
        stream = _GzipStream(file) if file.read(2) == GZIP_MAGIC else _PlainStream(file)
        file.seek(0)
        try:
            while header := stream.read(_HEADER.size):
                length = _length(header, number)
                if number < start:
                    stream.skip(length + _CRC.size)
                else:
                    yield number, _checked(stream.read(length), length, stream.read(_CRC.size))
                number += 1
        except (_DamageError, zlib.error) as error:
            reason = (
                f"the gzip stream is damaged ({error})"
                if isinstance(error, zlib.error)
                else str(error)
            )
            raise InputError(
                f"{place}, record {number}: {reason}. Fetch or copy the file again; the earlier records are good."
            ) from None
    if number == 0:
        raise InputError(
            f"{place} is empty: there is no record in it. Fetch or copy the file again."
        )
    return number


def fingerprint(where: Place | Path | str) -> str:
    """8 hexadecimal digits of the file's first record: what is behind it may be damaged and mended.

    Raises: what `records` raises.
    """
    return f"{google_crc32c.value(next(records(where))[1]):08x}"


class _DamageError(Exception):
    """A record that cannot be read; `records` adds which one."""


def _length(header: bytes, number: int) -> int:
    if len(header) < _HEADER.size:
        raise _DamageError("the file ends inside the record's header")
    length, checksum = _HEADER.unpack(header)
    if _masked_crc(header[:8]) != checksum:
        hint = "; is this a TFRecord file?" if number == 0 else ""
        raise _DamageError(f"the checksum of the record's length does not fit{hint}")
    if length > MAX_RECORD_BYTES:
        raise _DamageError(
            f"its length is {length} bytes, more than the {MAX_RECORD_BYTES} that a record can have"
        )
    return length


def _checked(data: bytes, length: int, checksum: bytes) -> bytes:
    if len(data) < length or len(checksum) < _CRC.size:
        raise _DamageError("the file ends inside the record's data")
    if _masked_crc(data) != _CRC.unpack(checksum)[0]:
        raise _DamageError("the checksum of the record's data does not fit")
    return data


def _masked_crc(data: bytes) -> int:
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


class _PlainStream:
    """Reads and skips bytes of a file."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self._size = file.seek(0, 2)

    def read(self, count: int) -> bytes:
        """The next `count` bytes, or fewer at the end of the file."""
        # An impossible length must not make Python ask for that much memory first.
        return self._file.read(min(count, self._size - self._file.tell()))

    def skip(self, count: int) -> None:
        """Pass over `count` bytes."""
        if self._file.tell() + count > self._size:
            raise _DamageError("the file ends inside the record's data")
        self._file.seek(count, 1)


class _GzipStream:
    """Reads and skips bytes of what a GZIP file holds; Python's gzip module takes twice the time."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self._waiting = b""
        self._member = zlib.decompressobj(zlib.MAX_WBITS | 16)

    def read(self, count: int) -> bytes:
        """The next `count` bytes, or fewer at the end of the stream."""
        return b"".join(self._parts(count))

    def skip(self, count: int) -> None:
        """Pass over `count` bytes."""
        if sum(map(len, self._parts(count))) < count:
            raise _DamageError("the file ends inside the record's data")

    def _parts(self, count: int) -> Iterator[bytes]:
        while count:
            # What it can still give from its own window comes out with no input, so the input may be empty here.
            part = self._member.decompress(self._waiting, count)
            self._waiting = self._member.unconsumed_tail
            count -= len(part)
            yield part
            if self._member.eof:
                self._waiting = self._member.unused_data or self._file.read(READ_BYTES)
                if not self._waiting:
                    return
                self._member = zlib.decompressobj(zlib.MAX_WBITS | 16)
            elif count and not self._waiting:
                self._waiting = self._file.read(READ_BYTES)
                if not self._waiting:
                    raise _DamageError(
                        "the file is cut off: its gzip stream ends inside the record"
                    )


@dataclass(frozen=True)
class Feature:
    """One feature of an Example, still encoded.

    Attributes:
        kind: "bytes", "float" or "int64".
        payload: the encoded list, a view into the record.
    """

    kind: str
    payload: memoryview

    def bytes(self) -> list[memoryview]:
        """The elements of a BytesList, views into the record."""
        self._expect("bytes")
        return [
            value for field, wire, value in _fields(self.payload) if field == 1 and wire == _BYTES
        ]

    def floats(self) -> np.ndarray:
        """The elements of a FloatList, packed or not: float32 (n,)."""
        self._expect("float")
        parts = [
            value
            for field, wire, value in _fields(self.payload)
            if field == 1 and wire in (_BYTES, _FIXED32)
        ]
        joined = b"".join(parts)
        if len(joined) % 4:
            raise InputError(
                f"a packed FloatList has {len(joined)} bytes, no multiple of 4: no tf.train.Example."
            )
        return np.frombuffer(joined, "<f4")

    def ints(self) -> np.ndarray:
        """The elements of an Int64List, packed or not: int64 (n,)."""
        self._expect("int64")
        found: list[int] = []
        for field, wire, value in _fields(self.payload):
            at = 0
            while field == 1 and wire in (_BYTES, _VARINT) and at < len(value):
                number, at = _varint(value, at)
                found.append(number - (1 << 64) if number >> 63 else number)
        return np.array(found, np.int64)

    def _expect(self, kind: str) -> None:
        if self.kind != kind:
            raise InputError(
                f"a feature is a list of {self.kind}, where a list of {kind} is expected."
            )


def example(payload: bytes | memoryview) -> dict[str, Feature]:
    """The features of a serialized tf.train.Example by name; no list is decoded yet.

    Raises:
        InputError: the bytes are no such message.
    """
    found = {}
    for features in _messages(memoryview(payload), 1):
        for entry in _messages(features, 1):
            names, values = list(_messages(entry, 1)), list(_messages(entry, 2))
            try:
                name = str(names[-1], "utf-8") if names else ""
            except UnicodeDecodeError:
                raise InputError("a feature's name is no UTF-8: no tf.train.Example.") from None
            for field, wire, value in _fields(values[-1] if values else memoryview(b"")):
                if wire == _BYTES and field in KINDS:
                    found[name] = Feature(KINDS[field], value)
    return found


def one_byte_elements(payload: memoryview | bytes, count: int) -> np.ndarray:
    """A BytesList of `count` strings of one byte each: uint8 (count,), a view with stride 3 into the payload.

    Each element is encoded as `0x0a 0x01 value` (field 1, length 1), so the values are every third byte; what the other
    two hold is checked.

    Raises:
        InputError: there are not `count` elements, or one has not exactly one byte.
    """
    encoded = np.frombuffer(payload, np.uint8)
    if len(encoded) != 3 * count:
        raise InputError(
            f"a list has {len(encoded)} bytes, {count} elements of one byte take {3 * count}."
        )
    # Every row of 1,024 elements has its tags at the same places, so all rows are tested at once: their bitwise `or`
    # and `and` # both have the tags there only when each row has. A strided comparison takes four times as long.
    whole = len(encoded) // 3072 * 3072
    rest = encoded[whole:].reshape(-1, 3)[:, :2]
    good = bool(np.all(rest == (0x0A, 0x01)))
    if whole:
        rows = encoded[:whole].view("<u8").reshape(-1, 384)
        for combined in (np.bitwise_or.reduce(rows), np.bitwise_and.reduce(rows)):
            good &= bool(np.all(combined.view(np.uint8).reshape(-1, 3)[:, :2] == (0x0A, 0x01)))
    if not good:
        raise InputError("an element of a list has not exactly one byte.")
    return encoded[2::3]


def _messages(message: memoryview, wanted: int) -> Iterator[memoryview]:
    return (value for field, wire, value in _fields(message) if field == wanted and wire == _BYTES)


def _fields(message: memoryview) -> Iterator[tuple[int, int, memoryview]]:
    """(field number, wire type, encoded value) of everything in a message, in order."""
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
            raise InputError(f"a field has wire type {wire}: no tf.train.Example.")
        if end > len(message):
            raise InputError("a field reaches beyond the end of its message: no tf.train.Example.")
        yield field, wire, message[at:end]
        at = end


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """The number that starts at `at`, and where the next one starts."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            break
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & (1 << 64) - 1, at
    raise InputError("a number does not end: no tf.train.Example.")
