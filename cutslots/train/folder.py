"""A run's folder: who may train in it, and what it holds already."""

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cutslots.errors import BusyError, InputError
from cutslots.train import checkpoint
from cutslots.train.config import RESUMABLE, RunConfig, differences, from_json

CONFIG = "config.json"
CHECKPOINTS = "checkpoints"
LOCK = ".lock"


@contextlib.contextmanager
def exclusive(run_dir: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Hold `run_dir` against a second process. The system lets go of it however this one ends."""
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        # A file, as network file systems do not lock folders. It stays: without it the next two could lock different ones.
        handle = os.open(run_dir / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise InputError(
            f"the run's folder {run_dir} cannot be written ({error.strerror}). Name another one."
        ) from None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BusyError(
                f"another process is training in {run_dir}. Wait for it, or give the run another name."
            ) from None
        except OSError:
            say(
                f"{run_dir} cannot be locked on this file system; do not train in it twice at once."
            )
        yield
    finally:
        os.close(handle)


def held(run_dir: Path) -> bool:
    """Whether a process trains in `run_dir` now, as far as its file system can say."""
    try:
        handle = os.open(run_dir / LOCK, os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(handle)
    return False


def stored(run_dir: Path, config: RunConfig, resume: bool) -> dict[str, Any] | None:
    """The checkpoint to go on from, None for a new run.

    Raises:
        InputError: `run_dir` holds another run, or this one and `resume` was not asked for.
    """
    path = run_dir / CONFIG
    # Without a checkpoint nothing is lost: the run that left the configuration stopped before it had anything to keep.
    if not path.exists() or not checkpoint.steps(run_dir / CHECKPOINTS):
        return None
    changed = {
        name: pair
        for name, pair in differences(from_json(path.read_text()), config).items()
        if name not in RESUMABLE
    }
    if changed:
        listed = "; ".join(
            f"{name} was {old!r}, now {new!r}" for name, (old, new) in changed.items()
        )
        raise InputError(
            f"{run_dir} holds a run with another configuration: {listed}. Give the run another name."
        )
    found = checkpoint.newest(run_dir / CHECKPOINTS)
    if found and not resume:
        raise InputError(
            f"{run_dir} already holds this run, at step {found['step']}. Continue it with --resume, or give another name."
        )
    return found
