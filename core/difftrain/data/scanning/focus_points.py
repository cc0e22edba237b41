"""Asks a crop style what it finds in images: in threads, and only once for each content; the index remembers.

An answer is known by the image's content and the style's name, package, version and options, so nothing else, not even
another place of the file, asks again.
"""

from __future__ import annotations

import math
import os
import sqlite3
import zlib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from numbers import Real
from typing import Any

from difftrain.contracts import CropStyle
from difftrain.data.files.pixels import open_upright
from difftrain.data.scanning.image_index import ImageIndex
from difftrain.data.scanning.index_file import DamagedRow
from difftrain.errors import DataError, PluginError, printable
from difftrain.types import ImageRecord, Phase, Point, Reporter

_SCHEMA = """
CREATE TABLE IF NOT EXISTS focus_points (
    content_hash TEXT, style TEXT, x REAL, y REAL, checksum INTEGER, PRIMARY KEY (content_hash, style)
) WITHOUT ROWID
"""
# Made when it is first needed: a file without it is no older format whose rows would have to be read again.
_AT_ONCE = 256
"""Images whose points are remembered together; an interrupted search continues from its last image."""
_IMAGES_A_QUERY = 500


@dataclass(frozen=True, kw_only=True)
class FocusPoints:
    """What a crop style found in images."""

    points: Mapping[str, Point | None]
    """By content hash; None where it found nothing."""
    unreadable: Mapping[str, str] = field(default_factory=dict)
    """Why an image cannot be decoded, by content hash."""

    def on(self, record: ImageRecord) -> ImageRecord:
        """Return a record with its point."""
        return replace(record, focus=self.points.get(record.content_hash))


def find_focus_points(
    style: CropStyle, records: Iterable[ImageRecord], index: ImageIndex, reporter: Reporter, *, dataset: str
) -> FocusPoints:
    """Return what a style finds in images; only those are opened that it has never been asked about.

    Raises:
        PluginError: If the style fails or returns no point; names the image.
    """
    every = {record.content_hash: record for record in records}
    identity = _identity(style)
    points = _known(index, identity, list(every))
    left = [record for content_hash, record in every.items() if content_hash not in points]
    unreadable: dict[str, str] = {}
    if left:
        with reporter.phase(f"find what to crop in {dataset}", len(left)) as phase:
            for content_hash, found in _ask_all(style, left, index, identity, phase):
                if isinstance(found, DataError):
                    unreadable[content_hash] = str(found)
                else:
                    points[content_hash] = found
    return FocusPoints(points=points, unreadable=unreadable)


def _identity(style: CropStyle) -> str:
    """Return what its answers depend on besides the image; styles of two packages may have one name."""
    cls = type(style)
    return f"{cls.__module__.partition('.')[0]}|{cls.name}|v{cls.version}|{style.identity()}"


def _ask_all(
    style: CropStyle, records: Sequence[ImageRecord], index: ImageIndex, identity: str, phase: Phase
) -> Iterable[tuple[str, Point | DataError | None]]:
    pool = ThreadPoolExecutor(min(16, os.cpu_count() or 1))
    try:
        for start in range(0, len(records), _AT_ONCE):
            part = records[start : start + _AT_ONCE]
            found: dict[str, Point | None] = {}
            try:
                for record, point in zip(part, pool.map(partial(_ask, style), part), strict=True):
                    phase.advance(item=record.key)
                    if not isinstance(point, DataError):
                        found[record.content_hash] = point
                    yield record.content_hash, point
            finally:
                _remember(index, identity, found)
    finally:
        pool.shutdown(cancel_futures=True)


def _ask(style: CropStyle, record: ImageRecord) -> Point | DataError | None:
    """Return what a style finds in one image, or why that cannot be decoded; its own failures are plugin errors."""
    who = f"crop style {type(style).name!r}"
    try:
        image = open_upright(record.image)
    except DataError as error:
        return error
    try:
        found: object = style.focus(image)
    except Exception as error:  # third-party plugin code may raise anything
        raise PluginError(
            f"{who} failed on {printable(record.image.place)}: {type(error).__name__}: {error}"
        ) from error
    if found is None:
        return None
    point = _as_point(found)
    if point is None:
        raise PluginError(
            f"{who} returned {printable(repr(found))} for {printable(record.image.place)}\n"
            "hint: focus() must return (x, y) in shares of width and height, from 0 to 1, or None"
        )
    return point


def _as_point(found: object) -> Point | None:
    if not (isinstance(found, tuple | list) and len(found) == 2 and all(isinstance(one, Real) for one in found)):
        return None
    x, y = (float(one) for one in found)
    return (x, y) if all(math.isfinite(one) and 0 <= one <= 1 for one in (x, y)) else None


def _known(index: ImageIndex, identity: str, hashes: Sequence[str]) -> dict[str, Point | None]:
    def select(connection: sqlite3.Connection) -> dict[str, Point | None]:
        connection.execute(_SCHEMA)
        known: dict[str, Point | None] = {}
        for start in range(0, len(hashes), _IMAGES_A_QUERY):
            part = hashes[start : start + _IMAGES_A_QUERY]
            marks = ",".join("?" * len(part))
            statement = f"SELECT * FROM focus_points WHERE style = ? AND content_hash IN ({marks})"
            for row in connection.execute(statement, (identity, *part)):
                if _checksum(row[:-1]) != row[-1]:
                    raise DamagedRow("a row does not fit its checksum")
                content_hash, _, x, y, _ = row
                known[content_hash] = None if x is None else (x, y)
        return known

    return index.do(select)


def _remember(index: ImageIndex, identity: str, points: Mapping[str, Point | None]) -> None:
    rows = [(content_hash, identity, *(point or (None, None))) for content_hash, point in points.items()]

    def insert(connection: sqlite3.Connection) -> None:
        connection.execute(_SCHEMA)
        statement = "INSERT OR REPLACE INTO focus_points VALUES (?, ?, ?, ?, ?)"
        connection.executemany(statement, [(*row, _checksum(row)) for row in rows])

    index.do(insert)


def _checksum(values: tuple[Any, ...]) -> int:
    """Return a checksum that detects a row which the disk has changed without SQLite noticing."""
    return zlib.crc32(repr(values).encode("utf-8", "backslashreplace"))
