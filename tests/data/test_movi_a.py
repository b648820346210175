"""The MOVi-A source on small folders as TensorFlow Datasets writes them, and on a rendered one."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from raw_files import (
    MOVI,
    MOVI_FOLDER,
    assert_equal,
    bytes_list,
    counts,
    frame,
    int_list,
    movi_name,
    movi_record,
    png,
    reference,
    times,
    truth,
    write_movi,
)

from cutslots import data
from cutslots.data import shards, tfrecord
from cutslots.data.images import Preprocessing
from cutslots.data.record import Ranges
from cutslots.errors import InputError

RENDERED = Path(__file__).parents[3] / "shared/data/movi_a"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_movi(tmp_path_factory.mktemp("raw"))


@pytest.fixture
def copy(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the folder; shards have one clip."""
    monkeypatch.setattr(shards, "SHARD_BYTES", MOVI[0] * 24 * 24 * 4)
    return shutil.copytree(tree, tmp_path / "raw")


def prepare(raw: Path, out: Path, splits: Ranges | None = None) -> data.Manifest:
    return data.prepare("movi_a", raw, out, Preprocessing(size=24), splits)


def test_round_trip_is_exact(tree: Path, tmp_path: Path) -> None:
    manifest = prepare(tree, tmp_path)
    assert manifest.ranges == {"train": (0, 5), "val": (5, 9)}
    assert (manifest.frame_shape, manifest.max_objects) == ((MOVI[0], 24, 24), 4)
    names = [movi_name("train", 0), movi_name("train", 1), movi_name("validation", 0)]
    assert sorted(manifest.raw["files"]) == names
    assert_equal(tmp_path, MOVI, "movi_a_{name}_{at:06d}")
    assert data.Batches(tmp_path, "val", 1).metadata([1])[0][1] == {
        **{"shape": "cylinder", "size": "large", "color": "yellow", "material": "rubber"},
        **{"mass": 0.5, "friction": 0.5, "restitution": 0.5},
    }


def test_ranges_count_the_records_of_all_splits(tree: Path, tmp_path: Path) -> None:
    prepare(tree, tmp_path, {"b": (4, 7), "a": (1, 3), "c": (8, None)})
    expected = {
        "b": ["train_000004", "val_000000", "val_000001"],
        "a": ["train_000001", "train_000002"],
        "c": ["val_000003"],
    }
    for name, ids in expected.items():
        batches = data.Batches(tmp_path, name, 1)
        assert batches.ids(range(batches.num_scenes)) == [f"movi_a_{id}" for id in ids]


def changed(name: str, value: bytes) -> bytes:
    """Record 4, the last of the training split, with another feature."""
    return movi_record(4, {name: value})


def frames(name: str, at: int, *new: bytes | np.ndarray) -> bytes:
    """Record 4 with one frame replaced, or without it."""
    video, ids, _ = truth(4, MOVI)
    images = [png(image) for image in (video if name == "video" else ids)]
    images[at : at + 1] = [png(n) if isinstance(n, np.ndarray) else n for n in new]
    return changed(name, bytes_list(images))


