"""Preparing a raw dataset, and reading batches of prepared images: images per second, memory."""

import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import psutil

from cutslots import options
from cutslots.bench.timing import provenance, show
from cutslots.data import Batches, Manifest, Scene, sources
from cutslots.data import prepare as prepare_dataset
from cutslots.data.shards import writing

# Images of the published datasets; of MOVi-A, 24 frames of 9,703 training clips.
PUBLISHED = {"clevr": 100_000, "clevrtex": 50_000, "movi_a": 24 * 9_703}


def prepare(
    source: Annotated[str, "dataset, such as clevr"],
    raw: Annotated[str | None, "its raw file or folder, if it needs one"] = None,
    *,
    splits: Annotated[str, "records to prepare"] = "train=0:",
    workers: Annotated[int, "processes"] = 1,
    set: Annotated[list[str] | None, "options of the source as NAME=VALUE"] = None,
) -> dict[str, Any]:
    """Images prepared per second, and the hours that the published dataset takes."""
    settings = sources.load(source).Options()
    for assignment in set or []:
        settings = options.override(settings, assignment)
    ranges = sources.parse_splits(splits) if raw else None
    with tempfile.TemporaryDirectory(prefix="cutslots-bench-") as folder:
        start, cpu_start = time.perf_counter(), time.process_time()
        out = Path(folder) / "dataset"
        manifest = prepare_dataset(source, raw, out, settings, ranges, workers=workers)
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    frames = manifest.frame_shape[0] if len(manifest.frame_shape) > 2 else 1
    images = frames * sum(split.count for split in manifest.splits.values())
    results = {"workers": workers, "images": images, "seconds": seconds}
    results["images_per_second"] = images / seconds
    if workers == 1:  # other work on this machine does not change processor time
        results["images_per_processor_second"] = images / cpu_seconds
    if source in PUBLISHED:
        results["hours_published_set"] = PUBLISHED[source] * seconds / images / 3600
    show([results], *results)
    return provenance() | results


def batches(
    *,
    data: Annotated[Path | None, "prepared dataset to read (default: two of random bytes)"] = None,
    count: Annotated[int, "images of the larger random dataset, 128 x 128"] = 20_000,
    epochs: Annotated[int, "passes over each dataset"] = 2,
) -> dict[str, Any]:
    """Images per second read by one process, and its memory, for a small and a large dataset."""
    if data:
        return provenance() | {"sets": [_read(data, epochs)]}
    results = []
    for size in (count // 5, count):
        with tempfile.TemporaryDirectory(prefix="cutslots-bench-") as folder:
            out = Path(folder) / "dataset"
            with writing(out, Manifest("random", {}, {}, {"train": (0, size)})) as writer:
                writer.write(_random_scenes(size))
                writer.finish(size)
            results.append(_read(out, epochs))
    return provenance() | {"sets": results}


def _random_scenes(count: int):
    generator = np.random.default_rng(0)
    mask = np.repeat(np.arange(4, dtype=np.uint8), 4096).reshape(128, 128)
    for index in range(count):
        image = generator.integers(0, 256, (128, 128, 3), dtype=np.uint8)
        yield "train", Scene(str(index), image, mask, ({},) * 3)


def _read(directory: Path, epochs: int) -> dict[str, float]:
    reader, process = Batches(directory, "train", 64), psutil.Process()
    size = sum(path.stat().st_size for path in directory.glob("*.arrow"))
    before = peak = process.memory_info().rss / 1e6
    images, start = 0, time.perf_counter()
    for epoch in range(epochs):
        for step, batch in enumerate(reader.epoch(epoch)):
            images += len(batch.images)
            if step % 32 == 0:
                peak = max(peak, process.memory_info().rss / 1e6)
    rate = images / (time.perf_counter() - start)
    results = {"set_bytes": size, "images_per_second": rate}
    results |= {"resident_before_megabytes": before, "resident_peak_megabytes": peak}
    show([results], *results)
    return results
