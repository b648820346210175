"""Exit status and error message of a command, for `cutslots` and for sweep files."""

import errno
import os
import re
import select
import sys
from collections.abc import Callable

import click

from cutslots.errors import InputError, NonFiniteLossError

USAGE_ERROR, INTERRUPTED, BROKEN_PIPE = 2, 130, 141  # as shells report SIGINT and SIGPIPE

# No error of a file system leaves a half-written file.
REMEDIES = {
    **dict.fromkeys(
        (errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
        "Free some space or choose another folder, then run the same command again.",
    ),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "Choose a writable folder."),
    errno.EISDIR: "Give the path of a file.",
    errno.ENOTDIR: "Give a path whose parents are all folders.",
    errno.ENOENT: "Give a path that exists, or a new one in a folder that exists.",
}


def exit_status(
    work: Callable[[], int | None], *, debug: bool = False, interrupted: str = "interrupted"
) -> int:
    """Run a command and return its exit status.

    Args:
        work: the command; returns an exit status, or None for 0.
        debug: raise user errors too, with their traceback.
        interrupted: the message after Ctrl-C.

    Raises: every error that is a fault of cutslots.
    """
    try:
        status = work() or 0
        print(end="", flush=True)  # a closed pipe shows here and not at exit
        return status
    except click.exceptions.Exit as exit:
        return exit.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        print(interrupted, file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _stdout_is_closed():
            return BROKEN_PIPE
        message = user_message(error)
        if message is None or debug:
            raise
        print(f"error: {message}", file=sys.stderr)
        return USAGE_ERROR


def user_message(error: Exception) -> str | None:
    """The message to print for an error that the user can fix; None for a fault of cutslots."""
    if isinstance(error, InputError | NonFiniteLossError):
        return str(error)
    if isinstance(error, OSError) and error.errno in REMEDIES:
        return f"{error.strerror}: {error.filename or 'disk'}. {REMEDIES[error.errno]}"
    # By torch's message: the class of its error exists for GPUs only.
    memory = r"can't allocate memory|out of memory"
    if isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and re.search(memory, str(error))
    ):
        detail = str(error).strip().partition("\n")[0]
        return (
            f"not enough memory{': ' if detail else ''}{detail}. "
            "Try a smaller batch size, image size or model; --debug shows the traceback."
        )
    return None


def _stdout_is_closed() -> bool:
    """Whether the reader of standard output has left, as after `| head`; discards the rest."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    closed = any(event & select.POLLERR for _, event in poll.poll(0))
    if closed:  # Python flushes once more at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return closed
