"""Errors whose message is all that a user needs."""

import difflib
from collections.abc import Sequence


class InputError(ValueError):
    """An input is unusable; the message names it, its value, and what to do.

    The command line prints only the message and exits with status 2. Other exceptions are bugs and
    keep their traceback.
    """


class NonFiniteLossError(RuntimeError):
    """The loss or the gradient is NaN or infinite; printed like an `InputError`."""


class BusyError(InputError):
    """Another process holds a folder; it may be free in a moment."""


def nearest(name: str, known: Sequence[str]) -> str:
    """A sentence that suggests the known name closest to `name`, or lists all if none is close."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"Did you mean {close[0]!r}?" if close else f"Known: {', '.join(known)}."


def listed(names: Sequence[str], most: int = 3) -> str:
    """The first names, and how many more there are: "a, b, c and 2 more"."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
