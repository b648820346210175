"""The MOVi-A source on miniature folders in TensorFlow Datasets' layout, and on the rendered set where it is at hand."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from clevr_files import example, frame, write_records
from movi_files import (
    FOLDER,
    FRAMES,
    bytes_list,
    description,
    features,
    file_name,
    int_list,
    png,
    truth,
    write_folder,
)
from PIL import Image

from cutslots import data
from cutslots.data import shards, tfrecord
from cutslots.data.sources import movi_a
from cutslots.errors import InputError

RENDERED = Path(__file__).parents[3] / "shared/data/movi_a"


def naive(frames: np.ndarray, ids: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The paper's preparation, frame by frame."""
    side = int(0.8 * ids.shape[1])
    low = (ids.shape[1] - side) // 2
    box = (low, low, low + side, low + side)
    small = [
        Image.fromarray(image).crop(box).resize((size, size), Image.Resampling.BILINEAR)
        for image in frames
    ]
    small_ids = [
        Image.fromarray(mask).crop(box).resize((size, size), Image.Resampling.NEAREST)
        for mask in ids
    ]
    return np.stack([np.array(image) for image in small]), np.stack(
        [np.array(mask) for mask in small_ids]
    )


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("raw")
    write_folder(root)
    return root


@pytest.fixture
def copy(tree: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tree, tmp_path / "raw")


def prepare(
    raw: Path, out: Path, splits: dict[str, tuple[int, int | None]] | None = None
) -> data.Manifest:
    return data.prepare("movi_a", raw, out, movi_a.Options(size=24), splits)


def test_round_trip_is_exact(tree: Path, tmp_path: Path) -> None:
    manifest = prepare(tree, tmp_path)
    assert manifest.ranges == {"train": (0, 5), "val": (5, 9)}
    assert (manifest.frame_shape, manifest.max_objects) == ((FRAMES, 24, 24), 4)
    assert sorted(manifest.raw["files"]) == [
        file_name("train", 0),
        file_name("train", 1),
        file_name("validation", 0),
    ]
    assert data.check(tmp_path) == []
    for name, (start, _) in manifest.ranges.items():
        batches = data.Batches(tmp_path, name, 3, shuffle=False, drop_last=False)
        for batch in batches.epoch(0):
            for row, position in enumerate(batch.index):
                frames, ids, number = truth(start + position)
                small, small_ids = naive(frames, ids, 24)
                np.testing.assert_array_equal(batch.images[row].numpy(), small)
                np.testing.assert_array_equal(batch.masks[row].numpy(), small_ids)
                assert len(batches.metadata([position])[0]) == number
            assert batches.ids(batch.index) == [
                f"movi_a_{name}_{position:06d}" for position in batch.index
            ]
    assert data.Batches(tmp_path, "val", 1).metadata([1])[0][1] == {
        "shape": "cylinder",
        "size": "large",
        "color": "yellow",
        "material": "rubber",
        "mass": 0.5,
        "friction": 0.5,
        "restitution": 0.5,
    }


def test_splits_number_the_records_through(tree: Path, tmp_path: Path) -> None:
    manifest = prepare(tree, tmp_path, {"b": (4, 7), "a": (1, 3), "c": (8, None)})
    assert {name: split.count for name, split in manifest.splits.items()} == {
        "b": 3,
        "a": 2,
        "c": 1,
    }
    expected = {
        "b": ["train_000004", "val_000000", "val_000001"],
        "a": ["train_000001", "train_000002"],
        "c": ["val_000003"],
    }
    for name, ids in expected.items():
        batches = data.Batches(tmp_path, name, 1)
        assert batches.ids(range(batches.num_scenes)) == [f"movi_a_{id}" for id in ids]


def changed(**values: bytes | None) -> bytes:
    """Record 4, the last of the training split, with other features."""
    merged = {**features(4), **values}
    return example(
        {name.replace("__", "/"): value for name, value in merged.items() if value is not None}
    )


def frames(name: str, at: int, new: bytes | None) -> bytes:
    """A feature of record 4 with one frame replaced, or without it."""
    images, ids, _ = truth(4)
    pictures = [png(picture) for picture in (images if name == "video" else ids)]
    pictures[at : at + 1] = [] if new is None else [new]
    return bytes_list(pictures)


