"""Shards and manifest: what survives interruption, what is refused, what `check` finds."""

import dataclasses
import errno
import json
import resource
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import numpy as np
import pytest

from cutslots import data, files
from cutslots.data import reading, shards
from cutslots.data.scene import Scene
from cutslots.data.sources import scenes
from cutslots.errors import InputError

INFO = shards.Info(
    "made", {"files": {"raw.bin": 7}}, {"size": 8}, {"train": (0, 10), "val": (10, 14)}
)


def made(index: int, frames: tuple[int, ...] = ()) -> Scene:
    rng = np.random.default_rng(index)
    mask = rng.integers(0, 3, (*frames, 8, 8), np.uint8)
    return Scene(
        f"made_{index}",
        rng.integers(0, 256, (*frames, 8, 8, 3), np.uint8),
        mask,
        ({"k": 1}, {"k": 2}),
    )


class Source:
    """Yields `made` scenes and remembers what it was asked for; `fail` comes up instead of the scene of that number."""

    def __init__(self, fail: tuple[int, BaseException] | None = None):
        self.fail, self.yielded, self.asked = fail, 0, {}

    def __call__(self, done: dict[str, int]) -> Generator[tuple[str, Scene], None, int]:
        self.asked = done
        for name, (start, stop) in INFO.ranges.items():
            assert stop is not None
            for index in range(start + done[name], stop):
                if self.fail and self.fail[0] == index:
                    raise self.fail[1]
                self.yielded += 1
                yield name, made(index)
        return 14


def contents(directory: Path) -> dict[str, tuple[int, bytes]]:
    return {
        path.name: (path.stat().st_mtime_ns, path.read_bytes())
        for path in directory.glob("*.arrow")
    }


def test_what_is_written_is_read(tmp_path: Path) -> None:
    manifest = shards.write(Source(), tmp_path / "out", INFO, scenes_per_shard=4)
    assert manifest == data.Manifest.load(tmp_path / "out")
    assert [shard.count for shard in manifest.split("train").shards] == [4, 4, 2]
    assert manifest.image_size == (8, 8)
    assert manifest.max_objects == 2
    assert (
        json.loads((tmp_path / "out/manifest.json").read_text())["splits"]["train"]["count"] == 10
    )
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "manifest.json",
        *(f"train-0000{number}.arrow" for number in range(3)),
        "val-00000.arrow",
    ]
    shard = reading.Shard(tmp_path / "out", manifest.split("val").shards[0], (8, 8))
    assert shard.records.column("id").to_pylist() == [f"made_{index}" for index in range(10, 14)]
    assert shard.records.column("num_objects").to_pylist() == [2] * 4
    np.testing.assert_array_equal(shard.masks, [made(index).mask for index in range(10, 14)])
    assert data.check(tmp_path / "out") == []


@pytest.mark.parametrize("error", [InputError("corrupt"), KeyboardInterrupt(), RuntimeError("any")])
def test_interruption_keeps_finished_shards_and_a_rerun_continues(
    tmp_path: Path, error: BaseException
) -> None:
    out, whole = tmp_path / "out", tmp_path / "whole"
    with pytest.raises(type(error)):
        shards.write(Source(fail=(9, error)), out, INFO, scenes_per_shard=4)
    before = contents(out)
    assert sorted(path.name for path in out.iterdir()) == [
        "progress.json",
        "train-00000.arrow",
        "train-00001.arrow",
    ]
    with pytest.raises(
        InputError, match=r"half prepared\. Run the same prepare command again to continue"
    ):
        data.Batches(out, "train", 2)
    again = Source()
    manifest = shards.write(again, out, INFO, scenes_per_shard=4)
    assert again.asked == {"train": 8, "val": 0}
    assert again.yielded == 6
    assert {name: contents(out)[name] for name in before} == before, (
        "finished shards are not written again"
    )
    assert manifest.digest == shards.write(Source(), whole, INFO, scenes_per_shard=4).digest
    assert data.check(out) == []


