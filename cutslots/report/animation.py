"""Clips with their masks over time, as an animated picture."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cutslots.files import atomic
from cutslots.report.figures import GAP, HEADER, PALETTE, row_height
from cutslots.train.track import Clips

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
        np.stack([_to_bytes(sample.images), _to_bytes(sample.outputs.reconstruction)])
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


def _to_bytes(pictures) -> np.ndarray:
    return np.clip(np.round((pictures.movedim(-3, -1).numpy() + 1) * 127.5), 0, 255).astype(
        np.uint8
    )
