"""Pictures of what a model sees: rows of images with their masks, drawn from one evaluated sample."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cutslots.files import atomic
from cutslots.report.evaluation import TITLES, number
from cutslots.train.callbacks import Examples, Sample
from cutslots.train.video import Clips

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


MILLISECONDS = 1000 // 12  # a frame; MOVi-A has 12 a second
WHITE = len(PALETTE) - 1
MAPS = {"masks": "tracked masks", "cut_masks": "tracked cuts"}


def clip_animation(sample: Clips, path: Path, tile: int = 96, labels: Sequence[str] = ()) -> None:
    """Write a GIF, one picture a frame of the clips: a row a clip, with frame, reconstruction, true masks, tracked masks and, where
    the model cuts, tracked cut masks.

    A colour stands for one true object, or one slot, over the whole clip, with the palette of the other figures. `labels` are lines
    above the rows.
    """
    pictures, palette = _quantised(
        np.stack([_frames_to_bytes(sample.images), _frames_to_bytes(sample.outputs.reconstruction)])
    )
    maps = {
        title: getattr(sample.outputs, name)
        for name, title in MAPS.items()
        if hasattr(sample.outputs, name)
    }
    masks = np.stack([sample.true.numpy(), *(labels.numpy() for labels in maps.values())]) % len(
        PALETTE
    )
    titles = ("frame", "reconstruction", "true masks", *maps)
    frames = [
        _frame(
            np.concatenate([pictures[:, :, time], masks[:, :, time]]),
            titles,
            f"{time + 1}/{masks.shape[2]}",
            palette,
            tile,
            labels,
        )
        for time in range(masks.shape[2])
    ]
    with atomic(path) as temporary:
        frames[0].save(
            temporary,
            format="GIF",
            save_all=True,
            append_images=frames[1:],
            duration=MILLISECONDS,
            loop=0,
            optimize=False,
        )


def _frame(
    columns: np.ndarray,
    titles: tuple[str, ...],
    time: str,
    palette: np.ndarray,
    tile: int,
    labels: Sequence[str],
) -> Image.Image:
    """One picture from palette indices `(columns, rows, side, side)`."""
    rows = columns.shape[1]
    height, above = row_height(tile, labels)
    canvas = Image.new("P", (GAP + len(columns) * (tile + GAP), HEADER + rows * height), WHITE)
    canvas.putpalette(palette.tobytes())
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=11)
    draw.fontmode = "1"  # grey edges of letters would need colours that the palette lacks
    for row, label in enumerate(labels[:rows]):
        draw.text((GAP, HEADER + row * height + 3), label, fill=0, font=font)
    for column, title in enumerate(titles):
        left = GAP + column * (tile + GAP)
        draw.text((left, 3), f"{title} {time}" if column == 0 else title, fill=0, font=font)
        for row in range(rows):
            picture = Image.fromarray(columns[column, row].astype(np.uint8)).resize(
                (tile, tile), Image.Resampling.NEAREST
            )
            canvas.paste(picture, (left, HEADER + row * height + above))
    return canvas


def _quantised(pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Palette indices of RGB pictures `(..., 3)`, and the one palette of the file, which begins with the colours of masks.

    One palette for all frames: one a frame, as Pillow would choose, makes the same colour flicker.
    """
    flat = Image.fromarray(pictures.reshape(-1, pictures.shape[-2], 3))
    found = flat.quantize(256 - len(PALETTE), dither=Image.Dither.NONE)
    colours = np.array(found.getpalette(), np.uint8).reshape(-1, 3)[: 256 - len(PALETTE)]
    palette = np.concatenate([PALETTE, colours])
    return (np.array(found) + len(PALETTE)).reshape(pictures.shape[:-1]), palette


def _frames_to_bytes(pictures) -> np.ndarray:
    return np.clip(np.round((pictures.movedim(-3, -1).numpy() + 1) * 127.5), 0, 255).astype(
        np.uint8
    )
