"""Batches of prepared scenes: a pure function of (seed, epoch, step, rank).

A prepared set holds images or clips; `frames` says what an item of a batch is, whichever it holds:

    Batches(folder, "train", 64)                          # whole records: images (b, H, W, 3), or clips (b, T, H, W, 3)
    Batches(folder, "train", 64, frames=1)                # images, or every frame of every clip by itself (b, H, W, 3)
    Batches(folder, "train", 64, frames=2)                # every pair of adjacent frames of every clip (b, 2, H, W, 3)
    Batches(folder, "train", 64, frames=2, distance=15)   # such pairs as frames 5 and 20

Item i of a set of clips is clip i // W with first frame i % W, W = T - (frames - 1) * distance; an epoch has every item
once. Instance ids keep their meaning over a clip.
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

from cutslots.data.cache import local
from cutslots.data.manifest import Manifest
from cutslots.data.reading import Shard
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
    """One rank's batches of one split, read from the shards into fresh memory.

    An item is an image, a clip, or frames of a clip, see the module. The order of an epoch is
    `np.random.default_rng((seed, epoch)).permutation(num_scenes)`, cut into global batches, and a global batch is cut in
    rank order: one rank and two ranks see the same global batches.

    Attributes:
        num_scenes: number of items.
        num_frames: length of the batches' time axis; None without one.

    Args:
        directory: folder that `prepare` wrote, or the URI of one, which is fetched once, see `cache.local`.
        split: name of the split.
        batch_size: items in a GLOBAL batch, over all ranks.
        frames: frames of an item; None takes whole records. One frame has no time axis.
        distance: between the frames of an item, in frames.
        seed: of the order.
        rank, world_size: this process among those that share the batch.
        shuffle: False keeps the record order in every epoch.
        drop_last: False adds the last, smaller batch, so that an epoch has every item exactly once over all ranks; a
            rank whose share of it is empty ends its epoch one step earlier.
        prefetch: batches that one background thread keeps ready; 0 = no thread, for debugging.

    Raises:
        InputError: no finished data there, a shard missing or damaged, no such split, a batch that does not divide over
            the ranks, fewer items than one batch, or records of too few frames.
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
        entries = self.manifest.split(split).shards
        self._frames, self._windows = _window(self.manifest.frame_shape, frames, distance)
        self.num_scenes = self.manifest.split(split).count * self._windows
        _check_numbers(batch_size, rank, world_size, prefetch)
        if self.num_scenes < (batch_size if drop_last else 1):
            raise InputError(
                f"batch_size is {batch_size}, but split {split!r} of {directory} has {self.num_scenes} scenes. "
                f"Use a batch_size of at most {self.num_scenes}."
            )
        self.split, self.batch_size, self.seed = split, batch_size, seed
        clips = len(self.manifest.frame_shape) > 2
        self.num_frames = len(self._frames) if clips and frames != 1 else None
        self._whole = frames is None or not clips
        self.rank, self.world_size, self.prefetch = rank, world_size, prefetch
        self.shuffle, self.drop_last = shuffle, drop_last
        self._shards = [Shard(directory, entry, self.manifest.frame_shape) for entry in entries]
        self._ends = np.cumsum([entry.count for entry in entries])
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, np.int64))

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the images, in pixels."""
        return self.manifest.image_size

    @property
    def max_objects(self) -> int:
        """The largest instance id of the whole data set, over all its splits."""
        return self.manifest.max_objects

    @property
    def steps_per_epoch(self) -> int:
        """The number of global batches in an epoch."""
        whole, rest = divmod(self.num_scenes, self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def epoch(self, epoch: int, start: int = 0) -> Generator[Batch, None, None]:
        """The batches of one epoch from step `start` on; dropping the iterator stops its thread.

        Raises:
            InputError: `start` is negative or behind the last step.
        """
        if not 0 <= start <= self.steps_per_epoch:
            raise InputError(
                f"start is {start}; an epoch has {self.steps_per_epoch} steps, so give 0 to that number."
            )
        return self._ahead(epoch, range(start, self.steps_per_epoch))

    def batch(self, epoch: int, step: int) -> Batch:
        """This rank's part of one global batch.

        Raises:
            InputError: `step` is not a step of the epoch.
        """
        if not 0 <= step < self.steps_per_epoch:
            raise InputError(
                f"step is {step}; an epoch has the steps 0 to {self.steps_per_epoch - 1}."
            )
        whole = self._epoch_order(epoch)[step * self.batch_size : (step + 1) * self.batch_size]
        first, last = (len(whole) * rank // self.world_size for rank in (self.rank, self.rank + 1))
        return self._gather(whole[first:last].copy())

    def items(self, index: np.ndarray) -> Batch:
        """These items of the split, in this order, whichever rank's they are."""
        return self._gather(np.asarray(index, np.int64))

    def ids(self, index: Sequence[int] | np.ndarray) -> list[str]:
        """The ids of these items; of frames of a clip with their numbers, `movi_a_train_000012[3,4]`."""
        ids = self._column("id", index)
        if self._whole:
            return ids
        firsts = (int(item) % self._windows for item in index)
        return [
            f"{id}[{','.join(map(str, self._frames_from(first)))}]"
            for id, first in zip(ids, firsts, strict=True)
        ]

    def metadata(self, index: Sequence[int] | np.ndarray) -> list[list[dict[str, Any]]]:
        """For every item the objects' metadata; entry k - 1 belongs to mask id k."""
        return [json.loads(text) for text in self._column("objects", index)]

    def _ahead(self, epoch: int, steps: range) -> Generator[Batch, None, None]:
        if not self.prefetch:
            yield from (batch for step in steps if len((batch := self.batch(epoch, step)).index))
            return
        pool = ThreadPoolExecutor(1, thread_name_prefix="batches")
        todo = iter(steps)
        try:
            ready = deque(
                pool.submit(self.batch, epoch, step) for step in islice(todo, self.prefetch)
            )
            while ready:
                batch = ready.popleft().result()
                ready.extend(pool.submit(self.batch, epoch, step) for step in islice(todo, 1))
                if len(batch.index):
                    yield batch
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _epoch_order(self, epoch: int) -> np.ndarray:
        if not self.shuffle:
            epoch = 0
        known, order = self._order
        if known != epoch:
            rng = np.random.default_rng((self.seed, epoch))
            order = rng.permutation(self.num_scenes) if self.shuffle else np.arange(self.num_scenes)
            self._order = (epoch, order)
        return order

    def _locate(self, items: np.ndarray) -> Iterator[tuple[Shard, int, int]]:
        """The shard, the row in it and the first frame of every item."""
        records, firsts = np.divmod(items, self._windows)
        which = np.searchsorted(self._ends, records, side="right")
        starts = np.concatenate([[0], self._ends])[which]
        for shard, row, first in zip(
            which.tolist(), (records - starts).tolist(), firsts.tolist(), strict=True
        ):
            yield self._shards[shard], row, first

    def _gather(self, index: np.ndarray) -> Batch:
        height, width = self.image_size
        times = () if self.num_frames is None else (self.num_frames,)
        images = torch.empty((len(index), *times, height, width, 3), dtype=torch.uint8)
        masks = torch.empty((len(index), *times, height, width), dtype=torch.uint8)
        pixels, labels = images.numpy().reshape(-1).data, masks.numpy().reshape(-1).data
        narrow = len(self._frames) * height * width
        for at, (shard, row, first) in enumerate(self._locate(index)):
            image, mask = (slice(at * size, (at + 1) * size) for size in (3 * narrow, narrow))
            shard.read(row, self._frames_from(first), pixels[image], labels[mask])
        return Batch(images, masks, index)

    def _frames_from(self, first: int) -> range:
        return range(first, first + self._frames.stop, self._frames.step)

    def _column(self, name: str, index: Sequence[int] | np.ndarray) -> list[Any]:
        positions = np.asarray(index, dtype=np.int64)
        if positions.size and not (positions.min() >= 0 and positions.max() < self.num_scenes):
            raise InputError(
                f"index must lie in 0 to {self.num_scenes - 1}; got {positions.min()} to {positions.max()}."
            )
        return [
            shard.records.column(name)[row].as_py() for shard, row, _ in self._locate(positions)
        ]


