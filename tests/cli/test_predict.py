"""`cutslots predict` on images of every kind, with untrained models."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fixtures_runs import save_tiny_model
from PIL import Image

from cutslots.cli import main
from cutslots.cli import predict as predict_command
from cutslots.cli.predict import find_images, load
from cutslots.errors import InputError
from cutslots.report.figures import tile_side
from cutslots.train import load_model, predict


def noise(path: Path, width: int, height: int, seed: int = 0) -> np.ndarray:
    """Write an image of random blocks and return its pixels."""
    shape = (max(1, height // 8), max(1, width // 8), 3)
    blocks = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    image = Image.fromarray(blocks).resize((width, height), Image.Resampling.NEAREST)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, quality=95)
    return np.asarray(image)


def run(model: Path, images: Path, out: Path, *options: str) -> int:
    return main(["predict", str(model), str(images), "--out", str(out), *options])


def entries(out: Path) -> dict[str, dict[str, Any]]:
    images = json.loads((out / "predictions.json").read_text())["images"]
    return {entry["name"]: entry for entry in images}


def mask(out: Path, name: str) -> np.ndarray:
    with Image.open(out / "masks" / f"{name}.png") as image:
        assert image.mode == "P"
        return np.asarray(image)


def test_masks_of_an_image_are_the_models(model, tmp_path, capsys):
    pixels, out = noise(tmp_path / "in.png", 32, 32), tmp_path / "out"
    assert run(model, tmp_path / "in.png", out) == 0
    assert capsys.readouterr().out == f"1 image predicted: {out}\n"
    expected = predict(load_model(model), pixels[None])
    np.testing.assert_array_equal(mask(out, "in"), expected["masks"][0])
    with Image.open(out / "overlays" / "in.png") as overlay:
        assert overlay.size == (3 * 256 + 8, 256)
        panels = np.asarray(overlay)
    np.testing.assert_array_equal(panels[4::8, 4:256:8], pixels)
    np.testing.assert_array_equal(panels[4::8, 524::8], expected["reconstructions"][0])
    about = json.loads((out / "predictions.json").read_text())["model"]
    assert (about["reference"], about["image_size"]) == (str(model), 32)
    entry = entries(out)["in"]
    assert (entry["size"], entry["square"]) == ([32, 32], [0, 0, 32, 32])
    assert sum(slot["share"] for slot in entry["slots"]) == pytest.approx(1, abs=1e-5)
    slots = {slot["slot"] for slot in entry["slots"]}
    assert slots == set(np.unique(expected["masks"][0]).tolist())


def test_every_kind_of_image(model, tmp_path):
    """A folder with subfolders, sizes, colour modes; other files are skipped."""
    images = tmp_path / "images"
    wide = noise(images / "wide.PNG", 320, 64)
    noise(images / "deep" / "er" / "tall.jpg", 50, 333)
    noise(images / "tiny.jpeg", 3, 5)
    rgb = Image.fromarray(noise(images / "rgb.png", 64, 64))
    rgb.quantize(7).save(images / "palette.png")
    grey = rgb.convert("L")
    grey.save(images / "grey.png")
    Image.fromarray(np.asarray(grey).astype(np.uint16) * 257).save(images / "grey16.png")
    grey.convert("1").save(images / "two.png")
    Image.new("RGB", (64, 64), "red").convert("CMYK").save(images / "cmyk.jpg")
    Image.new("RGBA", (64, 64), (255, 0, 0, 0)).save(images / "clear.png")
    (images / "notes.txt").write_text("not an image")
    (images / ".hidden.png").write_text("not an image either")
    out = images / "out"  # among the images, and still not one of them
    for _ in range(2):
        assert run(model, images, out, "--batch-size", "3") == 0
    names = {"wide", "deep/er/tall", "tiny", "rgb", "palette", "grey", "grey16", "two", "cmyk"}
    assert set(entries(out)) == {*names, "clear"}
    for name in names:
        assert mask(out, name).shape == (32, 32)
        assert (out / "overlays" / f"{name}.png").is_file()
    assert entries(out)["wide"]["square"] == [128, 0, 192, 64]
    assert entries(out)["deep/er/tall"]["square"] == [0, 141, 50, 191]
    np.testing.assert_array_equal(mask(out, "grey16"), mask(out, "grey"))
    middle = Image.fromarray(wide[:, 128:192]).resize((32, 32), Image.Resampling.BILINEAR)
    pixels = load(images / "wide.PNG", 32, 256).pixels
    np.testing.assert_array_equal(pixels, np.asarray(middle))
    expected = predict(load_model(model), pixels[None])["masks"][0]
    assert (mask(out, "wide") == expected).mean() > 0.97, "other batches, other rounding"
    with Image.open(out / "overlays" / "clear.png") as overlay:
        assert overlay.getpixel((10, 10)) == (255, 255, 255), "transparency is white"


def test_images_are_upright(tmp_path):
    pixels = np.zeros((64, 96, 3), np.uint8)
    pixels[:, :48] = 255  # what the sensor saw on the left is at the bottom of the upright image
    exif = Image.Exif()
    exif[0x0112] = 8  # orientation
    Image.fromarray(pixels).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    square = load(tmp_path / "turned.jpg", 32, 256)
    assert (square.size, square.box) == ((64, 96), (0, 16, 64, 80))
    assert (square.pixels[:14] < 20).all()
    assert (square.pixels[18:] > 235).all()


def test_large_jpegs_are_decoded_at_a_fraction_of_their_size(tmp_path):
    """And look the same: the JPEG decoder's own average of 8 x 8 pixels comes before the resize."""
    pixels = noise(tmp_path / "large.jpg", 4800, 3600)
    square = load(tmp_path / "large.jpg", 32, tile_side(32))
    expected = Image.fromarray(pixels[:, 600:4200]).resize((32, 32), Image.Resampling.BILINEAR)
    assert (square.size, square.box) == ((4800, 3600), (600, 0, 4200, 3600))
    assert np.abs(square.pixels.astype(int) - np.asarray(expected)).mean() < 2


