"""The CLEVR source on small files in the published format, and on the rendered one if present."""

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch
from clevr_files import CLEVR_NAME, byte_list, clevr_features, clevr_truth, example, float_list
from clevr_files import write_records as write
from comparisons import assert_equal, counts, reference, times

from cutslots import data
from cutslots.data import shards, sources, tfrecord
from cutslots.data.locate import Location
from cutslots.data.record import Ranges
from cutslots.data.sources.clevr import Clevr, Item, Options
from cutslots.errors import InputError

RENDERED = Path(__file__).parents[3] / "shared/data/clevr_with_masks"
SPLITS = {"train": (0, 6), "val": (6, 8), "test": (8, None)}
SMALL = Options(size=16)


def numbers(path: Path, options: Options, splits: Ranges, done: dict[str, int]) -> list[int]:
    source = Clevr(Location.of(path), options)
    source.find()
    return [item.number for _, item in source.records(splits, done)]


def test_round_trip_is_exact(clevr_file: Path, tmp_path: Path) -> None:
    manifest = data.prepare("clevr", clevr_file.parent, tmp_path, Options(size=32), SPLITS)
    assert counts(manifest) == {"train": 6, "val": 2, "test": 2}
    assert manifest.raw["files"] == {CLEVR_NAME: clevr_file.stat().st_size}
    assert_equal(tmp_path, clevr_truth, "clevr_{number:06d}")
    first = data.Batches(tmp_path, "train", 1).metadata([0])[0][0]
    assert first["shape"] in ("cube", "sphere", "cylinder")
    assert (first["rotation"], first["pixel_coords"]) == (90, [160, 120, 10])


def test_only_the_needed_records_are_decoded(tmp_path: Path) -> None:
    payloads = [b"bad" if n in (0, 2) else example(clevr_features(n)) for n in range(4)]
    path = write(tmp_path / CLEVR_NAME, payloads)
    splits: Ranges = {"b": (3, 4), "a": (1, 2)}
    for options in (SMALL, Options(size=16, max_objects=9)):
        assert numbers(path, options, splits, {"a": 0, "b": 0}) == [1, 3]
    content = bytearray(write(path, payloads, zipped=False).read_bytes())
    content[12] ^= 1  # in record 0, which is skipped without its checksum
    path.write_bytes(content)
    assert numbers(path, SMALL, splits, {"a": 0, "b": 0}) == [1, 3]


def test_a_maximum_of_objects_keeps_few_objects_and_resumes(clevr_file: Path, tmp_path: Path):
    """Records 0, 3, 6 and 9 have 3 objects, 1, 4 and 7 have 4, the others 5."""
    options, splits = Options(size=16, max_objects=4), {"train": (0, 6), "test": (6, None)}
    manifest = data.prepare("clevr", clevr_file, tmp_path, options, splits)
    assert counts(manifest) == {"train": 4, "test": 3}
    ids = data.Batches(tmp_path, "train", 1).ids(range(4))
    assert ids == [f"clevr_00000{number}" for number in (0, 1, 3, 4)]
    assert numbers(clevr_file, options, splits, {"train": 2, "test": 1}) == [3, 4, 7, 9]


