"""The shards of a prepared folder: written, read and checked.

A prepared folder contains `manifest.json` and for every split `<split>-00000.arrow` and so on:
Arrow IPC files of one record batch each, so that all images of a shard are one block of its file.
Until it is finished it contains `progress.json` instead, the manifest so far, from which the next
run continues.
"""

import errno
import itertools
import json
import logging
import os
import re
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import ipc

import cutslots
from cutslots import files
from cutslots.data.locate import Location, is_uri, local, remote_problems
from cutslots.data.manifest import MANIFEST, PROGRESS, SHARD_NAME, Info, Manifest, ShardEntry, Split
from cutslots.data.record import Scene, num_visible, record_batch, schema
from cutslots.errors import InputError, listed

log = logging.getLogger(__name__)

LOCK = ".lock"
TEMPORARY_NAME = re.compile(rf"\.({SHARD_NAME.pattern}|{MANIFEST}|{PROGRESS})\.\d+\.tmp")
SHARD_BYTES = 64 << 20
DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
REPAIR = "Run cutslots prepare with --overwrite; if it is a copy of a URI, delete it instead."

Done = dict[str, int]
Progress = Callable[[str, int, int | None], None]


@contextmanager
def writing(
    directory: Path | str,
    info: Info,
    *,
    overwrite: bool = False,
    scenes_per_shard: int | None = None,
    progress: Progress | None = None,
) -> Iterator["Writer"]:
    """Open a folder to write prepared data, or to continue where a run of the same info stopped.

    Args:
        overwrite: replace any prepared data in the folder instead of continuing or refusing.
        scenes_per_shard: None chooses shards of about 64 MB, which are buffered in memory.
        progress: called as progress(split, finished scenes, scenes of its range or None).

    Raises:
        InputError: the folder contains something else, another process writes to it, or the disk is
            full. Finished shards are kept on every exception.
    """
    directory = Path(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"out {directory} cannot be created: {error.strerror}.") from None
    with files.lock(directory / LOCK) as held:
        if not held:
            raise InputError(f"another process is preparing data in {directory}. Wait for it.")
        try:
            manifest = _begin(directory, info, overwrite)
            yield Writer(directory, manifest, scenes_per_shard, progress)
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise
            path = directory / PROGRESS
            kept = Manifest.read(path).counts if path.exists() else "nothing"
            raise InputError(
                f"disk full while writing to {directory}; kept: {kept}. Make room and run the same "
                "command again to continue."
            ) from error
        finally:
            (directory / LOCK).unlink(missing_ok=True)
            with suppress(OSError):
                directory.rmdir()  # nothing was finished


def _begin(directory: Path, info: Info, overwrite: bool) -> Manifest:
    """The manifest to continue from: empty, of an interrupted run, or complete."""
    for path in directory.iterdir():
        if TEMPORARY_NAME.fullmatch(path.name):
            path.unlink()  # of a killed writer, since we hold the lock
    paths = (directory / name for name in (MANIFEST, PROGRESS))
    path = next((path for path in paths if path.exists()), None)
    if path and overwrite:
        _clear(directory)
        path = None
    if path is None:
        if others := sorted(entry.name for entry in directory.iterdir() if entry.name != LOCK):
            raise InputError(f"out {directory} contains other files ({listed(others)}).")
        splits = {name: Split() for name in info.ranges}
        parts = (info.source, info.raw, info.options, info.ranges)
        return Manifest(*parts, splits=splits, version=cutslots.__version__)
    manifest = Manifest.read(path)
    manifest.refuse_other(info, directory, finished=path.name == MANIFEST)
    if path.name == MANIFEST:
        return manifest
    for name, split in manifest.splits.items():
        paths = (directory / entry.file for entry in split.shards)
        sizes = (path.stat().st_size if path.is_file() else None for path in paths)
        pairs = zip(split.shards, sizes, strict=True)
        whole = itertools.takewhile(lambda pair: pair[0].bytes == pair[1], pairs)
        manifest.splits[name] = Split(tuple(entry for entry, _ in whole))
    return replace(manifest, raw=info.raw)


