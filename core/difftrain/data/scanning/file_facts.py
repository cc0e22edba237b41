"""What one image is, read from its bytes: content hash, upright size, whether it is whole."""

from __future__ import annotations

import errno
import hashlib
import io
from collections.abc import Sequence
from typing import NamedTuple

from difftrain.data.files.pixels import UNREADABLE, describe, header_facts, open_with_pillow
from difftrain.machine.open_file import open_image, stamp_of
from difftrain.machine.retries import with_retries
from difftrain.types import SourceImage


class FileFacts(NamedTuple):
    """What is known of one image."""

    stamp: str
    """What :meth:`~difftrain.types.SourceImage.stamp` gave before the bytes were read."""
    sha256: str
    width: int
    """Pixels, after EXIF rotation; 0 when it is unreadable."""
    height: int
    error: str | None
    """Why it is unreadable."""
    decoded: bool
    """Whether all of its pixels were looked at, and not the header alone."""
    refused: int = 0
    """The errno with which the image was refused to be opened. It tells nothing of the content, so such facts must
    not be remembered; 0 when it was read."""
    is_animated: bool = False
    """Whether there are more frames than the one that is used."""


def stamp_or_none(image: SourceImage) -> str | None:
    """The stamp of an image; None when it cannot be looked at."""
    try:
        return stamp_of(image)
    except OSError:
        return None


def read_all(images: Sequence[tuple[SourceImage, str | None]], *, decode: bool) -> list[FileFacts]:
    """Facts of images, each with the stamp that it has been seen to have, if any."""
    return [_read(image, stamp, decode=decode) for image, stamp in images]


def _read(image: SourceImage, seen: str | None, *, decode: bool) -> FileFacts:
    """Facts from an image's bytes.

    A stamp is taken before the bytes are read: what changes in between is then noticed by the next scan.
    """
    try:
        stamp, data = with_retries(lambda: (stamp_of(image) if seen is None else seen, _content(image)))
    except OSError as error:
        refused = error.errno or errno.EIO
        return FileFacts("", "", 0, 0, describe(error), decoded=False, refused=refused)
    width = height = 0
    is_animated = False
    problem = None
    decode = decode or not _ends_whole(data)
    try:
        (width, height), is_animated = header_facts(io.BytesIO(data))
        if decode:
            with open_with_pillow(io.BytesIO(data)) as opened:
                opened.load()
    except UNREADABLE as error:
        width = height = 0
        problem = describe(error) if data else "an empty file"
    return FileFacts(
        stamp,
        hashlib.sha256(data).hexdigest(),
        width,
        height,
        problem,
        decoded=decode,
        is_animated=is_animated,
    )


def _content(image: SourceImage) -> bytes:
    with open_image(image) as stream:
        return stream.read()


def _ends_whole(data: bytes) -> bool:
    """Whether a file surely is not cut short; False means that only decoding can tell."""
    if data.startswith(b"\xff\xd8"):
        return data.rfind(b"\xff\xd9", -64) >= 0  # one further in front may be that of the EXIF thumbnail
    if data.startswith(b"\x89PNG"):
        return data.rfind(b"IEND", -64) >= 0
    if data.startswith(b"RIFF"):
        return len(data) >= 8 + int.from_bytes(data[4:8], "little")
    return False
