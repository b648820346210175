"""From the raw files of a dataset to a prepared folder."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

from cutslots import options as options_module
from cutslots.data import sources
from cutslots.data.locate import Location, is_uri
from cutslots.data.manifest import Info, Manifest
from cutslots.data.parallel import in_order
from cutslots.data.record import Ranges, Scene
from cutslots.data.shards import Progress, writing
from cutslots.data.source import Source, check_splits
from cutslots.errors import InputError


def prepare(
    source_name: str,
    raw: Location | Path | str | None,
    out: Path | str,
    options: Any = None,
    splits: Ranges | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
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
    source = _open(source_name, raw, out, options)
    source.find()
    ranges = check_splits(splits) if splits else source.splits()
    values, defaults = dataclasses.asdict(source.options), dataclasses.asdict(source.Options())
    info = Info(source_name, source.describe(ranges), values, ranges, defaults)

    def report(split: str, finished: int, requested: int | None) -> None:
        if progress:
            limits = (requested, source.limit(split))
            progress(split, finished, min(filter(None, limits), default=None))

    with writing(out, info, overwrite=overwrite, progress=report) as folder:
        if not folder.complete:
            records = source.records(ranges, folder.done)
            scenes = in_order(partial(_decode, source.decode, source.options), records, workers)
            folder.write(scenes)
        return folder.finish(source.num_records)


def _open(name: str, raw: Location | Path | str | None, out: Path | str, options: Any) -> Source:
    """The source with its arguments checked."""
    source = sources.load(name)
    options = source.Options() if options is None else options
    if not isinstance(options, source.Options):
        kind = type(options).__name__
        raise InputError(f"options must be sources.{name}.Options, got {kind}.")
    options_module.check(options)
    if is_uri(out):
        raise InputError(
            f"out must be a folder, got {out}. Prepare into a folder and copy it, for example: "
            f"aws s3 sync FOLDER {out}"
        )
    if raw is None or not source.NEEDS_RAW:
        if source.NEEDS_RAW:
            raise InputError(f"raw is missing. Give the file or folder of the {name} data.")
        if raw is not None:
            raise InputError(f"source {name} generates its scenes; got raw {raw}. Leave raw out.")
        return source(None, options)
    location = Location.of(raw)
    try:
        exists = location.info is not None
    except OSError as error:
        raise InputError(f"cannot read raw {raw}: {error}. Check your access rights.") from None
    if not exists:
        raise InputError(f"raw {location} does not exist. Give the {name} file or folder.")
    return source(location, options)


def _decode(decode: Any, options: Any, record: tuple[str, Any]) -> tuple[str, Scene]:
    split, item = record
    return split, decode(item, options)
