"""The ClevrTex source on miniature trees in the published layout, and on the rendered sets where they are at hand."""

import io
import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from clevrtex_files import ids_image, metadata, stem, truth, write_tree
from PIL import Image

from cutslots import data
from cutslots.data import shards
from cutslots.data.sources import clevrtex
from cutslots.errors import InputError

RENDERED = Path(__file__).parents[3] / "shared/data"


def reference(image: np.ndarray, ids: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The benchmark's preparation, written down once more, on images with opacity."""
    height, width = ids.shape
    side = int(0.8 * min(height, width))
    box = ((width - side) // 2, (height - side) // 2, (width + side) // 2, (height + side) // 2)
    opaque = Image.fromarray(image).convert("RGBA")
    small = np.array(opaque.crop(box).resize((size, size), Image.Resampling.BILINEAR))[..., :3]
    return small, np.array(ids_image(ids).crop(box).resize((size, size), Image.Resampling.NEAREST))


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tree(tmp_path_factory.mktemp("raw"), 20)


@pytest.fixture
def copy(tree: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tree, tmp_path / "raw")


def prepare(raw: Path, out: Path, **values: str | int) -> data.Manifest:
    return data.prepare("clevrtex", raw, out, clevrtex.Options(**{"size": 24, **values}))  # pyright: ignore[reportArgumentType]


def test_round_trip_is_exact(tree: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    manifest = prepare(tree, tmp_path / "out")
    assert "has 20 images, the published main set 50000" in caplog.text
    assert manifest.ranges == {"test": (0, 2), "val": (2, 4), "train": (4, 20)}
    assert manifest.raw["images"] == 20
    assert str(tmp_path) not in (tmp_path / "out/manifest.json").read_text()
    assert data.check(tmp_path / "out") == []
    for name, (start, _) in manifest.ranges.items():
        batches = data.Batches(tmp_path / "out", name, 8, shuffle=False, drop_last=False)
        for batch in batches.epoch(0):
            for row, position in enumerate(batch.index):
                image, ids, number = truth(start + position)
                small, small_ids = reference(image, ids, 24)
                np.testing.assert_array_equal(batch.images[row].numpy(), small)
                np.testing.assert_array_equal(batch.masks[row].numpy(), small_ids)
                assert len(batches.metadata([position])[0]) == number
            assert batches.ids(batch.index) == [
                f"clevrtex_full_{start + position:06d}" for position in batch.index
            ]
    assert data.Batches(tmp_path / "out", "val", 1).metadata([0])[0][1] == {
        "shape": "monkey",
        "size": "small",
        "material": "stone_2",
        "position": [2.0, 2.0, 0.4],
        "rotation": 25.0,
        "ground_material": "grass_1",
    }


def test_variants(tmp_path: Path) -> None:
    for variant, count in (("outd", 5), ("vbg", 10)):
        write_tree(tmp_path / "raw", count, variant)
    outd = prepare(tmp_path / "raw", tmp_path / "outd", variant="outd")
    assert {name: split.count for name, split in outd.splits.items()} == {"test": 5}
    vbg = prepare(tmp_path / "raw", tmp_path / "vbg", variant="vbg")
    assert {name: split.count for name, split in vbg.splits.items()} == {
        "test": 1,
        "val": 1,
        "train": 8,
    }
    assert data.Batches(tmp_path / "vbg", "val", 1).metadata([0])[0][0]["color"] == "blue"
    assert "color" not in data.Batches(tmp_path / "outd", "test", 1).metadata([0])[0][0]
    with pytest.raises(
        InputError, match=r"no CLEVRTEX_full_NNNNNN files\. There are images of outd, vbg\."
    ):
        prepare(tmp_path / "raw", tmp_path / "full")


def damage(path: str, change: Callable[[Path], object]) -> Callable[[Path], object]:
    """A change of one file of number 13."""
    return lambda raw: change(Path(f"{stem(raw, 13, 'full')}{path}"))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def replace(path: Path, old: str, new: str) -> None:
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def flip(path: Path) -> None:
    """The first bit of the compressed pixels whose change a PNG decoder does not notice, though it gives other ids."""
    content = path.read_bytes()
    for bit in range(8 * content.index(b"IDAT") + 32, 8 * len(content)):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        with suppress(OSError, SyntaxError, ValueError), Image.open(io.BytesIO(flipped)) as image:
            if (np.asarray(image) != truth(13)[1]).any():
                path.write_bytes(flipped)
                return
    raise AssertionError("every change is noticed")


def without(*keys: str) -> str:
    return json.dumps(
        {name: value for name, value in metadata(13, "full").items() if name not in keys}
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (damage(".png", Path.unlink), "lacks CLEVRTEX_full_000013.png"),
        (damage("_flat.png", Path.unlink), "lacks CLEVRTEX_full_000013_flat.png"),
        (damage(".json", Path.unlink), "lacks CLEVRTEX_full_000013.json"),
        (
            lambda raw: shutil.rmtree(raw / "clevrtex_full/2"),
            r"lacks CLEVRTEX_full_000006\.png, .* and 4 more\. Unpack",
        ),
        (
            lambda raw: shutil.copytree(raw / "clevrtex_full/4", raw / "clevrtex_full/again"),
            r"number 12 is there twice: .*4/CLEVRTEX_full_000012.* and .*again/CLEVRTEX_full_000012",
        ),
    ],
)
def test_incomplete_trees_are_refused_before_anything_is_written(
    copy: Path, tmp_path: Path, change: Callable[[Path], object], message: str
) -> None:
    change(copy)
    with pytest.raises(InputError, match=message):
        prepare(copy, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (damage(".png", cut), r"CLEVRTEX_full_000013\.png: the image is damaged"),
        (damage("_flat.png", cut), r"CLEVRTEX_full_000013_flat\.png: the image is damaged"),
        (damage("_flat.png", flip), r"CLEVRTEX_full_000013_flat\.png: the image is damaged"),
        (
            damage("_flat.png", lambda path: path.write_bytes(b"")),
            r"_flat\.png: the image is damaged",
        ),
        (
            damage("_flat.png", lambda path: ids_image(truth(13)[1]).convert("RGB").save(path)),
            r"_flat\.png: .* mode RGB; .*P or L",
        ),
        (
            damage("_flat.png", lambda path: ids_image(np.full((60, 80), 9, np.uint8)).save(path)),
            "has id 9, but .* describes 3 objects",
        ),
        (
            damage("_flat.png", lambda path: ids_image(truth(13)[1][:50]).save(path)),
            "it is 80 x 50, its image 80 x 60",
        ),
        (damage(".json", cut), r"CLEVRTEX_full_000013\.json: it is not ClevrTex metadata"),
        (
            damage(".json", lambda path: path.write_text(without("objects"))),
            r"metadata \(KeyError\('objects'\)",
        ),
        (
            damage(".json", lambda path: path.write_text("[]")),
            r"000013\.json: it is not ClevrTex metadata",
        ),
        (
            damage(".json", lambda path: replace(path, "25.0", "NaN")),
            r"000013\.json: it is not ClevrTex .*not JSON compliant",
        ),
        (
            damage(".json", lambda path: replace(path, "25.0", "1e999")),
            r"000013\.json: it is not ClevrTex .*not JSON compliant",
        ),
        (
            damage(".json", lambda path: replace(path, '"stone_2"', "null")),
            r"000013\.json: it is not ClevrTex .*None is no word",
        ),
        (
            damage(".json", lambda path: replace(path, '"index": 2', '"index": 5')),
            r"its objects have the indices \[1, 5, 3\]",
        ),
    ],
)
def test_damaged_files_are_named_and_finished_shards_stay(
    tree: Path,
    copy: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Path], object],
    message: str,
) -> None:
    monkeypatch.setattr(shards, "SHARD_BYTES", 2 * 24 * 24 * 4)
    change(copy)
    with pytest.raises(InputError, match=message):
        prepare(copy, tmp_path / "out")
    finished = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.arrow")}
    assert len(finished) == 6, "two of test and val, eight of train"
    shutil.copytree(tree, copy, dirs_exist_ok=True)
    assert prepare(copy, tmp_path / "out").split("train").count == 16
    assert {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in finished} == finished
    assert data.check(tmp_path / "out") == []


