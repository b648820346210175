"""Batches of prepared scenes: a pure function of (seed, epoch, step, rank).

A dataset contains images or clips; `frames` determines an item of a batch in both cases:

    Batches(folder, "train", 64)                         # records: images (b, H, W, 3)
                                                         # or clips (b, T, H, W, 3)
    Batches(folder, "train", 64, frames=1)               # images, or single frames of clips
    Batches(folder, "train", 64, frames=2)               # adjacent frames (b, 2, H, W, 3)
    Batches(folder, "train", 64, frames=2, distance=15)  # pairs such as frames 5 and 20

Item i of a dataset of clips is clip i // W from frame i % W on, W = T - (frames - 1) * distance; an
epoch has every item once. Instance ids keep their meaning over a clip.
"""

import json
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from cutslots.data.locate import local
from cutslots.data.manifest import Manifest
from cutslots.data.shards import Shard
from cutslots.errors import InputError


class Batch(NamedTuple):
    """Scenes of one step on one rank.

    Attributes:
        images: torch.uint8 (b, H, W, 3), RGB; (b, T, H, W, 3) with a time axis.
        masks: torch.uint8 (b, H, W), instance ids, 0 = background; (b, T, H, W) with a time axis.
        index: int64 (b,), numbers of the items in the split.
    """

    images: torch.Tensor
    masks: torch.Tensor
    index: np.ndarray  # pyright: ignore[reportIncompatibleMethodOverride]


