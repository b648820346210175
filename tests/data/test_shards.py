"""Shards and manifest: interruption, refusals, and what `check` finds."""

import dataclasses
import errno
import json
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cutslots import data, files
from cutslots.data import shards
from cutslots.data.record import Scene
from cutslots.data.shards import Info
from cutslots.data.sources import scenes
from cutslots.errors import InputError

RANGES: Any = {"train": (0, 10), "val": (10, 14)}
INFO = Info("made", {"files": {"raw.bin": 7}}, {"size": 8}, RANGES)


def made(index: int, frames: tuple[int, ...] = ()) -> Scene:
    rng = np.random.default_rng(index)
    mask = rng.integers(0, 3, (*frames, 8, 8), np.uint8)
    image = rng.integers(0, 256, (*frames, 8, 8, 3), np.uint8)
    return Scene(f"made_{index}", image, mask, ({"k": 1}, {"k": 2}))


class Read:
    """Yields `made` scenes and counts them; raises `fail[1]` in place of scene `fail[0]`."""

    def __init__(self, *fail: int | BaseException):
        self.fail, self.yielded, self.done = fail, 0, {}

    def __call__(self, done: dict[str, int]) -> Iterator[tuple[str, Scene]]:
        self.done = done
        for name, (start, stop) in RANGES.items():
            for index in range(start + done[name], stop):
                if self.fail and self.fail[0] == index:
                    raise self.fail[1]  # pyright: ignore
                self.yielded += 1
                yield name, made(index)


def interrupted(out: Path, error: BaseException | None = None) -> None:
    """Write two shards of four scenes, then fail."""
    error = error or RuntimeError()
    with pytest.raises(type(error)):
        shards.write(Read(9, error), out, INFO, scenes_per_shard=4)


def contents(directory: Path) -> dict[str, tuple[int, bytes]]:
    paths = directory.glob("*.arrow")
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in paths}


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_scenes_are_written_and_read(tmp_path: Path) -> None:
    manifest = shards.write(Read(), tmp_path, INFO, scenes_per_shard=4)
    assert manifest == data.Manifest.load(tmp_path)
    assert [shard.count for shard in manifest.split("train").shards] == [4, 4, 2]
    assert (manifest.image_size, manifest.max_objects) == ((8, 8), 2)
    assert json.loads((tmp_path / "manifest.json").read_text())["splits"]["train"]["count"] == 10
    files_of_train = [f"train-0000{number}.arrow" for number in range(3)]
    assert names(tmp_path) == ["manifest.json", *files_of_train, "val-00000.arrow"]
    shard = shards.Shard(tmp_path, manifest.split("val").shards[0], (8, 8))
    assert shard.records.column("id").to_pylist() == [f"made_{index}" for index in range(10, 14)]
    assert shard.records.column("num_objects").to_pylist() == [2] * 4
    np.testing.assert_array_equal(shard.masks, [made(index).mask for index in range(10, 14)])
    assert data.check(tmp_path) == []


@pytest.mark.parametrize("error", [InputError("bad"), KeyboardInterrupt(), RuntimeError("any")])
def test_interruption_keeps_shards_and_a_rerun_continues(
    tmp_path: Path, error: BaseException
) -> None:
    out = tmp_path / "out"
    interrupted(out, error)
    before = contents(out)
    assert names(out) == ["progress.json", "train-00000.arrow", "train-00001.arrow"]
    with pytest.raises(InputError, match="half prepared"):
        data.Batches(out, "train", 2)
    again = Read()
    manifest = shards.write(again, out, INFO, scenes_per_shard=4)
    assert (again.done, again.yielded) == ({"train": 8, "val": 0}, 6)
    assert {name: contents(out)[name] for name in before} == before
    whole = shards.write(Read(), tmp_path / "whole", INFO, scenes_per_shard=4)
    assert manifest.digest == whole.digest
    assert data.check(out) == []


def test_a_run_without_a_shard_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        shards.write(Read(2, RuntimeError()), tmp_path / "out", INFO)
    assert names(tmp_path) == []


def test_a_complete_folder_is_left_unchanged(tmp_path: Path) -> None:
    first = shards.write(Read(), tmp_path, INFO)
    before, seen, again = contents(tmp_path), [], Read()
    assert first == shards.write(again, tmp_path, INFO, progress=lambda *args: seen.append(args))
    assert (again.yielded, contents(tmp_path)) == (0, before)
    assert seen == [("train", 10, 10), ("val", 4, 4)]


