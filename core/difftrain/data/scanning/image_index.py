"""Remembers in one SQLite file what scans found, so that a restart only compares stamps.

A row is valid for the bytes at an image's place as long as the stamp stays the same. Several runs may share the file.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from difftrain.contracts import CaptionSource
from difftrain.data.files.captions import TextfileCaptions
from difftrain.data.files.local_image import LocalImage, file_stamp
from difftrain.data.scanning.file_facts import FileFacts, by_shelf, read_all, stamp_or_none
from difftrain.data.scanning.index_file import DamagedRow, IndexFile
from difftrain.data.scanning.index_rows import checksum, decoded, encoded, image_facts, image_row, rows_of
from difftrain.data.scanning.many_files import ManyFiles
from difftrain.errors import DataError
from difftrain.types import Phase, SourceImage

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

_IMAGES_A_CHUNK = 10_000
"""Images remembered together, so that an interrupted scan continues from there."""
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
        with ManyFiles(len(images)) as files:
            chunks = _chunks(images, _IMAGES_A_CHUNK)
            return _each_begun_early(self._examine_chunk(chunk, phase, files, decode=decode) for chunk in chunks)

    def remember(self, images: Iterable[tuple[str, FileFacts]]) -> None:
        """Store facts, by place, of images that the caller has just written."""
        rows = [image_row(place, facts) for place, facts in images]
        if rows:
            statement = "INSERT OR REPLACE INTO images VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
            self._file.do(lambda connection: connection.executemany(statement, rows))

    def do(self, work: Callable[[sqlite3.Connection], _Result]) -> _Result:
        """Return the result of work on the file, for what others remember there; see :meth:`IndexFile.do`."""
        return self._file.do(work)

    def captions(
        self, source: CaptionSource, images: Sequence[SourceImage]
    ) -> tuple[list[tuple[str, ...] | None], dict[str, str]]:
        """Return captions of each image and what could not be read; unchanged caption files are not read.

        Returns:
            Captions in the given order (None for an image without any), and error messages by the image's place.
        """
        problems: dict[str, str] = {}
        with ManyFiles(len(images)) as files:
            chunks = _chunks(images, _IMAGES_A_CHUNK)
            found = _each_begun_early(self._captions_of_chunk(source, chunk, problems, files) for chunk in chunks)
        return found, problems

    def _examine_chunk(
        self, images: Sequence[SourceImage], phase: Phase, files: ManyFiles, *, decode: bool
    ) -> Generator[None, None, list[FileFacts]]:
        """Yield when the reading has begun; return the facts."""
        places = [image.place for image in images]
        known = self._known_images(places)
        seen = [image for image, place in zip(images, places, strict=True) if place in known]
        stamps = dict(zip((image.place for image in seen), _look_at(files, stamp_or_none, seen), strict=True))
        facts: dict[str, FileFacts] = {}
        stale: dict[str, tuple[SourceImage, str | None]] = {}
        for image, place in zip(images, places, strict=True):
            one = known.get(place)
            if one is not None and one.stamp == stamps[place] and (one.decoded or not decode):
                facts[place] = one
            else:
                stale[place] = image, stamps.get(place)
        phase.advance(sum(place in facts for place in places))
        # Pillow decodes in parallel in threads, and more processes would only hold more images
        may_leave = not decode and all(type(image) is LocalImage for image, _ in stale.values())
        read_part = partial(read_all, decode=decode)
        reading = [
            files.work(read_part, some, may_leave=may_leave, size=_ROWS_A_TASK if some[0][0].shelf else None)
            for some in by_shelf(stale.values())
        ]
        yield
        for unread, read in chain.from_iterable(reading):
            facts.update((image.place, one) for (image, _), one in zip(unread, read, strict=True))
            phase.advance(len(unread), unread[-1][0].place)
        self.hashed += len(stale)
        self.remember((place, facts[place]) for place in stale if not facts[place].refused)
        return [facts[place] for place in places]

    def _known_images(self, places: Sequence[str]) -> dict[str, FileFacts]:
        def select(connection: sqlite3.Connection) -> dict[str, FileFacts]:
            return dict(map(image_facts, rows_of(connection, "SELECT * FROM images WHERE", (), places)))

        return self._file.do(select)

    def _captions_of_chunk(
        self,
        source: CaptionSource,
        images: Sequence[SourceImage],
        problems: dict[str, str],
        files: ManyFiles,
    ) -> Generator[None, None, list[tuple[str, ...] | None]]:
        """Yield when the reading has begun; return the captions."""
        identity = f"{type(source).name}{source.identity()}"
        known = self._known_captions(identity, [image.place for image in images])
        seen = [image for image in images if image.place in known]
        stamps = dict(zip((image.place for image in seen), _look_at(files, partial(_stamp, source), seen), strict=True))
        found: dict[str, tuple[str, ...] | None] = {}
        stale: list[SourceImage] = []
        for image in images:
            remembered = known.get(image.place)
            if remembered is not None and remembered[0] == stamps[image.place]:
                text = remembered[1]
                found[image.key] = None if text == "null" else tuple(json.loads(text))
            else:
                stale.append(image)
        fresh: list[tuple[bytes, str, str, str]] = []
        may_leave = type(source) is TextfileCaptions and all(type(image) is LocalImage for image in stale)
        reading = files.work(partial(_captions, source), stale, may_leave=may_leave)
        yield
        for part, read in reading:
            for image, (stamp, captions) in zip(part, read, strict=True):
                if isinstance(captions, DataError):
                    problems[image.place] = str(captions)
                found[image.key] = None if isinstance(captions, DataError) else captions
                if stamp and not isinstance(captions, DataError):
                    fresh.append((encoded(image.place), identity, stamp, json.dumps(captions)))
        self.captions_read += len(fresh)
        if fresh:
            rows = [(*values, checksum(values)) for values in fresh]
            statement = "INSERT OR REPLACE INTO captions VALUES (?, ?, ?, ?, ?)"
            self._file.do(lambda connection: connection.executemany(statement, rows))
        return [found[image.key] for image in images]

    def _known_captions(self, identity: str, places: Sequence[str]) -> dict[str, tuple[str, str]]:
        def select(connection: sqlite3.Connection) -> dict[str, tuple[str, str]]:
            known: dict[str, tuple[str, str]] = {}
            statement = "SELECT * FROM captions WHERE source = ? AND"
            for row in rows_of(connection, statement, (identity,), places):
                if checksum(row[:-1]) != row[-1]:
                    raise DamagedRow("a row does not fit its checksum")
                known[decoded(row[0])] = (row[2], row[3])
            return known

        return self._file.do(select)


def _each_begun_early(chunks: Iterable[Generator[None, None, list[_Result]]]) -> list[_Result]:
    """Return the results of all chunks; each begins before the one before it is finished, so that nothing waits."""
    results: list[_Result] = []
    begun: list[Generator[None, None, list[_Result]]] = []
    for chunk in chunks:
        next(chunk)
        if begun:
            results += _result_of(begun.pop())
        begun.append(chunk)
    for chunk in begun:
        results += _result_of(chunk)
    return results


def _result_of(chunk: Generator[None, None, list[_Result]]) -> list[_Result]:
    try:
        next(chunk)
    except StopIteration as end:
        found: list[_Result] = end.value
        return found
    raise AssertionError("a chunk stops once, when its reading has begun")


def _captions(
    source: CaptionSource, images: Sequence[SourceImage]
) -> list[tuple[str, tuple[str, ...] | DataError | None]]:
    """Return stamp and captions of each image; the stamp comes first, so the next scan notices any change after it."""
    return [(_stamp(source, image), _captions_of(source, image)) for image in images]


def _captions_of(source: CaptionSource, image: SourceImage) -> tuple[str, ...] | DataError | None:
    try:
        return source.captions(image)
    except DataError as error:
        return error


def _look_at(files: ManyFiles, look: Callable[[SourceImage], _Result], images: Sequence[SourceImage]) -> list[_Result]:
    """Return a look at every image's files."""
    parts = files.work(lambda part: list(map(look, part)), images, slow=_SLOW_LOOK)
    return [result for _, results in parts for result in results]


def _stamp(source: CaptionSource, image: SourceImage) -> str:
    """Return a text that changes whenever a caption file changes, appears or disappears; empty without files."""
    return "|".join(map(_stamp_or_absent, source.files(image)))


def _stamp_or_absent(file: str | Path) -> str:
    try:
        return file_stamp(file)
    except OSError:
        return "absent"


def _chunks(items: Sequence[_Item], size: int) -> Iterator[Sequence[_Item]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
