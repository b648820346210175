"""Pictures of what a model sees: rows of images with their masks, drawn from one evaluated sample."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cutslots.files import atomic
from cutslots.report.scores import TITLES, number
from cutslots.train.observer import Examples, Sample

# Slot colours: black for the background, then hues that stay apart for colour-blind readers (Okabe and Ito, Color universal
# design, 2008), then lighter and darker ones for more slots than those eight.
PALETTE = np.array(
    [
        (20, 20, 20), (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167),
        (150, 150, 150), (120, 60, 160), (150, 200, 90), (120, 70, 30), (250, 190, 190), (0, 90, 90), (170, 0, 60), (255, 255, 255),
    ],
    dtype=np.uint8,
)  # fmt: skip
GAP, HEADER = 4, 18
EXAMPLES = "examples"  # the artifacts' folder of the scenes of best, median and worst score
# What groups the pixels before the decoder does, by the name it has in a model's outputs; each model has one of them or none.
GROUPINGS = {"masks": "cut masks", "attention": "attention"}


def sample_figure(
    sample: Sample, path: Path, rows: int = 6, tile: int = 96, labels: Sequence[str] = ()
) -> None:
    """Write a PNG: a row an image, with image, reconstruction, true masks, alpha masks, what the model has of cut masks and
    attention, then a picture a slot.

    A slot's picture is shown under its own opacity on grey, so that what it owns stands out.

    Args:
        tile: the side of a picture, in pixels.
        labels: a line above each row.
    """
    columns = _columns(sample)
    rows = min(rows, len(sample.images))
    height, above = row_height(tile, labels)
    width = GAP + len(columns) * (tile + GAP)
    canvas = Image.new("RGB", (width, HEADER + rows * height), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=11)
    for row, label in enumerate(labels[:rows]):
        draw.text((GAP, HEADER + row * height + 3), label, fill="black", font=font)
    for column, (title, pictures) in enumerate(columns):
        left = GAP + column * (tile + GAP)
        draw.text((left, 3), title, fill="black", font=font)
        for row in range(rows):
            picture = Image.fromarray(pictures[row]).resize((tile, tile), Image.Resampling.NEAREST)
            canvas.paste(picture, (left, HEADER + row * height + above))
    with atomic(path) as temporary:
        canvas.save(temporary, format="PNG")


def row_height(tile: int, labels: Sequence[str]) -> tuple[int, int]:
    """Pixels from one row of pictures to the next, and those of them above the pictures, for the labels."""
    above = HEADER if labels else 0
    return above + tile + GAP, above


def example_labels(examples: Examples) -> list[str]:
    """What is said above the examples: `worst: scenes_val_000123, ARI-FG 0.1234`."""
    title = TITLES.get(examples.score, examples.score)
    each = zip(examples.roles, examples.ids, examples.values, strict=True)
    return [
        f"{role}: {name}, {title} {number(examples.score, {examples.score: value})}"
        for role, name, value in each
    ]


def _columns(sample: Sample) -> list[tuple[str, np.ndarray]]:
    outputs = sample.outputs
    pictures = _to_bytes(outputs.reconstructions.movedim(2, -1).numpy())
    alpha = outputs.alpha.numpy()[..., None]
    slots = (pictures * alpha + 128 * (1 - alpha)).astype(np.uint8)
    return [
        ("image", _to_bytes(sample.images.movedim(1, -1).numpy())),
        ("reconstruction", _to_bytes(outputs.reconstruction.movedim(1, -1).numpy())),
        ("true masks", _colours(sample.true.numpy())),
        ("alpha masks", _colours(outputs.alpha.argmax(1).numpy())),
        *(
            (title, _colours(getattr(outputs, name).argmax(1).numpy()))
            for name, title in GROUPINGS.items()
            if hasattr(outputs, name)
        ),
        *((f"slot {slot}", slots[:, slot]) for slot in range(slots.shape[1])),
    ]


def _to_bytes(pictures: np.ndarray) -> np.ndarray:
    return np.clip(np.round((pictures + 1) * 127.5), 0, 255).astype(np.uint8)


def _colours(labels: np.ndarray) -> np.ndarray:
    return PALETTE[labels % len(PALETTE)]
