"""PNG and JPEG files in memory, decoded and checked."""

import io

import numpy as np
from PIL import Image

from cutslots.errors import InputError


def rgb(data: bytes | memoryview) -> np.ndarray:
    """The colors of a PNG or JPEG file without its alpha channel: uint8 (h, w, 3).

    Raises:
        InputError: damaged, or neither RGB nor RGBA.
    """
    return np.ascontiguousarray(_decoded(data, ("RGB", "RGBA"))[..., :3])


def ids(data: bytes | memoryview) -> np.ndarray:
    """The values of a one-channel PNG file: uint8 (h, w); the indices of a palette image.

    Raises:
        InputError: damaged, or a color image, whose colors do not identify instances.
    """
    return _decoded(data, ("P", "L"))


def _decoded(data: bytes | memoryview, modes: tuple[str, ...]) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.verify()  # PNG's checksums, which decoding skips; the image is used up by it
        with Image.open(io.BytesIO(data)) as image:
            mode, pixels = image.mode, np.asarray(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"the image is damaged ({error}). Fetch or copy it again.") from None
    if mode not in modes:
        raise InputError(f"the image has mode {mode}; the format has {' or '.join(modes)}.")
    return pixels
