"""The CLEVR source on small files in the published format, and on the rendered one if present."""

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch
from raw_files import (
    CLEVR,
    CLEVR_NAME,
    assert_equal,
    clevr_record,
    counts,
    float_list,
    reference,
    single_bytes,
    times,
    truth,
    write_records,
)

from cutslots import data
from cutslots.data import shards, sources, tfrecord
from cutslots.data.locate import Location
from cutslots.data.record import Ranges
from cutslots.data.sources.clevr import Clevr, Item, Options
from cutslots.errors import InputError

RENDERED = Path(__file__).parents[3] / "shared/data/clevr_with_masks"
SPLITS: Ranges = {"train": (0, 6), "val": (6, 8), "test": (8, None)}
SMALL = Options(size=16)


def numbers(path: Path, options: Options, splits: Ranges, done: dict[str, int]) -> list[int]:
    source = Clevr(Location.of(path), options)
    source.find()
    return [item.number for _, item in source.records(splits, done)]


def test_round_trip_is_exact(clevr_file: Path, tmp_path: Path) -> None:
    manifest = data.prepare("clevr", clevr_file.parent, tmp_path, Options(size=32), SPLITS)
    assert counts(manifest) == {"train": 6, "val": 2, "test": 2}
    assert manifest.raw["files"] == {CLEVR_NAME: clevr_file.stat().st_size}
    assert_equal(tmp_path, CLEVR, "clevr_{number:06d}")
    first = data.Batches(tmp_path, "train", 1).metadata([0])[0][0]
    assert first["shape"] in ("cube", "sphere", "cylinder")
    assert (first["rotation"], first["pixel_coords"]) == (90, [160, 120, 10])


def test_only_the_needed_records_are_decoded(tmp_path: Path) -> None:
    payloads = [b"bad" if number in (0, 2) else clevr_record(number) for number in range(4)]
    path = write_records(tmp_path / CLEVR_NAME, payloads, zipped=False)
    content = bytearray(path.read_bytes())
    content[12] ^= 1  # in record 0, which is skipped without its checksum
    path.write_bytes(content)
    for options in (SMALL, Options(size=16, max_objects=9)):
        assert numbers(path, options, {"b": (3, 4), "a": (1, 2)}, {"a": 0, "b": 0}) == [1, 3]


def test_a_maximum_of_objects_keeps_few_objects_and_resumes(clevr_file: Path, tmp_path: Path):
    """Records 0, 3, 6 and 9 have 2 objects, 1, 4 and 7 have 3, the others 4."""
    options, splits = Options(size=16, max_objects=3), {"train": (0, 6), "test": (6, None)}
    manifest = data.prepare("clevr", clevr_file, tmp_path, options, splits)
    assert counts(manifest) == {"train": 4, "test": 3}
    ids = data.Batches(tmp_path, "train", 1).ids(range(4))
    assert ids == [f"clevr_00000{number}" for number in (0, 1, 3, 4)]
    assert numbers(clevr_file, options, splits, {"train": 2, "test": 1}) == [3, 4, 7, 9]


