"""Retries when the system fails for a moment: too many open files, a network disk that hiccups.

Such a failure says nothing about a file's content: never delete or remake anything because of it.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from typing import TypeVar

_Result = TypeVar("_Result")

WAITS = (0.1, 0.5, 2.0)
"""Seconds before the second, third and fourth attempt."""
_MAY_PASS = frozenset({errno.EMFILE, errno.ENFILE, errno.ESTALE, errno.EAGAIN, errno.EIO, errno.ETIMEDOUT})
_TOO_MANY_FILES = (errno.EMFILE, errno.ENFILE)
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def with_retries(read: Callable[[], _Result]) -> _Result:
    """Return the result of ``read``; try a few more times after errors that may pass.

    Raises:
        OSError: At once if it will not pass, else from the last attempt.
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
    """Return ``what (why)``, in the system's words; with a hint for known errors."""
    text = f"{what} ({(error.strerror or str(error) or type(error).__name__).lower()})"
    if error.errno in _TOO_MANY_FILES:
        text += "\nhint: raise the limit with `ulimit -n 8192` in the shell that starts the run"
    elif error.errno in _NO_ROOM:
        text += "\nhint: free some space, or move this folder to another disk"
    return text
