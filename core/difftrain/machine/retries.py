"""Opening files when the system refuses for a moment: too many open files, a network disk that hiccups.

What the system refuses says nothing about a file's content: nothing may be deleted or made again because of it.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from typing import TypeVar

_Result = TypeVar("_Result")

WAITS = (0.1, 0.5, 2.0)
"""Seconds before the second, third and fourth try."""
_MAY_PASS = frozenset({errno.EMFILE, errno.ENFILE, errno.ESTALE, errno.EAGAIN, errno.EIO, errno.ETIMEDOUT})
_TOO_MANY_FILES = (errno.EMFILE, errno.ENFILE)
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def with_retries(read: Callable[[], _Result]) -> _Result:
    """What ``read`` gives; tried again a few times after errors that may pass.

    Raises:
        OSError: At once if it will not pass, else the last try's.
    """
    for wait in WAITS:
        try:
            return read()
        except OSError as error:
            if error.errno not in _MAY_PASS:
                raise
            time.sleep(wait)
    return read()


def refusal(what: str, error: OSError) -> str:
    """``what (why)``, in the system's words; with what to do where that is known."""
    text = f"{what} ({(error.strerror or str(error) or type(error).__name__).lower()})"
    if error.errno in _TOO_MANY_FILES:
        text += "\nhint: allow more of them with `ulimit -n 8192` in the shell that starts the run"
    elif error.errno in _NO_ROOM:
        text += "\nhint: free some space, or put this folder on another disk"
    return text