def test_a_short_split_logs_a_warning_and_an_empty_one_is_refused(
    clevr_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    splits: Ranges = {"train": (0, 6), "test": (6, 15)}
    data.prepare("clevr", clevr_file, tmp_path / "a", SMALL, splits)
    (message,) = caplog.messages
    assert all(fact in message for fact in ("test", "6:15", "10 records", "4 scenes"))
    suggestion = r"val, train: clevr has 10 records.*--splits train=0:8,val=8:9,test=9:10"
    with pytest.raises(InputError, match=suggestion):
        data.prepare("clevr", clevr_file, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_raw_file_must_be_unique(tmp_path: Path) -> None:
    raw, out = tmp_path / "raw", tmp_path / "out"
    for names, path, message in (
        ((), None, "raw is missing"),
        ((), raw / "absent", "does not exist"),
        ((), raw, r"exactly one \*\.tfrecords file; it has 0\. It contains nothing"),
        (("a.tfrecords", "b.tfrecords"), raw, r"it has 2\. It contains a\.tfrecords, b\.tfrec"),
    ):
        raw.mkdir(exist_ok=True)
        for name in names:
            (raw / name).touch()
        with pytest.raises(InputError, match=message):
            data.prepare("clevr", path, out)
        assert not out.exists()


def overlapping() -> np.ndarray:
    masks = np.zeros((11, 240, 320), np.uint8)
    masks[0], masks[1, 100:110, 100:110] = 255, 255
    return masks


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("mask", single_bytes(np.zeros((13, 240, 320), np.uint8)), "feature 'mask' has .* bytes"),
        ("image", single_bytes(np.zeros(1000, np.uint8)), "feature 'image' has 3000 bytes"),
        ("mask", single_bytes(overlapping()), "100 pixels are in no mask or in several"),
        ("mask", single_bytes(overlapping() // 2), "values other than 0 and 255"),
        ("visibility", float_list(np.ones(9)), "'visibility' must have 11 elements, got 9"),
        ("visibility", float_list(np.eye(11)[0]), "has pixels, but .* 0 objects"),
        ("x", float_list(np.full(11, np.nan)), "feature 'x' has a value that is not finite"),
        ("color", single_bytes(np.full(11, 9, np.uint8)), "feature 'color' has code 9"),
        ("image", b"", "no bytes feature 'image', but color .*another dataset"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_damaged_record_is_named(tmp_path: Path, name: str, value: bytes, message: str) -> None:
    payloads = [clevr_record(0), clevr_record(1, **{name: value})]
    path = write_records(tmp_path / CLEVR_NAME, payloads)
    with pytest.raises(InputError, match=rf"{CLEVR_NAME}, record 1: .*{message}"):
        data.prepare("clevr", path, tmp_path / "out", SMALL, {"train": (0, None)})


def test_the_same_command_continues_after_damage(
    clevr_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "SHARD_BYTES", 2 * 16 * 16 * 4)
    path, out = tmp_path / CLEVR_NAME, tmp_path / "out"

    def prepare() -> data.Manifest:
        return data.prepare("clevr", path, out, SMALL, {"train": (0, 10)})

    path.write_bytes(clevr_file.read_bytes()[: clevr_file.stat().st_size * 2 // 3])
    with pytest.raises(InputError, match=r"record \d: the file is truncated"):
        prepare()
    finished = times(out)
    assert finished
    write_records(path, map(clevr_record, range(10, 20)))
    with pytest.raises(InputError, match=r"already contains other data: raw\.fingerprint is"):
        prepare()
    path.write_bytes(clevr_file.read_bytes())
    assert prepare().raw["files"] == {CLEVR_NAME: clevr_file.stat().st_size}
    assert finished.items() <= times(out).items()
    assert data.check(out) == []


def test_slot_attention_protocol(
    clevr_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog
) -> None:
    options = Options(protocol="slot-attention")
    published = {"train": (0, 70_000), "test": (70_000, 85_000), "val": (85_000, 100_000)}
    assert Clevr(None, options).splits() == published
    image, ids, _ = truth(3, CLEVR)
    result = Clevr.decode(Item("file", 3, clevr_record(3)), options)
    cropped = torch.from_numpy(image[29:221, 64:256].copy()).permute(2, 0, 1)[None].float()
    resized = torch.nn.functional.interpolate(
        cropped, (128, 128), mode="bilinear", align_corners=False, antialias=False
    )
    np.testing.assert_allclose(result.image, resized[0].permute(1, 2, 0).numpy(), atol=0.501)
    nearest = np.floor((np.arange(128) + 0.5) * 1.5).astype(int)
    np.testing.assert_array_equal(result.mask, ids[29:221, 64:256][np.ix_(nearest, nearest)])

    monkeypatch.setattr("cutslots.data.sources.clevr.SLOT_ATTENTION_SCENES", 2)
    seen = set()
    splits: Ranges = {"train": (0, 4), "test": (4, 7), "val": (7, 10)}

    def progress(name: str, finished: int, requested: int | None) -> None:
        seen.add((name, requested))

    manifest = data.prepare("clevr", clevr_file, tmp_path, options, splits, progress=progress)
    assert counts(manifest) == {"train": 4, "test": 2, "val": 2} == dict(seen)
    assert caplog.messages == [], "a limit does not make a split short"
    other = Options(protocol="slot-attention", crop=0.7)
    with pytest.raises(InputError, match=r"crop must be unset with .*slot-attention.* got 0\.7"):
        data.prepare("clevr", clevr_file, tmp_path / "other", other)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train", "cannot read 'train'"),
        ("", "cannot read ''"),
        ("train=9:5", "train must end after its start, got 9:5"),
        ("train=0:5,train=6:7", "names train twice"),
        ("a=0:10,b=9:20", "a and b overlap at record 9"),
        ("a=5:,b=9:20", "a and b overlap at record 9"),
        ("a/b=0:1", "cannot read"),
    ],
)
def test_unusable_splits_are_refused(text: str, message: str) -> None:
    ranges = {"train": (0, 320), "val": (320, 360), "test": (360, None)}
    assert sources.parse_splits("train=0:320, val=320:360,test=360:") == ranges
    with pytest.raises(InputError, match=message):
        sources.parse_splits(text)


def test_every_file_of_the_folder_is_a_source() -> None:
    assert sources.names() == ["clevr", "clevrtex", "movi_a", "scenes"]
    assert all(sources.load(name).__doc__ for name in sources.names())
    with pytest.raises(InputError, match="Did you mean 'clevr'"):
        sources.load("clever")


@pytest.mark.skipif(not RENDERED.is_dir(), reason=f"the rendered CLEVR file is not at {RENDERED}")
def test_rendered_file_equals_an_independent_decoder() -> None:
    path = next(RENDERED.glob("*.tfrecords"))
    _, payload = next(tfrecord.records(path))
    assert payload is not None
    with gzip.open(path) as file:
        file.seek(12)
        assert file.read(len(payload)) == payload
    example = tfrecord.Example(payload)
    image, masks = (np.frombuffer(b"".join(example.bytes(n)), np.uint8) for n in ("image", "mask"))
    result = Clevr.decode(Item("file", 0, payload), Options())
    masks = masks.reshape(11, 240, 320)
    small, ids = reference(image.reshape(240, 320, 3), masks.argmax(0).astype(np.uint8), 128)
    np.testing.assert_array_equal(result.image, small)
    np.testing.assert_array_equal(result.mask, ids)
    assert len(result.objects) == int(example.floats("visibility").sum()) - 1