def _window(frame_shape: tuple[int, ...], frames: int | None, distance: int) -> tuple[range, int]:
    """The frames of a record's first item, and how many items it has."""
    total = frame_shape[0] if len(frame_shape) > 2 else 1
    if frames is None:
        frames, distance = total, 1
    if frames < 1 or distance < 1:
        raise InputError(f"frames is {frames} and distance {distance}; both must be at least 1.")
    span = (frames - 1) * distance + 1
    if span > total:
        what = f"clips of {total} frames" if total > 1 else "single images"
        raise InputError(
            f"{frames} frames at distance {distance} span {span}, but the data are {what}. Use fewer or nearer frames."
        )
    return range(0, span, distance if frames > 1 else 1), total - span + 1


def _check_numbers(batch_size: int, rank: int, world_size: int, prefetch: int) -> None:
    if batch_size < 1 or prefetch < 0:
        raise InputError(
            f"batch_size is {batch_size} and prefetch {prefetch}; they must be at least 1 and 0."
        )
    if not 0 <= rank < world_size:
        raise InputError(
            f"rank is {rank} of world_size {world_size}; it must be 0 to {world_size - 1}."
        )
    if batch_size % world_size:
        raise InputError(
            f"batch_size {batch_size} is over all ranks and does not divide by world_size {world_size}. "
            f"Use a multiple of {world_size}."
        )
