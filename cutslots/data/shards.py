"""Prepared data written to disk: Arrow shards and the manifest that names them.

A prepared folder holds `manifest.json` and, for every split, `<split>-00000.arrow` and so on: Arrow IPC files of one
record batch each, so that all images of a shard are one block of its file. While it is being written the folder
holds `progress.json` instead, the manifest so far; a rerun goes on from there.
"""

import dataclasses
import errno
import fcntl
import importlib.metadata
import logging
import os
import re
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from pyarrow import ipc

from cutslots import files
from cutslots.data.manifest import MANIFEST, PROGRESS, SHARD_NAME, Info, Manifest, ShardEntry, Split
from cutslots.data.scene import Scene, record_batch
from cutslots.errors import InputError

log = logging.getLogger(__name__)

TEMPORARY_NAME = re.compile(rf"\.({SHARD_NAME.pattern}|{MANIFEST}|{PROGRESS})\.\d+\.tmp")
SHARD_BYTES = 64 << 20
DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

Done = dict[str, int]
Read = Callable[[Done], Generator[tuple[str, Scene], None, int]]
Progress = Callable[[str, int, int | None], None]


def write(
    read: Read,
    directory: Path | str,
    info: Info,
    *,
    overwrite: bool = False,
    scenes_per_shard: int | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Stream scenes into shards and write the manifest; continue where an earlier run of the same info stopped.

    Args:
        read: given the number of scenes that are already finished in every split, yields (split, scene), every split in
            record order without those, and returns the number of records that there are, as far as it looked.
        directory: folder to write to; made when absent. A finished folder of the same info is left as it is.
        info: what decides the content.
        overwrite: start anew, whatever prepared data the folder holds, instead of continuing or refusing.
        scenes_per_shard: None chooses shards of about 64 MB. A shard is buffered in memory while it grows.
        progress: called as progress(split, finished scenes, scenes that its range asks for or None).

    Raises:
        InputError: the folder holds something else, a split stays empty, or the disk is full. Finished shards are kept
            on every exception, unless a split is empty: then no rerun could use them.
    """
    directory = Path(directory)
    with _exclusive(directory):
        state = _begin(directory, info, overwrite)
        if (directory / MANIFEST).exists():
            log.info("%s is already complete: %s", directory, _counts(state))
        else:
            state = _fill(state, read, directory, scenes_per_shard, progress)
        if progress:
            for name, split in state.splits.items():
                progress(name, split.count, split.count)
    return state


@contextmanager
def _exclusive(directory: Path) -> Iterator[None]:
    """Hold the folder against a second writer; take it away again when nothing came of it."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"out {directory} cannot be made a folder: {error.strerror}. Name another one."
        ) from None
    handle = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise InputError(
            f"another process is preparing data in {directory}. Wait for it or name another folder."
        ) from None
    except OSError:
        log.warning(
            "%s cannot be locked on this file system; do not prepare into it twice at once",
            directory,
        )
    try:
        yield
    finally:
        with suppress(OSError):
            directory.rmdir()
        os.close(handle)


def _begin(directory: Path, info: Info, overwrite: bool) -> Manifest:
    """The state to go on from: nothing, the finished shards of an interrupted run, or a complete folder."""
    for leftover in directory.iterdir():
        if TEMPORARY_NAME.fullmatch(leftover.name):
            leftover.unlink()  # of a writer that was killed: the lock is ours, so nobody else is writing
    path = next(
        (directory / name for name in (MANIFEST, PROGRESS) if (directory / name).exists()), None
    )
    if path and overwrite:
        _clear(directory)
        path = None
    if path is None:
        strangers = sorted(entry.name for entry in directory.iterdir())
        if strangers:
            raise InputError(
                f"out {directory} holds other files ({', '.join(strangers[:3])}). Name a new or empty folder."
            )
        fresh = Manifest(info.source, info.raw, info.options, info.ranges, version=_version())
        return dataclasses.replace(fresh, splits={name: Split() for name in info.ranges})
    state, finished = Manifest.read(path), path.name == MANIFEST
    state.refuse_other(info, str(directory), finished)
    return state if finished else _keep_whole(dataclasses.replace(state, raw=info.raw), directory)


def _keep_whole(state: Manifest, directory: Path) -> Manifest:
    """The state without shards that are no longer whole, nor those behind them in their split."""
    splits = {}
    for name, split in state.splits.items():
        whole = 0
        for entry in split.shards:
            path = directory / entry.file
            if not path.is_file() or path.stat().st_size != entry.bytes:
                break
            whole += 1
        splits[name] = Split(split.shards[:whole])
    return dataclasses.replace(state, splits=splits)


