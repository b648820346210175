"""`cutslots predict` on images of every kind, with untrained models."""

import json
import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cutslots import options
from cutslots.cli import main
from cutslots.cli.predict import Predictions, find_images, load
from cutslots.errors import InputError
from cutslots.report.figures import tile_side
from cutslots.train import load_model, predict
from cutslots.train.config import preset
from cutslots.train.export import save_model

TINY = (
    "encoder.channels=8",
    "weights.hidden=8",
    "slots.size=8",
    "slots.hidden=16",
    "decoder.channels=8",
)


def saved(folder: Path, name: str = "small", seed: int = 0) -> Path:
    config = preset(name)
    for assignment in TINY:
        config = options.override(config, assignment)
    torch.manual_seed(seed)
    save_model(config.model.build().state_dict(), config, folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("model"))


def noise(path: Path, width: int, height: int, seed: int = 0, **how: Any) -> np.ndarray:
    """Writes a image of random blocks, and gives its pixels."""
    small = np.random.default_rng(seed).integers(
        0, 256, (max(1, height // 8), max(1, width // 8), 3), np.uint8
    )
    image = Image.fromarray(small).resize((width, height), Image.Resampling.NEAREST)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **how)
    return np.asarray(image)


def listed(out: Path) -> dict[str, dict[str, Any]]:
    return {
        each["name"]: each for each in json.loads((out / "predictions.json").read_text())["images"]
    }


def mask(out: Path, name: str) -> np.ndarray:
    with Image.open(out / "masks" / f"{name}.png") as image:
        assert image.mode == "P"
        return np.asarray(image)


def test_masks_of_an_image_are_the_models(model: Path, tmp_path: Path, capsys) -> None:
    pixels = noise(tmp_path / "in.png", 32, 32)
    assert (
        main(["predict", str(model), str(tmp_path / "in.png"), "--out", str(tmp_path / "out")]) == 0
    )
    assert capsys.readouterr().out == f"1 image predicted: {tmp_path / 'out'}\n"
    truth = predict(load_model(model), pixels[None])
    np.testing.assert_array_equal(mask(tmp_path / "out", "in"), truth["masks"][0])
    with Image.open(tmp_path / "out" / "overlays" / "in.png") as drawn:
        assert drawn.size == (3 * 256 + 8, 256)
        panels = np.asarray(drawn)
    np.testing.assert_array_equal(panels[4::8, 4:256:8], pixels)
    np.testing.assert_array_equal(panels[4::8, 524::8], truth["reconstructions"][0])
    found = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert found["model"]["reference"] == str(model)
    assert found["model"]["image_size"] == 32
    (entry,) = found["images"]
    assert (entry["size"], entry["square"]) == ([32, 32], [0, 0, 32, 32])
    assert sum(slot["share"] for slot in entry["slots"]) == pytest.approx(1, abs=1e-5)
    assert {slot["slot"] for slot in entry["slots"]} == set(np.unique(truth["masks"][0]).tolist())


def test_every_kind_of_image(model: Path, tmp_path: Path) -> None:
    """A folder with subfolders, sizes, colour modes; other files are skipped."""
    images = tmp_path / "images"
    wide = noise(images / "wide.PNG", 320, 64)
    noise(images / "deep" / "er" / "tall.jpg", 50, 333)
    noise(images / "tiny.jpeg", 3, 5)
    grey = Image.fromarray(noise(images / "rgb.png", 64, 64)).convert("L")
    grey.save(images / "grey.png")
    Image.fromarray(np.asarray(grey).astype(np.uint16) * 257).save(images / "grey16.png")
    grey.convert("1").save(images / "two.png")
    noise(images / "palette.png", 64, 64)
    with Image.open(images / "palette.png") as image:
        image.quantize(7).save(images / "palette.png")
    Image.new("RGB", (64, 64), "red").convert("CMYK").save(images / "cmyk.jpg")
    Image.new("RGBA", (64, 64), (255, 0, 0, 0)).save(images / "clear.png")
    (images / "notes.txt").write_text("not a image")
    (images / ".hidden.png").write_text("not a image either")
    out = images / "out"  # among the images, and still not one of them
    for _ in range(2):
        assert (
            main(["predict", str(model), str(images), "--out", str(out), "--batch-size", "3"]) == 0
        )
    names = {
        "wide",
        "deep/er/tall",
        "tiny",
        "rgb",
        "grey",
        "grey16",
        "two",
        "palette",
        "cmyk",
        "clear",
    }
    assert set(listed(out)) == names
    for name in names:
        assert mask(out, name).shape == (32, 32)
        assert (out / "overlays" / f"{name}.png").is_file()
    assert listed(out)["wide"]["square"] == [128, 0, 192, 64]
    assert listed(out)["deep/er/tall"]["square"] == [0, 141, 50, 191]
    np.testing.assert_array_equal(mask(out, "grey16"), mask(out, "grey"))
    middle = np.asarray(
        Image.fromarray(wide[:, 128:192]).resize((32, 32), Image.Resampling.BILINEAR)
    )
    seen = load(images / "wide.PNG", 32, 256)
    np.testing.assert_array_equal(seen.pixels, middle)
    truth = predict(load_model(model), middle[None])["masks"][0]
    assert (mask(out, "wide") == truth).mean() > 0.97, "other batches, other rounding"
    with Image.open(out / "overlays" / "clear.png") as drawn:
        assert drawn.getpixel((10, 10)) == (255, 255, 255), "transparency is white"


def test_a_camera_held_upright(tmp_path: Path) -> None:
    turned = tmp_path / "turned.jpg"
    pixels = np.zeros((64, 96, 3), np.uint8)
    pixels[:, :48] = 255  # what the sensor saw on the left is below in the image that a person sees
    exif = Image.Exif()
    exif[0x0112] = 8  # orientation
    Image.fromarray(pixels).save(turned, exif=exif, quality=95)
    square = load(turned, 32, 256)
    assert square.size == (64, 96)
    assert square.box == (0, 16, 64, 80)
    assert (square.pixels[:14] < 20).all()
    assert (square.pixels[18:] > 235).all()


def test_large_jpegs_are_decoded_at_a_fraction_of_their_size(tmp_path: Path) -> None:
    """And look the same: the JPEG decoder's own average of 8 x 8 pixels comes before the resize."""
    pixels = noise(tmp_path / "large.jpg", 4800, 3600, quality=95)
    square = load(tmp_path / "large.jpg", 32, tile_side(32))
    whole = Image.fromarray(pixels[:, 600:4200]).resize((32, 32), Image.Resampling.BILINEAR)
    assert square.size == (4800, 3600)
    assert square.box == (600, 0, 4200, 3600)
    assert np.abs(square.pixels.astype(int) - np.asarray(whole)).mean() < 2


def test_second_run_does_what_is_missing(model: Path, tmp_path: Path, capsys) -> None:
    for number in range(5):
        noise(tmp_path / "in" / f"{number}.png", 40, 40, number)
    out = tmp_path / "out"
    command = ["predict", str(model), str(tmp_path / "in"), "--out", str(out)]
    assert main(command) == 0
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}
    assert len(before) == 10
    (out / "masks" / "1.png").unlink()
    noise(tmp_path / "in" / "new.png", 40, 40, 9)
    noise(tmp_path / "in" / "3.png", 40, 40, 3)  # written again, so newer than its mask
    capsys.readouterr()
    assert main(command) == 0
    assert "3 images predicted, 3 " in capsys.readouterr().out
    now = {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}
    kept = {"0.png", "2.png", "4.png"}
    assert {path.name for path, at in before.items() if now[path] == at} == kept
    assert set(listed(out)) == {"0", "1", "2", "3", "4", "new"}
    assert main([*command, "--overwrite"]) == 0
    assert not any(now[path] == path.stat().st_mtime_ns for path in now)


