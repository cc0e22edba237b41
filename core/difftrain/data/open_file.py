"""Opening what should be a file: a pipe or a device is an error, and never waited for."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

_DO_NOT_WAIT = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)


def open_file(name: str | Path) -> BinaryIO:
    """A file to read bytes from, unbuffered.

    Raises:
        OSError: If it cannot be opened, or is no regular file.
    """
    try:
        descriptor = os.open(name, os.O_RDONLY | _DO_NOT_WAIT)
    except ValueError as error:  # a name with a NUL in it
        raise OSError(errno.EINVAL, str(error)) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a file, but a folder, pipe or device")
    return os.fdopen(descriptor, "rb", buffering=0)
