"""Shards and manifest: interruption, refusals, and what `check` finds."""

import errno
import json
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cutslots import data, files
from cutslots.data import Manifest, Scene, shards
from cutslots.data.sources import scenes
from cutslots.errors import InputError

ASKED = Manifest(
    "made", {"files": {"raw.bin": 7}}, {"size": 8}, {"train": (0, 10), "val": (10, 14)}
)


def made(index: int, frames: tuple[int, ...] = ()) -> Scene:
    rng = np.random.default_rng(index)
    mask = rng.integers(0, 3, (*frames, 8, 8), np.uint8)
    image = rng.integers(0, 256, (*frames, 8, 8, 3), np.uint8)
    return Scene(f"made_{index}", image, mask, ({"k": 1}, {"k": 2}))


@pytest.fixture(autouse=True)
def four_scenes_a_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SHARD_BYTES", 4 * 8 * 8 * 4)


def write(
    out: Path, asked: Manifest = ASKED, error: BaseException | None = None, **options: Any
) -> tuple[Manifest, list[int]]:
    """Write `made` scenes; `error` is raised in place of scene 9. Also the scenes written."""
    written = []

    def read(done: dict[str, int]) -> Iterator[tuple[str, Scene]]:
        for name, (start, stop) in asked.ranges.items():
            for index in range(start + done[name], stop or 0):
                if error and index == 9:
                    raise error
                written.append(index)
                yield name, made(index)

    with shards.writing(out, asked, **options) as folder:
        if not folder.complete:
            folder.write(read(folder.done))
        return folder.finish(14), written


def interrupted(out: Path, error: BaseException | None = None) -> None:
    """Write two shards of four scenes, then fail."""
    error = error or RuntimeError()
    with pytest.raises(type(error)):
        write(out, error=error)


def contents(directory: Path) -> dict[str, tuple[int, bytes]]:
    paths = directory.glob("*.arrow")
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in paths}


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


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
    manifest, written = write(out)
    assert written == [8, 9, 10, 11, 12, 13]
    assert {name: contents(out)[name] for name in before} == before
    assert manifest.digest == write(tmp_path / "whole")[0].digest
    assert [entry.count for entry in manifest.shards] == [4, 4, 2, 4]
    assert data.check(out) == []


def test_leftovers_of_a_killed_writer_are_removed(tmp_path: Path) -> None:
    interrupted(tmp_path)
    (tmp_path / ".train-00002.arrow.99.tmp").write_bytes(b"half")
    (tmp_path / ".lock").touch()
    (tmp_path / "train-00001.arrow").unlink()
    assert write(tmp_path)[1] == list(range(4, 14))
    assert not list(tmp_path.glob(".*"))
    assert data.check(tmp_path) == []


def test_other_data_is_refused_with_the_differences(tmp_path: Path) -> None:
    other = replace(ASKED, raw={"files": {"raw.bin": 9}}, options={"size": 16})
    interrupted(tmp_path)
    size = r"options\.size is 8 in the folder, but 16"
    with pytest.raises(InputError, match=rf"{size} was requested\. Name"):
        write(tmp_path, other)  # not raw.bin: a damaged file may be replaced
    finished, _ = write(tmp_path)
    before = contents(tmp_path)
    assert write(tmp_path) == (finished, []), "a complete folder is left unchanged"
    with pytest.raises(InputError, match=rf"{size}.*raw\.files\.raw\.bin is 7 .* 9"):
        write(tmp_path, other)
    assert (Manifest.load(tmp_path), contents(tmp_path)) == (finished, before)
    for _ in range(2):  # overwrite also replaces a folder of equal data
        manifest, written = write(tmp_path, other, overwrite=True)
        assert (manifest.options, len(written)) == ({"size": 16}, 14)


def test_an_option_that_came_later_counts_as_its_default(tmp_path: Path) -> None:
    later = {"size": 8, "mode": "usual"}
    write(tmp_path)
    assert write(tmp_path, replace(ASKED, options=later), defaults=later)[1] == []
    with pytest.raises(InputError, match=r"options\.mode is usual in the folder, but rare"):
        write(tmp_path, replace(ASKED, options={**later, "mode": "rare"}), defaults=later)


