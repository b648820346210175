"""The home folder, atomic writes, locks, checksums."""

import errno
import hashlib
import os
import subprocess
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


def home() -> Path:
    """The folder of runs, tracking store and built-in data, absolute: `CUTSLOTS_HOME`.

    The default is `./cutslots-home`.
    """
    return Path(os.environ.get("CUTSLOTS_HOME") or "cutslots-home").absolute()


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path; on success sync it and rename it to `path`, on failure remove it.

    A reader sees the old file or the new one, never a part, even after a power failure.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` atomically, as UTF-8."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


_WITHOUT_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)


@contextmanager
def lock(path: Path, timeout: float = 0) -> Iterator[bool]:
    """Hold the lock file `path` and yield True; yield False if another process holds it.

    Args:
        path: the lock file; it is created if missing and stays.
        timeout: seconds to wait for another process.

    A file system without locks (NFS without lockd, some FUSE mounts) costs a warning, and True.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        acquired = True
        try:
            stack.enter_context(FileLock(path).acquire(timeout=timeout))
        except Timeout:
            acquired = False
        except (NotImplementedError, OSError) as error:
            if isinstance(error, OSError) and error.errno not in _WITHOUT_LOCKS:
                raise
            text = "is on a file system without locks; do not run two processes on it."
            warnings.warn(f"{path.parent} {text}", stacklevel=3)
        yield acquired


def git_commit(folder: Path) -> str | None:
    """The commit at `folder`, with "-dirty" if tracked files differ; None without git."""
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(
            [*command, "--exclude=*"], check=True, capture_output=True, text=True, timeout=30
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
