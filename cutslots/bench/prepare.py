"""Images a second and core that are prepared from a raw dataset, and the hours that the published set takes."""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from cutslots import options
from cutslots.bench._timing import machine
from cutslots.data import sources
from cutslots.sweep.prepare import prepare

# Images of the published sets: CLEVR with masks, ClevrTex's main set, the 24 frames of MOVi-A's 9,703 training clips.
PUBLISHED = {"clevr": 100_000, "clevrtex": 50_000, "movi_a": 24 * 9_703}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="which dataset")
    parser.add_argument(
        "raw", metavar="RAW", nargs="?", help="its raw file or folder, where it needs one"
    )
    parser.add_argument("--splits", default="train=0:", help="records to prepare (default all)")
    parser.add_argument("--workers", type=int, default=1, help="processes (default 1)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an option of the source; repeatable",
    )


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Print and return the figures."""
    settings = sources.load(arguments.source).Options()
    for assignment in arguments.set:
        settings = options.override(settings, assignment)
    with tempfile.TemporaryDirectory(prefix="cutslots-bench-") as folder:
        start, processor = time.perf_counter(), time.process_time()
        splits = sources.parse_splits(arguments.splits) if arguments.raw else None
        manifest = prepare(
            arguments.source,
            arguments.raw,
            Path(folder) / "set",
            settings,
            splits,
            workers=arguments.workers,
        )
        seconds, busy = time.perf_counter() - start, time.process_time() - processor
    count = sum(split.count for split in manifest.splits.values())
    frames = manifest.frame_shape[0] if len(manifest.frame_shape) > 2 else 1
    images, source = count * frames, arguments.source
    rate = images / seconds
    print(
        f"{images} images of {source} in {seconds:.2f} s by {arguments.workers} processes: {rate:.0f} images/s"
    )
    figures = {
        "machine": machine(),
        "workers": arguments.workers,
        "images": images,
        "seconds": seconds,
        "images_per_second": rate,
    }
    if arguments.workers == 1:
        figures["images_per_processor_second"] = images / busy
        print(
            f"{images / busy:.0f} images/s of processor time, which others on this machine do not disturb"
        )
    if source in PUBLISHED:
        figures["hours_published_set"] = PUBLISHED[source] / rate / 3600
        print(
            f"the published {PUBLISHED[source]:,} images at this rate: {PUBLISHED[source] / rate / 3600:.2f} hours"
        )
    return figures