def test_folders_with_other_files_are_not_touched(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        write(tmp_path / "out", replace(ASKED, ranges={"train": (9, 10)}), RuntimeError())
    assert names(tmp_path) == [], "a run without a shard leaves nothing"
    (tmp_path / "thesis.tex").touch()
    for overwrite in (False, True):
        with pytest.raises(InputError, match=r"contains other files \(thesis\.tex\)"):
            write(tmp_path, overwrite=overwrite)
    with pytest.raises(InputError, match="cannot be created"):
        write(tmp_path / "thesis.tex/out")
    assert names(tmp_path) == ["thesis.tex"]


def test_only_one_writer_at_a_time(tmp_path: Path) -> None:
    with (
        shards.writing(tmp_path, ASKED),
        pytest.raises(InputError, match="another process is preparing data"),
    ):
        write(tmp_path)
    assert not tmp_path.exists()


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
        write(tmp_path / "out")
    if name == "write_text":
        assert names(tmp_path) == [], "a shard that progress.json does not name is removed"


def test_clips_have_a_leading_time_axis(tmp_path: Path) -> None:
    clips = [("train", made(index, frames=(3,))) for index in range(4)]
    asked = Manifest("clips", {}, {}, {"train": (0, 5)})
    message = r"made_4 has shape \(4, 8, 8\), .* \(3, 8, 8\)"
    with shards.writing(tmp_path, asked) as folder, pytest.raises(InputError, match=message):
        folder.write([*clips, ("train", made(4, frames=(4,)))])
    with shards.writing(tmp_path, asked) as folder:
        folder.write(clips[folder.done["train"] :])
        manifest = folder.finish(5)
    assert (manifest.frame_shape, manifest.image_size) == ((3, 8, 8), (8, 8))
    assert data.check(tmp_path) == []
    batch = data.Batches(tmp_path, "train", 2, shuffle=False).batch(0, 1)
    np.testing.assert_array_equal(batch.masks[1].numpy(), clips[3][1].mask)


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
    words = ("damaged: its SHA-256", "missing", "damaged", "not in the manifest")
    for number, word, problem in zip((0, 1, 2, 99), words, problems, strict=True):
        assert f"train-{number:05d}.arrow is {word}" in problem
    with pytest.raises(InputError, match=r"train-00001\.arrow is unusable: .*No such file"):
        data.Batches(copy, "train", 4)


def test_check_compares_records_with_the_manifest(tmp_path: Path) -> None:
    write(tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest, "max_objects": 1}))
    problems = data.check(tmp_path)
    assert len(problems) == 14
    assert "mask id 2, but max_objects is 1" in problems[0]


@pytest.mark.parametrize(
    ("folder", "text", "message"),
    [
        ("absent", None, "does not exist"),
        ("", None, r"has no manifest\.json"),
        ("", '{"schema_version": 99}', "schema version 99, this cutslots reads version 1"),
        ("", "{}", "is damaged"),
        ("", "[", "is damaged"),
    ],
)
def test_unusable_manifests_are_refused(tmp_path, folder, text, message) -> None:
    if text:
        (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(InputError, match=message):
        data.check(tmp_path / folder)


@pytest.mark.parametrize(
    ("raw", "out", "options", "splits", "message"),
    [
        (".", "out", None, None, "generates its scenes; got raw"),
        (None, "out", object(), None, r"must be sources\.scenes\.Options, got object"),
        (None, "out", scenes.Options(size=3), None, "size .*3"),
        (None, "out", scenes.Options(count=20, size=16), {"late": (50, 60)}, "20 records.* 50"),
        (None, "s3://bucket/out", None, None, r"got s3://bucket/out.*aws s3 sync"),
    ],
)
def test_prepare_refuses_unusable_arguments(tmp_path, raw, out, options, splits, message) -> None:
    with pytest.raises(InputError, match=message):
        data.prepare("scenes", raw, out if "://" in out else tmp_path / out, options, splits)
    assert names(tmp_path) == []
