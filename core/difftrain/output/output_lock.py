"""Allows one run at a time in an output folder: two would overwrite each other's checkpoints."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from difftrain.errors import MachineError
from difftrain.machine.retries import refusal

_NAME = ".difftrain.lock"


@contextmanager
def locked(output_dir: Path) -> Iterator[None]:
    """Hold the folder's lock. The system releases it whenever the process ends, so no kill leaves it behind.

    Raises:
        MachineError: If another run holds it; names its process. Or if the folder cannot be written.
    """
    path = output_dir / _NAME
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise MachineError(refusal(f"output_dir {output_dir} cannot be written", error)) from error
    with file:
        if not _lock(file.fileno()):
            file.seek(0)
            raise MachineError(
                f"output_dir {output_dir} is in use by another run ({file.read().strip() or 'unknown process'})\n"
                "hint: wait for it or stop it, or give this run another output_dir"
            )
        file.truncate(0)
        file.write(f"process {os.getpid()}\n")
        file.flush()
        yield  # the file stays: deleting it could delete the lock of a run that has just opened it


def _lock(descriptor: int) -> bool:
    """Return False if another process holds the lock. File systems without locks let every run through."""
    try:
        import fcntl
    except ImportError:  # Windows
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EWOULDBLOCK, errno.EACCES)
    return True