@dataclass
class Writer:
    """A prepared folder while it is written; `manifest` lists the finished shards."""

    directory: Path
    manifest: Manifest
    scenes_per_shard: int | None
    progress: Progress | None

    @property
    def complete(self) -> bool:
        """Whether the folder is finished."""
        return (self.directory / MANIFEST).exists()

    @property
    def done(self) -> Done:
        """The number of finished scenes of every split."""
        return {name: split.count for name, split in self.manifest.splits.items()}

    def write(self, scenes: Iterable[tuple[str, Scene]]) -> None:
        """Write (split, scene) pairs, every split in record order from `done` on, into shards."""
        pending: dict[str, list[Scene]] = {name: [] for name in self.manifest.splits}
        for name, scene in scenes:
            self._check(scene)
            pending[name].append(scene)
            if self.progress:
                start, stop = self.manifest.ranges[name]
                count = self.manifest.splits[name].count + len(pending[name])
                self.progress(name, count, None if stop is None else stop - start)
            size = max(1, SHARD_BYTES // (scene.image.nbytes + scene.mask.nbytes))
            if len(pending[name]) >= (self.scenes_per_shard or size):
                self._finish_shard(name, pending[name])
                pending[name] = []
        for name, rest in pending.items():
            if rest:
                self._finish_shard(name, rest)

    def finish(self, num_records: int) -> Manifest:
        """Write the manifest; `num_records` are all records of the source, for messages.

        Raises:
            InputError: a split is empty. No later run could use the others, so they are removed.
        """
        manifest = self.manifest
        if not self.complete:
            if empty := [name for name, count in self.done.items() if not count]:
                _clear(self.directory)
                raise InputError(_empty_message(manifest, empty, num_records))
            for name, (start, stop) in manifest.ranges.items():
                if stop is not None and num_records < stop:
                    log.warning(
                        "split %s is short: it asks for %d:%d of %d records; %d scenes",
                        *(name, start, stop, num_records, manifest.splits[name].count),
                    )
            manifest.save(self.directory / MANIFEST)
            (self.directory / PROGRESS).unlink(missing_ok=True)
        else:
            log.info("%s is already complete: %s", self.directory, manifest.counts)
        for name, split in manifest.splits.items():
            if self.progress:
                self.progress(name, split.count, split.count)
        return manifest

    def _check(self, scene: Scene) -> None:
        """Assert that the source keeps to the format."""
        shape, largest = self.manifest.frame_shape or scene.frame_shape, int(scene.mask.max())
        if scene.frame_shape != shape:
            raise InputError(f"{scene.id} has shape {scene.frame_shape}, other scenes {shape}.")
        assert scene.image.dtype == scene.mask.dtype == np.uint8, f"{scene.id} must be uint8"
        assert scene.image.shape == (*shape, 3), f"{scene.id}: image {scene.image.shape}"
        assert largest <= len(scene.objects), f"{scene.id}: id {largest} has no metadata"
        largest = max(self.manifest.max_objects, largest)
        self.manifest = replace(self.manifest, frame_shape=shape, max_objects=largest)

    def _finish_shard(self, name: str, scenes: list[Scene]) -> None:
        """Write one shard and note it in progress.json."""
        shards = self.manifest.splits[name].shards
        path = self.directory / f"{name}-{len(shards):05d}.arrow"
        with files.atomic(path) as temporary:
            batch = record_batch(scenes)
            with open(temporary, "wb") as file, ipc.new_file(file, batch.schema) as writer:
                writer.write_batch(batch)
        entry = ShardEntry(path.name, len(scenes), path.stat().st_size, files.sha256(path))
        splits = {**self.manifest.splits, name: Split((*shards, entry))}
        manifest = replace(self.manifest, splits=splits)
        try:
            manifest.save(self.directory / PROGRESS)
        except BaseException:
            path.unlink()  # otherwise the next run would refuse it as an unknown file
            raise
        self.manifest = manifest


def write(
    read: Callable[[Done], Iterable[tuple[str, Scene]]],
    directory: Path | str,
    info: Info,
    **options: Any,
) -> Manifest:
    """Write a whole prepared folder from `read(done)`; `options` are those of `writing`."""
    with writing(directory, info, **options) as writer:
        if not writer.complete:
            writer.write(read(writer.done))
        return writer.finish(max(stop or 0 for _, stop in info.ranges.values()))


class Shard:
    """One shard, open for reading.

    Attributes:
        records: the Arrow record batch with all columns, memory-mapped.
        masks: uint8 (n, *frame_shape), a read-only view of the mapped file.

    Raises:
        InputError: the file is missing, differs from the manifest, or has another schema.
    """

    def __init__(self, directory: Path, entry: ShardEntry, frame_shape: tuple[int, ...]):
        path = directory / entry.file
        if not path.is_file():
            raise InputError(f"shard {path} is missing. {REPAIR}")
        try:
            if path.stat().st_size != entry.bytes:
                raise ValueError(f"{path.stat().st_size} bytes, expected {entry.bytes}")
            content = pa.memory_map(str(path)).read_buffer()
            reader = ipc.open_file(pa.BufferReader(content))
            if not reader.schema.equals(schema(frame_shape), check_metadata=True):
                raise ValueError("its schema differs from the manifest's")
            self.records = reader.get_batch(0)
            if reader.num_record_batches != 1 or self.records.num_rows != entry.count:
                raise ValueError(f"{self.records.num_rows} scenes, expected {entry.count}")
        except (ValueError, OSError) as error:  # also pyarrow's ArrowInvalid
            raise InputError(f"shard {path} is damaged: {error}. {REPAIR}") from None
        self.masks: np.ndarray = self.records.column("mask").to_numpy_ndarray()
        self._path = path
        self._num_frames = frame_shape[0] if len(frame_shape) > 2 else 1
        self._starts = [
            self.records.column(name).storage.values.buffers()[1].address - content.address
            for name in ("image", "mask")
        ]
        self._handle = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._handle)

    def read(self, row: int, times: range, images: memoryview, masks: memoryview) -> None:
        """Read the pixels of the frames `times` of record `row` into two byte buffers.

        A plain read, not the memory map: pages of a map count as memory of this process (with large
        pages 2 MB per scene), and a truncated file would kill the process instead of raising.
        """
        first, count = row * self._num_frames + times[0], len(times)
        for start, buffer in zip(self._starts, (images, masks), strict=True):
            size = len(buffer) // count
            blocks = 1 if times.step == 1 else count  # adjacent frames are one block of the file
            length = len(buffer) // blocks
            for block in range(blocks):
                part = buffer[block * length : (block + 1) * length]
                offset = start + (first + block * times.step) * size
                if os.preadv(self._handle, [part], offset) != length:
                    raise InputError(f"shard {self._path} was truncated while in use. {REPAIR}")


