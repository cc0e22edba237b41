"""Opens files, and images of any data source; every failure is an :class:`OSError`."""

from __future__ import annotations

import errno
import io
import os
import stat
from pathlib import Path
from typing import BinaryIO

from difftrain.types import SourceImage

_DO_NOT_WAIT = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)

_PIECE = 1 << 24
"""Bytes."""


def open_file(name: str | Path) -> BinaryIO:
    """Open a file to read bytes from, unbuffered; never wait for a pipe or a device.

    Raises:
        OSError: If it cannot be opened, or is not a regular file.
    """
    try:
        descriptor = os.open(name, os.O_RDONLY | _DO_NOT_WAIT)
    except ValueError as error:  # a name with a NUL in it
        raise OSError(errno.EINVAL, str(error)) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a file, but a folder, pipe or device")
    return os.fdopen(descriptor, "rb", buffering=0)


def read_file(name: str | Path) -> tuple[os.stat_result, bytes]:
    """Return the status and then all bytes of a regular file; never wait for a pipe or a device.

    It takes two thirds of the time of :func:`open_file`, for those that read very many.

    Raises:
        OSError: If it cannot be opened or read, or is not a regular file.
    """
    try:
        descriptor = os.open(name, os.O_RDONLY | _DO_NOT_WAIT)
    except ValueError as error:  # a name with a NUL in it
        raise OSError(errno.EINVAL, str(error)) from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a file, but a folder, pipe or device")
        data = os.read(descriptor, status.st_size + 1)
        if len(data) != status.st_size:  # it grows or shrinks, or is too large for one call
            data += b"".join(iter(lambda: os.read(descriptor, _PIECE), b""))
    finally:
        os.close(descriptor)
    return status, data


def open_image(image: SourceImage) -> BinaryIO:
    """Open the bytes of an image as a seekable stream; turn a data source's failures into OSError.

    Raises:
        OSError: If it cannot be opened, whatever the data source raised.
    """
    try:
        stream = image.open()
        return stream if stream.seekable() else _in_memory(stream)
    except OSError:
        raise
    except Exception as error:  # third-party plugin code may raise anything
        raise OSError(f"{type(error).__name__}: {error}") from error


def stamp_of(image: SourceImage) -> str:
    """Return an image's stamp; turn a data source's failures into OSError.

    Raises:
        OSError: If there is none, whatever the data source raised or returned instead.
    """
    try:
        stamp: object = image.stamp()
    except OSError:
        raise
    except Exception as error:  # third-party plugin code may raise anything
        raise OSError(f"{type(error).__name__}: {error}") from error
    if not isinstance(stamp, str):
        raise OSError(f"stamp() returned {type(stamp).__name__}, not a text")
    if not stamp.isascii():
        stamp = ascii(stamp)
    return stamp if image.panel is None else f"{stamp}, {image.panel}"


def _in_memory(stream: BinaryIO) -> BinaryIO:
    with stream:
        return io.BytesIO(stream.read())
