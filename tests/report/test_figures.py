"""Figures of samples, clips and masks, pixel by pixel."""

import io
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from cutslots.report import figures
from cutslots.report.figures import GAP, HEADER, PALETTE, clip_animation, sample_figure
from cutslots.train.callbacks import Examples, Sample
from cutslots.train.video import Clips

TILE = 32
LABELS = ["best: plain_000003, ARI-FG 0.9000", "worst: plain_000001, ARI-FG 0.1000"]


def noise(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture
def clips() -> Clips:
    """Two clips of 7 frames, 16 x 16: noise with moving squares; masks are one frame late."""
    images, true = noise(2, 7, 3, 16, 16), torch.zeros(2, 7, 16, 16, dtype=torch.long)
    for time in range(7):
        true[0, time, 2:6, time : time + 4] = 1
        true[:, time, 8:14, 9 - time : 14 - time] = 5
    masks = true[:, [0, 0, 1, 2, 3, 4, 5]] + 1
    return Clips(images, true, SimpleNamespace(masks=masks, reconstruction=images * 0.5))


@pytest.fixture
def sample() -> Sample:
    alpha = noise(2, 3, 8, 8).softmax(1)
    reconstructions = noise(2, 3, 3, 8, 8)
    outputs = SimpleNamespace(reconstructions=reconstructions, alpha=alpha)
    outputs.reconstruction = noise(2, 3, 8, 8)
    return Sample(noise(2, 3, 8, 8), torch.arange(128).reshape(2, 8, 8) % 3, outputs)


def frames(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.stack([np.array(frame.convert("RGB")) for frame in ImageSequence.Iterator(image)])


def tiles(images: np.ndarray, column: int, row: int, above: int = 0) -> np.ndarray:
    left = GAP + column * (TILE + GAP)
    top = HEADER + row * (above + TILE + GAP) + above
    return images[:, top : top + TILE : 2, left : left + TILE : 2]


def test_an_animation_has_every_frame_in_constant_colours(clips, tmp_path):
    clips.outputs.cut_masks = clips.true + 2
    clip_animation(clips, tmp_path / "figure.gif", tile=TILE)
    images = frames(tmp_path / "figure.gif")
    assert images.shape == (7, HEADER + 2 * (TILE + GAP), GAP + 5 * (TILE + GAP), 3)
    for row in (0, 1):
        maps = clips.true[row], clips.outputs.masks[row], clips.outputs.cut_masks[row]
        for column, labels in enumerate(maps, 2):
            np.testing.assert_array_equal(tiles(images, column, row), PALETTE[labels.numpy()])
        # Images share 240 colours, so they are only close.
        shown = tiles(images, 0, row).astype(float)
        assert np.abs(shown - (clips.images[row].movedim(1, -1).numpy() + 1) * 127.5).mean() < 20


def test_a_static_clip_keeps_its_frames(clips, tmp_path):
    """Pillow merges equal frames; the frame's number keeps them distinct."""
    still = SimpleNamespace(masks=clips.true[:, [0] * 7], reconstruction=clips.images[:, [0] * 7])
    static = Clips(clips.images[:, [0] * 7], clips.true[:, [0] * 7], still)
    clip_animation(static, tmp_path / "static.gif", tile=TILE)
    images = frames(tmp_path / "static.gif")
    assert len(images) == 7
    assert (tiles(images, 3, 1) == tiles(images, 3, 1)[:1]).all()


def test_a_sample_has_masks_and_slots(sample, tmp_path):
    sample_figure(sample, tmp_path / "figure.png", tile=TILE)
    image = frames(tmp_path / "figure.png")
    assert image.shape == (1, HEADER + 2 * (TILE + GAP), GAP + 7 * (TILE + GAP), 3)
    for row in (0, 1):
        for column, labels in ((2, sample.true[row]), (3, sample.outputs.alpha[row].argmax(0))):
            np.testing.assert_array_equal(tiles(image, column, row)[0, ::2, ::2], PALETTE[labels])
    sample.outputs.attention = sample.outputs.alpha
    sample_figure(sample, tmp_path / "attention.png", tile=TILE, rows=1)
    size = GAP + 8 * (TILE + GAP), HEADER + TILE + GAP
    assert Image.open(tmp_path / "attention.png").size == size


@pytest.mark.parametrize("kind", ["sample", "clips"])
def test_labels_are_above_their_rows(kind, tmp_path, request):
    draw = {"sample": sample_figure, "clips": clip_animation}[kind]
    figure = request.getfixturevalue(kind)
    plain, labelled = tmp_path / "plain", tmp_path / "labelled"
    draw(figure, plain, tile=TILE)
    draw(figure, labelled, tile=TILE, labels=LABELS)
    before, after = frames(plain)[-1:], frames(labelled)[-1:]
    assert after.shape[1] == before.shape[1] + 2 * HEADER
    for row in range(2):
        for column in range(4):
            shown = tiles(after, column, row, above=HEADER)
            np.testing.assert_array_equal(shown, tiles(before, column, row))
        top = HEADER + row * (HEADER + TILE + GAP)
        assert (after[0, top : top + HEADER] < 128).any()


def test_labels_name_scene_and_score():
    names = ["plain_000003", "plain_000001"]
    examples = Examples("ari_fg", ["best", "worst"], names, [0.9, 0.1], Sample(*[noise(0)] * 3))
    assert figures.example_labels(examples) == LABELS


def test_a_mask_file_contains_the_labels():
    labels = np.random.default_rng(0).integers(0, 20, (8, 8), dtype=np.uint8)
    file = io.BytesIO()
    figures.mask_image(labels).save(file, format="PNG")
    with Image.open(file) as image:
        assert image.mode == "P"
        np.testing.assert_array_equal(np.asarray(image), labels)
        colors = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(colors, PALETTE[labels % len(PALETTE)])  # more slots than colours


def test_an_overlay_has_colours_inside_and_lines_between():
    assert [figures.tile_side(size) for size in (32, 48, 200, 512)] == [256, 240, 200, 512]
    labels = np.repeat([[0, 0, 1, 1]], 4, axis=0).astype(np.uint8)
    image = np.full((40, 40, 3), 100, np.uint8)
    drawn = np.asarray(figures.overlay(image, labels, np.full((4, 4, 3), 7, np.uint8)))
    assert drawn.shape == (40, 3 * 40 + 2 * GAP, 3)
    first, second, third = (drawn[:, i * (40 + GAP) : i * (40 + GAP) + 40] for i in range(3))
    assert (first == 100).all()
    assert (third == 7).all()
    for columns, slot in ((slice(0, 19), 0), (slice(21, 40), 1)):
        assert (second[:, columns] == (0.55 * 100 + 0.45 * PALETTE[slot]).astype(np.uint8)).all()
    assert (second[:, 19:21] == figures.LINE).all()  # on both sides of the border


def test_slots_have_their_boxes_in_the_image():
    labels = np.zeros((4, 4), np.uint8)
    labels[1:3, 2:4] = 3
    background, thing = figures.slots(labels, (100, 50, 180, 130))  # 20 pixels of the image each
    assert background == {"slot": 0, "share": 0.75, "box": [100, 50, 180, 130]}
    assert thing == {"slot": 3, "share": 0.25, "box": [140, 70, 180, 110]}
