"""Figures of images with their masks: samples, overlays, animations of clips, scenes of a sweep."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from cutslots.files import atomic
from cutslots.metrics.registry import title
from cutslots.report.tables import score_text
from cutslots.train.callbacks import Examples, Sample
from cutslots.train.video import Clips

# Slot colours: black for the background, then hues that colour-blind readers can distinguish
# (Okabe and Ito, Color universal design, 2008), then lighter and darker ones for more slots.
PALETTE = np.array(
    [
        (20, 20, 20), (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178),
        (213, 94, 0), (204, 121, 167), (150, 150, 150), (120, 60, 160), (150, 200, 90),
        (120, 70, 30), (250, 190, 190), (0, 90, 90), (170, 0, 60), (255, 255, 255),
    ],
    dtype=np.uint8,
)  # fmt: skip
WHITE = len(PALETTE) - 1
LINE = np.array([255, 255, 255], np.uint8)
GAP, HEADER = 4, 18  # pixels
PANEL = 256  # approximate side of an overlay's panel, pixels
TINT = 0.45  # opacity of a slot's colour over the image
MILLISECONDS = 1000 // 12  # per frame; MOVi-A has 12 frames per second
EXAMPLES = "examples"  # artifact folder: scenes of best, median and worst score
# Outputs that group pixels before the decoder does; a model has one of them or none.
GROUPINGS = {"masks": "cut masks", "attention": "attention"}
MAPS = {"masks": "tracked masks", "cut_masks": "tracked cuts"}


def sample_figure(
    sample: Sample, path: Path, rows: int = 6, tile: int = 96, labels: Sequence[str] = ()
) -> None:
    """Write a PNG with a row per image.

    The columns are image, reconstruction, true masks, alpha masks, the model's cut masks or
    attention, then every slot's image under its opacity on grey.

    Args:
        tile: side of an image in pixels.
        labels: a line above each row.
    """
    outputs = sample.outputs
    label_maps = {"true masks": sample.true, "alpha masks": outputs.alpha.argmax(1)}
    for name, text in GROUPINGS.items():
        if hasattr(outputs, name):
            label_maps[text] = getattr(outputs, name).argmax(1)
    alpha = outputs.alpha.numpy()[..., None]
    slots = (_to_bytes(outputs.reconstructions) * alpha + 128 * (1 - alpha)).astype(np.uint8)
    columns = {
        "image": _to_bytes(sample.images),
        "reconstruction": _to_bytes(outputs.reconstruction),
        **{text: PALETTE[maps.numpy() % len(PALETTE)] for text, maps in label_maps.items()},
        **{f"slot {slot}": slots[:, slot] for slot in range(slots.shape[1])},
    }
    canvas = _grid({text: images[:rows] for text, images in columns.items()}, tile, labels)
    with atomic(path) as temporary:
        canvas.save(temporary, format="PNG")


def clip_animation(sample: Clips, path: Path, tile: int = 96, labels: Sequence[str] = ()) -> None:
    """Write a GIF with a row per clip, one image per frame.

    The columns are frame, reconstruction, true masks, tracked masks and, if the model cuts,
    tracked cut masks. A colour is one true object, or one slot, during the whole clip.

    Args:
        tile: side of an image in pixels.
        labels: a line above each row.
    """
    outputs = sample.outputs
    images = np.stack([_to_bytes(sample.images), _to_bytes(outputs.reconstruction)])
    # One palette for all frames: Pillow's palette per frame would make colours flicker.
    flat = Image.fromarray(images.reshape(-1, images.shape[-2], 3))
    quantised = flat.quantize(256 - len(PALETTE), dither=Image.Dither.NONE)
    colors = np.array(quantised.getpalette(), np.uint8).reshape(-1, 3)[: 256 - len(PALETTE)]
    palette = np.concatenate([PALETTE, colors])
    frame, reconstruction = (np.array(quantised) + len(PALETTE)).reshape(images.shape[:-1])
    columns = {"reconstruction": reconstruction, "true masks": sample.true.numpy() % len(PALETTE)}
    for name, text in MAPS.items():
        if hasattr(outputs, name):
            columns[text] = getattr(outputs, name).numpy() % len(PALETTE)
    frames, num_frames = [], sample.true.shape[1]
    for time in range(num_frames):
        # The frame's number also keeps equal frames distinct: Pillow merges equal ones.
        shown = {f"frame {time + 1}/{num_frames}": frame[:, time]}
        shown |= {text: maps[:, time] for text, maps in columns.items()}
        frames.append(_grid(shown, tile, labels, palette))
    with atomic(path) as file:
        options: dict[str, Any] = {"duration": MILLISECONDS, "loop": 0, "optimize": False}
        frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], **options)


def _grid(
    columns: dict[str, np.ndarray],
    tile: int,
    labels: Sequence[str],
    palette: np.ndarray | None = None,
) -> Image.Image:
    """Columns of images under their titles: (rows, side, side, 3) or, with a palette, indices."""
    rows = len(next(iter(columns.values())))
    above = HEADER if labels else 0
    height = above + tile + GAP
    size = GAP + len(columns) * (tile + GAP), HEADER + rows * height
    if palette is None:
        canvas = Image.new("RGB", size, "white")
    else:
        canvas = Image.new("P", size, WHITE)
        canvas.putpalette(palette.tobytes())
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=11)
    if palette is not None:
        draw.fontmode = "1"  # smooth letters would need greys that the palette lacks
    for row, label in enumerate(labels[:rows]):
        draw.text((GAP, HEADER + row * height + 3), label, fill=0, font=font)
    for column, (text, images) in enumerate(columns.items()):
        left = GAP + column * (tile + GAP)
        draw.text((left, 3), text, fill=0, font=font)
        for row in range(rows):
            image = Image.fromarray(images[row].astype(np.uint8))
            image = image.resize((tile, tile), Image.Resampling.NEAREST)
            canvas.paste(image, (left, HEADER + row * height + above))
    return canvas


def _to_bytes(images: Tensor) -> np.ndarray:
    """(..., 3, h, w) in [-1, 1] to (..., h, w, 3) uint8."""
    values = np.round((images.movedim(-3, -1).numpy() + 1) * 127.5)
    return np.clip(values, 0, 255).astype(np.uint8)


def example_labels(examples: Examples) -> list[str]:
    """Labels for `sample_figure`: `worst: scenes_val_000123, ARI-FG 0.1234`."""
    score = examples.score
    return [
        f"{role}: {name}, {title(score)} {score_text(score, value)}"
        for role, name, value in zip(examples.roles, examples.ids, examples.values, strict=True)
    ]


def tile_side(size: int) -> int:
    """The side of an overlay's panel: a multiple of the mask's side, so that pixels stay square."""
    return size * max(1, round(PANEL / size))


def mask_image(labels: np.ndarray) -> Image.Image:
    """A label map (h, w) uint8 as a palette image: pixels are labels, shown in slot colours."""
    image = Image.fromarray(labels.astype(np.uint8)).convert("L")
    image.putpalette(np.resize(PALETTE, (256, 3)).tobytes())
    return image


def overlay(image: np.ndarray, labels: np.ndarray, reconstruction: np.ndarray) -> Image.Image:
    """Three panels: the image, the image with its slots' colours and outlines, the reconstruction.

    Args:
        image: (tile, tile, 3) uint8, with `tile = tile_side(size)`.
        labels: (size, size).
        reconstruction: (size, size, 3) uint8.
    """
    side, factor = len(image), len(image) // len(labels)
    large = labels.repeat(factor, 0).repeat(factor, 1)
    tinted = ((1 - TINT) * image + TINT * PALETTE[large % len(PALETTE)]).astype(np.uint8)
    border = np.zeros(large.shape, bool)
    for axis in (0, 1):  # the pixels on both sides of a border between two labels
        differs = np.diff(large.astype(int), axis=axis) != 0
        border |= np.insert(differs, 0, False, axis) | np.insert(differs, side - 1, False, axis)
    tinted[border] = LINE
    panels = [image, tinted, reconstruction.repeat(factor, 0).repeat(factor, 1)]
    canvas = Image.new("RGB", (len(panels) * (side + GAP) - GAP, side), "white")
    for i, panel in enumerate(panels):
        canvas.paste(Image.fromarray(panel), (i * (side + GAP), 0))
    return canvas


def slots(labels: np.ndarray, box: Sequence[int]) -> list[dict[str, Any]]:
    """The slots that own pixels, the largest first.

    Args:
        box: left, top, right, bottom in the image of the square that `labels` divide.

    Returns:
        `slot`; its `share` of the square's pixels; its `box` in the image.
    """
    scale = (box[2] - box[0]) / len(labels)
    results = []
    for slot in np.unique(labels):
        rows, columns = np.nonzero(labels == slot)
        edges = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        inside = [round(float(edge) * scale, 1) for edge in edges]
        shifted = [round(edge + box[axis % 2], 1) for axis, edge in enumerate(inside)]
        share = round(len(rows) / labels.size, 6)
        results.append({"slot": int(slot), "share": share, "box": shifted})
    return sorted(results, key=lambda result: -result["share"])