def test_a_short_split_logs_a_warning(
    clevr_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    splits: Ranges = {"train": (0, 6), "test": (6, 15)}
    data.prepare("clevr", clevr_file, tmp_path / "a", SMALL, splits)
    (message,) = caplog.messages
    for fact in ("test", "6:15", "10 records", "4 scenes"):
        assert fact in message
    caplog.clear()
    splits = {"train": (0, 6), "test": (6, None)}
    data.prepare("clevr", clevr_file, tmp_path / "b", Options(size=16, max_objects=3), splits)
    assert caplog.messages == []


def test_the_raw_file_must_be_unique(tmp_path: Path) -> None:
    raw, out = tmp_path / "raw", tmp_path / "out"

    def refused(where: Path | None, message: str) -> None:
        with pytest.raises(InputError, match=message):
            data.prepare("clevr", where, out)
        assert not out.exists()

    refused(raw, "does not exist")
    refused(None, "raw is missing")
    raw.mkdir()
    refused(raw, r"exactly one \*\.tfrecords file; it has 0\. It contains nothing")
    for name in ("README", "a.tfrecords", "b.tfrecords"):
        (raw / name).touch()
    refused(raw, r"it has 2\. It contains README, a\.tfrecords, b\.tfrecords")


def test_an_empty_split_suggests_ranges(clevr_file: Path, tmp_path: Path) -> None:
    suggestion = r"val, train: clevr has 10 records.*--splits train=0:8,val=8:9,test=9:10"
    with pytest.raises(InputError, match=suggestion):
        data.prepare("clevr", clevr_file, tmp_path / "out")
    with pytest.raises(InputError, match=r"clevr has 10 records, late starts at record 500"):
        data.prepare("clevr", clevr_file, tmp_path / "out", splits={"late": (500, 600)})
    assert not (tmp_path / "out").exists()


def overlapping() -> np.ndarray:
    masks = np.zeros((11, 240, 320), np.uint8)
    masks[0], masks[1, 100:110, 100:110] = 255, 255
    return masks


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("mask", byte_list(np.zeros((13, 240, 320), np.uint8)), "feature 'mask': a list has"),
        ("mask", byte_list(np.zeros(1000, np.uint8)), "feature 'mask': a list has 3000 bytes"),
        ("image", byte_list(np.zeros(1000, np.uint8)), "feature 'image': a list has 3000 bytes"),
        ("mask", byte_list(overlapping()), "100 pixels are in no mask or in several"),
        ("mask", byte_list(overlapping() // 2), "values other than 0 and 255"),
        ("visibility", float_list(np.ones(9)), "'visibility' must have 11 elements, got 9"),
        ("visibility", float_list(np.eye(11)[0]), "has pixels, but .* 0 objects"),
        ("x", float_list(np.full(11, np.nan)), "feature 'x' has a value that is not finite"),
        ("color", byte_list(np.full(11, 9, np.uint8)), "feature 'color' has code 9"),
        ("image", b"", "not a CLEVR with masks record: no bytes feature 'image'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_damaged_record_is_named(tmp_path: Path, name: str, value: bytes, message: str) -> None:
    bad = {**clevr_features(1), name: value}
    path = write(tmp_path / CLEVR_NAME, [example(clevr_features(0)), example(bad)])
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
    write(path, [example(clevr_features(index)) for index in range(10, 20)])
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
    image, ids, _ = clevr_truth(3)
    payload = list(tfrecord.records(clevr_file))[3][1]
    assert payload is not None
    result = Clevr.decode(Item("file", 3, payload), options)
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


def test_parse_splits() -> None:
    ranges = {"train": (0, 320), "val": (320, 360), "test": (360, None)}
    assert sources.parse_splits("train=0:320, val=320:360,test=360:") == ranges
    for text, message in {
        "train": "cannot read 'train'",
        "": "cannot read ''",
        "train=9:5": "train must end after its start, got 9:5",
        "train=0:5,train=6:7": "names train twice",
        "a=0:10,b=9:20": "a and b overlap at record 9",
        "a=5:,b=9:20": "a and b overlap at record 9",
        "a/b=0:1": "cannot read",
    }.items():
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
    features = tfrecord.example(payload)
    pixels = {name: b"".join(features[name].bytes()) for name in ("image", "mask")}
    image = np.frombuffer(pixels["image"], np.uint8).reshape(240, 320, 3)
    masks = np.frombuffer(pixels["mask"], np.uint8).reshape(11, 240, 320)
    result = Clevr.decode(Item("file", 0, payload), Options())
    small, ids = reference(image, masks.argmax(0).astype(np.uint8), 128)
    np.testing.assert_array_equal(result.image, small)
    np.testing.assert_array_equal(result.mask, ids)
    assert len(result.objects) == int(features["visibility"].floats().sum()) - 1