def test_second_run_does_what_is_missing(model, tmp_path, capsys):
    for number in range(5):
        noise(tmp_path / "in" / f"{number}.png", 40, 40, number)
    out = tmp_path / "out"
    assert run(model, tmp_path / "in", out) == 0
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}
    assert len(before) == 10
    (out / "masks" / "1.png").unlink()
    noise(tmp_path / "in" / "new.png", 40, 40, 9)
    noise(tmp_path / "in" / "3.png", 40, 40, 3)  # written again, so newer than its mask
    capsys.readouterr()
    assert run(model, tmp_path / "in", out) == 0
    assert "3 images predicted, 3 " in capsys.readouterr().out
    now = {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}
    unchanged = {path.name for path, time in before.items() if now[path] == time}
    assert unchanged == {"0.png", "2.png", "4.png"}
    assert set(entries(out)) == {"0", "1", "2", "3", "4", "new"}
    assert run(model, tmp_path / "in", out, "--overwrite") == 0
    assert not any(now[path] == path.stat().st_mtime_ns for path in now)


def test_interrupted_run_resumes(model, tmp_path, monkeypatch, capsys):
    """Ctrl-C in the third of three batches."""
    for number in range(6):
        noise(tmp_path / "in" / f"{number}.png", 40, 40, number)
    uninterrupted, out = tmp_path / "uninterrupted", tmp_path / "out"
    assert run(model, tmp_path / "in", uninterrupted, "--batch-size", "2") == 0

    def interrupt(path: Path, *sizes: int) -> Any:
        if path.stem == "4":
            raise KeyboardInterrupt
        return load(path, *sizes)

    with monkeypatch.context() as patch:
        patch.setattr(predict_command, "load", interrupt)
        assert run(model, tmp_path / "in", out, "--batch-size", "2") == 130
    assert set(entries(out)) == {"0", "1", "2", "3"}
    capsys.readouterr()
    assert run(model, tmp_path / "in", out, "--batch-size", "2") == 0
    assert "2 images predicted, 4 " in capsys.readouterr().out
    assert entries(out) == entries(uninterrupted)
    for name in entries(out):
        np.testing.assert_array_equal(mask(out, name), mask(uninterrupted, name))
    assert not list(out.rglob("*.tmp"))


