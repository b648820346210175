"""The data station: raw data set -> prepared shards -> batches."""

import dataclasses
from collections.abc import Generator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from cutslots import options as options_module
from cutslots.data import cache, sources
from cutslots.data.batches import Batch as Batch
from cutslots.data.batches import Batches as Batches
from cutslots.data.cache import check as check
from cutslots.data.cache import local as local
from cutslots.data.cache import manifest as manifest
from cutslots.data.cache import publish as publish
from cutslots.data.manifest import Info
from cutslots.data.manifest import Manifest as Manifest
from cutslots.data.parallel import Map
from cutslots.data.places import Place, is_uri
from cutslots.data.scene import Preparation as Preparation
from cutslots.data.scene import Ranges
from cutslots.data.scene import Scene as Scene
from cutslots.data.shards import Done, Progress, write
from cutslots.errors import InputError


def prepare(
    source_name: str,
    raw: Place | Path | str | None,
    out: Path | str,
    options: Any = None,
    splits: Ranges | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    map: Map = map,
) -> Manifest:
    """Turn one source's raw data into a prepared folder; a rerun continues, and a finished folder is left as it is.

    Args:
        source_name: a member of `sources.names()`.
        raw: the raw file or folder, a path or a URI such as s3://bucket/folder; None for a source that needs none.
        out: folder to write to; for a URI it is made in `CUTSLOTS_HOME/cache` and copied there when it is finished.
        options: an instance of the source's `Options`; None for its defaults.
        splits: for every split its half-open range of records; None for the source's own.
        overwrite: start anew, whatever prepared data `out` holds, instead of continuing or refusing.
        progress: called as progress(split, finished scenes, scenes asked for or None).
        map: decodes the records, see `parallel.processes`; the built-in one does it in this process. The shards are the
            same whatever it is.

    Raises:
        InputError: unknown source, options out of range, raw data absent, damaged or too few, `out` holds something
            else, or the disk is full.
    """
    source = sources.load(source_name)
    options = source.Options() if options is None else options
    if not isinstance(options, source.Options):
        raise InputError(
            f"options are {type(options).__name__}; source {source_name} takes sources.{source_name}.Options."
        )
    options_module.check(options)
    found = source.find(_raw_place(source_name, source.NEEDS_RAW, raw), options)
    ranges = sources.check_splits(splits) if splits else source.splits(found, options)
    values, defaults = dataclasses.asdict(options), dataclasses.asdict(source.Options())
    info = Info(source_name, source.describe(found, options, ranges), values, ranges, defaults)

    def read(done: Done) -> Generator[tuple[str, Scene], None, int]:
        passed = 0

        def items() -> Iterator[tuple[str, Any]]:
            nonlocal passed
            passed = yield from source.records(found, options, ranges, done)

        yield from map(partial(_decode, source_name, options), items())
        return passed

    def told(split: str, finished: int, wanted: int | None) -> None:
        limit = options.limit(split) if isinstance(options, Preparation) else None
        if progress:
            progress(split, finished, min(filter(None, (wanted, limit)), default=None))

    def prepared(folder: Path) -> Manifest:
        return write(read, folder, info, overwrite=overwrite, progress=told)

    return (
        cache.prepared(str(out), info, prepared, overwrite) if is_uri(out) else prepared(Path(out))
    )


def _decode(source_name: str, options: Any, item: tuple[str, Any]) -> tuple[str, Scene]:
    return item[0], sources.load(source_name).decode(item[1], options)


def _raw_place(source_name: str, needed: bool, raw: Place | Path | str | None) -> Place | None:
    if raw is None:
        if needed:
            raise InputError(
                f"source {source_name} needs raw data. Give its file or folder as raw."
            )
        return None
    if not needed:
        raise InputError(
            f"source {source_name} makes its scenes itself; got raw {raw}. Leave raw out."
        )
    place = Place.of(raw)
    try:
        there = place.exists
    except OSError as error:
        raise InputError(
            f"cannot reach raw {raw}: {error}. Check the name and the right to read it."
        ) from None
    if not there:
        raise InputError(
            f"raw {raw} does not exist. Give the file or folder of the {source_name} data."
        )
    return place
