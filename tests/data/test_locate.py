"""Raw data and prepared folders at URIs; fsspec's memory filesystem is the remote one."""

import pickle
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.arrow import ArrowFSWrapper
from pyarrow import fs
from raw_files import write_clevrtex, write_movi, write_records

from cutslots import data, files
from cutslots.cli import main
from cutslots.data import tfrecord
from cutslots.data.locate import Location, is_uri
from cutslots.data.record import Ranges
from cutslots.errors import InputError

URI = "memory://bucket/set"
REMOTE = fsspec.filesystem("memory")


@pytest.fixture(autouse=True)
def bucket() -> Iterator[None]:
    yield
    REMOTE.store.clear()
    REMOTE.pseudo_dirs[:] = [""]


@pytest.fixture
def remote(prepared: Path) -> str:
    """The URI of a copied prepared dataset."""
    REMOTE.put(str(prepared), "/bucket/set", recursive=True)
    return URI


def damage(name: str) -> None:
    content = REMOTE.cat_file(f"/bucket/set/{name}")
    REMOTE.pipe_file(f"/bucket/set/{name}", content[:-1] + b"x")


def test_locations_of_paths_and_uris(tmp_path: Path) -> None:
    assert Location.of(tmp_path).path == Location.of(f"file://{tmp_path}").path == str(tmp_path)
    folder = Location.of(URI)
    assert (str(folder / "a"), (folder / "a").name, folder.kind) == (f"{URI}/a", "a", None)
    uris = ("s3://a/b", "gs://a", "file:///a", "C:\\a", "a/b")
    assert [is_uri(text) for text in uris] == [True, True, True, False, False]
    with pytest.raises(InputError, match="cannot read nowhere://a/b"):
        Location.of("nowhere://a/b")
    # S3 needs no package besides pyarrow.
    location = Location.of("s3://bucket/set?region=eu-west-1") / "a"
    assert str(pickle.loads(pickle.dumps(location))) == "s3://bucket/set/a"


def test_remote_tfrecords_are_read_and_skipped(tmp_path: Path) -> None:
    payloads = [bytes([number]) * 500_000 for number in range(6)]
    subtree = ArrowFSWrapper(fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem()))
    for zipped in (True, False):
        write_records(tmp_path / "file", payloads, zipped)
        REMOTE.put_file(str(tmp_path / "file"), "/bucket/file")
        for location in (Location(subtree, "file"), "memory://bucket/file"):
            read = [item for item in tfrecord.records(location, 4) if item[1] is not None]
            assert read == [(4, payloads[4]), (5, payloads[5])]
    REMOTE.pipe_file("/bucket/file", REMOTE.cat_file("/bucket/file")[:-9])
    with pytest.raises(InputError, match="memory://bucket/file, record 5: the file ends inside"):
        list(tfrecord.records("memory://bucket/file", 4))


def test_every_source_reads_the_same_from_a_uri(clevr_file: Path, tmp_path: Path) -> None:
    write_clevrtex(tmp_path / "raw/clevrtex", 10)
    write_movi(tmp_path / "raw/movi_a")
    (tmp_path / "raw/clevr").mkdir()
    shutil.copy(clevr_file, tmp_path / "raw/clevr")
    REMOTE.put(str(tmp_path / "raw"), "/bucket", recursive=True)
    for source in ("clevr", "clevrtex", "movi_a"):
        options = data.sources.load(source).Options(size=16)
        digests = set()
        for at, base in enumerate((tmp_path / "raw", f"file://{tmp_path}/raw", "memory://bucket")):
            raw, out = f"{base}/{source}", tmp_path / f"{source}-{at}"
            splits: Ranges = {"train": (0, 3), "val": (3, 5)}
            digests.add(data.prepare(source, raw, out, options, splits, workers=1).digest)
        assert len(digests) == 1


def test_a_missing_uri_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="memory://bucket/set does not exist"):
        data.prepare("clevr", URI, tmp_path / "out")
    for read in (data.local, data.check):
        with pytest.raises(InputError, match=r"memory://bucket/set has no readable manifest\.json"):
            read(URI)


def test_a_remote_dataset_is_copied_once(remote: str, prepared: Path) -> None:
    digest = data.Manifest.load(prepared).digest
    assert data.read_manifest(remote).digest == digest
    with ThreadPoolExecutor(4) as pool:
        copies = list(pool.map(data.local, [remote] * 4))
    assert set(copies) == {files.home() / "cache" / f"set-{digest}"}
    folder = copies[0]
    assert data.check(folder) == []
    times = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    (folder / "val-00000.arrow").unlink()
    short = folder / "train-00000.arrow"
    short.write_bytes(short.read_bytes()[:-1])
    assert data.Batches(remote, "train", 20).num_scenes == 160
    now = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    changed = sorted(name for name in now if now[name] != times[name])
    assert changed == ["train-00000.arrow", "val-00000.arrow"]
    flipped = folder / "train-00001.arrow"
    flipped.write_bytes(flipped.read_bytes()[:-1] + b"x")
    (problem,) = data.check(remote)
    assert problem.startswith(f"{flipped} is damaged: its SHA-256")
    flipped.unlink()
    assert data.check(remote) == []
    assert data.local(prepared) == prepared


def test_check_reads_the_remote_files(remote: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", remote]) == 0
    REMOTE.rm_file("/bucket/set/train-00000.arrow")
    for name in ("train-00001.arrow", "train-00099.arrow"):
        REMOTE.pipe_file(f"/bucket/set/{name}", b"short")
    damage("train-00002.arrow")
    problems = data.check(remote)
    words = ("missing", "damaged: its SHA-256", "damaged: its SHA-256", "not in the manifest")
    for number, word, problem in zip((0, 1, 2, 99), words, problems, strict=True):
        assert problem.startswith(f"{URI}/train-{number:05d}.arrow is {word}")
    assert main(["check", remote]) == 1
    assert capsys.readouterr().err.count("problem: ") == 4


def test_damaged_and_missing_remote_shards_are_refused(remote: str, prepared: Path) -> None:
    damage("train-00001.arrow")
    with pytest.raises(InputError, match=rf"{URI}/train-00001\.arrow is damaged: its SHA-256"):
        data.local(remote)
    folder = next((files.home() / "cache").glob("set-*"))
    assert not (folder / "manifest.json").exists()
    assert not (folder / "train-00001.arrow").exists()
    REMOTE.rm_file("/bucket/set/train-00001.arrow")
    with pytest.raises(InputError, match=rf"cannot read {URI}/train-00001\.arrow"):
        data.local(remote)
    REMOTE.put_file(str(prepared / "train-00001.arrow"), "/bucket/set/train-00001.arrow")
    assert data.check(data.local(remote)) == []


def test_datasets_are_found_by_name(
    remote: str, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = files.home() / "data"
    shutil.copytree(prepared, home / "scenes")
    shutil.copytree(prepared, tmp_path / "elsewhere/set")
    assert data.find_dataset("scenes") == home / "scenes"
    assert data.find_dataset("set") is None
    for base, found in ((tmp_path / "elsewhere", tmp_path / "elsewhere/set"), (URI[:-4], URI)):
        monkeypatch.setenv("CUTSLOTS_DATA", str(base))
        assert data.find_dataset("set") == found
        assert data.find_dataset("scenes") == home / "scenes"
