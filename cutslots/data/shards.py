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
import operator
import os
import re
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import ipc

import cutslots
from cutslots import files
from cutslots.data.locate import Location, connection, is_uri, local, read_manifest
from cutslots.data.manifest import MANIFEST, PROGRESS, SHARD_NAME, Manifest, ShardEntry, Split
from cutslots.data.record import Scene, num_visible, record_batch, schema
from cutslots.errors import InputError, listed

log = logging.getLogger(__name__)

LOCK = ".lock"
TEMPORARY_NAME = re.compile(rf"\.({SHARD_NAME.pattern}|{MANIFEST}|{PROGRESS})\.\d+\.tmp")
SHARD_BYTES = 64 << 20  # of images and masks in one shard, which is buffered in memory
DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
REPAIR = "Run cutslots prepare with --overwrite; if it is a copy of a URI, delete it instead."


@contextmanager
def writing(
    directory: Path | str,
    asked: Manifest,
    *,
    defaults: dict[str, Any] | None = None,
    overwrite: bool = False,
) -> Iterator["Writer"]:
    """Open a folder to write prepared data, or to continue where a run that asked the same stopped.

    Args:
        asked: source, raw data, options and ranges of the scenes.
        defaults: of the options, for a folder of a version that did not have some of them yet.
        overwrite: replace any prepared data in the folder instead of continuing or refusing.

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
        writer = Writer(directory, asked)
        try:
            writer.begin(defaults or {}, overwrite)
            yield writer
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise
            raise InputError(
                f"disk full while writing to {directory}; kept: {writer.manifest.counts}. "
                "Make room and run the same command again to continue."
            ) from error
        finally:
            (directory / LOCK).unlink(missing_ok=True)
            with suppress(OSError):
                directory.rmdir()  # nothing was finished


class Writer:
    """A prepared folder while it is written.

    Attributes:
        manifest: lists the finished shards.
    """

    def __init__(self, directory: Path, manifest: Manifest):
        self.directory, self.manifest = directory, manifest

    def begin(self, defaults: dict[str, Any], overwrite: bool) -> None:
        """Continue from the manifest in the folder; without one, from an empty folder."""
        asked, progress = self.manifest, self.directory / PROGRESS
        for path in self.directory.iterdir():
            if TEMPORARY_NAME.fullmatch(path.name):
                path.unlink()  # of a killed writer, since we hold the lock
        if overwrite and (self.complete or progress.exists()):
            _clear(self.directory)
        path = self.directory / MANIFEST if self.complete else progress
        if not path.exists():
            if others := sorted(p.name for p in self.directory.iterdir() if p.name != LOCK):
                raise InputError(f"out {self.directory} contains other files ({listed(others)}).")
            splits = {name: Split() for name in asked.ranges}
            self.manifest = replace(asked, splits=splits, version=cutslots.__version__)
            return
        stored = Manifest.parse(path.read_bytes(), path)
        # A damaged raw file may have been replaced, with another size, since a run stopped.
        sizes = asked.raw.get("files", {})
        if not self.complete and sizes and stored.raw.get("files", {}).keys() == sizes.keys():
            stored = replace(stored, raw=stored.raw | {"files": sizes})
        if differences := "; ".join(stored.differences(asked, defaults)):
            problem = f"{self.directory} already contains other data: {differences}"
            raise InputError(f"{problem}. Name another folder, or give --overwrite.")
        if not self.complete:
            for name, split in stored.splits.items():
                whole = itertools.takewhile(self._is_whole, split.shards)
                stored.splits[name] = Split(tuple(whole))
            stored = replace(stored, raw=asked.raw)
        self.manifest = stored

    def _is_whole(self, entry: ShardEntry) -> bool:
        path = self.directory / entry.file
        return path.is_file() and path.stat().st_size == entry.bytes

    @property
    def complete(self) -> bool:
        """Whether the folder is finished."""
        return (self.directory / MANIFEST).exists()

    @property
    def done(self) -> dict[str, int]:
        """The number of finished scenes of every split."""
        return {name: split.count for name, split in self.manifest.splits.items()}

    def write(self, scenes: Iterable[tuple[str, Scene]]) -> None:
        """Write (split, scene) pairs into shards, split by split in record order from `done` on."""
        for name, pairs in itertools.groupby(scenes, operator.itemgetter(0)):
            pending: list[Scene] = []
            for _, scene in pairs:
                image, mask, largest = scene.image, scene.mask, int(scene.mask.max())
                expected = self.manifest.frame_shape or mask.shape
                if mask.shape != expected:
                    raise InputError(f"{scene.id} has shape {mask.shape}, other scenes {expected}.")
                assert image.dtype == mask.dtype == np.uint8, f"{scene.id} must be uint8"
                assert image.shape == (*mask.shape, 3), f"{scene.id}: image {image.shape}"
                assert largest <= len(scene.objects), f"{scene.id}: id {largest} has no metadata"
                largest = max(self.manifest.max_objects, largest)
                self.manifest = replace(self.manifest, frame_shape=expected, max_objects=largest)
                pending.append(scene)
                if len(pending) >= SHARD_BYTES // (image.nbytes + mask.nbytes):
                    self._write_shard(name, pending)
                    pending = []
            if pending:
                self._write_shard(name, pending)

    def _write_shard(self, name: str, scenes: list[Scene]) -> None:
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

    def finish(self, num_records: int) -> Manifest:
        """Write the manifest; `num_records` are all records of the source, for messages.

        Raises:
            InputError: a split is empty. No later run could use the others, so they are removed.
        """
        manifest = self.manifest
        if self.complete:
            log.info("%s is already complete: %s", self.directory, manifest.counts)
            return manifest
        if empty := [name for name, count in self.done.items() if not count]:
            _clear(self.directory)
            starts = ", ".join(
                f"{name} starts at record {manifest.ranges[name][0]}" for name in empty
            )
            tenth = max(1, num_records // 10)
            one, two = num_records - 2 * tenth, num_records - tenth
            raise InputError(
                f"no scenes for split {', '.join(empty)}: {manifest.source} has {num_records} "
                f"records, {starts}. Choose ranges that fit, for example "
                f"--splits train=0:{one},val={one}:{two},test={two}:{num_records}"
            )
        for name, (start, stop) in manifest.ranges.items():
            if stop is not None and num_records < stop:
                log.warning(
                    "split %s is short: it asks for %d:%d of %d records; %d scenes",
                    *(name, start, stop, num_records, manifest.splits[name].count),
                )
        manifest.save(self.directory / MANIFEST)
        (self.directory / PROGRESS).unlink(missing_ok=True)
        return manifest


def _clear(directory: Path) -> None:
    """Remove prepared data only, the manifest first, which readers need to use the rest."""
    for name in (MANIFEST, PROGRESS):
        (directory / name).unlink(missing_ok=True)
    for path in directory.iterdir():
        if SHARD_NAME.fullmatch(path.name):
            path.unlink()


class Shard:
    """One shard, open for reading.

    Attributes:
        records: the Arrow record batch with all columns, memory-mapped.

    Raises:
        InputError: the file is missing, differs from the manifest, or has another schema.
    """

    def __init__(self, directory: Path, entry: ShardEntry, frame_shape: tuple[int, ...]):
        path = directory / entry.file
        try:
            if path.stat().st_size != entry.bytes:
                raise ValueError(f"{path.stat().st_size} bytes, expected {entry.bytes}")
            content = pa.memory_map(str(path)).read_buffer()
            reader = ipc.open_file(pa.BufferReader(content))
            if not reader.schema.equals(schema(frame_shape), check_metadata=True):
                raise ValueError("its schema differs from the manifest's")
            self.records = reader.get_batch(0)
            if self.records.num_rows != entry.count:
                raise ValueError(f"{self.records.num_rows} scenes, expected {entry.count}")
        except (ValueError, OSError) as error:  # also pyarrow's ArrowInvalid
            raise InputError(f"shard {path} is unusable: {error}. {REPAIR}") from None
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
        blocks = 1 if times.step == 1 else len(times)  # adjacent frames are one block of the file
        for start, buffer in zip(self._starts, (images, masks), strict=True):
            frame, length = len(buffer) // len(times), len(buffer) // blocks
            for at in range(blocks):
                part = buffer[at * length : (at + 1) * length]
                offset = start + (row * self._num_frames + times[at]) * frame
                if os.preadv(self._handle, [part], offset) != length:
                    raise InputError(f"shard {self._path} was truncated while in use. {REPAIR}")


def check(path: Path | str) -> list[str]:
    """The problems of a finished folder, one sentence each.

    Compares every shard with the manifest (presence, SHA-256, schema, counts) and every record with
    itself (mask ids, `num_objects`, metadata). At a URI it compares all bytes first.

    Raises:
        InputError: not a finished folder, see `local` and `read_manifest`.
    """
    folder, manifest, problems = Location.of(path), read_manifest(path), []
    with connection(folder):
        names = {file.name for file, _ in folder.files() if SHARD_NAME.fullmatch(file.name)}
        for entry in manifest.shards:
            file = folder / entry.file
            if entry.file not in names:
                problems.append(f"{file} is missing")
            elif file.sha256() != entry.sha256:
                problems.append(f"{file} is damaged: its SHA-256 differs from the manifest's")
            elif not is_uri(path):
                problems += _record_problems(Path(path), entry, manifest)
    extra = names - {entry.file for entry in manifest.shards}
    problems += [f"{folder / name} is not in the manifest" for name in sorted(extra)]
    if is_uri(path) and not problems:
        return [f"{problem}; delete this copy" for problem in check(local(path))]
    return problems


def _record_problems(directory: Path, entry: ShardEntry, manifest: Manifest) -> Iterator[str]:
    try:
        records = Shard(directory, entry, manifest.frame_shape).records
    except InputError as error:
        yield str(error)
        return
    masks = records.column("mask").to_numpy_ndarray()
    columns = (records.column(name).to_pylist() for name in ("id", "num_objects", "objects"))
    for id, count, objects, mask in zip(*columns, masks, strict=True):
        name, largest = f"{directory / entry.file}, scene {id}", mask.max()
        described = len(json.loads(objects))
        if largest > min(manifest.max_objects, described):
            limits = f"max_objects is {manifest.max_objects}, {described} objects are described"
            yield f"{name}: mask id {largest}, but {limits}"
        if num_visible(mask) != count:
            yield f"{name}: num_objects is {count}, the mask has {num_visible(mask)}"
