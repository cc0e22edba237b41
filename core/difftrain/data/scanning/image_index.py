"""Remembers in one SQLite file what scans found, so that a restart only compares stamps.

A row is valid for the bytes at an image's place as long as the stamp stays the same. Several runs may share the file.
"""

from __future__ import annotations

import json
import operator
import os
import sqlite3
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from difftrain.contracts import CaptionSource
from difftrain.data.files.local_image import file_stamp
from difftrain.data.scanning.file_facts import FileFacts, by_shelf, read_all, stamp_or_none
from difftrain.data.scanning.index_file import DamagedRow, IndexFile
from difftrain.errors import DataError
from difftrain.types import Phase, SourceImage

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

_IMAGES_A_CHUNK = 10_000
"""Images remembered together, so that an interrupted scan continues from there."""
_IMAGES_A_QUERY = 500
_IMAGES_A_TASK = 64
_ROWS_A_TASK = 4
_SLOW_LOOK = 100e-6
"""Seconds from which on a look at a file has waited for the disk; from memory it takes some 5 microseconds."""


@dataclass
class ImageIndex:
    """The open index. Use it as a context manager, from one thread."""

    path: Path
    read_only: bool = False
    """Whether what is found now is forgotten at the end."""
    hashed: int = 0
    """Images whose bytes were read since the index was opened."""
    captions_read: int = 0
    """Caption files that were read since the index was opened."""

    def __post_init__(self) -> None:
        self._file = IndexFile(self.path, read_only=self.read_only)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    @property
    def notes(self) -> Sequence[str]:
        """Parts of the file that could not be used, for the user."""
        return self._file.notes

    def examine(self, images: Sequence[SourceImage], phase: Phase, *, decode: bool = False) -> list[FileFacts]:
        """Return facts of every image, in the given order; read only new or changed ones.

        Args:
            images: Images of any data source; images at one place have the same bytes.
            phase: Counts the images.
            decode: Fully decode images that never were, to be sure of their pixels, instead of reading only headers.

        Raises:
            DataError: If the index cannot be used.
        """
        facts: list[FileFacts] = []
        with ThreadPoolExecutor(max_workers=_decoding_threads() if decode else _reading_threads()) as pool:
            for chunk in _chunks(images, _IMAGES_A_CHUNK):
                facts += self._examine_chunk(chunk, phase, pool, decode=decode)
        return facts

    def remember(self, images: Iterable[tuple[str, FileFacts]]) -> None:
        """Store facts, by place, of images that the caller has just written."""
        rows = [_image_row(place, facts) for place, facts in images]
        if rows:
            statement = "INSERT OR REPLACE INTO images VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
            self._file.do(lambda connection: connection.executemany(statement, rows))

    def captions(
        self, source: CaptionSource, images: Sequence[SourceImage]
    ) -> tuple[list[tuple[str, ...] | None], dict[str, str]]:
        """Return captions of each image and what could not be read; unchanged caption files are not read.

        Returns:
            Captions in the given order (None for an image without any), and error messages by the image's place.
        """
        found: list[tuple[str, ...] | None] = []
        problems: dict[str, str] = {}
        with ThreadPoolExecutor(max_workers=_reading_threads()) as pool:
            for chunk in _chunks(images, _IMAGES_A_CHUNK):
                found += self._captions_of_chunk(source, chunk, problems, pool)
        return found, problems

    def _examine_chunk(
        self, images: Sequence[SourceImage], phase: Phase, pool: ThreadPoolExecutor, *, decode: bool
    ) -> list[FileFacts]:
        places = [image.place for image in images]
        known = self._known_images(places)
        facts: dict[str, FileFacts] = {}
        stale: dict[str, tuple[SourceImage, str | None]] = {}
        for image, place, stamp in zip(images, places, _look_at(pool, stamp_or_none, images), strict=True):
            one = known.get(place)
            if one is not None and one.stamp == stamp and (one.decoded or not decode):
                facts[place] = one
            else:
                stale[place] = image, stamp
        phase.advance(sum(place in facts for place in places))
        for some in by_shelf(stale.values()):
            size = _IMAGES_A_TASK if some[0][0].shelf is None else _ROWS_A_TASK
            for unread, read in _in_threads(pool, lambda part: read_all(part, decode=decode), some, size):
                facts.update((image.place, one) for (image, _), one in zip(unread, read, strict=True))
                phase.advance(len(unread), unread[-1][0].place)
        self.hashed += len(stale)
        self.remember((place, facts[place]) for place in stale if not facts[place].refused)
        return [facts[place] for place in places]

    def _known_images(self, places: Sequence[str]) -> dict[str, FileFacts]:
        def select(connection: sqlite3.Connection) -> dict[str, FileFacts]:
            return dict(map(_image_facts, _rows_of(connection, "SELECT * FROM images WHERE", (), places)))

        return self._file.do(select)

    def _captions_of_chunk(
        self,
        source: CaptionSource,
        images: Sequence[SourceImage],
        problems: dict[str, str],
        pool: ThreadPoolExecutor,
    ) -> list[tuple[str, ...] | None]:
        identity = f"{type(source).name}{source.identity()}"
        stamps = _look_at(pool, lambda image: _stamp(source.files(image)), images)
        known = self._known_captions(
            identity, [image.place for image, stamp in zip(images, stamps, strict=True) if stamp]
        )
        found: dict[str, tuple[str, ...] | None] = {}
        stale: list[tuple[SourceImage, str]] = []
        for image, stamp in zip(images, stamps, strict=True):
            remembered = known.get(image.place)
            if remembered is not None and remembered[0] == stamp:
                text = remembered[1]
                found[image.key] = None if text == "null" else tuple(json.loads(text))
            else:
                stale.append((image, stamp))
        fresh: list[tuple[bytes, str, str, str]] = []
        for part, read in _in_threads(pool, lambda part: [_captions(source, image) for image, _ in part], stale):
            for (image, stamp), captions in zip(part, read, strict=True):
                if isinstance(captions, DataError):
                    problems[image.place] = str(captions)
                found[image.key] = None if isinstance(captions, DataError) else captions
                if stamp and not isinstance(captions, DataError):
                    fresh.append((_encoded(image.place), identity, stamp, json.dumps(captions)))
        self.captions_read += len(fresh)
        if fresh:
            rows = [(*values, _checksum(values)) for values in fresh]
            statement = "INSERT OR REPLACE INTO captions VALUES (?, ?, ?, ?, ?)"
            self._file.do(lambda connection: connection.executemany(statement, rows))
        return [found[image.key] for image in images]

    def _known_captions(self, identity: str, places: Sequence[str]) -> dict[str, tuple[str, str]]:
        def select(connection: sqlite3.Connection) -> dict[str, tuple[str, str]]:
            known: dict[str, tuple[str, str]] = {}
            statement = "SELECT * FROM captions WHERE source = ? AND"
            for row in _rows_of(connection, statement, (identity,), places):
                if _checksum(row[:-1]) != row[-1]:
                    raise DamagedRow("a row does not fit its checksum")
                known[_decoded(row[0])] = (row[2], row[3])
            return known

        return self._file.do(select)