WHOLE = png(truth(4)[0][0])


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (changed(video=frames("video", 2, None)), "video has 4 frames; there must be 5"),
        (
            changed(segmentations=frames("segmentations", 0, None)),
            "segmentations has 4 frames; there must be 5",
        ),
        (
            changed(video=frames("video", 3, WHOLE[: len(WHOLE) // 2])),
            "video, frame 3: the image is damaged",
        ),
        (
            changed(segmentations=frames("segmentations", 1, b"")),
            "segmentations, frame 1: the image is damaged",
        ),
        (
            changed(segmentations=frames("segmentations", 1, WHOLE)),
            "segmentations, frame 1: the image has mode RGB",
        ),
        (
            changed(segmentations=frames("segmentations", 1, png(np.full((40, 40), 7, np.uint8)))),
            "segmentations has id 7, but .* 3 instances",
        ),
        (
            changed(segmentations=frames("segmentations", 4, png(np.zeros((8, 8), np.uint8)))),
            r"segmentations, frame 4: it is \(8, 8\); it must be \(40, 40\)",
        ),
        (
            changed(video=frames("video", 0, png(np.zeros((32, 40, 3), np.uint8)))),
            r"video, frame 0: .* must be \(40, 40\)",
        ),
        (changed(segmentations=None), "no bytes feature 'segmentations', so this is no MOVi-A"),
        (
            changed(instances__shape_label=int_list([0, 3, 1])),
            r"instances/shape_label has codes 0 to 3; there are 3 names",
        ),
        (changed(instances__mass=bytes_list([])), "no float feature 'instances/mass'"),
        (changed(instances__size_label=int_list([0, 1])), "different lengths"),
        (b"\xff" * 20, r"no tf\.train\.Example"),
    ],
)
def test_a_strange_record_is_named_and_finished_shards_stay(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, payload: bytes, message: str
) -> None:
    monkeypatch.setattr(shards, "SHARD_BYTES", FRAMES * 24 * 24 * 4)
    write_folder(tmp_path / "raw", {4: payload})
    with pytest.raises(InputError, match=rf"{file_name('train', 1)}, record 1: .*{message}"):
        prepare(tmp_path / "raw", tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").glob("*.arrow")) == [
        f"train-{number:05d}.arrow" for number in range(4)
    ]


@pytest.mark.parametrize("cut", [False, True])
def test_a_damaged_file_is_named_and_the_preparation_goes_on_when_it_is_mended(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: bool
) -> None:
    monkeypatch.setattr(shards, "SHARD_BYTES", FRAMES * 24 * 24 * 4)
    path = copy / FOLDER / file_name("train", 1)
    whole = path.read_bytes()
    flipped = whole[:-100] + bytes([whole[-100] ^ 1]) + whole[-99:]
    path.write_bytes(whole[:-100] if cut else flipped)
    reason = (
        "the file ends inside the record's data"
        if cut
        else "the checksum of the record's data does not fit"
    )
    with pytest.raises(InputError, match=rf"{path.name}, record 1: {reason}"):
        prepare(copy, tmp_path / "out")
    finished = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.arrow")}
    assert len(finished) == 4
    path.write_bytes(whole)
    assert prepare(copy, tmp_path / "out").split("train").count == 5
    assert {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in finished} == finished
    assert data.check(tmp_path / "out") == []


def test_validation_alone_needs_its_own_files_only(copy: Path, tmp_path: Path) -> None:
    for at in range(2):
        (copy / FOLDER / file_name("train", at)).unlink()
    manifest = prepare(copy, tmp_path / "out", {"val": (5, 9)})
    assert list(manifest.raw["files"]) == [file_name("validation", 0)]
    assert data.Batches(tmp_path / "out", "val", 1).ids([0, 3]) == [
        "movi_a_val_000000",
        "movi_a_val_000003",
    ]
    with pytest.raises(InputError, match=rf"lacks {file_name('train', 1)}\. Fetch"):
        prepare(copy, tmp_path / "other", {"val": (4, 9)})


def rewrite(path: Path, text: str) -> None:
    path.write_text(text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda folder: (folder / file_name("train", 1)).unlink(),
            f"lacks {file_name('train', 1)}. Fetch",
        ),
        (
            lambda folder: (folder / "dataset_info.json").unlink(),
            "dataset_info.json: it is missing",
        ),
        (
            lambda folder: rewrite(folder / "dataset_info.json", "{"),
            "dataset_info.json: it is damaged",
        ),
        (
            lambda folder: rewrite(folder / "dataset_info.json", '{"splits": [{"name": "train"}]}'),
            r"not the form .*shardLengths",
        ),
        (
            lambda folder: rewrite(folder / "dataset_info.json", '{"splits": []}'),
            "it names no files",
        ),
        (
            lambda folder: (folder / "instances-size_label.labels.txt").unlink(),
            r"size_label\.labels\.txt: it is missing",
        ),
        (lambda folder: (folder / "features.json").unlink(), "has no features.json"),
        (
            lambda folder: rewrite(folder / "features.json", '{"featuresDict": {"features": {}}}'),
            r"not as TensorFlow Datasets writes it .*KeyError\('video'\)",
        ),
        (
            lambda folder: rewrite(folder / "features.json", json.dumps(description(4))),
            "video is uint8 with 4 channels",
        ),
        (
            lambda folder: rewrite(folder / "features.json", json.dumps(description(3, "uint16"))),
            "segmentations is uint16",
        ),
        (
            lambda folder: shutil.copytree(folder, folder.parents[1] / "256x256/1.0.0"),
            "holds several sets: .*256x256.*40x40",
        ),
    ],
)
def test_incomplete_folders_are_refused_before_anything_is_written(
    copy: Path, tmp_path: Path, change: Callable[[Path], object], message: str
) -> None:
    change(copy / FOLDER)
    with pytest.raises(InputError, match=message):
        prepare(copy, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", ["strings", "content", "open"])
def test_older_forms_of_features_json(copy: Path, tmp_path: Path, form: str) -> None:
    """Before its present form the writer put JSON into strings, and before that everything under `content`."""
    shapes = {"video": [FRAMES, 40, 40, 3], "segmentations": [40, 40, 1]}
    contents = {name: {"shape": shape, "dtype": "uint8"} for name, shape in shapes.items()}
    sequence = {
        "type": "Sequence",
        "content": {"feature": {"content": contents["segmentations"]}, "length": FRAMES},
    }
    open_shape = {"video": {"shape": {"dimensions": ["-1", "-1", "-1", "3"]}}}
    written = {
        "strings": {
            "featuresDict": {
                "features": {
                    k: {"jsonFeature": {"json": json.dumps(v)}} for k, v in contents.items()
                }
            }
        },
        "content": {
            "type": "FeaturesDict",
            "content": {"video": {"content": contents["video"]}, "segmentations": sequence},
        },
        "open": {"featuresDict": {"features": {"video": open_shape, "segmentations": {}}}},
    }
    (copy / FOLDER / "features.json").write_text(json.dumps(written[form]))
    manifest = prepare(copy, tmp_path / "out")
    assert manifest.frame_shape == (FRAMES, 24, 24)
    assert data.check(tmp_path / "out") == []


def test_a_file_with_another_number_of_records_is_refused(copy: Path, tmp_path: Path) -> None:
    """Cut at a record's end, every checksum fits."""
    path = copy / FOLDER / file_name("train", 0)
    write_records(path, [example(features(number)) for number in range(2)], zipped=False)
    with pytest.raises(
        InputError, match=rf"{path.name} has not the 3 records that dataset_info\.json says"
    ):
        prepare(copy, tmp_path / "out")
    with open(path, "ab") as file:
        file.write(b"".join(frame(example(features(number))) for number in range(2)))
    with pytest.raises(InputError, match=rf"{path.name} has not the 3 records"):
        prepare(copy, tmp_path / "out")


@pytest.mark.skipif(not RENDERED.is_dir(), reason=f"the rendered MOVi-A is not at {RENDERED}")
def test_rendered_set(tmp_path: Path) -> None:
    manifest = data.prepare("movi_a", RENDERED, tmp_path)
    assert {name: split.count for name, split in manifest.splits.items()} == {"train": 32, "val": 8}
    assert (manifest.frame_shape, manifest.max_objects) == ((24, 128, 128), 10)
    assert data.check(tmp_path) == []
    batches = data.Batches(tmp_path, "val", 1, shuffle=False)
    path = RENDERED / "128x128/1.0.0/movi_a-validation.tfrecord-00000-of-00001"
    for position, (_, payload) in zip(range(2), tfrecord.records(path), strict=False):
        record = tfrecord.example(payload)
        number = int(record["metadata/num_instances"].ints()[0])
        assert len(batches.metadata([position])[0]) == number
        (tmp_path / "frame.png").write_bytes(bytes(record["video"].bytes()[7]))
        (tmp_path / "ids.png").write_bytes(bytes(record["segmentations"].bytes()[7]))
        with Image.open(tmp_path / "frame.png") as image, Image.open(tmp_path / "ids.png") as ids:
            small, small_ids = naive(np.array(image)[None], np.array(ids)[None], 128)
        batch = batches.batch(0, position)
        assert batch.images.shape == (1, 24, 128, 128, 3)
        np.testing.assert_array_equal(batch.images[0, 7].numpy(), small[0])
        np.testing.assert_array_equal(batch.masks[0, 7].numpy(), small_ids[0])
    pairs = data.Batches(tmp_path, "train", 8, frames=2, distance=15)
    assert pairs.num_scenes == 32 * 9
    assert pairs.batch(0, 0).masks.shape == (8, 2, 128, 128)
