"""The CLEVR source on miniature files in the real format, and on the rendered one where it is at hand."""

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch
from clevr_files import (
    CLEVR_NAME,
    byte_list,
    clevr_features,
    clevr_truth,
    example,
    float_list,
    write_records,
)
from PIL import Image

from cutslots import data
from cutslots.data import shards, sources, tfrecord
from cutslots.data.places import Place
from cutslots.data.scene import Ranges
from cutslots.data.sources import clevr
from cutslots.errors import InputError

RENDERED = Path(__file__).parents[3] / "shared/data/clevr_with_masks"
SPLITS = {"train": (0, 6), "val": (6, 8), "test": (8, None)}


def naive(image: np.ndarray, ids: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The benchmark's preparation, written down once more."""
    box = (64, 24, 256, 216)
    small = Image.fromarray(image).crop(box).resize((size, size), Image.Resampling.BILINEAR)
    return np.array(small), np.array(
        Image.fromarray(ids).crop(box).resize((size, size), Image.Resampling.NEAREST)
    )


def test_round_trip_is_exact(clevr_file: Path, tmp_path: Path) -> None:
    manifest = data.prepare(
        "clevr", clevr_file.parent, tmp_path / "out", clevr.Options(size=32), SPLITS
    )
    assert {name: split.count for name, split in manifest.splits.items()} == {
        "train": 6,
        "val": 2,
        "test": 2,
    }
    assert manifest.raw["files"] == {CLEVR_NAME: clevr_file.stat().st_size}
    assert str(tmp_path) not in (tmp_path / "out/manifest.json").read_text()
    assert data.check(tmp_path / "out") == []
    for name, (start, _) in SPLITS.items():
        batches = data.Batches(tmp_path / "out", name, 4, shuffle=False, drop_last=False)
        for batch in batches.epoch(0):
            for row, position in enumerate(batch.index):
                image, ids, number = clevr_truth(start + position)
                small, small_ids = naive(image, ids, 32)
                np.testing.assert_array_equal(batch.images[row].numpy(), small)
                np.testing.assert_array_equal(batch.masks[row].numpy(), small_ids)
                assert len(batches.metadata([position])[0]) == number
            assert batches.ids(batch.index) == [
                f"clevr_{start + position:06d}" for position in batch.index
            ]


def test_metadata_in_words(clevr_file: Path) -> None:
    _, payload = next(tfrecord.records(clevr_file))
    first = clevr.scene(payload, "x", clevr.Options()).objects[0]
    assert first["shape"] in clevr.WORDS["shape"][1:]
    assert first["color"] in clevr.WORDS["color"][1:]
    assert first["rotation"] == 90
    assert first["pixel_coords"] == [160, 120, 10]


def test_records_outside_the_splits_are_not_decoded(tmp_path: Path) -> None:
    payloads = [
        b"no example" if index in (0, 2) else example(clevr_features(index)) for index in range(4)
    ]
    path = write_records(tmp_path / CLEVR_NAME, payloads)
    for options in (clevr.Options(size=16), clevr.Options(size=16, max_objects=9)):
        found = list(
            clevr.records(Place.of(path), options, {"b": (3, 4), "a": (1, 2)}, {"a": 0, "b": 0})
        )
        assert [(name, clevr.decode(item, options).id) for name, item in found] == [
            ("a", "clevr_000001"),
            ("b", "clevr_000003"),
        ]


def test_finished_scenes_are_not_read_again(clevr_file: Path, tmp_path: Path) -> None:
    payloads = [example(clevr_features(index)) for index in range(8)]
    path = write_records(tmp_path / CLEVR_NAME, payloads, zipped=False)
    content = bytearray(path.read_bytes())
    content[100] ^= 1  # of record 0, whose checksum is compared only when it is read
    path.write_bytes(content)
    rest = clevr.records(
        Place.of(path),
        clevr.Options(size=16),
        {"val": (4, 6), "train": (0, 4)},
        {"train": 3, "val": 1},
    )
    assert [item.number for _, item in rest] == [3, 5]


def test_a_split_that_the_file_ends_in_is_told(
    clevr_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data.prepare(
        "clevr",
        clevr_file,
        tmp_path / "out",
        clevr.Options(size=16),
        {"train": (0, 6), "test": (6, 15)},
    )
    assert caplog.messages == ["split test is short: it asks for 6:15 of 10 records; 4 scenes"]
    caplog.clear()
    data.prepare(
        "clevr",
        clevr_file,
        tmp_path / "few",
        clevr.Options(size=16, max_objects=3),
        {"train": (0, 6), "test": (6, None)},
    )
    assert caplog.messages == []


def test_the_file_must_be_the_only_one(tmp_path: Path, clevr_file: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        data.prepare("clevr", tmp_path / "absent", tmp_path / "out")
    with pytest.raises(InputError, match="needs raw data"):
        data.prepare("clevr", None, tmp_path / "out")
    raw = tmp_path / "raw"
    raw.mkdir()
    with pytest.raises(
        InputError, match=r"exactly one \*\.tfrecords file; it has 0\. In it: nothing"
    ):
        data.prepare("clevr", raw, tmp_path / "out")
    (raw / "README").touch()
    for name in ("a.tfrecords", "b.tfrecords"):
        (raw / name).touch()
    with pytest.raises(InputError, match=r"it has 2\. In it: README, a\.tfrecords, b\.tfrecords"):
        data.prepare("clevr", raw, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_empty_split_shows_what_fits(clevr_file: Path, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"val, train: clevr has 10 records.*--splits train=0:8,val=8:9,test=9:10"
    ):
        data.prepare("clevr", clevr_file, tmp_path / "out")
    with pytest.raises(InputError, match=r"clevr has 10 records, late starts at record 500"):
        data.prepare("clevr", clevr_file, tmp_path / "out", splits={"late": (500, 600)})
    assert not (tmp_path / "out").exists(), "what can never be finished is not kept"
    data.prepare("clevr", clevr_file, tmp_path / "out", clevr.Options(size=16), SPLITS)


def broken(index: int, **features: bytes | None) -> bytes:
    merged = {**clevr_features(index), **features}
    return example({name: value for name, value in merged.items() if value is not None})


def overlapping() -> np.ndarray:
    masks = np.zeros((11, 240, 320), np.uint8)
    masks[0] = 255
    masks[1, 100:110, 100:110] = 255
    return masks


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (
            {"mask": byte_list(np.zeros((13, 240, 320), np.uint8))},
            "12 object masks; CLEVR has at most 10",
        ),
        ({"mask": byte_list(np.zeros(1000, np.uint8))}, "feature 'mask': a list has 3000 bytes"),
        ({"image": byte_list(np.zeros(1000, np.uint8))}, "feature 'image': a list has 3000 bytes"),
        ({"mask": byte_list(overlapping())}, "100 pixels are in no mask or in several"),
        ({"mask": byte_list(overlapping() // 2)}, "values other than 0 and 255"),
        (
            {"visibility": float_list(np.ones(9))},
            "feature 'visibility' has 9 elements; the format has 11",
        ),
        (
            {"visibility": float_list(np.eye(11)[0])},
            "has pixels, but the record describes 0 objects",
        ),
        ({"x": float_list(np.full(11, np.nan))}, "feature 'x' has a value that is not finite"),
        ({"color": byte_list(np.full(11, 9, np.uint8))}, "feature 'color' has code 9"),
        ({"image": None}, "there is no bytes feature 'image', so this is no CLEVR"),
    ],
)
def test_a_strange_record_is_named(
    tmp_path: Path, features: dict[str, bytes | None], message: str
) -> None:
    path = write_records(tmp_path / CLEVR_NAME, [broken(0), broken(1, **features)])
    with pytest.raises(InputError, match=rf"{CLEVR_NAME}, record 1: .*{message}"):
        data.prepare("clevr", path, tmp_path / "out", clevr.Options(size=16), {"train": (0, None)})


def test_damage_keeps_finished_shards_and_the_same_command_continues(
    clevr_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "SHARD_BYTES", 2 * 16 * 16 * 4)
    path, out = tmp_path / CLEVR_NAME, tmp_path / "out"

    def prepare() -> data.Manifest:
        return data.prepare("clevr", path, out, clevr.Options(size=16), {"train": (0, 10)})

    path.write_bytes(clevr_file.read_bytes()[: clevr_file.stat().st_size * 2 // 3])
    with pytest.raises(InputError, match=r"record \d: the file is cut off"):
        prepare()
    finished = {path.name: path.stat().st_mtime_ns for path in out.glob("*.arrow")}
    assert finished
    with pytest.raises(InputError, match="half prepared"):
        data.Manifest.load(out)
    write_records(path, [example(clevr_features(index)) for index in range(10, 20)])
    with pytest.raises(InputError, match=r"already holds other data: raw\.fingerprint is"):
        prepare()
    path.write_bytes(clevr_file.read_bytes())
    assert prepare().raw["files"] == {CLEVR_NAME: clevr_file.stat().st_size}
    assert {name: (out / name).stat().st_mtime_ns for name in finished} == finished
    assert data.check(out) == []


def test_clevr6_keeps_scenes_of_few_objects_and_continues(clevr_file: Path, tmp_path: Path) -> None:
    """Records 0, 3, 6 and 9 of the miniature file have 3 objects, 1, 4 and 7 have 4, the others 5."""
    options = clevr.Options(size=16, max_objects=4)
    manifest = data.prepare(
        "clevr", clevr_file, tmp_path / "out", options, {"train": (0, 6), "test": (6, None)}
    )
    assert manifest.options["max_objects"] == 4
    assert [data.Batches(tmp_path / "out", name, 1).num_scenes for name in ("train", "test")] == [
        4,
        3,
    ]
    ids = data.Batches(tmp_path / "out", "train", 1).ids(range(4))
    assert ids == [f"clevr_00000{number}" for number in (0, 1, 3, 4)]
    rest = clevr.records(
        Place.of(clevr_file), options, {"train": (0, 6), "test": (6, None)}, {"train": 2, "test": 1}
    )
    assert [item.number for _, item in rest] == [3, 4, 7, 9]


def test_slot_attentions_protocol(
    clevr_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    options = clevr.Options(protocol="slot-attention")
    assert clevr.splits(Place.of(clevr_file), options) == {
        "train": (0, 70_000),
        "test": (70_000, 85_000),
        "val": (85_000, 100_000),
    }
    image, ids, _ = clevr_truth(3)
    _, payload = list(tfrecord.records(clevr_file))[3]
    scene = clevr.scene(payload, "x", options)
    cropped = torch.from_numpy(image[29:221, 64:256].copy()).permute(2, 0, 1)[None].float()
    resized = torch.nn.functional.interpolate(
        cropped, (128, 128), mode="bilinear", align_corners=False, antialias=False
    )
    np.testing.assert_allclose(scene.image, resized[0].permute(1, 2, 0).numpy(), atol=0.501)
    where = np.floor((np.arange(128) + 0.5) * 1.5).astype(int)
    np.testing.assert_array_equal(scene.mask, ids[29:221, 64:256][np.ix_(where, where)])

    monkeypatch.setattr(clevr, "SLOT_ATTENTION_SCENES", 2)
    splits: Ranges = {"train": (0, 4), "test": (4, 7), "val": (7, 10)}
    told = set()
    manifest = data.prepare(
        "clevr",
        clevr_file,
        tmp_path / "out",
        options,
        splits,
        progress=lambda name, _, wanted: told.add((name, wanted)),
    )
    assert told == {("train", 4), ("test", 2), ("val", 2)}
    assert {name: split.count for name, split in manifest.splits.items()} == {
        "train": 4,
        "test": 2,
        "val": 2,
    }
    assert manifest.options["protocol"] == "slot-attention"
    assert caplog.messages == [], "a limit makes no split short"
    with pytest.raises(InputError, match="slot-attention has a crop of its own"):
        data.prepare(
            "clevr",
            clevr_file,
            tmp_path / "other",
            clevr.Options(protocol="slot-attention", crop=0.7),
        )


def test_parse_splits() -> None:
    assert sources.parse_splits("train=0:320, val=320:360,test=360:") == {
        "train": (0, 320),
        "val": (320, 360),
        "test": (360, None),
    }
    for text, message in {
        "train": "cannot read 'train'",
        "": "cannot read ''",
        "train=5:5": "the end must be greater",
        "train=9:5": "the end must be greater",
        "train=0:5,train=6:7": "names train twice",
        "a=0:10,b=9:20": "a and b overlap at record 9",
        "a=5:,b=9:20": "a and b overlap at record 9",
        "a/b=0:1": "cannot read",
    }.items():
        with pytest.raises(InputError, match=message):
            sources.parse_splits(text)


def test_sources_are_the_folder() -> None:
    assert sources.names() == ["clevr", "clevrtex", "movi_a", "scenes"]
    for name in sources.names():
        source = sources.load(name)
        assert source.__doc__
        assert callable(source.decode)
    with pytest.raises(InputError, match="Did you mean 'clevr'"):
        sources.load("clever")


@pytest.mark.skipif(not RENDERED.is_dir(), reason=f"the rendered CLEVR file is not at {RENDERED}")
def test_rendered_file_against_a_naive_decoder() -> None:
    path = next(RENDERED.glob("*.tfrecords"))
    _, payload = next(tfrecord.records(path))
    with gzip.open(path) as file:
        file.seek(12)
        assert file.read(len(payload)) == payload
    features = tfrecord.example(payload)
    pixels = b"".join(features["image"].bytes())
    image = np.frombuffer(pixels, np.uint8).reshape(240, 320, 3)
    masks = np.frombuffer(b"".join(features["mask"].bytes()), np.uint8).reshape(11, 240, 320)
    scene = clevr.scene(payload, "x", clevr.Options())
    small, ids = naive(image, masks.argmax(0).astype(np.uint8), 128)
    np.testing.assert_array_equal(scene.image, small)
    np.testing.assert_array_equal(scene.mask, ids)
    assert len(scene.objects) == int(features["visibility"].floats().sum()) - 1
