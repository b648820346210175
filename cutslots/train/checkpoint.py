"""A run's folder: its lock, its configuration, and checkpoints that are written atomically."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from cutslots.errors import BusyError, InputError
from cutslots.files import atomic, lock
from cutslots.train.config import RESUMABLE, RunConfig, differences, from_json

FORMAT = 1
CONFIG, CHECKPOINTS, BEST, LOCK = "config.json", "checkpoints", "best.pt", ".lock"


def path_of(folder: Path, step: int) -> Path:
    """The checkpoint after `step` steps."""
    return folder / f"step-{step:08d}.pt"


def steps(folder: Path) -> list[Path]:
    """The checkpoints of a folder, oldest first, without `best.pt`."""
    return sorted(path for path in folder.glob("step-*.pt") if path.stem[5:].isdecimal())


def save(path: Path, state: dict[str, Any], keep_last: int) -> None:
    """Write a checkpoint atomically, then delete the oldest beyond `keep_last`.

    Args:
        state: tensors, numbers, strings, and dicts and lists of them.
    """
    # torch writes to a file object of Python: its own writer reports a full disk as RuntimeError.
    with _writing(path) as temporary, open(temporary, "wb") as file:
        torch.save({"format": FORMAT, **state}, file)
    for old in steps(path.parent)[:-keep_last]:
        if old != path:
            old.unlink(missing_ok=True)


def mark_best(path: Path) -> None:
    """Name a checkpoint `best.pt` too: a hard link if the file system has them, else a copy."""
    with _writing(path.with_name(BEST)) as temporary:
        try:
            os.link(path, temporary)
        except OSError:
            temporary.write_bytes(path.read_bytes())


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[Path]:
    """`files.atomic`, which raises InputError if the disk is full or not writable."""
    try:
        with atomic(path) as temporary:
            yield temporary
    except (OSError, RuntimeError) as error:
        # After a failed write torch cannot close its archive: its RuntimeError hides the OSError.
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        raise InputError(
            f"checkpoint {path} cannot be written ({cause.strerror or cause}). "
            "Earlier ones are intact; free disk space and use --resume."
        ) from error


def load(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a checkpoint of a run; InputError if it is not one."""
    state = read(path, device)
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise InputError(f"{path} is not a cutslots checkpoint of format {FORMAT}.")
    return state


def read(path: Path, device: torch.device | str = "cpu") -> Any:
    """The content of a file that torch wrote, without executing anything in it.

    Raises:
        InputError: the file does not exist, or torch cannot read it (its error is the cause).
    """
    if not path.is_file():
        raise InputError(f"checkpoint {path} does not exist.")
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch raises many types for a damaged file
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise InputError(f"{path} is not a readable checkpoint ({reason}).") from error


def newest(folder: Path) -> dict[str, Any] | None:
    """The newest readable checkpoint of a folder; None if it has none, InputError if all are
    damaged."""
    damaged: InputError | None = None
    for path in reversed(steps(folder)):
        try:
            return load(path)
        except InputError as error:
            damaged = damaged or error
    if damaged:
        raise damaged
    return None


def stored(
    run_dir: Path, config: RunConfig, data_digest: str, resume: bool
) -> dict[str, Any] | None:
    """The checkpoint from which to resume, None for a new run.

    Raises:
        InputError: `run_dir` holds another run, more steps, or this run and `resume` is False.
    """
    path, folder = run_dir / CONFIG, run_dir / CHECKPOINTS
    # A run that stopped before its first checkpoint loses nothing.
    if not path.exists() or not steps(folder):
        return None
    changed = differences(from_json(path.read_text()), config).items()
    changes = [f"{name} was {a!r}, now {b!r}" for name, (a, b) in changed if name not in RESUMABLE]
    if changes:
        problem = f"holds a run with another configuration: {'; '.join(changes)}"
        raise InputError(f"{run_dir} {problem}. Choose another run name.")
    state = newest(folder)
    if state is None:
        return None
    step, digest, steps_now = state["step"], state["data_digest"], config.train.steps
    if not resume:
        remedy = "Continue it with --resume, or choose another run name."
        raise InputError(f"{run_dir} already holds this run, at step {step}. {remedy}")
    if step > steps_now:
        problem = f"as {run_dir} is already at that step, got {steps_now}"
        raise InputError(f"train.steps must be at least {step}, {problem}.")
    if digest != data_digest:
        problem = f"was trained on other data (digest {digest}, got {data_digest})"
        raise InputError(f"{run_dir} {problem}. Resume with the same prepared folder.")
    return state


@contextlib.contextmanager
def exclusive(run_dir: Path) -> Iterator[None]:
    """Lock `run_dir` against other processes; the lock ends with the process.

    BusyError if another process has it, InputError if the folder cannot be written.
    """
    with contextlib.ExitStack() as stack:
        try:
            free = stack.enter_context(lock(run_dir / LOCK))
        except OSError as error:
            problem = f"the run folder {run_dir} cannot be written ({error.strerror})"
            raise InputError(f"{problem}. Choose another.") from None
        if not free:
            raise BusyError(f"another process is training in {run_dir}. Wait, or use another name.")
        yield


def held(run_dir: Path) -> bool:
    """Whether a process is training in `run_dir`, as far as its file system can tell."""
    try:
        if not (run_dir / LOCK).exists():
            return False
        with lock(run_dir / LOCK) as free:
            return not free
    except OSError:
        return False
