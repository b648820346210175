"""The ClevrTex source on small folders in the published layout, and on rendered ones if present."""

import io
import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from raw_files import (
    CLEVRTEX,
    assert_equal,
    clevrtex_metadata,
    clevrtex_stem,
    counts,
    ids_image,
    reference,
    times,
    truth,
    write_clevrtex,
)

from cutslots import data
from cutslots.data import shards
from cutslots.data.sources.clevrtex import Options
from cutslots.errors import InputError

RENDERED = Path(__file__).parents[3] / "shared/data"
_, IDS, NUMBER = truth(13, CLEVRTEX)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clevrtex(tmp_path_factory.mktemp("raw"), 20)


@pytest.fixture
def copy(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the folder; shards have two scenes."""
    monkeypatch.setattr(shards, "SHARD_BYTES", 2 * 24 * 24 * 4)
    return shutil.copytree(tree, tmp_path / "raw")


def prepare(raw: Path, out: Path, variant: str = "full") -> data.Manifest:
    return data.prepare("clevrtex", raw, out, Options(size=24, variant=variant))


def test_round_trip_is_exact(tree: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    manifest = prepare(tree, tmp_path)
    assert "has 20 images, the published main set 50000" in caplog.text
    assert manifest.ranges == {"test": (0, 2), "val": (2, 4), "train": (4, 20)}
    assert manifest.raw["images"] == 20
    assert_equal(tmp_path, CLEVRTEX, "clevrtex_full_{number:06d}")
    assert data.Batches(tmp_path, "val", 1).metadata([0])[0][1] == {
        **{"shape": "monkey", "size": "small", "material": "stone_2"},
        **{"position": [2.0, 2.0, 0.4], "rotation": 25.0, "ground_material": "grass_1"},
    }


def test_variants(tmp_path: Path) -> None:
    for variant, count in (("outd", 5), ("vbg", 10)):
        write_clevrtex(tmp_path / "raw", count, variant)
    assert counts(prepare(tmp_path / "raw", tmp_path / "outd", "outd")) == {"test": 5}
    vbg = prepare(tmp_path / "raw", tmp_path / "vbg", "vbg")
    assert counts(vbg) == {"test": 1, "val": 1, "train": 8}
    assert data.Batches(tmp_path / "vbg", "val", 1).metadata([0])[0][0]["color"] == "blue"
    assert "color" not in data.Batches(tmp_path / "outd", "test", 1).metadata([0])[0][0]
    with pytest.raises(InputError, match=r"no CLEVRTEX_full_NNNNNN files\. It has .* outd, vbg\."):
        prepare(tmp_path / "raw", tmp_path / "full")
    with pytest.raises(InputError, match="is a file"):
        prepare(next((tmp_path / "raw").rglob("*.json")), tmp_path / "out")


Change = Callable[[Path], object]


def change(ending: str, edit: Change) -> Change:
    """An edit of one file of number 13."""
    return lambda raw: edit(Path(f"{clevrtex_stem(raw, 13, 'full')}{ending}"))


def save(image: Image.Image) -> Change:
    return change("_flat.png", image.save)


def write(text: str) -> Change:
    return change(".json", lambda path: path.write_text(text))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    """Flip a bit of the compressed pixels that PNG decoders do not notice, but changes ids."""
    content = path.read_bytes()
    for bit in range(8 * content.index(b"IDAT") + 32, 8 * len(content)):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        with suppress(OSError, SyntaxError, ValueError), Image.open(io.BytesIO(flipped)) as image:
            if (np.asarray(image) != IDS).any():
                path.write_bytes(flipped)
                return
    raise AssertionError("the decoder notices every change")


JSON = json.dumps(clevrtex_metadata(13, "full"))
NOT_METADATA = r"000013\.json: not ClevrTex metadata"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (change("_flat.png", Path.unlink), r"lacks CLEVRTEX_full_000013_flat\.png"),
        (change(".json", Path.unlink), r"lacks CLEVRTEX_full_000013\.json"),
        (lambda raw: shutil.rmtree(raw / "clevrtex_full/2"), r"lacks .*_000006.* and 4 more"),
        (lambda raw: shutil.copytree(raw / "clevrtex_full/4", raw / "again"), "exists twice"),
        (change(".png", cut), r"000013\.png: the image is damaged"),
        (change("_flat.png", flip), r"000013_flat\.png: the image is damaged"),
        (change("_flat.png", lambda p: p.write_bytes(b"")), r"_flat\.png: the image is damaged"),
        (save(ids_image(IDS).convert("RGB")), r"_flat\.png: .* mode RGB; .*P or L"),
        (save(ids_image(np.full(CLEVRTEX, 9, np.uint8))), f"id 9, but .* {NUMBER} objects"),
        (save(ids_image(IDS[:50])), r"size is \(50, 80\), that of its image \(60, 80\)"),
        (write("{}"), rf"{NOT_METADATA} \(KeyError\('objects'\)"),
        (write("[]"), NOT_METADATA),
        (write(JSON.replace("25.0", "NaN")), rf"{NOT_METADATA} .*not JSON compliant"),
        (write(JSON.replace('"stone_2"', "null")), rf"{NOT_METADATA} .*got None"),
        (write(JSON.replace('"index": 2', '"index": 5')), r"got \[1, 5, 3"),
    ],
)
def test_damage_is_named_and_a_rerun_continues(
    tree: Path, copy: Path, tmp_path: Path, edit: Change, message: str
) -> None:
    out = tmp_path / "out"
    edit(copy)
    with pytest.raises(InputError, match=message):
        prepare(copy, out)
    finished = times(out)
    if out.exists():  # damage in a complete folder
        assert len(finished) == 6, "two scenes each of test and val, eight of train"
        shutil.copytree(tree, copy, dirs_exist_ok=True)
        assert prepare(copy, out).split("train").count == 16
        assert finished.items() <= times(out).items()
        assert data.check(out) == []
    else:
        assert "lacks" in message or "twice" in message


def test_datasets_of_equal_size_are_not_mixed(copy: Path, tmp_path: Path) -> None:
    change("_flat.png", cut)(copy)
    with pytest.raises(InputError, match="the image is damaged"):
        prepare(copy, tmp_path / "out")
    path = Path(f"{clevrtex_stem(copy, 19, 'full')}.json")
    path.write_text(json.dumps(clevrtex_metadata(20, "full")))
    with pytest.raises(InputError, match=r"already contains other data: raw\.fingerprint is"):
        prepare(copy, tmp_path / "out")


@pytest.mark.skipif(not RENDERED.is_dir(), reason=f"the rendered datasets are not at {RENDERED}")
@pytest.mark.parametrize(
    ("variant", "numbers"), [("full", (30, 30, 240)), ("camo", (4, 4, 32)), ("outd", (40,))]
)
def test_rendered_datasets(variant: str, numbers: tuple[int, ...], tmp_path: Path) -> None:
    raw = RENDERED / f"clevrtex_{variant}"
    manifest = data.prepare("clevrtex", raw, tmp_path, Options(variant=variant))
    assert tuple(counts(manifest).values()) == numbers
    assert (manifest.frame_shape, manifest.max_objects) == ((128, 128), 10)
    assert data.check(tmp_path) == []
    batches = data.Batches(tmp_path, "test", 1, shuffle=False)
    stem = raw / f"0/CLEVRTEX_{variant}_000003"
    with Image.open(f"{stem}.png") as image, Image.open(f"{stem}_flat.png") as ids:
        small, small_ids = reference(np.array(image)[..., :3], np.array(ids), 128)
    batch = batches.batch(0, 3)
    np.testing.assert_array_equal(batch.images[0].numpy(), small)
    np.testing.assert_array_equal(batch.masks[0].numpy(), small_ids)
    described = json.loads(Path(f"{stem}.json").read_text())["objects"]
    kept = batches.metadata([3])[0]
    assert [entry["material"] for entry in kept] == [entry["material"] for entry in described]
