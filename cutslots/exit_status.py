"""How a command ends, `cutslots ...` and a sweep's alike: its exit status, and what is said of an error."""

import errno
import os
import re
import select
import sys
from collections.abc import Callable

from cutslots.errors import InputError, NonFiniteLossError

USERS_FAULT, INTERRUPTED, NOBODY_READS = (
    2,
    130,
    141,
)  # the last two are what a shell says of SIGINT and SIGPIPE

# What to do about the errors of a file system; nothing half-written is left by any of them.
REMEDIES = {
    **dict.fromkeys(
        (errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
        "Make room, or choose another folder, and run the same command again.",
    ),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "Choose a folder you may write to."),
    errno.EISDIR: "Give the path of a file.",
    errno.ENOTDIR: "Give a path that leads through folders only.",
    errno.ENOENT: "Give a path that exists, or to write to, one in a folder that exists.",
}
OUT_OF_MEMORY = "can't allocate memory|out of memory"


def exit_status(
    work: Callable[[], int | None], *, debug: bool = False, interrupted: str = "interrupted"
) -> int:
    """Do a command's work and return its exit status.

    Args:
        work: returns an exit status, None for 0.
        debug: let errors of the user's making through as well, with their traceback.
        interrupted: what to say after Ctrl-C.

    Raises: what is a fault of cutslots.
    """
    try:
        status = work() or 0
        print(
            end="", flush=True
        )  # here, where a pipe without a reader can still be told from other faults
        return status
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            return NOBODY_READS
        message = users_fault(error)
        if message is None or debug:
            raise
        print(f"error: {message}", file=sys.stderr)
        return USERS_FAULT


def users_fault(error: Exception) -> str | None:
    """What to print for an error that is no fault of cutslots; None for the others."""
    if isinstance(error, InputError | NonFiniteLossError):
        return str(error)
    if isinstance(error, OSError) and error.errno in REMEDIES:
        return f"{error.strerror}: {error.filename or 'disk'}. {REMEDIES[error.errno]}"
    # Torch's by their words: its name for them is that of GPUs only, and it is not imported for the sake of others.
    if isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and re.search(OUT_OF_MEMORY, str(error))
    ):
        said = str(error).strip().partition("\n")[0]
        return f"not enough memory{': ' if said else ''}{said}. A smaller batch, image or model needs less; --debug shows where."
    return None


def _nobody_reads() -> bool:
    """Whether standard output is a pipe that nobody reads any more, as after `| head`; what was still to be written is dropped."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    gone = any(event & select.POLLERR for _, event in poll.poll(0))
    if gone:
        # Python flushes once more when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return gone
