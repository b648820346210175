"""What a run leaves on disk to be continued, evaluated or loaded: written whole or not at all, read without unpickling code."""

import contextlib
import fcntl
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from cutslots.errors import BusyError, InputError
from cutslots.files import atomic
from cutslots.train import checkpoint
from cutslots.train.config import RESUMABLE, RunConfig, differences, from_json

FORMAT = 1
BEST = "best.pt"
_STEP = re.compile(r"step-(\d+)\.pt")


def path_of(folder: Path, step: int) -> Path:
    """The checkpoint after `step` steps."""
    return folder / f"step-{step:08d}.pt"


def steps(folder: Path) -> list[Path]:
    """The checkpoints of a folder, oldest first; `best.pt` is not among them."""
    return sorted(path for path in folder.glob("step-*.pt") if _STEP.fullmatch(path.name))


def save(path: Path, state: dict[str, Any], keep_last: int) -> None:
    """Write a checkpoint atomically, then drop the oldest beyond `keep_last`.

    Args:
        state: tensors, numbers, strings, and dicts and lists of them.

    Raises:
        InputError: the disk does not take it.
    """
    # Through a file of Python's: given a path, torch writes by itself and a full disk is a RuntimeError that does not say so.
    with _written(path) as temporary, open(temporary, "wb") as file:
        torch.save({"format": FORMAT, **state}, file)
    for old in steps(path.parent)[:-keep_last]:
        if old != path:
            old.unlink(missing_ok=True)


def mark_best(path: Path) -> None:
    """Give a checkpoint the second name `best.pt`: a hard link where the file system has them, else a copy.

    Raises:
        InputError: the disk does not take it.
    """
    with _written(path.with_name(BEST)) as temporary:
        try:
            os.link(path, temporary)
        except OSError:
            temporary.write_bytes(path.read_bytes())


@contextmanager
def _written(path: Path) -> Iterator[Path]:
    """`atomic`, with what a disk refuses told as the user's to mend."""
    try:
        with atomic(path) as temporary:
            yield temporary
    except (OSError, RuntimeError) as error:
        # After a failed write torch cannot end its archive and raises a RuntimeError of its own, which hides the disk's.
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__context__
        if cause is None:
            raise
        raise InputError(
            f"checkpoint {path} cannot be written ({cause.strerror or cause}). Earlier ones are whole; make room and use --resume."
        ) from error


def load(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a checkpoint. Nothing in the file is executed.

    Raises:
        InputError: no such file, a damaged one, or another format.
    """
    if not path.is_file():
        raise InputError(f"no checkpoint at {path}.")
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch raises many types for a damaged file
        raise InputError(
            f"{path} is not a readable checkpoint ({type(error).__name__}: {str(error).partition(chr(10))[0]})."
        ) from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise InputError(f"{path} is not a cutslots checkpoint of format {FORMAT}.")
    return state


def newest(folder: Path) -> dict[str, Any] | None:
    """The newest readable checkpoint of a folder, None when there is none. A damaged one is passed over for the one before."""
    damaged: list[InputError] = []
    for path in reversed(steps(folder)):
        try:
            return load(path)
        except InputError as error:
            damaged.append(error)
    if damaged:
        raise damaged[0]
    return None


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
    found = newest(run_dir / CHECKPOINTS)
    if found and not resume:
        raise InputError(
            f"{run_dir} already holds this run, at step {found['step']}. Continue it with --resume, or give another name."
        )
    return found
