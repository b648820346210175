"""Batches: a pure function of (seed, epoch, step, rank)."""

import gc
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cutslots.data import Batch, Batches, Manifest, Scene, shards
from cutslots.data.sources import scenes
from cutslots.errors import InputError


def same(first: list[Batch], second: list[Batch]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a.images, b.images)
        and torch.equal(a.masks, b.masks)
        and np.array_equal(a.index, b.index)
        for a, b in zip(first, second, strict=True)
    )


def test_a_batch_contains_the_scenes_of_its_index(prepared: Path) -> None:
    batches = Batches(prepared, "train", 24, seed=5)
    assert (batches.num_scenes, batches.steps_per_epoch) == (160, 6)
    assert (batches.image_size, batches.manifest.max_objects) == ((32, 32), 3)
    batch = batches.batch(3, 2)
    order = np.random.default_rng((5, 3)).permutation(160)
    np.testing.assert_array_equal(batch.index, order[48:72])
    assert batch.images.dtype == batch.masks.dtype == torch.uint8
    assert batch.images.shape == (24, 32, 32, 3)
    for row, position in enumerate(batch.index):
        scene = scenes.render(40 + int(position), scenes.Options(count=200, size=32))
        np.testing.assert_array_equal(batch.images[row].numpy(), scene.image)
        np.testing.assert_array_equal(batch.masks[row].numpy(), scene.mask)
        assert batches.ids([position]) == [scene.id]
        assert batches.metadata([position]) == [list(scene.objects)]


def test_batches_depend_on_seed_and_epoch_only(prepared: Path) -> None:
    first, again = (Batches(prepared, "train", 32, seed=1) for _ in range(2))
    whole = list(first.epoch(4))
    assert same(whole, list(again.epoch(4)))
    list(again.epoch(7))
    again.batch(4, 2).images.zero_()
    assert same([whole[2]], [again.batch(4, 2)]), "a batch has its own memory"
    assert not same(whole, list(first.epoch(5)))
    assert not same(whole, list(Batches(prepared, "train", 32, seed=2).epoch(4)))


@pytest.mark.parametrize("prefetch", [0, 1, 3, 50])
def test_resume_and_prefetch_change_nothing(prepared: Path, prefetch: int) -> None:
    plain = list(Batches(prepared, "train", 16, prefetch=0).epoch(2))
    batches = Batches(prepared, "train", 16, prefetch=prefetch)
    for start in (0, 4, 10):
        assert same(list(batches.epoch(2, start)), plain[start:])


@pytest.mark.parametrize(("world_size", "batch_size"), [(1, 48), (2, 48), (3, 159), (4, 12)])
def test_evaluation_sees_every_scene_once(prepared: Path, world_size: int, batch_size: int) -> None:
    seen = []
    options: dict[str, Any] = {"world_size": world_size, "shuffle": False, "drop_last": False}
    for rank in range(world_size):
        for batch in Batches(prepared, "train", batch_size, rank=rank, **options).epoch(0):
            assert 0 < len(batch.index) == len(batch.images)
            seen += batch.index.tolist()
    assert sorted(seen) == list(range(160))


def test_the_thread_stops_with_its_iterator(prepared: Path) -> None:
    before = threading.active_count()
    iterator = Batches(prepared, "train", 8).epoch(0)
    next(iterator)
    assert threading.active_count() == before + 1
    del iterator
    gc.collect()
    assert threading.active_count() == before


def test_errors_in_the_thread_reach_the_caller(prepared: Path, tmp_path: Path) -> None:
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    batches = Batches(tmp_path, "train", 8)
    for path in tmp_path.glob("train-*"):
        path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match="was truncated while in use"):
        list(batches.epoch(0))


def clip(index: int) -> Scene:
    """Six frames of 8 x 8; every byte is 10 times the clip plus the frame."""
    stamp = np.uint8(10 * index) + np.arange(6, dtype=np.uint8)
    image = np.broadcast_to(stamp[:, None, None, None], (6, 8, 8, 3)).copy()
    return Scene(f"clip_{index}", image, image[..., 0].copy() % 3, ({"clip": index}, {}))


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("clips") / "set"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "SHARD_BYTES", 3 * clip(0).image.nbytes * 4 // 3)
        with shards.writing(directory, Manifest("clips", {}, {}, {"train": (0, 7)})) as writer:
            writer.write(("train", clip(index)) for index in range(7))
            writer.finish(7)
    return directory