def test_nothing_is_left_of_a_run_without_a_shard(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        shards.write(Source(fail=(2, RuntimeError())), tmp_path / "out", INFO)
    assert list(tmp_path.iterdir()) == []


def test_a_complete_folder_is_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = shards.write(Source(), tmp_path, INFO)
    before, seen, again = contents(tmp_path), [], Source()
    with caplog.at_level("INFO"):
        assert (
            shards.write(again, tmp_path, INFO, progress=lambda *report: seen.append(report))
            == first
        )
    assert "already complete: train 10 scenes, val 4 scenes" in caplog.text
    assert (again.yielded, contents(tmp_path)) == (0, before)
    assert seen == [("train", 10, 10), ("val", 4, 4)]


def test_other_data_is_refused_with_what_differs(tmp_path: Path) -> None:
    other = shards.Info("made", {"files": {"raw.bin": 9}}, {"size": 16}, INFO.ranges)
    with pytest.raises(RuntimeError):
        shards.write(Source(fail=(9, RuntimeError())), tmp_path, INFO, scenes_per_shard=4)
    message = r"options\.size is 8 there, 16 now"
    with pytest.raises(
        InputError, match=rf"{message}\. Name"
    ):  # a raw file that was mended has another size
        shards.write(Source(), tmp_path, other)
    finished = shards.write(Source(), tmp_path, INFO, scenes_per_shard=4)
    with pytest.raises(InputError, match=rf"{message}; raw\.files\.raw\.bin is 7 there, 9 now"):
        shards.write(Source(), tmp_path, other)
    assert data.Manifest.load(tmp_path) == finished
    assert shards.write(Source(), tmp_path, other, overwrite=True).options == {"size": 16}
    assert sorted(contents(tmp_path)) == ["train-00000.arrow", "val-00000.arrow"], (
        "no shard of the old data is left"
    )
    again = Source()
    shards.write(again, tmp_path, other, overwrite=True)
    assert again.yielded == 14, "overwrite mends a damaged folder of the same data too"


def test_an_option_that_came_later_counts_as_its_default(tmp_path: Path) -> None:
    later = {"size": 8, "mode": "usual"}
    shards.write(Source(), tmp_path, INFO)
    again = Source()
    shards.write(again, tmp_path, dataclasses.replace(INFO, options=later, defaults=later))
    assert again.yielded == 0
    with pytest.raises(InputError, match=r"options\.mode is usual there, rare now"):
        shards.write(
            Source(),
            tmp_path,
            dataclasses.replace(INFO, options={**later, "mode": "rare"}, defaults=later),
        )


def test_folders_of_others_are_not_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    for overwrite in (False, True):
        with pytest.raises(InputError, match=r"holds other files \(thesis\.tex\)"):
            shards.write(Source(), tmp_path, INFO, overwrite=overwrite)
    with pytest.raises(InputError, match="cannot be made a folder"):
        shards.write(Source(), tmp_path / "thesis.tex", INFO)
    with pytest.raises(InputError, match="cannot be made a folder"):
        shards.write(Source(), tmp_path / "thesis.tex/out", INFO)


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    def read(done: dict[str, int]) -> Generator[tuple[str, Scene], None, int]:
        with pytest.raises(InputError, match="another process is preparing data"):
            shards.write(Source(), tmp_path, INFO)
        return (yield from Source()(done))

    shards.write(read, tmp_path, INFO)
    assert data.check(tmp_path) == []


def test_what_a_killed_writer_left_is_swept(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        shards.write(Source(fail=(9, RuntimeError())), tmp_path, INFO, scenes_per_shard=4)
    (tmp_path / ".train-00002.arrow.99.tmp").write_bytes(b"half")
    (tmp_path / "train-00001.arrow").unlink()
    again = Source()
    shards.write(again, tmp_path, INFO, scenes_per_shard=4)
    assert again.asked == {"train": 4, "val": 0}
    assert not list(tmp_path.glob(".*"))
    assert data.check(tmp_path) == []


DISK_FULL = """
import resource, sys
from cutslots import data
from cutslots.data.sources import scenes
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    data.prepare("scenes", None, sys.argv[1], scenes.Options(count=60, size=32))
except data.InputError as error:
    print("refused:", error)
"""


def test_a_full_disk_is_the_users_to_mend(tmp_path: Path) -> None:
    """A limit on the size of a file makes the kernel refuse the write, as a full disk does."""
    command = [sys.executable, "-c", DISK_FULL, str(tmp_path / "out")]
    told = subprocess.run([*command, "60000"], capture_output=True, text=True, check=True).stdout
    assert "refused: no room left to write" in told
    assert "Kept so far: test 6 scenes, val 6 scenes, train 0 scenes" in told
    assert "run the same command again" in told
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "progress.json",
        "test-00000.arrow",
        "val-00000.arrow",
    ]
    told = subprocess.run(
        [*command, str(resource.RLIM_INFINITY)], capture_output=True, text=True, check=True
    ).stdout
    assert told == ""
    assert data.check(tmp_path / "out") == []


def test_enospc_is_reported_as_a_full_disk_and_other_faults_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, kind in ((errno.ENOSPC, InputError), (errno.EIO, OSError)):

        def refuse(path: Path, number: int = number) -> str:
            raise OSError(number, "from the file layer")

        monkeypatch.setattr(files, "sha256", refuse)
        with pytest.raises(kind):
            shards.write(Source(), tmp_path / str(number), INFO)


def test_clips_have_a_time_axis_in_front(tmp_path: Path) -> None:
    info = shards.Info("clips", {}, {}, {"train": (0, 4)})

    def read(done: dict[str, int]) -> Generator[tuple[str, Scene], None, int]:
        for index in range(4):
            yield "train", made(index, frames=(3,))
        return 4

    manifest = shards.write(read, tmp_path, info)
    assert (manifest.frame_shape, manifest.image_size) == ((3, 8, 8), (8, 8))
    assert data.check(tmp_path) == []
    batch = data.Batches(tmp_path, "train", 2, shuffle=False).batch(0, 1)
    assert batch.images.shape == (2, 3, 8, 8, 3)
    np.testing.assert_array_equal(batch.masks[1].numpy(), made(3, frames=(3,)).mask)
    small, mask = data.Preparation(size=8).apply(
        made(3, frames=(3,)).image, made(3, frames=(3,)).mask
    )
    assert (small.shape, mask.shape) == ((3, 8, 8, 3), (3, 8, 8))


@pytest.fixture
def copy(prepared: Path, tmp_path: Path) -> Path:
    for path in prepared.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def test_check_finds_a_flipped_byte_and_a_missing_shard(copy: Path) -> None:
    assert data.check(copy) == []
    flipped, missing, short = (copy / f"train-0000{number}.arrow" for number in range(3))
    content = bytearray(flipped.read_bytes())
    content[len(content) // 2] ^= 1
    flipped.write_bytes(content)
    missing.unlink()
    short.write_bytes(short.read_bytes()[:-100])
    (copy / "train-00099.arrow").touch()
    found = "\n".join(data.check(copy))
    assert "train-00000.arrow is damaged: its SHA-256 is not the manifest's" in found
    assert "train-00001.arrow is missing" in found
    assert "train-00002.arrow is damaged" in found
    assert "train-00099.arrow is not in the manifest" in found
    assert len(found.splitlines()) == 4
    with pytest.raises(InputError, match=r"train-00001\.arrow is missing"):
        data.Batches(copy, "train", 4)


def test_check_compares_records_with_themselves(tmp_path: Path) -> None:
    shards.write(Source(), tmp_path, INFO)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest, "max_objects": 1}))
    found = data.check(tmp_path)
    assert len(found) == 14
    assert "mask id 2; max_objects is 1" in found[0]


