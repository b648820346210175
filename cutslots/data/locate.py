"""Paths and URIs, prepared datasets by name, and the local copies of remote ones.

A URI is s3://, gs:// or hdfs:// (through pyarrow), or any other protocol of fsspec. Remote data is
only read. To put a prepared folder there, copy it, e.g. `aws s3 sync FOLDER s3://bucket/NAME`.
"""

import hashlib
import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import fsspec
import pyarrow as pa
from fsspec.implementations.arrow import ArrowFSWrapper
from pyarrow import fs

from cutslots import files
from cutslots.data.manifest import MANIFEST, Manifest
from cutslots.errors import InputError

DATA = "CUTSLOTS_DATA"  # environment variable: folder or URI of prepared datasets
PYARROW = ("file", "s3", "gs", "gcs", "hdfs", "viewfs")
BUFFER_BYTES = 1 << 20


def is_uri(path: Path | str) -> bool:
    """Whether this is a URI; its protocol has two letters at least, since C: is a drive."""
    return isinstance(path, str) and re.match(r"[a-z][a-z0-9+.-]+://", path) is not None


@dataclass(frozen=True)
class Location:
    """A file or folder of an fsspec filesystem; it can be pickled."""

    filesystem: fsspec.AbstractFileSystem
    path: str

    @classmethod
    def of(cls, path: "Location | Path | str") -> "Location":
        """The location of a path or URI.

        Raises:
            InputError: no filesystem for this URI.
        """
        if isinstance(path, Location):
            return path
        if not is_uri(path):
            return cls(ArrowFSWrapper(fs.LocalFileSystem()), str(Path(path).absolute()))
        uri = str(path)
        try:
            if uri.partition("://")[0] not in PYARROW:
                return cls(*fsspec.core.url_to_fs(uri))
            filesystem, key = fs.FileSystem.from_uri(uri)
            # fsspec identifies instances by their arguments' texts, which are not unique for these.
            return cls(ArrowFSWrapper(filesystem, skip_instance_cache=True), key)
        except (pa.ArrowException, OSError, ValueError, ImportError) as error:
            example = "Give a path, or a URI such as s3://bucket/folder."
            raise InputError(f"cannot read {uri}: {error}. {example}") from None

    def __str__(self) -> str:
        protocol = self.filesystem.protocol
        protocol = protocol if isinstance(protocol, str) else protocol[0]
        return self.path if protocol == "local" else f"{protocol}://{self.path.lstrip('/')}"

    def __truediv__(self, name: str) -> "Location":
        return Location(self.filesystem, f"{self.path.rstrip('/')}/{name}")

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rstrip("/").rpartition("/")[2]

    @property
    def kind(self) -> str | None:
        """What it is, "file" or "directory"; None if absent."""
        try:
            return self.filesystem.info(self.path)["type"]
        except FileNotFoundError:
            return None

    def files(self, recursive: bool = False) -> list[tuple["Location", int]]:
        """The files of this folder with their sizes in bytes, sorted by path."""
        infos: Any = self.filesystem.find(self.path, None if recursive else 1, detail=True)
        pairs = sorted(infos.items())
        return [(Location(self.filesystem, path), info["size"]) for path, info in pairs]

    def open(self) -> IO[bytes]:
        """The file, open for reading and seeking."""
        if isinstance(self.filesystem, ArrowFSWrapper):  # pyarrow's files have no buffer
            file = self.filesystem.fs.open_input_file(self.path)
            return io.BufferedReader(cast(io.RawIOBase, file), BUFFER_BYTES)
        return cast(IO[bytes], self.filesystem.open(self.path, "rb"))

    def read(self) -> bytes:
        """The content of the file."""
        with self.open() as file:
            return file.read()

    def sha256(self) -> str:
        """The SHA-256 of the file's bytes, in hexadecimal."""
        with self.open() as file:
            return hashlib.file_digest(cast(io.BufferedReader, file), "sha256").hexdigest()


def find_dataset(name: str) -> Path | str | None:
    """The prepared dataset of this name in `CUTSLOTS_DATA` or `CUTSLOTS_HOME/data`, else None."""
    for base in filter(None, (os.environ.get(DATA), files.home() / "data")):
        uri = f"{str(base).rstrip('/')}/{name}"
        path = uri if is_uri(base) else (Path(base) / name).absolute()
        if (Location.of(path) / MANIFEST).kind:
            return path
    return None


def read_manifest(path: Path | str) -> Manifest:
    """The manifest of a prepared folder or URI, without a copy of the shards.

    Raises:
        InputError: no finished prepared dataset.
    """
    if not is_uri(path):
        return Manifest.load(path)
    file = Location.of(path) / MANIFEST
    try:
        return Manifest.parse(file.read(), str(file))
    except OSError as error:
        problem = f"has no readable {MANIFEST} ({error})"
        raise InputError(f"{path} {problem}. Give a folder of cutslots prepare.") from None


def local(path: Path | str) -> Path:
    """The prepared folder on this machine: the path, or the copy of a URI in `CUTSLOTS_HOME/cache`.

    Copies only missing shards and compares their SHA-256 with the manifest. If several processes
    ask for the same folder, one copies and the others wait.

    Raises:
        InputError: no finished prepared dataset, no connection, or a damaged shard.
    """
    if not is_uri(path):
        return Path(path)
    remote, manifest = Location.of(path), read_manifest(path)
    # The name contains the content's digest, so that new content there gets a new copy.
    folder = files.home() / "cache" / f"{remote.name}-{manifest.digest}"
    with files.lock(folder.with_name(f".{folder.name}.lock"), timeout=-1):
        for entry in manifest.shards:
            shard, copy = remote / entry.file, folder / entry.file
            if copy.is_file() and copy.stat().st_size == entry.bytes:
                continue
            with connection(shard), files.atomic(copy) as temporary:
                shard.filesystem.get_file(shard.path, str(temporary))
                if files.sha256(temporary) != entry.sha256:
                    problem = "is damaged: its SHA-256 differs from the manifest's"
                    raise InputError(f"{shard} {problem}. Upload it again.")
        if not (folder / MANIFEST).exists():
            manifest.save(folder / MANIFEST)
    return folder


@contextmanager
def connection(location: Location) -> Iterator[None]:
    """Turn errors of a network or of access rights into input errors."""
    try:
        yield
    except OSError as error:
        remedy = "Check your access rights, or run the same command again."
        raise InputError(f"cannot read {location}: {error}. {remedy}") from None
