"""Masks of one picture: what a file of them holds, what is drawn, and what is said of them."""

import io

import numpy as np
import pytest
from PIL import Image

from cutslots.report.figures import GAP, LINE, PALETTE, mask_image, overlay, slots, tile_side


def test_a_mask_file_holds_the_labels_themselves():
    labels = np.random.default_rng(0).integers(
        0, 20, (8, 8), dtype=np.uint8
    )  # more slots than colours
    file = io.BytesIO()
    mask_image(labels).save(file, format="PNG")
    with Image.open(file) as image:
        assert image.mode == "P"
        np.testing.assert_array_equal(np.asarray(image), labels)
        np.testing.assert_array_equal(
            np.asarray(image.convert("RGB")), PALETTE[labels % len(PALETTE)]
        )


@pytest.mark.parametrize(
    ("size", "side"), [(32, 256), (128, 256), (48, 240), (200, 200), (512, 512)]
)
def test_panels_are_whole_multiples(size, side):
    assert tile_side(size) == side


def test_an_overlay_has_colours_inside_and_lines_between():
    labels = np.zeros((4, 4), np.uint8)
    labels[:, 2:] = 1
    picture = np.full((40, 40, 3), 100, np.uint8)
    painted = np.full((4, 4, 3), 7, np.uint8)
    drawn = np.asarray(overlay(picture, labels, painted))
    assert drawn.shape == (40, 3 * 40 + 2 * GAP, 3)
    first, second, third = (drawn[:, at * (40 + GAP) : at * (40 + GAP) + 40] for at in range(3))
    assert (first == 100).all()
    assert (third == 7).all()
    for columns, slot in ((slice(0, 19), 0), (slice(21, 40), 1)):
        assert (second[:, columns] == (0.55 * 100 + 0.45 * PALETTE[slot]).astype(np.uint8)).all()
    assert (second[:, 19:21] == LINE).all(), "on both sides of the border"


def test_slots_are_placed_in_the_picture():
    labels = np.zeros((4, 4), np.uint8)
    labels[1:3, 2:4] = 3
    background, thing = slots(labels, (100, 50, 180, 130))  # 20 pixels of the picture each
    assert background == {"slot": 0, "share": 0.75, "box": [100, 50, 180, 130]}
    assert thing == {"slot": 3, "share": 0.25, "box": [140, 70, 180, 110]}
