"""The MOVi-A source on small folders as TensorFlow Datasets writes them, and on a rendered one."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from clevr_files import example, frame, write_records
from comparisons import assert_equal, counts, reference, times
from movi_files import (
    FOLDER,
    FRAMES,
    bytes_list,
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
from cutslots.data.images import Preprocessing
from cutslots.data.record import Ranges
from cutslots.errors import InputError

RENDERED = Path(__file__).parents[3] / "shared/data/movi_a"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("raw")
    write_folder(root)
    return root


@pytest.fixture
def copy(tree: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tree, tmp_path / "raw")


@pytest.fixture
def one_clip_a_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SHARD_BYTES", FRAMES * 24 * 24 * 4)


def prepare(raw: Path, out: Path, splits: Ranges | None = None) -> data.Manifest:
    return data.prepare("movi_a", raw, out, Preprocessing(size=24), splits)


def test_round_trip_is_exact(tree: Path, tmp_path: Path) -> None:
    manifest = prepare(tree, tmp_path)
    assert manifest.ranges == {"train": (0, 5), "val": (5, 9)}
    assert (manifest.frame_shape, manifest.max_objects) == ((FRAMES, 24, 24), 4)
    names = [file_name("train", 0), file_name("train", 1), file_name("validation", 0)]
    assert sorted(manifest.raw["files"]) == names
    assert_equal(tmp_path, truth, "movi_a_{name}_{at:06d}")
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
    return example({**features(4), name: value})


def frames(name: str, at: int, *new: bytes | np.ndarray) -> bytes:
    """Record 4 with one frame replaced, or without it."""
    video, ids, _ = truth(4)
    images = [png(image) for image in (video if name == "video" else ids)]
    images[at : at + 1] = [png(n) if isinstance(n, np.ndarray) else n for n in new]
    return changed(name, bytes_list(images))


COLOR = png(truth(4)[0][0])


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (frames("video", 2), r"segmentations must be \(4, 40, 40\), got \(5, 40, 40\)"),
        (frames("segmentations", 0), r"must be \(5, 40, 40\), got \(4, 40, 40\)"),
        (changed("video", bytes_list([])), "video has no frames"),
        (frames("video", 3, COLOR[: len(COLOR) // 2]), "video, frame 3: the image is damaged"),
        (frames("segmentations", 1, b""), "segmentations, frame 1: the image is damaged"),
        (frames("segmentations", 1, COLOR), "segmentations, frame 1: the image has mode RGB"),
        (frames("segmentations", 1, np.full((40, 40), 7, np.uint8)), "id 7, but .* 3 instances"),
        (frames("segmentations", 4, np.zeros((8, 8), np.uint8)), r"frame 4: .* got \(8, 8\)"),
        (frames("video", 0, np.zeros((32, 40, 3), np.uint8)), r"video, frame 1: .*\(40, 40, 3\)"),
        (changed("segmentations", b""), "not a MOVi-A record: no bytes feature 'segmentations'"),
        (changed("instances/shape_label", int_list([0, 3, 1])), "shape_label .* below 3"),
        (changed("instances/mass", bytes_list([])), "no float feature 'instances/mass'"),
        (changed("instances/size_label", int_list([0, 1])), "different lengths"),
        (b"\xff" * 20, r"not a tf\.train\.Example"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_damaged_record_is_named_and_finished_shards_stay(
    tmp_path: Path, one_clip_a_shard: None, payload: bytes, message: str
) -> None:
    write_folder(tmp_path / "raw", {4: payload})
    with pytest.raises(InputError, match=rf"{file_name('train', 1)}, record 1: .*{message}"):
        prepare(tmp_path / "raw", tmp_path / "out")
    assert len(times(tmp_path / "out")) == 4


@pytest.mark.parametrize("cut", [False, True])
def test_preparation_continues_after_a_damaged_file_is_replaced(
    copy: Path, tmp_path: Path, one_clip_a_shard: None, cut: bool
) -> None:
    path, out = copy / FOLDER / file_name("train", 1), tmp_path / "out"
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
        (copy / FOLDER / file_name("train", at)).unlink()
    manifest = prepare(copy, tmp_path / "out", {"val": (5, 9)})
    assert list(manifest.raw["files"]) == [file_name("validation", 0)]
    assert data.Batches(tmp_path / "out", "val", 1).ids([3]) == ["movi_a_val_000003"]
    with pytest.raises(InputError, match=rf"lacks {file_name('train', 1)}\."):
        prepare(copy, tmp_path / "other", {"val": (4, 9)})


Change = Callable[[Path], object]


def remove(name: str) -> Change:
    return lambda folder: (folder / name).unlink()


def write(name: str, content: object) -> Change:
    text = content if isinstance(content, str) else json.dumps(content)
    return lambda folder: (folder / name).write_text(text)


INFO = "dataset_info.json"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (remove(file_name("train", 1)), f"lacks {file_name('train', 1)}"),
        (write(INFO, "{"), "dataset_info.json: it is damaged"),
        (write(INFO, {"splits": [{"name": "train"}]}), "dataset_info.json: .*shardLengths"),
        (write(INFO, {"splits": []}), "it names no files"),
        (remove("instances-size_label.labels.txt"), r"size_label\.labels\.txt: it is missing"),
        (remove(INFO), "one folder with dataset_info.json, got none"),
        (lambda f: shutil.copytree(f, f.parents[1] / "256x256/1.0.0"), "got .*256x256.*40x40"),
    ],
)
def test_an_incomplete_folder_is_refused(
    copy: Path, tmp_path: Path, edit: Change, message: str
) -> None:
    edit(copy / FOLDER)
    with pytest.raises(InputError, match=message):
        prepare(copy, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_another_number_of_records_is_refused(copy: Path, tmp_path: Path) -> None:
    """Truncated at a record's end, every checksum is right."""
    path = copy / FOLDER / file_name("train", 0)
    message = rf"{path.name} does not contain the 3 records listed in dataset_info\.json"
    write_records(path, [example(features(number)) for number in range(2)], zipped=False)
    with pytest.raises(InputError, match=message):
        prepare(copy, tmp_path / "out")
    with open(path, "ab") as file:
        file.write(b"".join(frame(example(features(number))) for number in range(2)))
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
    _, payload = next(tfrecord.records(path))
    record = tfrecord.example(payload or b"")
    number = int(record["metadata/num_instances"].ints()[0])
    assert len(batches.metadata([0])[0]) == number
    pixels = []
    for name in ("video", "segmentations"):
        with Image.open(io.BytesIO(record[name].bytes()[7])) as image:
            pixels.append(np.array(image))
    small, small_ids = reference(pixels[0], pixels[1], 128)
    batch = batches.batch(0, 0)
    assert batch.images.shape == (1, 24, 128, 128, 3)
    np.testing.assert_array_equal(batch.images[0, 7].numpy(), small)
    np.testing.assert_array_equal(batch.masks[0, 7].numpy(), small_ids)
    pairs = data.Batches(tmp_path, "train", 8, frames=2, distance=15)
    assert pairs.num_scenes == 32 * 9
    assert pairs.batch(0, 0).masks.shape == (8, 2, 128, 128)
