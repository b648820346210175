"""Where things lie on disk, and how a file is written so that nobody ever sees half of it."""

import errno
import hashlib
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

log = logging.getLogger(__name__)


def home() -> Path:
    """The folder of runs, tracking store and built-in data: `CUTSLOTS_HOME`, else `./cutslots-home` (absolute)."""
    return Path(os.environ.get("CUTSLOTS_HOME") or "cutslots-home").absolute()


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`; on success fsync it and rename it to `path`, on failure remove it.

    A reader finds the old file or the new one, never a part, even when the machine loses power in between.
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


@contextmanager
def lock(path: Path, timeout: float = 0) -> Iterator[bool]:
    """Hold the lock file `path` against other processes; yield whether it is held.

    Args:
        timeout: seconds to wait for another holder; negative waits without a limit.

    Yields False if another process still holds it. On a file system without locks it logs a warning
    and yields True.
    """
    from filelock import FileLock, Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    held, handle = True, FileLock(path)
    try:
        handle.acquire(timeout=timeout)
    except Timeout:
        held = False
    except (OSError, NotImplementedError) as error:
        missing = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
        if isinstance(error, OSError) and error.errno not in missing:
            raise
        log.warning("%s cannot be locked on this file system; do not use it twice at once", path)
    try:
        yield held
    finally:
        handle.release()