class Batches:
    """One rank's batches of one split, copied from the shards into new memory.

    An item is an image, a clip, or frames of a clip, see the module. The order of an epoch is
    `np.random.default_rng((seed, epoch)).permutation(num_scenes)`, cut into global batches, and a
    global batch is cut in rank order: any number of ranks sees the same global batches.

    Attributes:
        num_scenes: number of items.
        num_frames: length of the batches' time axis; None without one.

    Args:
        directory: prepared folder, or the URI of one, which is copied once, see `locate.local`.
        split: name of the split.
        batch_size: items in a GLOBAL batch, over all ranks.
        frames: frames of an item; None takes whole records. One frame has no time axis.
        distance: between the frames of an item, in frames.
        seed: of the order.
        rank, world_size: this process among those that share the batch.
        shuffle: False keeps the record order in every epoch.
        drop_last: False adds the last, smaller batch, so that an epoch has every item exactly once
            over all ranks; a rank whose shard of it is empty ends its epoch one step earlier.
        prefetch: batches that one background thread keeps ready; 0 = no thread, for debugging.

    Raises:
        InputError: no finished dataset, a missing or damaged shard, an unknown split, a batch that
            the ranks do not divide, fewer items than one batch, or records of too few frames.
    """

    def __init__(
        self,
        directory: Path | str,
        split: str,
        batch_size: int,
        *,
        frames: int | None = None,
        distance: int = 1,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        shuffle: bool = True,
        drop_last: bool = True,
        prefetch: int = 2,
    ):
        directory = local(directory)
        self.manifest = Manifest.load(directory)
        shape = self.manifest.frame_shape
        entries = self.manifest.split(split).shards
        self._frames, self._windows = _window(shape, frames, distance)
        self.num_scenes = self.manifest.split(split).count * self._windows
        for name, value, low in (("batch_size", batch_size, 1), ("prefetch", prefetch, 0)):
            if value < low:
                raise InputError(f"{name} must be at least {low}, got {value}.")
        if not 0 <= rank < world_size:
            raise InputError(f"rank must be 0 to {world_size - 1} (world_size - 1), got {rank}.")
        if batch_size % world_size:
            multiple = f"a multiple of world_size {world_size}"
            raise InputError(f"batch_size, over all ranks, must be {multiple}, got {batch_size}.")
        if self.num_scenes < (batch_size if drop_last else 1):
            scenes = f"split {split!r} of {directory} has {self.num_scenes} scenes"
            raise InputError(f"batch_size is {batch_size}, but {scenes}. Use a smaller one.")
        self.split, self.batch_size, self.seed = split, batch_size, seed
        self.num_frames = len(self._frames) if len(shape) > 2 and frames != 1 else None
        self._whole_records = frames is None or len(shape) <= 2
        self.rank, self.world_size, self.prefetch = rank, world_size, prefetch
        self.shuffle, self.drop_last = shuffle, drop_last
        self._shards = [Shard(directory, entry, shape) for entry in entries]
        self._ends = np.cumsum([entry.count for entry in entries])
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, np.int64))

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the images, in pixels."""
        return self.manifest.image_size

    @property
    def max_objects(self) -> int:
        """The largest instance id of the whole dataset, over all its splits."""
        return self.manifest.max_objects

    @property
    def steps_per_epoch(self) -> int:
        """The number of global batches in an epoch."""
        full, rest = divmod(self.num_scenes, self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    def epoch(self, epoch: int, start: int = 0) -> Generator[Batch, None, None]:
        """The batches of one epoch from step `start` on; deleting the iterator stops its thread."""
        if not 0 <= start <= self.steps_per_epoch:
            raise InputError(f"start must be 0 to {self.steps_per_epoch} (steps), got {start}.")
        return self._prefetched(epoch, range(start, self.steps_per_epoch))

    def batch(self, epoch: int, step: int) -> Batch:
        """This rank's shard of one global batch."""
        if not 0 <= step < self.steps_per_epoch:
            raise InputError(f"step must be 0 to {self.steps_per_epoch - 1}, got {step}.")
        index = self._epoch_order(epoch)[step * self.batch_size : (step + 1) * self.batch_size]
        first, last = (len(index) * rank // self.world_size for rank in (self.rank, self.rank + 1))
        return self.items(index[first:last].copy())

    def items(self, index: np.ndarray) -> Batch:
        """These items of the split, in this order, regardless of the rank."""
        index = np.asarray(index, np.int64)
        height, width = self.image_size
        times = () if self.num_frames is None else (self.num_frames,)
        images = torch.empty((len(index), *times, height, width, 3), dtype=torch.uint8)
        masks = torch.empty((len(index), *times, height, width), dtype=torch.uint8)
        pixels, labels = images.numpy().reshape(-1).data, masks.numpy().reshape(-1).data
        size = len(self._frames) * height * width
        for at, (shard, row, first) in enumerate(self._locate(index)):
            image, mask = (slice(at * n, (at + 1) * n) for n in (3 * size, size))
            shard.read(row, self._frames_from(first), pixels[image], labels[mask])
        return Batch(images, masks, index)

    def ids(self, index: Sequence[int] | np.ndarray) -> list[str]:
        """The ids of these items; for frames of a clip with their numbers, `clip_000012[3,4]`."""
        ids = self._column("id", index)
        if self._whole_records:
            return ids
        frames = (self._frames_from(int(item) % self._windows) for item in index)
        pairs = zip(ids, frames, strict=True)
        return [f"{id}[{','.join(map(str, numbers))}]" for id, numbers in pairs]

    def metadata(self, index: Sequence[int] | np.ndarray) -> list[list[dict[str, Any]]]:
        """For every item the objects' metadata; entry k - 1 belongs to mask id k."""
        return [json.loads(text) for text in self._column("objects", index)]

    def _prefetched(self, epoch: int, steps: range) -> Generator[Batch, None, None]:
        if not self.prefetch:
            yield from (batch for step in steps if len((batch := self.batch(epoch, step)).index))
            return
        pool = ThreadPoolExecutor(1, thread_name_prefix="batches")
        futures = (pool.submit(self.batch, epoch, step) for step in steps)
        try:
            ready = deque(islice(futures, self.prefetch))
            while ready:
                batch = ready.popleft().result()
                ready.extend(islice(futures, 1))
                if len(batch.index):
                    yield batch
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _epoch_order(self, epoch: int) -> np.ndarray:
        if not self.shuffle:
            return np.arange(self.num_scenes)
        cached, order = self._order
        if cached != epoch:
            order = np.random.default_rng((self.seed, epoch)).permutation(self.num_scenes)
            self._order = (epoch, order)
        return order

    def _locate(self, items: np.ndarray) -> Iterator[tuple[Shard, int, int]]:
        """The shard, the row in it and the first frame of every item."""
        records, firsts = np.divmod(items, self._windows)
        which = np.searchsorted(self._ends, records, side="right")
        starts = np.concatenate([[0], self._ends])[which]
        columns = (which.tolist(), (records - starts).tolist(), firsts.tolist())
        for shard, row, first in zip(*columns, strict=True):
            yield self._shards[shard], row, first

    def _frames_from(self, first: int) -> range:
        return range(first, first + self._frames.stop, self._frames.step)

    def _column(self, name: str, index: Sequence[int] | np.ndarray) -> list[Any]:
        items = np.asarray(index, dtype=np.int64)
        if items.size and not (items.min() >= 0 and items.max() < self.num_scenes):
            low, high = items.min(), items.max()
            raise InputError(f"index must be 0 to {self.num_scenes - 1}, got {low} to {high}.")
        return [shard.records.column(name)[row].as_py() for shard, row, _ in self._locate(items)]


def _window(shape: tuple[int, ...], frames: int | None, distance: int) -> tuple[range, int]:
    """The frames of a record's first item, and the number of items of a record."""
    total = shape[0] if len(shape) > 2 else 1
    if frames is None:
        frames, distance = total, 1
    for name, value in (("frames", frames), ("distance", distance)):
        if value < 1:
            raise InputError(f"{name} must be at least 1, got {value}.")
    span = (frames - 1) * distance + 1
    if span > total:
        records = f"clips of {total} frames" if total > 1 else "single images"
        problem = f"{frames} frames at distance {distance} span {span}"
        raise InputError(f"{problem}, but the records are {records}. Use fewer or closer frames.")
    return range(0, span, distance if frames > 1 else 1), total - span + 1
