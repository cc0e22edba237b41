"""Whether a folder can be made and written, found out by doing it."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

from difftrain.errors import MachineError
from difftrain.machine.retries import refusal


def check_folder(folder: Path, name: str) -> Path:
    """Find out now, and not after hours, that a path cannot be a folder.

    Args:
        folder: Need not be there yet.
        name: What the message calls it, such as ``output_dir``.

    Returns:
        What is there of its path.

    Raises:
        MachineError: If it is a file, lies below one, or is a link that points nowhere.
    """
    absolute = folder.absolute()
    try:
        absolute.lstat()
    except FileNotFoundError:
        pass  # it will be made
    except ValueError as error:
        raise MachineError(f"{name} {str(folder)!r} cannot be a folder ({error})") from error
    except OSError as error:
        if error.errno not in (errno.ENOTDIR, errno.EACCES, errno.ELOOP):  # told below, with what is in the way
            raise MachineError(refusal(f"{name} {folder} cannot be a folder", error)) from error
    there = next(path for path in (absolute, *absolute.parents) if os.path.lexists(path))
    if not there.exists():
        raise MachineError(f"{name} {folder}: the link {there} points nowhere")
    if not there.is_dir():
        raise MachineError(f"{name} {folder}: {there} is a file, not a folder")
    return there


def check_writable(folder: Path, name: str) -> None:
    """Find out now that nothing can be written into a folder. Leaves nothing behind.

    A temporary folder is made and removed in what is there of the folder's path: permission bits would tell
    nothing to root, and nothing of read-only or special file systems.

    Args:
        folder: Need not be there yet.
        name: What the message calls it, such as ``output_dir``.

    Raises:
        MachineError: If the folder is there and cannot be written, or cannot be made.
    """
    there = check_folder(folder, name)
    try:
        Path(tempfile.mkdtemp(prefix=".difftrain-", dir=there)).rmdir()
    except OSError as error:
        raise MachineError(refusal(f"{name} {folder}: {there} cannot be written", error)) from error
