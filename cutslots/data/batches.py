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
import math
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from cutslots.data.locate import local
from cutslots.data.manifest import Manifest
from cutslots.data.parallel import ordered
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
        shape, entries = self.manifest.frame_shape, self.manifest.split(split).shards
        length = shape[0] if len(shape) > 2 else 1
        whole = frames is None
        frames, distance = (length, 1) if frames is None else (frames, distance)
        minima = {"batch_size": (batch_size, 1), "prefetch": (prefetch, 0)}
        minima |= {"frames": (frames, 1), "distance": (distance, 1)}
        for name, (value, low) in minima.items():
            if value < low:
                raise InputError(f"{name} must be at least {low}, got {value}.")
        span = (frames - 1) * distance + 1
        if span > length:
            records = f"clips of {length} frames" if length > 1 else "single images"
            problem = f"{frames} frames at distance {distance} span {span}"
            remedy = "Use fewer or closer frames."
            raise InputError(f"{problem}, but the records are {records}. {remedy}")
        if not 0 <= rank < world_size:
            raise InputError(f"rank must be 0 to {world_size - 1} (world_size - 1), got {rank}.")
        if batch_size % world_size:
            multiple = f"a multiple of world_size {world_size}"
            raise InputError(f"batch_size, over all ranks, must be {multiple}, got {batch_size}.")
        self._frames, self._windows = range(0, span, distance), length - span + 1
        self.num_scenes = self.manifest.split(split).count * self._windows
        if self.num_scenes < (batch_size if drop_last else 1):
            scenes = f"split {split!r} of {directory} has {self.num_scenes} scenes"
            raise InputError(f"batch_size is {batch_size}, but {scenes}. Use a smaller one.")
        self.num_frames = frames if len(shape) > 2 and (whole or frames > 1) else None
        self._whole_records = whole or len(shape) <= 2
        self.split, self.batch_size, self.seed = split, batch_size, seed
        self.rank, self.world_size, self.prefetch = rank, world_size, prefetch
        self.shuffle, self.drop_last = shuffle, drop_last
        self._shards = [Shard(directory, entry, shape) for entry in entries]
        self._starts = np.cumsum([0, *(entry.count for entry in entries)])

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the images, in pixels."""
        return self.manifest.image_size

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

    def _prefetched(self, epoch: int, steps: range) -> Generator[Batch, None, None]:
        with ThreadPoolExecutor(1, thread_name_prefix="batches") as pool:
            batches = (self.batch(epoch, step) for step in steps)
            if self.prefetch:
                submit: Any = partial(pool.submit, self.batch, epoch)
                batches = ordered(submit, Future.result, steps, self.prefetch + 1)
            yield from (batch for batch in batches if len(batch.index))

    def batch(self, epoch: int, step: int) -> Batch:
        """This rank's shard of one global batch."""
        if not 0 <= step < self.steps_per_epoch:
            raise InputError(f"step must be 0 to {self.steps_per_epoch - 1}, got {step}.")
        order = np.arange(self.num_scenes)
        if self.shuffle:
            order = _permutation(self.seed, epoch, self.num_scenes)
        index = order[step * self.batch_size : (step + 1) * self.batch_size]
        first, last = (len(index) * rank // self.world_size for rank in (self.rank, self.rank + 1))
        return self.items(index[first:last].copy())

    def items(self, index: np.ndarray) -> Batch:
        """These items of the split, in this order, regardless of the rank."""
        index = np.asarray(index, np.int64)
        times = () if self.num_frames is None else (self.num_frames,)
        masks = torch.empty((len(index), *times, *self.image_size), dtype=torch.uint8)
        images = torch.empty((*masks.shape, 3), dtype=torch.uint8)
        pixels, labels = images.numpy().reshape(-1).data, masks.numpy().reshape(-1).data
        size = math.prod(masks.shape[1:])
        for at, (shard, row, frames) in enumerate(self._locate(index)):
            image, mask = (slice(at * n, (at + 1) * n) for n in (3 * size, size))
            shard.read(row, frames, pixels[image], labels[mask])
        return Batch(images, masks, index)

    def ids(self, index: Sequence[int] | np.ndarray) -> list[str]:
        """The ids of these items; for frames of a clip with their numbers, `clip_000012[3,4]`."""
        ids = []
        for shard, row, frames in self._locate(index):
            numbers = "" if self._whole_records else f"[{','.join(map(str, frames))}]"
            ids.append(shard.records.column("id")[row].as_py() + numbers)
        return ids

    def metadata(self, index: Sequence[int] | np.ndarray) -> list[list[dict[str, Any]]]:
        """For every item the objects' metadata; entry k - 1 belongs to mask id k."""
        rows = self._locate(index)
        return [json.loads(shard.records.column("objects")[row].as_py()) for shard, row, _ in rows]

    def _locate(self, index: Sequence[int] | np.ndarray) -> Iterator[tuple[Shard, int, range]]:
        """The shard, the row in it and the frames of every item."""
        items = np.asarray(index, np.int64)
        if items.size and not (items.min() >= 0 and items.max() < self.num_scenes):
            low, high = items.min(), items.max()
            raise InputError(f"index must be 0 to {self.num_scenes - 1}, got {low} to {high}.")
        records, firsts = np.divmod(items, self._windows)
        shards = np.searchsorted(self._starts, records, side="right") - 1
        rows = records - self._starts[shards]
        columns = (shards.tolist(), rows.tolist(), firsts.tolist())
        for shard, row, first in zip(*columns, strict=True):
            frames = range(first, first + self._frames.stop, self._frames.step)
            yield self._shards[shard], row, frames


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(count)
