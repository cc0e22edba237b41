"""What one image file is, read from its bytes: content hash, upright size, whether it is whole."""

from __future__ import annotations

import errno
import hashlib
import io
import os
from collections.abc import Sequence
from typing import NamedTuple

from difftrain.data.image import UNREADABLE, describe, header_facts, open_picture
from difftrain.data.open_file import open_file
from difftrain.data.patience import patiently


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
    is_animated: bool = False
    """Whether there are more frames than the one that is used."""


def stat(name: str) -> tuple[int, int] | None:
    """(bytes, mtime_ns) of a file; None when the system gives none."""
    try:
        status = os.stat(name)  # noqa: PTH116
    except OSError:
        return None
    return status.st_size, storable_time(status.st_mtime_ns)


def storable_time(mtime_ns: int) -> int:
    """A file time as 64 bits; beyond 1677 to 2262 it stands for another one, but still changes when that does."""
    return (mtime_ns + 2**63) % 2**64 - 2**63


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
    is_animated = False
    problem = None
    decode = decode or not _ends_whole(data)
    try:
        (width, height), is_animated = header_facts(io.BytesIO(data))
        if decode:
            with open_picture(io.BytesIO(data)) as image:
                image.load()
    except UNREADABLE as error:
        width = height = 0
        problem = describe(error) if data else "an empty file"
    return FileFacts(
        status.st_size,
        storable_time(status.st_mtime_ns),
        hashlib.sha256(data).hexdigest(),
        width,
        height,
        problem,
        decoded=decode,
        is_animated=is_animated,
    )


def _content(name: str) -> tuple[os.stat_result, bytes]:
    with open_file(name) as stream:
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