COLOR = png(truth(4, MOVI)[0][0])


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (frames("video", 2), r"segmentations must be \(4, 40, 40\), got \(5, 40, 40\)"),
        (changed("video", bytes_list([])), "video has no frames"),
        (frames("video", 3, COLOR[: len(COLOR) // 2]), "video, frame 3: the image is damaged"),
        (frames("segmentations", 1, COLOR), "segmentations, frame 1: the image has mode RGB"),
        (frames("segmentations", 1, np.full((40, 40), 7, np.uint8)), "id 7, but .* 3 instances"),
        (frames("segmentations", 4, np.zeros((8, 8), np.uint8)), r"frame 4: .* got \(8, 8\)"),
        (changed("segmentations", b""), "no bytes feature 'segmentations'"),
        (changed("instances/shape_label", int_list([0, 3, 1])), "shape_label .* below 3"),
        (changed("instances/mass", bytes_list([])), "no float feature 'instances/mass'"),
        (changed("instances/size_label", int_list([0, 1])), "different lengths"),
        (b"\xff" * 20, r"not a tf\.train\.Example"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_damaged_record_is_named(tmp_path: Path, payload: bytes, message: str) -> None:
    write_movi(tmp_path / "raw", {4: payload})
    with pytest.raises(InputError, match=rf"{movi_name('train', 1)}, record 1: .*{message}"):
        prepare(tmp_path / "raw", tmp_path / "out")


@pytest.mark.parametrize("cut", [False, True])
def test_preparation_continues_after_a_damaged_file_is_replaced(
    copy: Path, tmp_path: Path, cut: bool
) -> None:
    path, out = copy / MOVI_FOLDER / movi_name("train", 1), tmp_path / "out"
    whole = path.read_bytes()
    flipped = whole[:-100] + bytes([whole[-100] ^ 1]) + whole[-99:]
    path.write_bytes(whole[:-100] if cut else flipped)
    reason = "the file ends inside" if cut else "the checksum of the record's data"
    with pytest.raises(InputError, match=rf"{path.name}, record 1: {reason}"):
        prepare(copy, out)
    finished = times(out)
    assert len(finished) == 4
    path.write_bytes(whole)
    assert prepare(copy, out).split("train").count == 5
    assert finished.items() <= times(out).items()
    assert data.check(out) == []


def test_validation_needs_only_its_own_files(copy: Path, tmp_path: Path) -> None:
    for at in range(2):
        (copy / MOVI_FOLDER / movi_name("train", at)).unlink()
    manifest = prepare(copy, tmp_path / "out", {"val": (5, 9)})
    assert list(manifest.raw["files"]) == [movi_name("validation", 0)]
    assert data.Batches(tmp_path / "out", "val", 1).ids([3]) == ["movi_a_val_000003"]
    with pytest.raises(InputError, match=rf"lacks {movi_name('train', 1)}\."):
        prepare(copy, tmp_path / "other", {"val": (4, 9)})


Change = Callable[[Path], object]


def remove(name: str) -> Change:
    return lambda folder: (folder / name).unlink()


def write(content: object) -> Change:
    text = content if isinstance(content, str) else json.dumps(content)
    return lambda folder: (folder / "dataset_info.json").write_text(text)


def records(count: int) -> Change:
    """Another number of records in the first file; every checksum is right."""
    content = b"".join(frame(movi_record(number)) for number in range(count))
    return lambda folder: (folder / movi_name("train", 0)).write_bytes(content)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (remove(movi_name("train", 1)), f"lacks {movi_name('train', 1)}"),
        (write("{"), "dataset_info.json: it is damaged"),
        (write({"splits": [{"name": "train"}]}), "dataset_info.json: .*shardLengths"),
        (write({"splits": []}), "it names no files"),
        (remove("instances-size_label.labels.txt"), r"size_label\.labels\.txt is missing"),
        (remove("dataset_info.json"), "one folder with dataset_info.json, got none"),
        (lambda f: shutil.copytree(f, f.parents[1] / "256x256/1.0.0"), "got .*256x256.*40x40"),
        (records(2), r"does not contain the 3 records listed in dataset_info\.json"),
        (records(4), r"does not contain the 3 records listed in dataset_info\.json"),
    ],
)
def test_an_incomplete_folder_is_refused(
    copy: Path, tmp_path: Path, edit: Change, message: str
) -> None:
    edit(copy / MOVI_FOLDER)
    with pytest.raises(InputError, match=message):
        prepare(copy, tmp_path / "out")


@pytest.mark.skipif(not RENDERED.is_dir(), reason=f"the rendered MOVi-A is not at {RENDERED}")
def test_rendered_dataset(tmp_path: Path) -> None:
    manifest = data.prepare("movi_a", RENDERED, tmp_path)
    assert counts(manifest) == {"train": 32, "val": 8}
    assert (manifest.frame_shape, manifest.max_objects) == ((24, 128, 128), 10)
    assert data.check(tmp_path) == []
    batches = data.Batches(tmp_path, "val", 1, shuffle=False)
    path = RENDERED / "128x128/1.0.0/movi_a-validation.tfrecord-00000-of-00001"
    record = tfrecord.Example(next(tfrecord.records(path))[1] or b"")
    assert len(batches.metadata([0])[0]) == int(record.ints("metadata/num_instances")[0])
    pixels = []
    for name in ("video", "segmentations"):
        with Image.open(io.BytesIO(record.bytes(name)[7])) as image:
            pixels.append(np.array(image))
    small, small_ids = reference(pixels[0], pixels[1], 128)
    batch = batches.batch(0, 0)
    np.testing.assert_array_equal(batch.images[0, 7].numpy(), small)
    np.testing.assert_array_equal(batch.masks[0, 7].numpy(), small_ids)
