"""What one image file is, read from its bytes: content hash, upright size, whether it is whole."""

from __future__ import annotations

import errno
import hashlib
import io
import os
from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image

from difftrain.data.image import UNREADABLE, describe, header_size, without_metadata_warnings
from difftrain.data.patience import patiently

_TIMES = 1 << 63
"""Times outside of the database's range, which some file systems can hold, are folded into it."""


class FileFacts(NamedTuple):
    """What is known of one image file."""

    size: int
    """Bytes."""
    mtime_ns: int
    """Time of change; of one beyond the year 2262 the remainder, which serves as well to see a change."""
    sha256: str
    width: int
    """Pixels, after EXIF rotation; 0 when the file is unreadable."""
    height: int
    error: str | None
    """Why the file is unreadable."""
    decoded: bool
    """Whether all of its pixels were looked at, and not the header alone."""
    refused: int = 0
    """The errno with which the system refused to open the file. It tells nothing of the content, so such facts must
    not be remembered; 0 when the file was read."""


def stat(name: str) -> tuple[int, int] | None:
    """(bytes, mtime_ns) of a file; None when the system gives none."""
    try:
        status = os.stat(name)  # noqa: PTH116
    except OSError:
        return None
    return stamp(status)


def stamp(status: os.stat_result) -> tuple[int, int]:
    """(bytes, mtime_ns) as they are remembered: a file is the same as long as both are."""
    return status.st_size, status.st_mtime_ns % _TIMES


def read_all(names: Sequence[str], *, decode: bool) -> list[FileFacts]:
    return [_read(name, decode=decode) for name in names]


def _read(name: str, *, decode: bool) -> FileFacts:
    """Facts from a file's bytes."""
    try:
        status, data = patiently(lambda: _content(name))
    except OSError as error:
        refused = error.errno or errno.EIO
        return FileFacts(0, 0, "", 0, 0, describe(error), decoded=False, refused=refused)
    width = height = 0
    problem = None
    decode = decode or not _ends_whole(data)
    try:
        width, height = header_size(io.BytesIO(data))
        if decode:
            with without_metadata_warnings(), Image.open(io.BytesIO(data)) as image:
                image.load()
    except UNREADABLE as error:
        width = height = 0
        problem = describe(error)
    sha256 = hashlib.sha256(data).hexdigest()
    return FileFacts(*stamp(status), sha256, width, height, problem, decoded=decode)


def _content(name: str) -> tuple[os.stat_result, bytes]:
    with open(name, "rb", buffering=0) as stream:  # noqa: PTH123 -- a Path each is slow for 400,000 files
        return os.fstat(stream.fileno()), stream.read()


def _ends_whole(data: bytes) -> bool:
    """Whether a file surely is not cut short; False means that only decoding can tell."""
    if data.startswith(b"\xff\xd8"):
        return data.rfind(b"\xff\xd9", -64) >= 0  # one further in front may be that of the EXIF thumbnail
    if data.startswith(b"\x89PNG"):
        return data.rfind(b"IEND", -64) >= 0
    if data.startswith(b"RIFF"):
        return len(data) >= 8 + int.from_bytes(data[4:8], "little")
    return False
