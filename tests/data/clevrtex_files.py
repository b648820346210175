"""A small ClevrTex folder in the published layout."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 60, 80


def truth(index: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Image, instance ids and number of objects."""
    rng = np.random.default_rng(index)
    image = np.kron(rng.integers(0, 256, (12, 16, 3)), np.ones((5, 5, 1))).astype(np.uint8)
    number = 2 + index % 3
    ids = np.zeros((HEIGHT, WIDTH), np.uint8)
    for k in range(1, number + 1):
        top, left = rng.integers(8, 40), rng.integers(18, 50)
        ids[top : top + 10, left : left + 12] = k
    return image, ids, number


def metadata(index: int, variant: str) -> dict[str, Any]:
    objects = [
        {"shape": ("cube", "sphere", "monkey")[k % 3], "rotation": 12.5 * k, "size": "small",
         "3d_coords": [1.0 * k, 2.0, 0.4], "pixel_coords": [10, 20, 11.5], "index": k,
         "color": "blue", "material": f"stone_{k}"}
        for k in range(1, truth(index)[2] + 1)
    ]  # fmt: skip
    return {"split": variant, "ground_material": "grass_1", "objects": objects}


def stem(folder: Path, index: int, variant: str) -> Path:
    """The path of a number's files without their endings; three numbers to a folder."""
    return folder / f"clevrtex_{variant}" / str(index // 3) / f"CLEVRTEX_{variant}_{index:06d}"


def ids_image(ids: np.ndarray) -> Image.Image:
    """A palette image whose colors would give other numbers than its indices."""
    image = Image.fromarray(ids).convert("L")
    colors = (((k * 37 + 90) % 256, k * 91 % 256, 255 - k) for k in range(256))
    image.putpalette([channel for color in colors for channel in color])
    return image


def write_tree(folder: Path, count: int, variant: str = "full") -> Path:
    for index in range(count):
        image, ids, _ = truth(index)
        base = stem(folder, index, variant)
        base.parent.mkdir(parents=True, exist_ok=True)
        opaque = np.concatenate([image, np.full((HEIGHT, WIDTH, 1), 255, np.uint8)], 2)
        Image.fromarray(opaque).save(f"{base}.png")
        ids_image(ids).save(f"{base}_flat.png")
        Path(f"{base}.json").write_text(json.dumps(metadata(index, variant)))
        Image.fromarray(image).save(f"{base}_depth_0001.png")  # the archives have more passes
    return folder
