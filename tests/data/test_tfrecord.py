"""TFRecord framing and tf.train.Example, against files that the tests write byte by byte."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from clevr_files import byte_list, example, field, float_list, frame, varint, write_records

from cutslots.data import tfrecord
from cutslots.errors import InputError

PAYLOADS = [bytes([number]) * (1000 * number + 1) for number in range(5)]


@pytest.mark.parametrize("zipped", [True, False])
def test_records_come_back_from_any_start(tmp_path: Path, zipped: bool) -> None:
    path = write_records(tmp_path / "file", PAYLOADS, zipped)
    for start in (0, 3, 9):
        assert list(tfrecord.records(path, start)) == list(enumerate(PAYLOADS))[start:]


def test_several_gzip_members_are_one_stream(tmp_path: Path) -> None:
    whole = b"".join(map(frame, PAYLOADS))
    (tmp_path / "file").write_bytes(gzip.compress(whole[:5000]) + gzip.compress(whole[5000:]))
    assert [data for _, data in tfrecord.records(tmp_path / "file")] == PAYLOADS


def read_all(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    list(tfrecord.records(path))


def test_damage_is_named_with_file_and_record(tmp_path: Path) -> None:
    path = tmp_path / "some.tfrecords"
    one, two = frame(b"a" * 100), frame(b"b" * 200)
    with pytest.raises(InputError, match=r"some\.tfrecords is empty"):
        read_all(path, b"")
    with pytest.raises(InputError, match=r"is empty"):
        read_all(path, gzip.compress(b""))
    with pytest.raises(
        InputError, match=r"some\.tfrecords, record 1: the file ends inside the record's header"
    ):
        read_all(path, one + two[:7])
    for cut in (50, len(two) - 1):
        with pytest.raises(InputError, match=r"record 1: the file ends inside the record's data"):
            read_all(path, one + two[:cut])
    with pytest.raises(InputError, match=r"record 1: the checksum of the record's data"):
        read_all(path, one + two[:40] + b"x" + two[41:])
    with pytest.raises(
        InputError, match=r"record 0: the checksum of the record's length.*is this a TFRecord"
    ):
        read_all(path, b"PK\x03\x04 something else entirely")
    length = struct.pack("<Q", 1 << 40)
    with pytest.raises(InputError, match=r"record 1: its length is 1099511627776 bytes"):
        read_all(path, one + length + frame(length)[-4 - 8 :][8:] + b"x" * 100)


def test_truncated_and_damaged_gzip(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).bytes(300_000)
    whole = gzip.compress(frame(b"small") + frame(noise))
    path = tmp_path / "some.tfrecords"
    with pytest.raises(InputError, match=r"record 1: the file is cut off"):
        read_all(path, whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"the gzip stream is damaged"):
        read_all(path, whole[:-6] + b"\0\0" + whole[-4:])
    skipping = tfrecord.records(path, start=5)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"record 1: the file is cut off"):
        list(skipping)


def test_example_features_packed_and_unpacked() -> None:
    numbers = [0, 1, -1, 300, -(1 << 63), (1 << 63) - 1]
    encoded = [varint(number & (1 << 64) - 1) for number in numbers]
    floats = np.array([1.5, -2, np.inf], "<f4")
    payload = example(
        {
            "frames": field(1, field(1, b"png one") + field(1, b"") + field(1, b"png two")),
            "packed": float_list(floats),
            "unpacked": field(2, b"".join(b"\x0d" + value.tobytes() for value in floats)),
            "ints": field(3, field(1, b"".join(encoded))),
            "single ints": field(3, b"".join(b"\x08" + value for value in encoded)),
            "nothing": b"",
        }
    )
    found = tfrecord.example(payload)
    assert [bytes(value) for value in found["frames"].bytes()] == [b"png one", b"", b"png two"]
    for name in ("packed", "unpacked"):
        np.testing.assert_array_equal(found[name].floats(), floats)
    for name in ("ints", "single ints"):
        assert found[name].ints().tolist() == numbers
    assert "nothing" not in found
    with pytest.raises(InputError, match="a list of float"):
        found["packed"].ints()


@pytest.mark.parametrize(
    "bad", [b"\x0a\x10abc", b"\x0b", b"\xff" * 11, field(1, field(1, b"\x0a\x01"))]
)
def test_what_is_no_example_is_refused(bad: bytes) -> None:
    with pytest.raises(InputError, match=r"no tf\.train\.Example"):
        tfrecord.example(bad)


@pytest.mark.parametrize("count", [1, 7, 1024, 5000])
def test_one_byte_elements(count: int) -> None:
    values = np.random.default_rng(count).integers(0, 256, count).astype(np.uint8)
    payload = tfrecord.example(example({"x": byte_list(values)}))["x"].payload
    np.testing.assert_array_equal(tfrecord.one_byte_elements(payload, count), values)
    with pytest.raises(InputError, match=f"{count + 1} elements of one byte"):
        tfrecord.one_byte_elements(payload, count + 1)
    for at in (0, 1, 3 * (count - 1), 3 * (count // 2) + 1):
        damaged = bytearray(payload)
        damaged[at] ^= 4
        with pytest.raises(InputError, match="not exactly one byte"):
            tfrecord.one_byte_elements(bytes(damaged), count)