def _image_row(place: str, facts: FileFacts) -> tuple[Any, ...]:
    error = facts.error and facts.error.encode("utf-8", "backslashreplace").decode()
    stamp, content_hash, width, height = facts[:4]
    flags = int(facts.decoded), int(facts.is_animated)
    values = (_encoded(place), stamp, content_hash, width, height, error, *flags)
    return (*values, _checksum(values))


def _image_facts(row: tuple[Any, ...]) -> tuple[str, FileFacts]:
    """Return place and facts of a row.

    Raises:
        DamagedRow: If the row is not as it was written.
    """
    if _checksum(row[:-1]) != row[-1]:
        raise DamagedRow("a row does not fit its checksum")
    place, stamp, content_hash, width, height, error, decoded, animated, _ = row
    return _decoded(place), FileFacts(stamp, content_hash, width, height, error, decoded == 1, 0, animated == 1)


def _encoded(place: str) -> bytes:
    """Encode for SQLite: paths may contain bytes that are not UTF-8, which Python holds as lone surrogates."""
    return place.encode("utf-8", "surrogatepass")


def _decoded(place: bytes) -> str:
    return place.decode("utf-8", "surrogatepass")


def _checksum(values: tuple[Any, ...]) -> int:
    """Return a checksum that detects a row which the disk has changed without SQLite noticing."""
    return zlib.crc32(repr(values).encode("utf-8", "backslashreplace"))


def _captions(source: CaptionSource, image: SourceImage) -> tuple[str, ...] | DataError | None:
    try:
        return source.captions(image)
    except DataError as error:
        return error


def _rows_of(
    connection: sqlite3.Connection, statement: str, values: tuple[str, ...], places: Sequence[str]
) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of these places, and perhaps of others between them.

    Args:
        statement: Ends where the condition on the place follows.
        values: Of the marks in the statement.
        places: One statement reads them all if they are sorted, as those of a folder are.
    """
    encoded = [_encoded(place) for place in places]
    if len(encoded) > _IMAGES_A_QUERY and all(map(operator.le, encoded, islice(encoded, 1, None))):
        yield from connection.execute(f"{statement} place BETWEEN ? AND ?", (*values, encoded[0], encoded[-1]))
        return
    for part in _chunks(encoded, _IMAGES_A_QUERY):
        yield from connection.execute(f"{statement} place IN ({','.join('?' * len(part))})", (*values, *part))


def _look_at(
    pool: ThreadPoolExecutor, look: Callable[[SourceImage], _Result], images: Sequence[SourceImage]
) -> list[_Result]:
    """Return a look at every image's files; one after another as long as the disk answers at once, then in threads.

    Threads hide the latency of a disk or network, but where there is none they only take turns.
    """
    found: list[_Result] = []
    for part in _chunks(images, _IMAGES_A_TASK):
        started = time.perf_counter()
        found += map(look, part)
        if time.perf_counter() - started > _SLOW_LOOK * len(part):
            break
    rest = images[len(found) :]
    for _, some in _in_threads(pool, lambda part: list(map(look, part)), rest):
        found += some
    return found


def _in_threads(
    pool: ThreadPoolExecutor,
    work: Callable[[Sequence[_Item]], list[_Result]],
    items: Sequence[_Item],
    size: int | None = None,
) -> Iterator[tuple[Sequence[_Item], list[_Result]]]:
    """Work on several parts at once, since disks and networks have latency; yield results in order."""
    parts = list(_chunks(items, size or _IMAGES_A_TASK))
    return zip(parts, pool.map(work, parts), strict=True)


def _stamp(files: Iterable[str | Path]) -> str:
    """Return a text that changes whenever one of the files changes, appears or disappears; empty without files."""
    return "|".join(map(_stamp_or_absent, files))


def _stamp_or_absent(file: str | Path) -> str:
    try:
        return file_stamp(file)
    except OSError:
        return "absent"


def _chunks(items: Sequence[_Item], size: int) -> Iterator[Sequence[_Item]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _reading_threads() -> int:
    return min(32, 2 * (os.cpu_count() or 1) + 2)


def _decoding_threads() -> int:
    """Return one thread per core: Pillow decodes in parallel, and more threads would only hold more images."""
    return min(32, os.cpu_count() or 1)
