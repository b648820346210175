"""The animation of clips: one picture a frame, one colour a slot, the same in all of them."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from cutslots.report.figures import GAP, HEADER, PALETTE, clip_animation
from cutslots.train.video import Clips

TILE = 32


@pytest.fixture
def sample() -> Clips:
    """Two clips of 7 frames, 16 x 16: noise, and squares that move over it; the model sees each one frame late."""
    images = torch.rand(2, 7, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    true = torch.zeros(2, 7, 16, 16, dtype=torch.long)
    for time in range(7):
        true[0, time, 2:6, time : time + 4] = 1
        true[:, time, 8:14, 9 - time : 14 - time] = 5
    masks = true[:, [0, 0, 1, 2, 3, 4, 5]] + 1
    return Clips(images, true, SimpleNamespace(masks=masks, reconstruction=images * 0.5))


def read(path) -> np.ndarray:
    with Image.open(path) as image:
        return np.stack([np.array(frame.convert("RGB")) for frame in ImageSequence.Iterator(image)])


def tiles(pictures: np.ndarray, column: int, row: int) -> np.ndarray:
    left, top = GAP + column * (TILE + GAP), HEADER + row * (TILE + GAP)
    return pictures[:, top : top + TILE : 2, left : left + TILE : 2]


def test_every_frame_is_there_and_colours_stay(sample, tmp_path):
    clip_animation(sample, tmp_path / "figure.gif", tile=TILE)
    pictures = read(tmp_path / "figure.gif")
    assert pictures.shape == (7, HEADER + 2 * (TILE + GAP), GAP + 4 * (TILE + GAP), 3)
    for row in (0, 1):
        np.testing.assert_array_equal(tiles(pictures, 2, row), PALETTE[sample.true[row].numpy()])
        np.testing.assert_array_equal(
            tiles(pictures, 3, row), PALETTE[sample.outputs.masks[row].numpy()]
        )
        # Photographs share 240 colours, so they are near what they show.
        shown = tiles(pictures, 0, row).astype(float)
        assert np.abs(shown - (sample.images[row].movedim(1, -1).numpy() + 1) * 127.5).mean() < 20


def test_cut_masks_have_a_column_of_their_own(sample, tmp_path):
    sample.outputs.cut_masks = sample.true + 2
    clip_animation(sample, tmp_path / "figure.gif", tile=TILE)
    np.testing.assert_array_equal(
        tiles(read(tmp_path / "figure.gif"), 4, 1), PALETTE[sample.true[1].numpy() + 2]
    )


def test_a_clip_that_stands_still_keeps_its_frames(sample, tmp_path):
    """Pictures that are alike would be merged into one that lasts longer; the frame's number tells them apart."""
    still = Clips(
        sample.images[:, [0] * 7],
        sample.true[:, [0] * 7],
        SimpleNamespace(
            masks=sample.outputs.masks[:, [0] * 7],
            reconstruction=sample.outputs.reconstruction[:, [0] * 7],
        ),
    )
    clip_animation(still, tmp_path / "still.gif", tile=TILE)
    pictures = read(tmp_path / "still.gif")
    assert len(pictures) == 7
    assert (tiles(pictures, 3, 1) == tiles(pictures, 3, 1)[:1]).all()
