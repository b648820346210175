"""Images a second that one process hands to training, and its memory, over a small set and one of more than a gigabyte."""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from cutslots.bench._timing import machine, resident_megabytes
from cutslots.data import Batches, Scene
from cutslots.data.shards import Info, write


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data",
        metavar="DIR",
        help="a prepared set to read (its train split) in place of two made of random bytes",
    )
    parser.add_argument(
        "--count",
        type=int,
        default=20_000,
        help="scenes of the larger made set, 128 x 128 (default 20000, 1.3 GB)",
    )
    parser.add_argument("--epochs", type=int, default=2, help="times through each set (default 2)")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Print and return the figures."""
    if arguments.data:
        return {"machine": machine(), "sets": [_measure(Path(arguments.data), arguments.epochs)]}
    sets = []
    for count in (arguments.count // 5, arguments.count):
        with tempfile.TemporaryDirectory(prefix="cutslots-bench-") as folder:
            directory = Path(folder) / "set"
            info = Info("random", {}, {}, {"train": (0, count)})
            write(lambda done, count=count: _random_scenes(count), directory, info)
            sets.append(_measure(directory, arguments.epochs))
    return {"machine": machine(), "sets": sets}


def _random_scenes(count: int):
    generator = np.random.default_rng(0)
    mask = np.repeat(np.arange(4, dtype=np.uint8), 4096).reshape(128, 128)
    for index in range(count):
        yield (
            "train",
            Scene(
                str(index),
                generator.integers(0, 256, (128, 128, 3), dtype=np.uint8),
                mask,
                ({},) * 3,
            ),
        )
    return count


def _measure(directory: Path, epochs: int) -> dict[str, float]:
    batches = Batches(directory, "train", 64)
    size = sum(path.stat().st_size for path in directory.glob("*.arrow"))
    before = peak = resident_megabytes()
    images, start = 0, time.perf_counter()
    for epoch in range(epochs):
        for step, batch in enumerate(batches.epoch(epoch)):
            images += len(batch.images)
            if step % 32 == 0:
                peak = max(peak, resident_megabytes())
    rate = images / (time.perf_counter() - start)
    memory = f"resident {before:.0f} MB before, {peak:.0f} MB at most over {images:,} images"
    print(f"set of {size / 1e9:.2f} GB: {rate:,.0f} images/s; {memory}")
    return {
        "set_bytes": size,
        "images_per_second": rate,
        "resident_before_megabytes": before,
        "resident_peak_megabytes": peak,
    }
