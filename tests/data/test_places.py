"""Raw data and prepared folders that lie on one of pyarrow's filesystems.

A subtree of the local disk stands in for a bucket: it is no `LocalFileSystem`, so everything goes the bucket's way.
"""

import errno
import fcntl
import json
import pickle
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from clevr_files import write_records
from clevrtex_files import write_tree
from movi_files import write_folder
from pyarrow import fs

from cutslots import data, files
from cutslots.cli import main
from cutslots.data import tfrecord
from cutslots.data.places import Place, is_uri
from cutslots.data.scene import Ranges
from cutslots.data.sources import clevr, clevrtex, movi_a, scenes
from cutslots.errors import InputError


def bucket(folder: Path, path: str = "set") -> Place:
    return Place(fs.SubTreeFileSystem(str(folder), fs.LocalFileSystem()), path)


def test_paths_and_uris(tmp_path: Path) -> None:
    assert Place.of(tmp_path).path == Place.of(f"file://{tmp_path}").path == str(tmp_path)
    assert Place.of(tmp_path) == Place.of(str(tmp_path))
    assert str(bucket(tmp_path) / "a") == "subtree://set/a"
    assert (bucket(tmp_path) / "a").name == "a"
    assert (bucket(tmp_path) / "a").parent == bucket(tmp_path)
    assert pickle.loads(pickle.dumps(bucket(tmp_path))) == bucket(tmp_path)
    assert [is_uri(text) for text in ("s3://a/b", "gs://a", "C:\\a", "a/b", "file:///a")] == [
        True,
        True,
        False,
        False,
        True,
    ]
    with pytest.raises(InputError, match="cannot reach nowhere://a/b"):
        Place.of("nowhere://a/b")


def test_tfrecords_of_a_bucket_are_read_and_skipped(tmp_path: Path) -> None:
    payloads = [bytes([number]) * 500_000 for number in range(6)]
    for zipped in (True, False):
        write_records(tmp_path / "file", payloads, zipped)
        assert list(tfrecord.records(bucket(tmp_path, "file"), 4)) == [
            (4, payloads[4]),
            (5, payloads[5]),
        ]
    (tmp_path / "file").write_bytes((tmp_path / "file").read_bytes()[:-9])
    with pytest.raises(InputError, match="subtree://file, record 5: the file ends inside"):
        list(tfrecord.records(bucket(tmp_path, "file"), 4))


def test_every_source_reads_from_a_bucket_what_it_reads_from_a_folder(
    clevr_file: Path, tmp_path: Path
) -> None:
    write_tree(tmp_path / "clevrtex", 10)
    write_folder(tmp_path / "movi")
    (tmp_path / "clevr").mkdir()
    (tmp_path / "clevr" / clevr_file.name).write_bytes(clevr_file.read_bytes())
    splits: Ranges = {"train": (0, 3), "val": (3, 5)}
    for source, folder, options in (
        ("clevr", "clevr", clevr.Options(size=16)),
        ("clevrtex", "clevrtex", clevrtex.Options(size=16)),
        ("movi_a", "movi", movi_a.Options(size=16)),
    ):
        here = data.prepare(source, tmp_path / folder, tmp_path / f"{source}_here", options, splits)
        there = data.prepare(
            source, bucket(tmp_path, folder), tmp_path / f"{source}_there", options, splits
        )
        uri = data.prepare(
            source, f"file://{tmp_path / folder}", tmp_path / f"{source}_uri", options, splits
        )
        assert here.digest == there.digest == uri.digest


def test_an_absent_bucket_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="subtree://set does not exist"):
        data.prepare("clevr", bucket(tmp_path), tmp_path / "out")
    with pytest.raises(InputError, match=r"subtree://set has no manifest\.json that can be read"):
        data.local(bucket(tmp_path))


