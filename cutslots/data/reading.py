"""Prepared data read back: shards as memory maps and plain reads, and the check of a whole folder."""

import json
import os
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import ipc

from cutslots import files
from cutslots.data.manifest import Manifest, ShardEntry
from cutslots.data.scene import num_visible, schema
from cutslots.errors import InputError


class Shard:
    """One shard, open for reading.

    Attributes:
        records: the Arrow record batch with all columns, memory-mapped.
        masks: uint8 (n, *frame_shape), a read-only view of the mapped file.

    Raises:
        InputError: the file is absent, has another size than the manifest says, or is no Arrow file of our schema.
    """

    def __init__(self, directory: Path, entry: ShardEntry, frame_shape: tuple[int, ...]):
        path = directory / entry.file
        repair = "Run cutslots prepare with overwrite to make it again, or delete it if it was fetched from a URI."
        if not path.is_file():
            raise InputError(f"shard {path} is missing. {repair}")
        size = path.stat().st_size
        if size != entry.bytes:
            raise InputError(
                f"shard {path} is damaged: {size} bytes, the manifest says {entry.bytes}. {repair}"
            )
        try:
            whole = pa.memory_map(str(path)).read_buffer()
            reader = ipc.open_file(pa.BufferReader(whole))
            if not reader.schema.equals(schema(frame_shape), check_metadata=True):
                raise InputError(
                    f"shard {path} has another schema than the manifest says. {repair}"
                )
            self.records = reader.get_batch(0)
        except (pa.ArrowInvalid, OSError) as error:
            raise InputError(f"shard {path} is damaged: {error}. {repair}") from None
        count = self.records.num_rows
        if reader.num_record_batches != 1 or count != entry.count:
            raise InputError(
                f"shard {path} has {count} scenes, the manifest says {entry.count}. {repair}"
            )
        self.masks: np.ndarray = self.records.column("mask").to_numpy_ndarray()
        self._path = path
        self._num_frames = frame_shape[0] if len(frame_shape) > 2 else 1
        self._starts = [
            self.records.column(name).storage.values.buffers()[1].address - whole.address
            for name in ("image", "mask")
        ]
        self._handle = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._handle)

    def read(self, row: int, times: range, images: memoryview, masks: memoryview) -> None:
        """Read the pixels of one record's frames into two byte buffers.

        A plain read, not the map: pages of a map count as this process's memory (with large pages 2 MB for every scene
        touched), and a file that is cut off meanwhile would kill the process instead of raising an error.

        Args:
            row: of the record.
            times: numbers of the frames, ascending; range(1) of an image.
            images, masks: filled with the frames one behind the other.
        """
        first, count = row * self._num_frames + times[0], len(times)
        for start, into in zip(self._starts, (images, masks), strict=True):
            size = len(into) // count
            if times.step == 1:  # one block in the file
                self._fill(into, start + first * size)
            else:
                for at in range(count):
                    self._fill(
                        into[at * size : (at + 1) * size], start + (first + at * times.step) * size
                    )

    def _fill(self, into: memoryview, start: int) -> None:
        if os.preadv(self._handle, [into], start) != len(into):
            raise InputError(
                f"shard {self._path} was cut off while it was in use. Prepare the data again."
            )


def check(directory: Path | str) -> list[str]:
    """What `cache.check` says of a folder of this machine."""
    directory = Path(directory)
    manifest = Manifest.load(directory)
    problems = [
        f"split {name} is empty" for name, split in manifest.splits.items() if not split.count
    ]
    for entry in manifest.shards:
        problems += _check_shard(directory, entry, manifest)
    strays = {path.name for path in directory.glob("*.arrow")} - {
        entry.file for entry in manifest.shards
    }
    return problems + [f"{name} is not in the manifest" for name in sorted(strays)]


def _check_shard(directory: Path, entry: ShardEntry, manifest: Manifest) -> Iterator[str]:
    path = directory / entry.file
    if path.is_file() and files.sha256(path) != entry.sha256:
        yield f"{path} is damaged: its SHA-256 is not the manifest's (delete it if it was fetched from a URI)"
        return
    try:
        shard = Shard(directory, entry, manifest.frame_shape)
    except InputError as error:
        yield str(error)
        return
    counts = shard.records.column("num_objects").to_numpy()
    names = shard.records.column("id").to_pylist()
    for row, (name, objects) in enumerate(
        zip(names, shard.records.column("objects").to_pylist(), strict=True)
    ):
        mask = shard.masks[row]
        where, largest, known = (
            f"{entry.file}, scene {name}",
            int(mask.max()),
            len(json.loads(objects)),
        )
        if largest > min(manifest.max_objects, known):
            yield f"{where}: mask id {largest}; max_objects is {manifest.max_objects} and {known} objects are described"
        if num_visible(mask) != counts[row]:
            yield f"{where}: num_objects is {counts[row]}, the mask shows {num_visible(mask)}"
