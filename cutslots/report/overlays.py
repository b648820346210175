"""Masks of a single picture: as a file of numbers, over the picture for people, and as a list of what they hold."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from cutslots.report.figures import GAP, PALETTE

TILE = 256  # about the side of a panel, in pixels
TINT = 0.45  # how much of a slot's colour lies over the picture
LINE = np.array([255, 255, 255], np.uint8)


def tile_side(size: int) -> int:
    """The side of a panel for masks of this side: a whole multiple, so that every pixel of a mask is a square."""
    return size * max(1, round(TILE / size))


def mask_image(labels: np.ndarray) -> Image.Image:
    """A label map (h, w) uint8 as a palette image: the pixels are the labels, the colours those of the figures."""
    image = Image.fromarray(labels.astype(np.uint8)).convert("L")
    image.putpalette(np.resize(PALETTE, (256, 3)).tobytes())
    return image


def overlay(picture: np.ndarray, labels: np.ndarray, reconstruction: np.ndarray) -> Image.Image:
    """Three panels: the picture, the picture under its slots' colours with their outlines, and what the model painted.

    Args:
        picture: `(tile, tile, 3)` uint8, of a `tile_side`.
        labels: `(size, size)`.
        reconstruction: `(size, size, 3)` uint8.
    """
    factor = len(picture) // len(labels)
    large = labels.repeat(factor, 0).repeat(factor, 1)
    tinted = ((1 - TINT) * picture + TINT * PALETTE[large % len(PALETTE)]).astype(np.uint8)
    tinted[_outlines(large)] = LINE
    panels = [picture, tinted, reconstruction.repeat(factor, 0).repeat(factor, 1)]
    side = len(picture)
    canvas = Image.new("RGB", (len(panels) * (side + GAP) - GAP, side), "white")
    for at, panel in enumerate(panels):
        canvas.paste(Image.fromarray(panel), (at * (side + GAP), 0))
    return canvas


def _outlines(labels: np.ndarray) -> np.ndarray:
    """The pixels on either side of a border between two labels."""
    lines = np.zeros(labels.shape, bool)
    across, along = labels[:, 1:] != labels[:, :-1], labels[1:] != labels[:-1]
    lines[:, 1:] |= across
    lines[:, :-1] |= across
    lines[1:] |= along
    lines[:-1] |= along
    return lines


def slots(labels: np.ndarray, box: Sequence[int]) -> list[dict[str, Any]]:
    """The slots that own pixels, the largest first.

    Args:
        box: left, top, right, bottom of the square in its picture that `labels` are of.

    Returns:
        `slot`, its number in the mask; `share` of the square's pixels; `box`, left, top, right, bottom in the picture.
    """
    scale = (box[2] - box[0]) / len(labels)
    found = []
    for slot in np.unique(labels):
        rows, columns = np.nonzero(labels == slot)
        edges = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        inside = [round(float(edge) * scale, 1) for edge in edges]
        place = [round(at + box[axis % 2], 1) for axis, at in enumerate(inside)]
        found.append({"slot": int(slot), "share": round(len(rows) / labels.size, 6), "box": place})
    return sorted(found, key=lambda each: -each["share"])