def check(path: Path | str) -> list[str]:
    """The problems of a finished folder, one sentence each.

    Compares every shard with the manifest (presence, size, SHA-256, schema, counts) and every
    record with itself (mask ids, `num_objects`, metadata). At a URI it compares all bytes first.

    Raises:
        InputError: not a finished folder, see `local` and `Manifest.load`.
    """
    if is_uri(path) and (problems := list(remote_problems(Location.of(path)))):
        return problems
    directory = local(path)
    manifest = Manifest.load(directory)
    problems = [
        f"split {name} is empty" for name, split in manifest.splits.items() if not split.count
    ]
    for entry in manifest.shards:
        problems += _shard_problems(directory, entry, manifest)
    extra = {path.name for path in directory.glob("*.arrow")} - {e.file for e in manifest.shards}
    return problems + [f"{name} is not in the manifest" for name in sorted(extra)]


def _shard_problems(directory: Path, entry: ShardEntry, manifest: Manifest) -> Iterator[str]:
    path = directory / entry.file
    if path.is_file() and files.sha256(path) != entry.sha256:
        yield f"{path} is damaged: its SHA-256 differs from the manifest's. {REPAIR}"
        return
    try:
        shard = Shard(directory, entry, manifest.frame_shape)
    except InputError as error:
        yield str(error)
        return
    columns = (shard.records.column(name).to_pylist() for name in ("id", "num_objects", "objects"))
    for id, count, objects, mask in zip(*columns, shard.masks, strict=True):
        scene, largest, described = f"{path}, scene {id}", mask.max(), len(json.loads(objects))
        if largest > min(manifest.max_objects, described):
            limits = f"max_objects is {manifest.max_objects}, {described} objects are described"
            yield f"{scene}: mask id {largest}, but {limits}"
        if num_visible(mask) != count:
            yield f"{scene}: num_objects is {count}, the mask has {num_visible(mask)}"


def _clear(directory: Path) -> None:
    """Remove prepared data only, the manifest first, which readers need to use the rest."""
    for name in (MANIFEST, PROGRESS):
        (directory / name).unlink(missing_ok=True)
    for path in directory.iterdir():
        if SHARD_NAME.fullmatch(path.name):
            path.unlink()


def _empty_message(manifest: Manifest, empty: list[str], count: int) -> str:
    starts = ", ".join(f"{name} starts at record {manifest.ranges[name][0]}" for name in empty)
    source = f"{manifest.source} has {count} records, {starts}"
    tenth = max(1, count // 10)
    one, two = count - 2 * tenth, count - tenth
    example = f"--splits train=0:{one},val={one}:{two},test={two}:{count}"
    remedy = f"Choose ranges that fit, for example {example}" if count > 2 else "Get more raw data."
    return f"no scenes for split {', '.join(empty)}: {source}. {remedy}"