def test_interrupted_run_resumes(model: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    for number in range(6):
        noise(tmp_path / "in" / f"{number}.png", 40, 40, number)
    whole, out = tmp_path / "whole", tmp_path / "out"
    command = ["predict", str(model), str(tmp_path / "in"), "--batch-size", "2", "--out"]
    assert main([*command, str(whole)]) == 0
    save, saves = Predictions.save, []

    def interrupt(self: Predictions, interval: float = 0.0) -> None:
        saves.append(interval)
        if len(saves) == 2:
            raise KeyboardInterrupt
        save(self, interval)

    with monkeypatch.context() as patch:
        patch.setattr(Predictions, "save", interrupt)
        assert main([*command, str(out)]) == 130
    assert set(listed(out)) == {"0", "1", "2", "3"}
    capsys.readouterr()
    assert main([*command, str(out)]) == 0
    assert "2 images predicted, 4 " in capsys.readouterr().out
    assert listed(out) == listed(whole)
    for name in listed(whole):
        np.testing.assert_array_equal(mask(out, name), mask(whole, name))
    assert not list(out.rglob("*.tmp"))


def test_video_model_sees_clips(tmp_path: Path) -> None:
    """Each folder is a clip; frame 10 comes after frame 9."""
    video = saved(tmp_path / "video", "small-video")
    clips = {
        clip: [
            noise(tmp_path / "in" / clip / f"frame_{number}.png", 32, 32, seed + number)
            for number in range(8, 12)
        ]
        for clip, seed in (("a", 0), ("b", 50))
    }
    out = tmp_path / "out"
    command = ["predict", str(video), str(tmp_path / "in"), "--out", str(out)]
    assert main(command) == 0
    for clip, frames in clips.items():
        truth = predict(load_model(video), np.stack(frames))["masks"]
        for number, labels in zip(range(8, 12), truth, strict=True):
            np.testing.assert_array_equal(mask(out, f"{clip}/frame_{number}"), labels)
    # One frame that is missing repeats its clip and no other.
    (out / "masks" / "a" / "frame_9.png").unlink()
    other = (out / "masks" / "b" / "frame_9.png").stat().st_mtime_ns
    mine = (out / "masks" / "a" / "frame_8.png").stat().st_mtime_ns
    assert main(command) == 0
    assert (out / "masks" / "b" / "frame_9.png").stat().st_mtime_ns == other
    assert (out / "masks" / "a" / "frame_8.png").stat().st_mtime_ns > mine


BAD = {  # file: its content, and what the message names
    "broken.jpg": "readable",
    "text.png": "readable",
    "huge.png": "exceeds limit",
    "moving.png": "GIF",
    "empty": "no PNG or JPEG",
    "twins": "x.png",
    "nothing.png": "does not exist",
    "out": "--out",
}


@pytest.mark.parametrize(("name", "fact"), BAD.items())
def test_bad_files_are_named(name: str, fact: str, model: Path, tmp_path: Path, capsys) -> None:
    for folder in ("empty", "out"):
        (tmp_path / folder).mkdir()
    noise(tmp_path / "whole.jpg", 64, 64)
    data = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "broken.jpg").write_bytes(data[: len(data) // 2])
    (tmp_path / "text.png").write_text("hello")
    Image.new("RGB", (4, 4)).save(tmp_path / "moving.png", format="GIF")
    Image.new("1", (20_000, 20_000)).save(tmp_path / "huge.png")
    noise(tmp_path / "twins" / "x.png", 8, 8)
    noise(tmp_path / "twins" / "x.jpg", 8, 8)
    images = [str(tmp_path / "whole.jpg"), str(tmp_path / name)]
    assert main(["predict", str(model), *images, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert name in error
    assert fact in error
    assert not (tmp_path / "out" / "predictions.json").exists()


def test_bad_output_folders(model: Path, tmp_path: Path, capsys) -> None:
    noise(tmp_path / "in.png", 32, 32)
    out = tmp_path / "out"
    command = [str(tmp_path / "in.png"), "--out", str(out)]
    assert main(["predict", str(model), *command, "--batch-size", "0"]) == 2
    assert main(["predict", str(model), *command]) == 0
    another = saved(tmp_path / "another", seed=1)
    capsys.readouterr()
    assert main(["predict", str(another), *command]) == 2
    assert "another model" in capsys.readouterr().err
    assert main(["predict", str(another), *command, "--overwrite"]) == 0
    shutil.copytree(another, tmp_path / "same")
    assert main(["predict", str(tmp_path / "same"), *command]) == 0, (
        "the weights say which model it is"
    )
    (out / "predictions.json").write_text("[]")
    assert main(["predict", str(model), *command]) == 2
    assert "predictions.json" in capsys.readouterr().err
    assert (
        main(["predict", str(model), str(tmp_path / "in.png"), "--out", str(tmp_path / "in.png")])
        == 2
    )
    assert "in.png" in capsys.readouterr().err


def test_results_are_written_atomically(model: Path, tmp_path: Path) -> None:
    """A reader never sees half of a file."""
    for number in range(30):
        noise(tmp_path / "in" / f"{number}.png", 32, 32, number)
    out, stop, seen = tmp_path / "out", threading.Event(), []

    def look() -> None:
        while not stop.is_set():
            for path in out.rglob("[0-9]*.png"):
                with Image.open(path) as image:
                    image.load()
                seen.append(path)
            time.sleep(0.001)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        assert (
            main(
                [
                    "predict",
                    str(model),
                    str(tmp_path / "in"),
                    "--out",
                    str(out),
                    "--batch-size",
                    "4",
                ]
            )
            == 0
        )
    finally:
        stop.set()
        thread.join()
    assert seen


def test_same_file_twice_is_one_image(tmp_path: Path) -> None:
    noise(tmp_path / "a" / "x.png", 8, 8)
    os.symlink(tmp_path / "a", tmp_path / "b")
    paths = [str(tmp_path / "a" / "x.png"), str(tmp_path / "b" / "x.png")]
    images, _ = find_images(paths, tmp_path / "out")
    assert [image.name for image in images] == ["x"]
    noise(tmp_path / "c" / "x.png", 8, 8)
    with pytest.raises(InputError, match=r"x\.png"):
        find_images([str(tmp_path / "a"), str(tmp_path / "c")], tmp_path / "out")
