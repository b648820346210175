"""Comparisons of prepared folders with the raw data that the tests know."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from cutslots import data

Truth = Callable[[int], tuple[np.ndarray, np.ndarray, int]]


def reference(image: np.ndarray, ids: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """An independent implementation of the benchmark's preprocessing; of clips frame by frame."""
    if ids.ndim > 2:
        frames = [reference(*frame, size) for frame in zip(image, ids, strict=True)]
        return np.stack([f[0] for f in frames]), np.stack([f[1] for f in frames])
    height, width = ids.shape
    side = int(0.8 * min(height, width))
    box = ((width - side) // 2, (height - side) // 2, (width + side) // 2, (height + side) // 2)
    small = Image.fromarray(image).crop(box).resize((size, size), Image.Resampling.BILINEAR)
    small_ids = Image.fromarray(ids).crop(box).resize((size, size), Image.Resampling.NEAREST)
    return np.array(small), np.array(small_ids)


def assert_equal(folder: Path, truth: Truth, id: str) -> None:
    """Compare every scene of a folder with its raw data; `id` is a template of the scene's id."""
    assert data.check(folder) == []
    assert str(folder.parent) not in (folder / "manifest.json").read_text()
    for name, (start, _) in data.Manifest.load(folder).ranges.items():
        batches = data.Batches(folder, name, 1, shuffle=False)
        for position, batch in enumerate(batches.epoch(0)):
            number = start + position
            image, ids, objects = truth(number)
            small, small_ids = reference(image, ids, batches.image_size[0])
            np.testing.assert_array_equal(batch.images[0].numpy(), small)
            np.testing.assert_array_equal(batch.masks[0].numpy(), small_ids)
            assert len(batches.metadata([position])[0]) == objects
            assert batches.ids([position]) == [id.format(name=name, at=position, number=number)]


def counts(manifest: data.Manifest) -> dict[str, int]:
    """The number of scenes of every split."""
    return {name: split.count for name, split in manifest.splits.items()}


def times(folder: Path) -> dict[str, int]:
    """When every shard was written."""
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.arrow")}
