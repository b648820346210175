"""Figures of chosen scenes: a line above each row says which it is, and the pictures are those without it."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from cutslots.report.figures import GAP, HEADER, clip_animation, example_labels, sample_figure
from cutslots.train.callbacks import Examples, Sample
from cutslots.train.video import Clips

TILE = 32
LABELS = ["best: plain_000003, ARI-FG 0.9000", "worst: plain_000001, ARI-FG 0.1000"]


def noise(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


def rows(picture: np.ndarray, above: int) -> list[np.ndarray]:
    """The two rows of pictures below their labels."""
    height = above + TILE + GAP
    return [
        picture[HEADER + row * height + above : HEADER + row * height + above + TILE]
        for row in range(2)
    ]


def test_labels_name_scene_and_score():
    examples = Examples(
        "ari_fg",
        ["best", "worst"],
        ["plain_000003", "plain_000001"],
        [0.9, 0.1],
        Sample(noise(0), noise(0), None),
    )
    assert example_labels(examples) == LABELS


def test_a_label_stands_above_its_row(tmp_path):
    alpha = noise(2, 3, 8, 8).softmax(1)
    outputs = SimpleNamespace(
        reconstruction=noise(2, 3, 8, 8), reconstructions=noise(2, 3, 3, 8, 8), alpha=alpha
    )
    sample = Sample(noise(2, 3, 8, 8), torch.zeros(2, 8, 8, dtype=torch.long), outputs)
    sample_figure(sample, tmp_path / "plain.png", tile=TILE)
    sample_figure(sample, tmp_path / "labelled.png", tile=TILE, labels=LABELS)
    plain, labelled = (
        np.asarray(Image.open(tmp_path / f"{name}.png")) for name in ("plain", "labelled")
    )
    assert labelled.shape == (plain.shape[0] + 2 * HEADER, *plain.shape[1:])
    np.testing.assert_array_equal(rows(labelled, HEADER), rows(plain, 0))
    for row in range(2):
        top = HEADER + row * (HEADER + TILE + GAP)
        assert (labelled[top : top + HEADER] < 128).any(), "something is written there"


@pytest.mark.parametrize("frame", [0, 2])
def test_clips_have_labels_too(frame, tmp_path):
    images = noise(2, 3, 3, 8, 8)
    masks = torch.arange(2 * 3 * 64).reshape(2, 3, 8, 8) % 5
    clips = Clips(images, masks, SimpleNamespace(masks=masks, reconstruction=images))
    clip_animation(clips, tmp_path / "plain.gif", tile=TILE)
    clip_animation(clips, tmp_path / "labelled.gif", tile=TILE, labels=LABELS)
    found = []
    for name in ("plain", "labelled"):
        with Image.open(tmp_path / f"{name}.gif") as image:
            found.append(
                [np.array(each.convert("RGB")) for each in ImageSequence.Iterator(image)][frame]
            )
    np.testing.assert_array_equal(rows(found[1], HEADER), rows(found[0], 0))
    assert (found[1][HEADER : 2 * HEADER] < 128).any()
