"""TFRecord framing and tf.train.Example, against files that the tests write byte by byte."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from raw_files import (
    bytes_list,
    example,
    field,
    float_list,
    frame,
    single_bytes,
    varint,
    write_records,
)

from cutslots.data import tfrecord
from cutslots.errors import InputError

PAYLOADS = [bytes([number]) * (1000 * number + 1) for number in range(5)]
NOISE = np.random.default_rng(0).bytes(300_000)
ONE, TWO = frame(b"a" * 100), frame(b"b" * 200)
LARGE = frame(struct.pack("<Q", 1 << 40))[12:]  # a length and its checksum
ZIPPED = gzip.compress(frame(b"small") + frame(NOISE))


@pytest.mark.parametrize("zipped", [True, False])
def test_records_are_read_from_any_start(tmp_path: Path, zipped: bool) -> None:
    path = write_records(tmp_path / "file", PAYLOADS, zipped)
    for start in (0, 3, 9):
        expected = [(n, None if n < start else data) for n, data in enumerate(PAYLOADS)]
        assert list(tfrecord.records(path, start)) == expected


def test_several_gzip_members_are_one_stream(tmp_path: Path) -> None:
    whole = b"".join(map(frame, PAYLOADS))
    (tmp_path / "file").write_bytes(gzip.compress(whole[:5000]) + gzip.compress(whole[5000:]))
    assert [data for _, data in tfrecord.records(tmp_path / "file")] == PAYLOADS


@pytest.mark.parametrize("start", [0, 5])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", " is empty"),
        (gzip.compress(b""), " is empty"),
        (ONE + TWO[:7], ", record 1: the file ends inside the record's header"),
        (ONE + TWO[:50], ", record 1: the file ends inside the record's data"),
        (ONE + TWO[:-1], ", record 1: the file ends inside the record's data"),
        (b"PK\x03\x04 something else", ", record 0: the checksum of .*is this a TFRecord"),
        (ONE + LARGE + b"x" * 100, ", record 1: its length is 1099511627776 bytes"),
        (ZIPPED[: len(ZIPPED) // 2], ", record 1: the file is truncated"),
        (ZIPPED[:-6] + b"\0\0" + ZIPPED[-4:], "the gzip stream is damaged"),
        (ZIPPED[:1000] + b"\xff" * 1000 + ZIPPED[2000:], "record 1: "),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_damage_is_reported_with_file_and_record(
    tmp_path: Path, content: bytes, message: str, start: int
) -> None:
    (tmp_path / "some.tfrecords").write_bytes(content)
    with pytest.raises(InputError, match=rf"some\.tfrecords.*{message}"):
        list(tfrecord.records(tmp_path / "some.tfrecords", start))


def test_a_checksum_of_data_is_compared(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(ONE + TWO[:40] + b"x" + TWO[41:])
    with pytest.raises(InputError, match="record 1: the checksum of the record's data"):
        list(tfrecord.records(tmp_path / "file"))


def test_features_packed_and_unpacked() -> None:
    numbers = [0, 1, -1, 300, -(1 << 63), (1 << 63) - 1]
    encoded = [varint(number & (1 << 64) - 1) for number in numbers]
    floats = np.array([1.5, -2, 0], "<f4")
    features = {
        "frames": bytes_list([b"png one", b"", b"png two"]),
        "packed": float_list(floats),
        "unpacked": field(2, b"".join(b"\x0d" + value.tobytes() for value in floats)),
        "ints": field(3, field(1, b"".join(encoded))),
        "single ints": field(3, b"".join(b"\x08" + value for value in encoded)),
        "nothing": b"",
    }
    decoded = tfrecord.Example(example(features))
    assert [bytes(value) for value in decoded.bytes("frames")] == [b"png one", b"", b"png two"]
    for name in ("packed", "unpacked"):
        np.testing.assert_array_equal(decoded.floats(name), floats)
    for name in ("ints", "single ints"):
        assert decoded.ints(name).tolist() == numbers
    for name in ("packed", "nothing"):
        with pytest.raises(InputError, match=f"no int64 feature '{name}', but .*packed .float"):
            decoded.ints(name)


@pytest.mark.parametrize("bad", [b"\n\x10abc", b"\x0b", b"\xff" * 11, field(1, field(1, b"\n\1"))])
def test_other_bytes_are_not_an_example(bad: bytes) -> None:
    with pytest.raises(InputError, match=r"not a tf\.train\.Example"):
        tfrecord.Example(bad)


@pytest.mark.parametrize("count", [1, 7, 1024, 5000])
def test_single_bytes(count: int) -> None:
    values = np.random.default_rng(count).integers(0, 256, count).astype(np.uint8)
    payload = example({"x": single_bytes(values)})
    np.testing.assert_array_equal(tfrecord.Example(payload).single_bytes("x", count), values)
    with pytest.raises(InputError, match=f"{count + 1} elements of one byte"):
        tfrecord.Example(payload).single_bytes("x", count + 1)
    for at in (0, 1, 3 * (count - 1), 3 * (count // 2) + 1):
        damaged = bytearray(payload)
        damaged[len(payload) - 3 * count + at] ^= 4
        with pytest.raises(InputError, match="not exactly one byte"):
            tfrecord.Example(bytes(damaged)).single_bytes("x", count)
