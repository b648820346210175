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
DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
WRONG_PATH = {errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR, errno.ENOTDIR, errno.ENOENT}


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
    except BrokenPipeError:
        # The reader of standard output may have left, as after `| head`.
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        if not any(event & select.POLLERR for _, event in poll.poll(0)):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes at exit
        return BROKEN_PIPE
    except Exception as error:
        message = _user_message(error)
        if message is None or debug:
            raise
        print(f"error: {message}", file=sys.stderr)
        return USAGE_ERROR


def _user_message(error: Exception) -> str | None:
    """The message to print for an error that the user can fix; None for a fault of cutslots."""
    text = str(error).strip()
    if isinstance(error, InputError | NonFiniteLossError):
        return text
    if isinstance(error, OSError) and error.errno in DISK_FULL | WRONG_PATH:
        remedy = "Free some space" if error.errno in DISK_FULL else "Use another path"
        name = error.filename or "disk"
        return f"{error.strerror}: {name}. {remedy}, then run the same command again."
    # By torch's message: the class of its error exists for GPUs only.
    out_of_memory = re.search(r"can't allocate memory|out of memory", text)
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and out_of_memory):
        detail = f": {text.splitlines()[0]}" if text else ""
        remedy = "Try a smaller batch size, image size or model; --debug shows the traceback."
        return f"not enough memory{detail}. {remedy}"
    return None
