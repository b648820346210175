"""Files and folders on this machine, or at a URI of pyarrow's filesystems such as s3://bucket/folder or gs://bucket/folder."""

import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pyarrow as pa
from pyarrow import fs

from cutslots.errors import InputError

BUFFER_BYTES = 1 << 20


@dataclass(frozen=True)
class Place:
    """A file or folder of a filesystem; it can be sent to another process.

    Attributes:
        filesystem: where it lies.
        path: its path there, with slashes.
    """

    filesystem: fs.FileSystem
    path: str

    @classmethod
    def of(cls, where: "Place | Path | str") -> "Place":
        """The place that a path or a URI names.

        Raises:
            InputError: a URI that no filesystem answers for.
        """
        if isinstance(where, Place):
            return where
        if not is_uri(where):
            return cls(fs.LocalFileSystem(), str(Path(where).absolute()))
        try:
            return cls(*fs.FileSystem.from_uri(str(where)))
        except (pa.ArrowException, OSError, ValueError) as error:
            raise InputError(
                f"cannot reach {where}: {error}. Give a path, or a URI such as s3://bucket/folder."
            ) from None

    def __str__(self) -> str:
        return self.path if self.is_local else f"{self.filesystem.type_name}://{self.path}"

    def __truediv__(self, name: str) -> "Place":
        return Place(self.filesystem, f"{self.path.rstrip('/')}/{name}")

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rstrip("/").rpartition("/")[2]

    @property
    def parent(self) -> "Place":
        """The folder that it lies in."""
        return Place(self.filesystem, self.path.rstrip("/").rpartition("/")[0] or "/")

    @property
    def is_local(self) -> bool:
        """Whether it is on a file system of this machine."""
        return isinstance(self.filesystem, fs.LocalFileSystem)

    @property
    def info(self) -> fs.FileInfo:
        """Its kind (`is_file`) and size."""
        return self.filesystem.get_file_info(self.path)

    @property
    def exists(self) -> bool:
        """Whether there is such a file or folder."""
        return self.info.type != fs.FileType.NotFound

    def files(self, recursive: bool = False) -> dict[str, int]:
        """The files in this folder, and with `recursive` in those below: size in bytes by path, sorted by path."""
        found = self.filesystem.get_file_info(fs.FileSelector(self.path, recursive=recursive))
        return {
            info.path: info.size
            for info in sorted(found, key=lambda info: info.path)
            if info.is_file
        }

    def at(self, path: str) -> "Place":
        """The place of another path of the same filesystem."""
        return Place(self.filesystem, path)

    def open(self) -> io.BufferedReader:
        """The file, open for reading and seeking."""
        if self.is_local:
            return open(self.path, "rb")
        return io.BufferedReader(
            cast(io.RawIOBase, self.filesystem.open_input_file(self.path)), BUFFER_BYTES
        )

    def read(self) -> bytes:
        """The whole file."""
        with self.open() as file:
            return file.read()


def is_uri(where: Path | str) -> bool:
    """Whether this is a URI; two letters at least, as C: is a drive."""
    return isinstance(where, str) and re.match(r"[a-z][a-z0-9+.-]+://", where) is not None
