"""Checks by trying whether a folder can be created and written."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

from difftrain.errors import MachineError
from difftrain.machine.retries import refusal


def check_folder(folder: Path, name: str) -> Path:
    """Check now, rather than after hours, that a path can be a folder.

    Args:
        folder: May not exist yet.
        name: Its name in messages, such as ``output_dir``.

    Returns:
        The part of its path that exists.

    Raises:
        MachineError: If it is a file, is below one, or is a broken link.
    """
    absolute = folder.absolute()
    try:
        absolute.lstat()
    except FileNotFoundError:
        pass  # it will be created
    except ValueError as error:
        raise MachineError(f"{name} {str(folder)!r} cannot be a folder ({error})") from error
    except OSError as error:
        if error.errno not in (errno.ENOTDIR, errno.EACCES, errno.ELOOP):  # reported below, with what is in the way
            raise MachineError(refusal(f"{name} {folder} cannot be a folder", error)) from error
    there = next(path for path in (absolute, *absolute.parents) if os.path.lexists(path))
    if not there.exists():
        raise MachineError(f"{name} {folder}: {there} is a broken link")
    if not there.is_dir():
        raise MachineError(f"{name} {folder}: {there} is a file, not a folder")
    return there


def check_writable(folder: Path, name: str) -> None:
    """Check now that files can be written into a folder. Leaves nothing behind.

    Creates and removes a temporary folder in the existing part of the folder's path: permission bits mean
    nothing for root, or on read-only and special file systems.

    Args:
        folder: May not exist yet.
        name: Its name in messages, such as ``output_dir``.

    Raises:
        MachineError: If the folder cannot be written, or cannot be created.
    """
    there = check_folder(folder, name)
    try:
        Path(tempfile.mkdtemp(prefix=".difftrain-", dir=there)).rmdir()
    except OSError as error:
        raise MachineError(refusal(f"{name} {folder}: {there} cannot be written", error)) from error