def test_a_published_set_is_fetched_once_and_read(prepared: Path, tmp_path: Path) -> None:
    place = bucket(tmp_path)
    data.publish(prepared, place)
    data.publish(prepared, place)
    folder = data.local(place)
    assert folder == files.home() / "cache" / f"set-{data.Manifest.load(prepared).digest}"
    assert data.check(folder) == []
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    (folder / "val-00000.arrow").unlink()
    assert data.local(place) == folder
    assert {
        path.name: path.stat().st_mtime_ns
        for path in folder.iterdir()
        if path.name != "val-00000.arrow"
    } == {name: time for name, time in before.items() if name != "val-00000.arrow"}
    here, there = (
        data.Batches(prepared, "train", 20, seed=3),
        data.Batches(f"file://{tmp_path}/set", "train", 20, seed=3),
    )
    np.testing.assert_array_equal(here.batch(1, 2).images, there.batch(1, 2).images)
    assert data.local(prepared) == prepared


def test_damaged_copies_are_fetched_again_or_named(prepared: Path, tmp_path: Path) -> None:
    place = bucket(tmp_path)
    data.publish(prepared, place)
    cut, flipped = (data.local(place) / f"train-0000{number}.arrow" for number in range(2))
    cut.write_bytes(cut.read_bytes()[:-1])
    flipped.write_bytes(flipped.read_bytes()[:-1] + b"x")
    (problem,) = data.check(place)
    assert problem.startswith(f"{flipped} is damaged: its SHA-256")
    flipped.unlink()
    assert data.check(place) == []


def test_check_looks_at_the_place_itself(
    prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uri, there = f"file://{tmp_path}/set", tmp_path / "set"
    data.publish(prepared, uri)
    assert main(["check", uri]) == 0
    (there / "train-00000.arrow").unlink()
    (there / "train-00001.arrow").write_bytes(b"short")
    flipped = there / "train-00002.arrow"
    flipped.write_bytes(flipped.read_bytes()[:-1] + b"x")
    (there / "train-00099.arrow").touch()
    assert data.check(bucket(tmp_path)) == [
        "subtree://set/train-00000.arrow is missing",
        f"subtree://set/train-00001.arrow is damaged: 5 bytes, the manifest says {(prepared / 'train-00001.arrow').stat().st_size}",
        "subtree://set/train-00002.arrow is damaged: its SHA-256 is not the manifest's",
        "subtree://set/train-00099.arrow is not in the manifest",
    ]
    assert main(["check", uri]) == 1
    assert "4 problems" in capsys.readouterr().err
    data.publish(prepared, uri)
    assert len(data.check(uri)) == 2, "what has another size is put there again"
    data.publish(prepared, uri, overwrite=True)
    assert data.check(uri) == []
    assert sorted(path.name for path in there.iterdir()) == sorted(
        path.name for path in prepared.iterdir()
    )


def test_an_interrupted_upload_goes_on(prepared: Path, tmp_path: Path) -> None:
    there = tmp_path / "set"
    (there / "val-00000.arrow").mkdir(parents=True)  # in the way of the second shard
    with pytest.raises(InputError, match=rf"cannot write to subtree://set: .*stays in {prepared}"):
        data.publish(prepared, bucket(tmp_path))
    (there / "val-00000.arrow").rmdir()
    assert not (there / "manifest.json").exists()
    before = {path.name: path.stat().st_mtime_ns for path in there.glob("*.arrow")}
    assert before
    data.publish(prepared, bucket(tmp_path))
    assert {name: (there / name).stat().st_mtime_ns for name in before} == before
    assert data.check(bucket(tmp_path)) == []


def test_shards_of_another_sets_interrupted_upload_are_not_taken_over(
    prepared: Path, tmp_path: Path
) -> None:
    there = tmp_path / "set"
    data.publish(prepared, bucket(tmp_path))
    (there / "manifest.json").unlink()
    (there / "progress.json").write_text("{}")
    shard = there / "train-00000.arrow"
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    data.publish(prepared, bucket(tmp_path))
    assert data.check(bucket(tmp_path)) == []


def test_faults_of_a_place_are_the_users_to_mend(prepared: Path, tmp_path: Path) -> None:
    data.publish(prepared, bucket(tmp_path))
    shard = tmp_path / "set/train-00000.arrow"
    shard.unlink()
    shard.mkdir()  # it cannot be opened
    with pytest.raises(InputError, match=r"cannot fetch subtree://set/train-00000\.arrow"):
        data.local(bucket(tmp_path))


def test_several_processes_fetch_one_copy(prepared: Path, tmp_path: Path) -> None:
    data.publish(prepared, bucket(tmp_path))
    folders = []
    threads = [
        threading.Thread(target=lambda: folders.append(data.local(bucket(tmp_path))))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(folders)) == 1
    assert len(folders) == 4
    assert data.check(folders[0]) == []


def test_damage_on_the_way_is_refused(prepared: Path, tmp_path: Path) -> None:
    data.publish(prepared, bucket(tmp_path))
    shard = tmp_path / "set/train-00001.arrow"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1] + b"x")
    with pytest.raises(
        InputError, match=r"subtree://set/train-00001\.arrow is damaged: its SHA-256"
    ):
        data.local(bucket(tmp_path))
    folder = next((files.home() / "cache").iterdir())
    assert not (folder / "manifest.json").exists()
    assert not (folder / "train-00001.arrow").exists()
    shard.unlink()
    with pytest.raises(InputError, match=r"train-00001\.arrow is missing, though"):
        data.local(bucket(tmp_path))
    shard.write_bytes(whole)
    assert data.check(data.local(bucket(tmp_path))) == []