@pytest.mark.parametrize(("frames", "batch_size"), [(None, 20), (2, 10)])
@pytest.mark.parametrize("world_size", [2, 5])
def test_ranks_share_the_global_batch_in_order(
    prepared: Path, clips: Path, frames: int | None, batch_size: int, world_size: int
) -> None:
    folder = clips if frames else prepared
    whole = list(Batches(folder, "train", batch_size, frames=frames).epoch(1))
    ranks = (
        Batches(folder, "train", batch_size, frames=frames, world_size=world_size, rank=rank)
        for rank in range(world_size)
    )
    for one, *parts in zip(whole, *(rank.epoch(1) for rank in ranks), strict=True):
        assert torch.equal(one.images, torch.cat([part.images for part in parts]))
        assert torch.equal(one.masks, torch.cat([part.masks for part in parts]))
        np.testing.assert_array_equal(one.index, np.concatenate([part.index for part in parts]))


def test_whole_clips(clips: Path) -> None:
    batches = Batches(clips, "train", 3, shuffle=False, drop_last=False)
    assert (batches.num_scenes, batches.num_frames, batches.image_size) == (7, 6, (8, 8))
    for batch in batches.epoch(0):
        for row, number in enumerate(batch.index):
            np.testing.assert_array_equal(batch.images[row].numpy(), clip(number).image)
            np.testing.assert_array_equal(batch.masks[row].numpy(), clip(number).mask)
        assert batches.ids(batch.index) == [f"clip_{number}" for number in batch.index]


@pytest.mark.parametrize("distance", [1, 2, 5])
def test_an_epoch_has_every_pair_of_every_clip_once(clips: Path, distance: int) -> None:
    batches = Batches(clips, "train", 1, frames=2, distance=distance, seed=3)
    assert (batches.num_scenes, batches.num_frames) == (7 * (6 - distance), 2)
    seen = set()
    for batch in batches.epoch(1):
        number, first = divmod(int(batch.images[0, 0, 0, 0, 0]), 10)
        pair = [first, first + distance]
        np.testing.assert_array_equal(batch.images[0].numpy(), clip(number).image[pair])
        np.testing.assert_array_equal(batch.masks[0].numpy(), clip(number).mask[pair])
        assert batches.ids(batch.index) == [f"clip_{number}[{first},{first + distance}]"]
        assert batches.metadata(batch.index)[0][0] == {"clip": number}
        seen.add((number, first))
    assert seen == {(number, first) for number in range(7) for first in range(6 - distance)}


def test_single_frames_have_no_time_axis(clips: Path, prepared: Path) -> None:
    batches = Batches(clips, "train", 42, frames=1, shuffle=False)
    assert (batches.num_scenes, batches.num_frames) == (42, None)
    batch = batches.batch(0, 0)
    for ours, name in ((batch.images, "image"), (batch.masks, "mask")):
        expected = np.concatenate([getattr(clip(number), name) for number in range(7)])
        np.testing.assert_array_equal(ours.numpy(), expected)
    assert batches.ids([0, 41]) == ["clip_0[0]", "clip_6[5]"]
    images, same_images = Batches(prepared, "train", 16), Batches(prepared, "train", 16, frames=1)
    assert same([images.batch(2, 1)], [same_images.batch(2, 1)])
    assert images.ids([3]) == same_images.ids([3])


@pytest.mark.parametrize(
    ("folder", "options", "message"),
    [
        ("prepared", {"batch_size": 161}, "161, but split 'train' of .* has 160 scenes"),
        ("prepared", {"batch_size": 16, "world_size": 3}, "multiple of world_size 3"),
        ("prepared", {"rank": 2, "world_size": 2}, "rank must be 0 to 1 .*got 2"),
        ("prepared", {"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ("prepared", {"split": "trian"}, r"unknown split 'trian'\. Did you mean 'train'"),
        ("prepared", {"frames": 2}, "span 2, but .* single images"),
        ("clips", {"frames": 2, "distance": 6}, "distance 6 span 7, but .* clips of 6 frames"),
        ("clips", {"frames": 0}, "frames must be at least 1, got 0"),
        ("clips", {"frames": 2, "distance": 0}, "distance must be at least 1, got 0"),
    ],
)
def test_unusable_arguments_are_refused(
    request: pytest.FixtureRequest, folder: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        Batches(request.getfixturevalue(folder), **{"split": "train", "batch_size": 1} | options)


def test_positions_out_of_range_are_refused(prepared: Path) -> None:
    batches = Batches(prepared, "train", 16)
    with pytest.raises(InputError, match=r"start must be 0 to 10 .*got 11"):
        batches.epoch(0, 11)
    with pytest.raises(InputError, match="step must be 0 to 9, got 10"):
        batches.batch(0, 10)
    with pytest.raises(InputError, match="index must be 0 to 159, got 160 to 160"):
        batches.ids([160])
