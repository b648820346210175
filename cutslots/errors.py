"""Errors whose message is all that a person needs."""


class InputError(ValueError):
    """What came in cannot be used; the message names it, says what came, and what to do.

    The command line prints the message alone and exits with status 2. Other exceptions are faults of cutslots and keep
    their traceback.
    """


class NonFiniteLossError(RuntimeError):
    """The loss or the gradient stopped being a number; printed as an `InputError` is."""


class BusyError(InputError):
    """Another process holds what is asked for; it may be free in a moment."""


def nearest(name: str, known: "list[str] | tuple[str, ...]") -> str:
    """A sentence that offers the known name closest to `name`, or lists them all when none is close."""
    import difflib

    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"Did you mean {close[0]!r}?" if close else f"Known: {', '.join(known)}."


def listed(names: "list[str] | tuple[str, ...]", most: int = 3) -> str:
    """The first names of a list, and how many more there are: "a, b, c and 2 more"."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