def test_other_data_is_not_published_over(prepared: Path, tmp_path: Path) -> None:
    data.publish(prepared, bucket(tmp_path))
    manifest = json.loads((tmp_path / "set/manifest.json").read_text())
    (tmp_path / "set/manifest.json").write_text(json.dumps({**manifest, "options": {"count": 1}}))
    with pytest.raises(InputError, match="already holds other prepared data"):
        data.publish(prepared, bucket(tmp_path))
    data.publish(prepared, bucket(tmp_path), overwrite=True)
    assert data.check(data.local(bucket(tmp_path))) == []


def test_a_place_that_cannot_be_used_is_told_before_the_work(tmp_path: Path) -> None:
    def begun(function: object, items: object) -> Iterator[object]:
        raise AssertionError("it works before it knows")

    data.prepare("scenes", None, f"file://{tmp_path}/set", scenes.Options(count=10, size=16))
    shutil.rmtree(files.home() / "cache")
    (tmp_path / "file").touch()
    for path, message in (
        ("set", "already holds other data: options.seed is 0 there, 1 now"),
        ("file/set", "cannot write to"),
    ):
        with pytest.raises(InputError, match=message):
            data.prepare(
                "scenes",
                None,
                f"file://{tmp_path}/{path}",
                scenes.Options(count=10, size=16, seed=1),
                map=begun,
            )


def test_links_to_what_was_removed_are_replaced(tmp_path: Path) -> None:
    options = scenes.Options(count=10, size=16)
    manifest = data.prepare("scenes", None, f"file://{tmp_path}/a/scenes", options)
    copy = files.home() / "cache" / f"scenes-{manifest.digest}"
    shutil.rmtree(copy.resolve())
    assert copy.is_symlink()
    data.prepare("scenes", None, f"file://{tmp_path}/b/scenes", options)
    assert data.check(copy) == []


def test_without_locks_it_is_fetched_all_the_same(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(handle: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    data.publish(prepared, bucket(tmp_path))
    monkeypatch.setattr(fcntl, "flock", refuse)
    assert data.check(data.local(bucket(tmp_path))) == []


def test_a_set_is_prepared_onto_a_uri(tmp_path: Path) -> None:
    uri, options = f"file://{tmp_path}/far/scenes", scenes.Options(count=20, size=16)
    manifest = data.prepare("scenes", None, uri, options)
    assert data.check(tmp_path / "far/scenes") == []
    shard = files.home() / "cache" / f"scenes-{manifest.digest}" / "train-00000.arrow"
    written = shard.stat().st_mtime_ns
    assert data.prepare("scenes", None, uri, options) == manifest
    assert data.local(uri) == shard.parent
    assert shard.stat().st_mtime_ns == written, "what was made here is not fetched"
    other = scenes.Options(count=20, size=16, seed=1)
    with pytest.raises(InputError, match="already holds other data"):
        data.prepare("scenes", None, uri, other)
    again = data.prepare("scenes", None, uri, other, overwrite=True)
    assert data.Manifest.load(tmp_path / "far/scenes").digest == again.digest != manifest.digest
    assert not shard.parent.exists(), "the old content's name does not stand for the new one"
    assert data.check(data.local(uri)) == []