def _fill(
    state: Manifest,
    read: Read,
    directory: Path,
    scenes_per_shard: int | None,
    progress: Progress | None,
) -> Manifest:
    """Write what is missing, then the manifest."""
    try:
        state, records = _stream(state, read, directory, scenes_per_shard, progress)
        empty = [name for name, split in state.splits.items() if not split.count]
        if empty:
            _clear(directory)
            raise InputError(_empty_message(state, empty, records))
        for name, (start, stop) in state.ranges.items():
            if stop is not None and records < stop:
                found = state.splits[name].count
                log.warning(
                    "split %s is short: it asks for %d:%d of %d records; %d scenes",
                    name,
                    start,
                    stop,
                    records,
                    found,
                )
        state.save(directory / MANIFEST)
        (directory / PROGRESS).unlink(missing_ok=True)
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        kept = Manifest.read(directory / PROGRESS) if (directory / PROGRESS).exists() else state
        raise InputError(
            f"no room left to write to {directory} ({os.strerror(error.errno)}). Kept so far: {_counts(kept)}. "
            "Make room and run the same command again; it continues from there."
        ) from error
    return state


def _stream(
    state: Manifest,
    read: Read,
    directory: Path,
    scenes_per_shard: int | None,
    progress: Progress | None,
) -> tuple[Manifest, int]:
    """Write scenes into shards as they come; the final state and the number of records that the source passed."""
    records = 0

    def scenes() -> Iterator[tuple[str, Scene]]:
        nonlocal records
        records = yield from read({name: split.count for name, split in state.splits.items()})

    waiting: dict[str, list[Scene]] = {name: [] for name in state.splits}
    for name, scene in scenes():
        frame_shape = state.frame_shape or scene.frame_shape
        largest = max(state.max_objects, _check_scene(scene, frame_shape))
        state = dataclasses.replace(state, frame_shape=frame_shape, max_objects=largest)
        waiting[name].append(scene)
        if progress:
            start, stop = state.ranges[name]
            progress(
                name,
                state.splits[name].count + len(waiting[name]),
                None if stop is None else stop - start,
            )
        if len(waiting[name]) >= (
            scenes_per_shard or max(1, SHARD_BYTES // (scene.image.nbytes + scene.mask.nbytes))
        ):
            state = _finish_shard(state, name, waiting[name], directory)
            waiting[name] = []
    for name, rest in waiting.items():
        state = _finish_shard(state, name, rest, directory) if rest else state
    return state, records


def _check_scene(scene: Scene, frame_shape: tuple[int, ...]) -> int:
    """Assert that a source keeps its promises; the largest instance id."""
    largest = int(scene.mask.max())
    assert scene.image.dtype == scene.mask.dtype == np.uint8, (
        f"scene {scene.id}: image and mask must be uint8"
    )
    assert scene.mask.shape == frame_shape, (
        f"scene {scene.id}: mask {scene.mask.shape}, the first one had {frame_shape}"
    )
    assert scene.image.shape == (*frame_shape, 3), (
        f"scene {scene.id}: image {scene.image.shape}, mask {frame_shape}"
    )
    assert largest <= len(scene.objects), (
        f"scene {scene.id}: mask id {largest} of {len(scene.objects)} objects"
    )
    return largest


def _finish_shard(state: Manifest, name: str, scenes: list[Scene], directory: Path) -> Manifest:
    """Write one shard, note it in progress.json, and return the state that includes it."""
    shards = state.splits[name].shards
    path = directory / f"{name}-{len(shards):05d}.arrow"
    with files.atomic(path) as temporary:
        batch = record_batch(scenes)
        with open(temporary, "wb") as file, ipc.new_file(file, batch.schema) as writer:
            writer.write_batch(batch)
    entry = ShardEntry(path.name, len(scenes), path.stat().st_size, files.sha256(path))
    state = dataclasses.replace(state, splits={**state.splits, name: Split((*shards, entry))})
    try:
        state.save(directory / PROGRESS)
    except BaseException:
        path.unlink()  # a shard that nothing names would be taken for somebody else's file
        raise
    return state


def _clear(directory: Path) -> None:
    """Remove prepared data and nothing else; the manifest goes first, so that no reader takes the rest for whole."""
    for name in (MANIFEST, PROGRESS):
        (directory / name).unlink(missing_ok=True)
    for path in directory.iterdir():
        if SHARD_NAME.fullmatch(path.name):
            path.unlink()


def _empty_message(state: Manifest, empty: list[str], records: int) -> str:
    asked = ", ".join(f"{name} starts at record {state.ranges[name][0]}" for name in empty)
    text = f"no scenes for split {', '.join(empty)}: {state.source} has {records} records, {asked}."
    if records < 3:
        return f"{text} That is too few to split; check the raw data."
    one, two = records - 2 * max(1, records // 10), records - max(1, records // 10)
    return f"{text} Choose ranges that fit, for example --splits train=0:{one},val={one}:{two},test={two}:{records}"


def _counts(state: Manifest) -> str:
    return ", ".join(f"{name} {split.count} scenes" for name, split in state.splits.items())


def _version() -> str:
    try:
        return importlib.metadata.version("cutslots")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
