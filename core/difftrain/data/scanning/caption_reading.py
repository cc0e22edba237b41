"""Captions of many images with the stamps of their files; may run in other processes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from difftrain.contracts import CaptionSource
from difftrain.data.files.local_image import LocalImage, file_stamp
from difftrain.errors import DataError
from difftrain.types import SourceImage

StampedCaptions = tuple[str, tuple[str, ...] | DataError | None]
"""The result of :func:`captions_stamp`, and the captions, or why they cannot be read."""


def captions_beside(source: CaptionSource, files: Sequence[str]) -> list[StampedCaptions]:
    """Do for image files what :func:`read_captions` does, for sources that look only at their paths."""
    return read_captions(source, [LocalImage(key=file, file=file) for file in files])


def read_captions(source: CaptionSource, images: Sequence[SourceImage]) -> list[StampedCaptions]:
    """Return stamp and captions of each image; the stamp comes first, so the next scan notices any change after it."""
    return [(captions_stamp(source, image), _captions_of(source, image)) for image in images]


def captions_stamp(source: CaptionSource, image: SourceImage) -> str:
    """Return a text that changes whenever a caption file changes, appears or disappears; empty without files."""
    return "|".join(map(_stamp_or_absent, source.files(image)))


def _captions_of(source: CaptionSource, image: SourceImage) -> tuple[str, ...] | DataError | None:
    try:
        return source.captions(image)
    except DataError as error:
        return error


def _stamp_or_absent(file: str | Path) -> str:
    try:
        return file_stamp(file)
    except OSError:
        return "absent"