def test_video_model_sees_clips(tmp_path):
    """Each folder is a clip; frame 10 comes after frame 9."""
    video, out = save_tiny_model(tmp_path / "video", "small-video"), tmp_path / "out"
    for clip, seed in (("a", 0), ("b", 50)):
        numbers = range(8, 12)
        paths = [tmp_path / "in" / clip / f"frame_{number}.png" for number in numbers]
        frames = [noise(path, 32, 32, seed + n) for n, path in zip(numbers, paths, strict=True)]
        assert run(video, tmp_path / "in", out) == 0
        expected = predict(load_model(video), np.stack(frames))["masks"]
        for number, labels in zip(numbers, expected, strict=True):
            np.testing.assert_array_equal(mask(out, f"{clip}/frame_{number}"), labels)
    # One frame that is missing repeats its clip and no other.
    (out / "masks" / "a" / "frame_9.png").unlink()
    before = {path: path.stat().st_mtime_ns for path in (out / "masks").rglob("*.png")}
    assert run(video, tmp_path / "in", out) == 0
    written = {path for path, time in before.items() if path.stat().st_mtime_ns > time}
    assert written == {out / "masks" / "a" / f"frame_{number}.png" for number in (8, 10, 11)}


BAD = {  # file: what the message names
    "broken.jpg": "readable",
    "text.png": "readable",
    "huge.png": "exceeds limit",
    "gif.png": "readable",
    "empty": "no PNG or JPEG",
    "twins": "x.png",
    "nothing.png": "does not exist",
    "out": "--out",
}


@pytest.mark.parametrize(("name", "fact"), BAD.items())
def test_bad_files_are_named(name, fact, model, tmp_path, capsys):
    for folder in ("empty", "out"):
        (tmp_path / folder).mkdir()
    noise(tmp_path / "intact.jpg", 64, 64)
    data = (tmp_path / "intact.jpg").read_bytes()
    (tmp_path / "broken.jpg").write_bytes(data[: len(data) // 2])
    (tmp_path / "text.png").write_text("hello")
    Image.new("RGB", (4, 4)).save(tmp_path / "gif.png", format="GIF")
    Image.new("1", (20_000, 20_000)).save(tmp_path / "huge.png")
    noise(tmp_path / "twins" / "x.png", 8, 8)
    noise(tmp_path / "twins" / "x.jpg", 8, 8)
    intact, out = str(tmp_path / "intact.jpg"), tmp_path / "out"
    assert run(model, tmp_path / name, out, intact) == 2
    error = capsys.readouterr().err
    assert name in error
    assert fact in error
    assert not (out / "predictions.json").exists()


def test_bad_output_folders(model, tmp_path, capsys):
    image, out = tmp_path / "in.png", tmp_path / "out"
    noise(image, 32, 32)
    assert run(model, image, out, "--batch-size", "0") == 2
    assert run(model, image, image) == 2
    assert run(model, image, out) == 0
    other = save_tiny_model(tmp_path / "other", seed=1)
    capsys.readouterr()
    assert run(other, image, out) == 2
    assert "another model" in capsys.readouterr().err
    assert run(other, image, out, "--overwrite") == 0
    shutil.copytree(other, tmp_path / "same")
    assert run(tmp_path / "same", image, out) == 0, "the weights identify the model"
    (out / "predictions.json").write_text("[]")
    assert run(model, image, out) == 2
    assert "predictions.json" in capsys.readouterr().err


def test_same_file_twice_is_one_image(tmp_path):
    noise(tmp_path / "a" / "x.png", 8, 8)
    os.symlink(tmp_path / "a", tmp_path / "b")
    paths = [tmp_path / "a" / "x.png", tmp_path / "b" / "x.png"]
    assert list(find_images(paths, tmp_path / "out")[0]) == ["x"]
    noise(tmp_path / "c" / "x.png", 8, 8)
    with pytest.raises(InputError, match=r"x\.png"):
        find_images([tmp_path / "a", tmp_path / "c"], tmp_path / "out")
