"""Facts of one image, read from its bytes: content hash, upright size, whether it is complete."""

from __future__ import annotations

import errno
import io
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from xxhash import xxh3_128

from difftrain.data.files.local_image import stamp_of_status
from difftrain.data.files.pixels import UNREADABLE, describe, header_facts, open_with_pillow
from difftrain.data.files.plain_headers import plain_size
from difftrain.machine.open_file import open_image, read_file, stamp_of
from difftrain.machine.retries import with_retries
from difftrain.types import Panel, Shelf, Size, SourceImage


class FileFacts(NamedTuple):
    """Everything known about one image."""

    stamp: str
    """The result of :meth:`~difftrain.types.SourceImage.stamp` before the bytes were read."""
    content_hash: str
    """Hex XXH3 of the bytes, 32 digits; blake3 takes ten times as long, sha256 thirty times."""
    width: int
    """Pixels, after EXIF rotation; 0 if unreadable."""
    height: int
    error: str | None
    """Why it is unreadable."""
    decoded: bool
    """Whether all of its pixels were decoded, not only the header."""
    refused: int = 0
    """The errno with which opening the image failed; 0 if it was read. Such a failure says nothing about the content,
    so these facts must not be remembered."""
    is_animated: bool = False
    """Whether it has more frames than the one that is used."""


def stamp_or_none(image: SourceImage) -> str | None:
    """Return the stamp of an image; None if it cannot be examined."""
    try:
        return stamp_of(image)
    except OSError:
        return None


def by_shelf(images: Iterable[tuple[SourceImage, str | None]]) -> Iterable[list[tuple[SourceImage, str | None]]]:
    """Return images in lists of those that are stored together; threads that read one list share what it costs."""
    shelves: dict[Shelf | None, list[tuple[SourceImage, str | None]]] = {}
    for one in images:
        shelves.setdefault(one[0].shelf, []).append(one)
    return shelves.values()


def read_all(images: Sequence[tuple[SourceImage, str | None]], *, decode: bool) -> list[FileFacts]:
    """Return facts of images; each comes with the stamp already seen, if any."""
    return [_read(image, stamp, decode=decode) for image, stamp in images]


def read_files(files: Sequence[str]) -> list[FileFacts]:
    """Return facts of image files, as :func:`read_all` does of their images, in less time: there may be very many."""
    return list(map(_read_file, files))


def _read_file(file: str) -> FileFacts:
    try:
        status, data = with_retries(lambda: read_file(file))
    except OSError as error:
        return _refused(error)
    return _facts_of(stamp_of_status(status), data)


def _read(image: SourceImage, seen: str | None, *, decode: bool) -> FileFacts:
    """Read facts from an image's bytes.

    The stamp is taken before the bytes are read, so the next scan notices any change in between.
    """
    try:
        stamp, data = with_retries(lambda: (stamp_of(image) if seen is None else seen, _content(image)))
    except OSError as error:
        return _refused(error)
    return _facts_of(stamp, data, image.panel, decode=decode)


def _refused(error: OSError) -> FileFacts:
    return FileFacts("", "", 0, 0, describe(error), decoded=False, refused=error.errno or errno.EIO)


def _facts_of(stamp: str, data: bytes, panel: Panel | None = None, *, decode: bool = False) -> FileFacts:
    width = height = 0
    is_animated = False
    problem = None
    decode = decode or not _ends_whole(data)
    try:
        size, is_animated = _header_facts(data)
        width, height = size if panel is None else panel.size_in(size)
        if decode:
            with open_with_pillow(io.BytesIO(data)) as opened:
                opened.load()
    except UNREADABLE as error:
        width = height = 0
        problem = describe(error) if data else "an empty file"
    return FileFacts(
        stamp,
        content_hash(data, panel),
        width,
        height,
        problem,
        decoded=decode,
        is_animated=is_animated,
    )


def content_hash(data: bytes, panel: Panel | None = None) -> str:
    """Return the hash of an image file's bytes, or of one panel in it, whose pixels need not be decoded for that."""
    hashed = xxh3_128(data)
    if panel is not None:
        hashed.update(str(panel).encode())
    return hashed.hexdigest()


def _header_facts(data: bytes) -> tuple[Size, bool]:
    """Return the result of :func:`~difftrain.data.files.pixels.header_facts`, of ordinary files without Pillow."""
    size = plain_size(data)
    return (size, False) if size is not None else header_facts(io.BytesIO(data))


def _content(image: SourceImage) -> bytes:
    with open_image(image) as stream:
        return stream.read()


def _ends_whole(data: bytes) -> bool:
    """Return True if a file is surely not cut short; False means that only decoding can tell."""
    if data.startswith(b"\xff\xd8"):
        return data.rfind(b"\xff\xd9", -64) >= 0  # one further ahead may belong to the EXIF thumbnail
    if data.startswith(b"\x89PNG"):
        return data.rfind(b"IEND", -64) >= 0
    if data.startswith(b"RIFF"):
        return len(data) >= 8 + int.from_bytes(data[4:8], "little")
    return False