def test_other_data_is_refused_with_the_differences(tmp_path: Path) -> None:
    other = Info("made", {"files": {"raw.bin": 9}}, {"size": 16}, RANGES)
    interrupted(tmp_path)
    size = r"options\.size is 8 in the folder, but 16"
    with pytest.raises(InputError, match=rf"{size} was requested\. Name"):
        shards.write(Read(), tmp_path, other)  # not raw.bin: a damaged file may be replaced
    finished = shards.write(Read(), tmp_path, INFO, scenes_per_shard=4)
    with pytest.raises(InputError, match=rf"{size}.*raw\.files\.raw\.bin is 7 .* 9"):
        shards.write(Read(), tmp_path, other)
    assert data.Manifest.load(tmp_path) == finished
    for _ in range(2):  # overwrite also replaces a folder of equal data
        again = Read()
        assert shards.write(again, tmp_path, other, overwrite=True).options == {"size": 16}
        assert again.yielded == 14
        assert sorted(contents(tmp_path)) == ["train-00000.arrow", "val-00000.arrow"]


def test_an_option_that_came_later_counts_as_its_default(tmp_path: Path) -> None:
    later = {"size": 8, "mode": "usual"}
    shards.write(Read(), tmp_path, INFO)
    again = Read()
    shards.write(again, tmp_path, dataclasses.replace(INFO, options=later, defaults=later))
    assert again.yielded == 0
    rare = dataclasses.replace(INFO, options={**later, "mode": "rare"}, defaults=later)
    with pytest.raises(InputError, match=r"options\.mode is usual in the folder, but rare"):
        shards.write(Read(), tmp_path, rare)


def test_folders_with_other_files_are_not_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    for overwrite in (False, True):
        with pytest.raises(InputError, match=r"contains other files \(thesis\.tex\)"):
            shards.write(Read(), tmp_path, INFO, overwrite=overwrite)
    for out in ("thesis.tex", "thesis.tex/out"):
        with pytest.raises(InputError, match="cannot be created"):
            shards.write(Read(), tmp_path / out, INFO)
    assert names(tmp_path) == ["thesis.tex"]


def test_only_one_writer_at_a_time(tmp_path: Path) -> None:
    def read(done: dict[str, int]) -> Iterator[tuple[str, Scene]]:
        with pytest.raises(InputError, match="another process is preparing data"):
            shards.write(Read(), tmp_path, INFO)
        yield from Read()(done)

    shards.write(read, tmp_path, INFO)
    assert data.check(tmp_path) == []
    assert ".lock" not in names(tmp_path)


def test_leftovers_of_a_killed_writer_are_removed(tmp_path: Path) -> None:
    interrupted(tmp_path)
    (tmp_path / ".train-00002.arrow.99.tmp").write_bytes(b"half")
    (tmp_path / ".lock").touch()
    (tmp_path / "train-00001.arrow").unlink()
    again = Read()
    shards.write(again, tmp_path, INFO, scenes_per_shard=4)
    assert again.done == {"train": 4, "val": 0}
    assert not list(tmp_path.glob(".*"))
    assert data.check(tmp_path) == []


DISK_FULL = """
import resource, sys
from cutslots import data
from cutslots.data.sources import scenes
from cutslots.errors import InputError
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    data.prepare("scenes", None, sys.argv[1], scenes.Options(count=60, size=32), workers=1)
except InputError as error:
    print("refused:", error)
"""


def test_a_full_disk_keeps_the_finished_shards(tmp_path: Path) -> None:
    """A limit on the size of a file makes the kernel refuse the write, as a full disk does."""
    out = tmp_path / "out"
    command = [sys.executable, "-c", DISK_FULL, str(out)]
    text = subprocess.check_output([*command, "60000"], text=True)
    assert "refused: disk full" in text
    assert "test 6 scenes, val 6 scenes, train 0 scenes" in text
    assert names(out) == ["progress.json", "test-00000.arrow", "val-00000.arrow"]
    assert subprocess.check_output([*command, str(resource.RLIM_INFINITY)], text=True) == ""
    assert data.check(out) == []


