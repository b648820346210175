"""From the raw files of a dataset to a prepared folder."""

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from cutslots import options as options_module
from cutslots.data import sources
from cutslots.data.locate import Location, connection, is_uri
from cutslots.data.manifest import Manifest
from cutslots.data.parallel import in_order
from cutslots.data.record import Ranges, Scene
from cutslots.data.shards import writing
from cutslots.data.source import check_splits
from cutslots.errors import InputError


def prepare(
    source_name: str,
    raw: Path | str | None,
    out: Path | str,
    options: Any = None,
    splits: Ranges | None = None,
    overwrite: bool = False,
    progress: Callable[[str, int, int | None], None] | None = None,
    workers: int | None = None,
) -> Manifest:
    """Turn the raw data of one source into a prepared folder.

    A second run continues an interrupted one and leaves a finished folder unchanged. The shards are
    the same for any number of workers.

    Args:
        source_name: one of `sources.names()`.
        raw: the raw file or folder, a path or URI; None for a source that needs none.
        out: folder to write.
        options: an instance of the source's `Options`; None for the defaults.
        splits: the half-open range of records of every split; None for the source's own.
        overwrite: replace any prepared data in `out` instead of continuing or refusing.
        progress: called as progress(split, finished scenes, scenes requested or None).
        workers: processes on this machine; None takes the connected Ray cluster, if any, else all
            cores. A script that uses more than 1 needs `if __name__ == "__main__":`.

    Raises:
        InputError: unknown source, options out of range, missing or damaged raw data, `out`
            contains something else, or the disk is full.
    """
    kind = sources.load(source_name)
    options = kind.Options() if options is None else options
    if not isinstance(options, kind.Options):
        name = type(options).__name__
        raise InputError(f"options must be sources.{source_name}.Options, got {name}.")
    options_module.check(options)
    if is_uri(out):
        raise InputError(
            f"out must be a folder, got {out}. Prepare into a folder and copy it, for example: "
            f"aws s3 sync FOLDER {out}"
        )
    if kind.NEEDS_RAW and raw is None:
        raise InputError(f"raw is missing. Give the file or folder of the {source_name} data.")
    if raw is not None and not kind.NEEDS_RAW:
        raise InputError(f"source {source_name} generates its scenes; got raw {raw}. Omit raw.")
    location = None if raw is None else Location.of(raw)
    if location:
        with connection(location):
            if location.kind is None:
                problem = f"does not exist. Give the {source_name} file or folder."
                raise InputError(f"raw {location} {problem}")
    source = kind(location, options)
    source.find()
    ranges = check_splits(splits) if splits else source.splits()
    values, defaults = dataclasses.asdict(options), dataclasses.asdict(kind.Options())
    asked = Manifest(source_name, source.describe(ranges), values, ranges)

    def watched(scenes: Iterator[tuple[str, Scene]]) -> Iterator[tuple[str, Scene]]:
        done = folder.done
        for split, scene in scenes:
            yield split, scene
            done[split] += 1
            if progress:
                start, stop = ranges[split]
                limits = (stop and stop - start, source.limit(split))
                progress(split, done[split], min(filter(None, limits), default=None))

    with writing(out, asked, defaults=defaults, overwrite=overwrite) as folder:
        if not folder.complete:
            records = source.records(ranges, folder.done)
            scenes = in_order(partial(_decode, source.decode, options), records, workers)
            folder.write(watched(scenes))
        manifest = folder.finish(source.num_records)
    for name, split in manifest.splits.items():
        if progress:
            progress(name, split.count, split.count)
    return manifest


def _decode(decode: Any, options: Any, record: tuple[str, Any]) -> tuple[str, Scene]:
    split, item = record
    return split, decode(item, options)
