"""Which errors are no fault of cutslots, and what to say of them."""

import errno

from cutslots.errors import InputError

# What to do about the errors of a file system; nothing half-written is left by any of them.
REMEDIES = {
    **dict.fromkeys(
        (errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "Make room, or choose another folder, and run the same command again."
    ),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "Choose a folder you may write to."),
    **dict.fromkeys((errno.EISDIR, errno.ENOTDIR, errno.ENOENT), "Give the path of a file in a folder that exists."),
}


def users_fault(error: Exception) -> str | None:
    """What to print for an error that is no fault of cutslots; None for the others."""
    from cutslots.train import NonFiniteLossError

    if isinstance(error, InputError | NonFiniteLossError):
        return str(error)
    if isinstance(error, OSError) and error.errno in REMEDIES:
        return f"{error.strerror}: {error.filename or 'disk'}. {REMEDIES[error.errno]}"
    return None
