"""Image files in memory, refused by reason when they are damaged."""

import io

import numpy as np
from PIL import Image

from cutslots.errors import InputError


def rgb(data: bytes | memoryview) -> np.ndarray:
    """The colours of a PNG or JPEG file: uint8 (h, w, 3), opacity left away.

    Raises:
        InputError: damaged, or neither RGB nor RGBA.
    """
    pixels = _decoded(data, ("RGB", "RGBA"))
    return np.ascontiguousarray(pixels[..., :3])


def ids(data: bytes | memoryview) -> np.ndarray:
    """The numbers of a PNG file of one channel: uint8 (h, w); of a palette image the indices, not the colours.

    Raises:
        InputError: damaged, or of another kind: colours do not say which instance they stand for.
    """
    return _decoded(data, ("P", "L"))


def _decoded(data: bytes | memoryview, modes: tuple[str, ...]) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.verify()  # the checksums of PNG's chunks, which decoding leaves out; the image is of no use afterwards
        with Image.open(io.BytesIO(data)) as image:
            mode, pixels = image.mode, np.asarray(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"the image is damaged ({error}). Fetch or copy it again.") from None
    if mode not in modes:
        raise InputError(f"the image has mode {mode}; the format has {' or '.join(modes)}.")
    return pixels