def test_manifests_that_cannot_be_used(
    copy: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with pytest.raises(InputError, match="does not exist"):
        data.Manifest.load(copy / "absent")
    with pytest.raises(InputError, match=r"has no manifest\.json"):
        data.Manifest.load(tmp_path_factory.mktemp("empty"))
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps({**manifest, "schema_version": 99}))
    with pytest.raises(InputError, match="schema version 99, this cutslots reads version 1"):
        data.check(copy)
    (copy / "manifest.json").write_text("{}")
    with pytest.raises(InputError, match="is damaged"):
        data.check(copy)


def test_digest_is_of_the_content(tmp_path: Path) -> None:
    digests = [
        data.prepare(
            "scenes", None, tmp_path / name, scenes.Options(count=10, size=16, seed=seed)
        ).digest
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    assert digests[0] == digests[1] != digests[2]


def test_prepare_refuses_what_it_cannot_do(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="makes its scenes itself"):
        data.prepare("scenes", tmp_path, tmp_path / "out")
    with pytest.raises(InputError, match=r"takes sources\.scenes\.Options"):
        data.prepare("scenes", None, tmp_path / "out", data.Preparation())
    with pytest.raises(InputError, match="size is 3"):
        data.prepare("scenes", None, tmp_path / "out", scenes.Options(size=3))
    with pytest.raises(InputError, match="scenes has 20 records, late starts at record 50"):
        data.prepare(
            "scenes", None, tmp_path / "out", scenes.Options(count=20, size=16), {"late": (50, 60)}
        )


def test_a_shard_that_progress_does_not_name_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, text: str) -> None:
        raise OSError(errno.ENOSPC, "from the file layer")

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_text", refuse)
        with pytest.raises(InputError, match="Kept so far: train 0 scenes, val 0 scenes"):
            shards.write(Source(), tmp_path / "out", INFO, scenes_per_shard=4)
    assert list(tmp_path.iterdir()) == []