def test_two_sets_of_one_size_are_not_mixed(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "SHARD_BYTES", 2 * 24 * 24 * 4)
    damage("_flat.png", cut)(copy)
    with pytest.raises(InputError, match="the image is damaged"):
        prepare(copy, tmp_path / "out")
    for number in (0, 19):
        path = Path(f"{stem(copy, number, 'full')}.json")
        text = path.read_text()
        path.write_text(json.dumps(metadata(number + 1, "full")))
        with pytest.raises(InputError, match=r"already holds other data: raw\.fingerprint is"):
            prepare(copy, tmp_path / "out")
        path.write_text(text)


def test_a_file_is_no_tree(tree: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a file. Give the folder"):
        prepare(next(tree.rglob("*.json")), tmp_path / "out")


@pytest.mark.skipif(not RENDERED.is_dir(), reason=f"the rendered sets are not at {RENDERED}")
@pytest.mark.parametrize(
    ("variant", "counts"),
    [
        ("full", {"test": 30, "val": 30, "train": 240}),
        ("camo", {"test": 4, "val": 4, "train": 32}),
        ("outd", {"test": 40}),
    ],
)
def test_rendered_sets(variant: str, counts: dict[str, int], tmp_path: Path) -> None:
    raw = RENDERED / f"clevrtex_{variant}"
    manifest = data.prepare("clevrtex", raw, tmp_path, clevrtex.Options(variant=variant))
    assert {name: split.count for name, split in manifest.splits.items()} == counts
    assert (manifest.frame_shape, manifest.max_objects) == ((128, 128), 10)
    assert data.check(tmp_path) == []
    batches = data.Batches(tmp_path, "test", 1, shuffle=False)
    for position in (0, 3):
        base = raw / f"0/CLEVRTEX_{variant}_{position:06d}"
        with Image.open(f"{base}.png") as image, Image.open(f"{base}_flat.png") as ids:
            small, small_ids = reference(np.array(image)[..., :3], np.array(ids), 128)
        batch = batches.batch(0, position)
        np.testing.assert_array_equal(batch.images[0].numpy(), small)
        np.testing.assert_array_equal(batch.masks[0].numpy(), small_ids)
        described = json.loads(Path(f"{base}.json").read_text())["objects"]
        kept = batches.metadata([position])[0]
        assert [entry["material"] for entry in kept] == [entry["material"] for entry in described]
