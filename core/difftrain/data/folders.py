"""Whether a folder can be made and written, found out by doing it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from difftrain.errors import MachineError


def check_writable(folder: Path, name: str) -> None:
    """Find out now, and not after hours, that nothing can be written into a folder. Leaves nothing behind.

    A temporary folder is made and removed in what is there of the folder's path: permission bits would tell
    nothing to root, and nothing of read-only or special file systems.

    Args:
        folder: Need not be there yet.
        name: What the message calls it, such as ``output_dir``.

    Raises:
        MachineError: If the folder is there and cannot be written, or cannot be made.
    """
    absolute = folder.absolute()
    there = next(path for path in (absolute, *absolute.parents) if os.path.lexists(path))
    if not there.exists():
        raise MachineError(f"{name} {folder}: the link {there} points nowhere")
    if not there.is_dir():
        raise MachineError(f"{name} {folder}: {there} is a file, not a folder")
    try:
        Path(tempfile.mkdtemp(prefix=".difftrain-", dir=there)).rmdir()
    except OSError as error:
        raise MachineError(f"{name} {folder}: {there} cannot be written ({error.strerror})") from error
