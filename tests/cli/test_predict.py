"""`cutslots predict` with models that were never trained, on pictures of every kind."""

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
from cutslots.cli import _pictures, main
from cutslots.cli._predictions import Predictions
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
    """Writes a picture of random blocks, and gives its pixels."""
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


def test_a_picture_of_the_models_size_is_what_the_model_sees(
    model: Path, tmp_path: Path, capsys
) -> None:
    pixels = noise(tmp_path / "in.png", 32, 32)
    assert (
        main(["predict", str(model), str(tmp_path / "in.png"), "--out", str(tmp_path / "out")]) == 0
    )
    assert capsys.readouterr().out == f"1 picture predicted: {tmp_path / 'out'}\n"
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


def test_every_kind_of_picture(model: Path, tmp_path: Path) -> None:
    """A folder with subfolders, sizes, colour modes; files that are no pictures are left aside."""
    pictures = tmp_path / "pictures"
    wide = noise(pictures / "wide.PNG", 320, 64)
    noise(pictures / "deep" / "er" / "tall.jpg", 50, 333)
    noise(pictures / "tiny.jpeg", 3, 5)
    grey = Image.fromarray(noise(pictures / "rgb.png", 64, 64)).convert("L")
    grey.save(pictures / "grey.png")
    Image.fromarray(np.asarray(grey).astype(np.uint16) * 257).save(pictures / "grey16.png")
    grey.convert("1").save(pictures / "two.png")
    noise(pictures / "palette.png", 64, 64)
    with Image.open(pictures / "palette.png") as image:
        image.quantize(7).save(pictures / "palette.png")
    Image.new("RGB", (64, 64), "red").convert("CMYK").save(pictures / "cmyk.jpg")
    Image.new("RGBA", (64, 64), (255, 0, 0, 0)).save(pictures / "clear.png")
    (pictures / "notes.txt").write_text("not a picture")
    (pictures / ".hidden.png").write_text("not a picture either")
    out = pictures / "out"  # among the pictures, and still not one of them
    for _ in range(2):
        assert (
            main(["predict", str(model), str(pictures), "--out", str(out), "--batch-size", "3"])
            == 0
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
    seen = _pictures.load(_pictures.Picture(pictures / "wide.PNG", "wide"), 32, 256)
    np.testing.assert_array_equal(seen.pixels, middle)
    truth = predict(load_model(model), middle[None])["masks"][0]
    assert (mask(out, "wide") == truth).mean() > 0.97, "other batches, other rounding"
    with Image.open(out / "overlays" / "clear.png") as drawn:
        assert drawn.getpixel((10, 10)) == (255, 255, 255), "what is transparent stands on white"


def test_a_camera_held_upright(tmp_path: Path) -> None:
    turned = tmp_path / "turned.jpg"
    pixels = np.zeros((64, 96, 3), np.uint8)
    pixels[:, :48] = (
        255  # what the sensor saw on the left is below in the picture that a person sees
    )
    exif = Image.Exif()
    exif[_pictures.ORIENTATION] = 8
    Image.fromarray(pixels).save(turned, exif=exif, quality=95)
    square = _pictures.load(_pictures.Picture(turned, "turned"), 32, 256)
    assert square.size == (64, 96)
    assert square.box == (0, 16, 64, 80)
    assert (square.pixels[:14] < 20).all()
    assert (square.pixels[18:] > 235).all()


def test_large_photographs_are_decoded_at_a_fraction_of_their_size(tmp_path: Path) -> None:
    """And look the same: the JPEG decoder's own average of 8 x 8 pixels comes before the resize."""
    pixels = noise(tmp_path / "large.jpg", 4800, 3600, quality=95)
    square = _pictures.load(_pictures.Picture(tmp_path / "large.jpg", "large"), 32, tile_side(32))
    whole = Image.fromarray(pixels[:, 600:4200]).resize((32, 32), Image.Resampling.BILINEAR)
    assert square.size == (4800, 3600)
    assert square.box == (600, 0, 4200, 3600)
    assert np.abs(square.pixels.astype(int) - np.asarray(whole)).mean() < 2


def test_what_is_there_is_not_done_again(model: Path, tmp_path: Path, capsys) -> None:
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
    assert capsys.readouterr().out == f"3 pictures predicted, 3 were there already: {out}\n"
    now = {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}
    kept = {"0.png", "2.png", "4.png"}
    assert {path.name for path, at in before.items() if now[path] == at} == kept
    assert set(listed(out)) == {"0", "1", "2", "3", "4", "new"}
    assert main([*command, "--overwrite"]) == 0
    assert not any(now[path] == path.stat().st_mtime_ns for path in now)


def test_an_interrupted_call_goes_on(model: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    for number in range(6):
        noise(tmp_path / "in" / f"{number}.png", 40, 40, number)
    whole, out = tmp_path / "whole", tmp_path / "out"
    command = ["predict", str(model), str(tmp_path / "in"), "--batch-size", "2", "--out"]
    assert main([*command, str(whole)]) == 0
    save, saves = Predictions.save, []

    def interrupt(self: Predictions, now: bool = True) -> None:
        saves.append(now)
        if len(saves) == 2:
            raise KeyboardInterrupt
        save(self, now)

    with monkeypatch.context() as patch:
        patch.setattr(Predictions, "save", interrupt)
        assert main([*command, str(out)]) == 130
    assert set(listed(out)) == {"0", "1", "2", "3"}
    capsys.readouterr()
    assert main([*command, str(out)]) == 0
    assert "2 pictures predicted, 4 were there already" in capsys.readouterr().out
    assert listed(out) == listed(whole)
    for name in listed(whole):
        np.testing.assert_array_equal(mask(out, name), mask(whole, name))
    assert not list(out.rglob("*.tmp"))


def test_a_model_of_video_sees_clips(tmp_path: Path) -> None:
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
    # One frame that is missing makes its whole clip anew, and no other.
    (out / "masks" / "a" / "frame_9.png").unlink()
    other = (out / "masks" / "b" / "frame_9.png").stat().st_mtime_ns
    mine = (out / "masks" / "a" / "frame_8.png").stat().st_mtime_ns
    assert main(command) == 0
    assert (out / "masks" / "b" / "frame_9.png").stat().st_mtime_ns == other
    assert (out / "masks" / "a" / "frame_8.png").stat().st_mtime_ns > mine


def damaged(folder: Path) -> None:
    noise(folder / "broken.jpg", 64, 64)
    data = (folder / "broken.jpg").read_bytes()
    (folder / "broken.jpg").write_bytes(data[: len(data) // 2])


def text(folder: Path) -> None:
    (folder / "text.png").write_text("hello")


def gif(folder: Path) -> None:
    Image.new("RGB", (4, 4)).save(folder / "moving.png", format="GIF")


def empty(folder: Path) -> None:
    (folder / "in").mkdir()


def twins(folder: Path) -> None:
    noise(folder / "in" / "x.png", 8, 8)
    noise(folder / "in" / "x.jpg", 8, 8)


def bomb(folder: Path) -> None:
    Image.new("1", (20_000, 20_000)).save(folder / "huge.png")


@pytest.mark.parametrize(
    ("make", "images", "message"),
    [
        (damaged, "broken.jpg", "broken.jpg is not a readable PNG or JPEG image (Truncated"),
        (
            text,
            "text.png",
            "text.png is not a readable PNG or JPEG image (cannot identify image file",
        ),
        (gif, "moving.png", "moving.png is a GIF image. Give PNG or JPEG."),
        (empty, "in", "in has no PNG or JPEG images in it"),
        (twins, "in", "would both be written as x.png"),
        (
            bomb,
            "huge.png",
            "huge.png is not a readable PNG or JPEG image (Image size (400000000 pixels) exceeds limit",
        ),
        (
            empty,
            "nothing.png",
            "nothing.png does not exist. Give PNG or JPEG files, or folders of them.",
        ),
        (empty, "out", "out is also a folder of pictures"),
    ],
)
def test_refused_by_name(
    make, images: str, message: str, model: Path, tmp_path: Path, capsys
) -> None:
    make(tmp_path)
    (tmp_path / "out").mkdir()
    good = tmp_path / "good.png"
    noise(good, 8, 8)
    assert (
        main(
            [
                "predict",
                str(model),
                str(good),
                str(tmp_path / images),
                "--out",
                str(tmp_path / "out"),
            ]
        )
        == 2
    )
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert not (tmp_path / "out" / "predictions.json").exists()


def test_refused_for_the_folder_of_results(model: Path, tmp_path: Path, capsys) -> None:
    noise(tmp_path / "in.png", 32, 32)
    out = tmp_path / "out"
    command = [str(tmp_path / "in.png"), "--out", str(out)]
    assert main(["predict", str(model), *command, "--batch-size", "0"]) == 2
    assert main(["predict", str(model), *command]) == 0
    another = saved(tmp_path / "another", seed=1)
    capsys.readouterr()
    assert main(["predict", str(another), *command]) == 2
    assert "has predictions of another model" in capsys.readouterr().err
    assert main(["predict", str(another), *command, "--overwrite"]) == 0
    shutil.copytree(another, tmp_path / "same")
    assert main(["predict", str(tmp_path / "same"), *command]) == 0, (
        "the weights say which model it is"
    )
    (out / "predictions.json").write_text("[]")
    assert main(["predict", str(model), *command]) == 2
    assert "is no list of predictions" in capsys.readouterr().err
    assert (
        main(["predict", str(model), str(tmp_path / "in.png"), "--out", str(tmp_path / "in.png")])
        == 2
    )
    assert "is a file. Give a folder" in capsys.readouterr().err


def test_results_are_seen_whole_or_not_at_all(model: Path, tmp_path: Path) -> None:
    """Somebody who looks while they are written finds no half of a file."""
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


def test_the_same_file_twice_is_one_picture(tmp_path: Path) -> None:
    noise(tmp_path / "a" / "x.png", 8, 8)
    os.symlink(tmp_path / "a", tmp_path / "b")
    found = _pictures.find(
        [str(tmp_path / "a" / "x.png"), str(tmp_path / "b" / "x.png")], tmp_path / "out"
    )
    assert [picture.name for picture in found.pictures] == ["x"]
    noise(tmp_path / "c" / "x.png", 8, 8)
    with pytest.raises(InputError, match="Rename one of them"):
        _pictures.find([str(tmp_path / "a"), str(tmp_path / "c")], tmp_path / "out")