@pytest.mark.parametrize(
    ("name", "number", "kind"),
    [("sha256", errno.ENOSPC, InputError), ("sha256", errno.EIO, OSError),
     ("write_text", errno.ENOSPC, InputError)],
)  # fmt: skip
def test_only_a_full_disk_is_an_input_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, number: int, kind: type
) -> None:
    def refuse(*args: object) -> None:
        raise OSError(number, "from the file layer")

    monkeypatch.setattr(files, name, refuse)
    with pytest.raises(kind):
        shards.write(Read(), tmp_path / "out", INFO)
    if name == "write_text":
        assert names(tmp_path) == [], "a shard that progress.json does not name is removed"


def test_clips_have_a_leading_time_axis(tmp_path: Path) -> None:
    def read(done: dict[str, int]) -> Iterator[tuple[str, Scene]]:
        yield from (("train", made(index, frames=(3,))) for index in range(4))
        if long:
            yield "train", made(4, frames=(4,))

    info, long = Info("clips", {}, {}, {"train": (0, 5)}), True
    with pytest.raises(InputError, match=r"made_4 has shape \(4, 8, 8\), .* \(3, 8, 8\)"):
        shards.write(read, tmp_path, info)
    long = False
    manifest = shards.write(read, tmp_path, info)
    assert (manifest.frame_shape, manifest.image_size) == ((3, 8, 8), (8, 8))
    assert data.check(tmp_path) == []
    batch = data.Batches(tmp_path, "train", 2, shuffle=False).batch(0, 1)
    assert batch.images.shape == (2, 3, 8, 8, 3)
    np.testing.assert_array_equal(batch.masks[1].numpy(), made(3, frames=(3,)).mask)


@pytest.fixture
def copy(prepared: Path, tmp_path: Path) -> Path:
    return shutil.copytree(prepared, tmp_path / "copy")


def test_check_finds_damaged_missing_and_unknown_shards(copy: Path) -> None:
    assert data.check(copy) == []
    flipped, missing, short = (copy / f"train-0000{number}.arrow" for number in range(3))
    content = bytearray(flipped.read_bytes())
    content[len(content) // 2] ^= 1
    flipped.write_bytes(content)
    missing.unlink()
    short.write_bytes(short.read_bytes()[:-100])
    (copy / "train-00099.arrow").touch()
    problems = data.check(copy)
    assert len(problems) == 4
    words = ("damaged: its SHA-256", "missing", "damaged", "not in the manifest")
    for number, word, problem in zip((0, 1, 2, 99), words, problems, strict=True):
        assert f"train-{number:05d}.arrow is {word}" in problem
    with pytest.raises(InputError, match=r"train-00001\.arrow is missing"):
        data.Batches(copy, "train", 4)


def test_check_compares_records_with_the_manifest(tmp_path: Path) -> None:
    shards.write(Read(), tmp_path, INFO)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest, "max_objects": 1}))
    problems = data.check(tmp_path)
    assert len(problems) == 14
    assert "mask id 2, but max_objects is 1" in problems[0]


def test_unusable_manifests_are_refused(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    manifest = json.loads((copy / "manifest.json").read_text())
    newer = json.dumps({**manifest, "schema_version": 99})
    for folder, text, message in (
        (copy / "absent", None, "does not exist"),
        (tmp_path / "empty", None, r"has no manifest\.json"),
        (copy, newer, "schema version 99, this cutslots reads version 1"),
        (copy, "{}", "is damaged"),
        (copy, "[", "is damaged"),
    ):
        if text:
            (folder / "manifest.json").write_text(text)
        with pytest.raises(InputError, match=message):
            data.check(folder)


def test_digest_depends_on_the_content_only(tmp_path: Path) -> None:
    digests = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        options = scenes.Options(count=10, size=16, seed=seed)
        digests.append(data.prepare("scenes", None, tmp_path / name, options).digest)
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize(
    ("raw", "out", "options", "splits", "message"),
    [
        (".", "out", None, None, "generates its scenes; got raw"),
        (None, "out", object(), None, r"must be sources\.scenes\.Options, got object"),
        (None, "out", scenes.Options(size=3), None, "size is 3|size .*3"),
        (None, "out", scenes.Options(count=20, size=16), {"late": (50, 60)}, "20 records.* 50"),
        (None, "s3://bucket/out", None, None, r"got s3://bucket/out.*aws s3 sync"),
    ],
)
def test_prepare_refuses_unusable_arguments(tmp_path, raw, out, options, splits, message) -> None:
    with pytest.raises(InputError, match=message):
        data.prepare("scenes", raw, out if "://" in out else tmp_path / out, options, splits)
    assert names(tmp_path) == []
