"""Remembers in one SQLite file what scans found, so that a restart only compares stamps.

A row is valid for the bytes at an image's place as long as the stamp stays the same. Several runs may share the file.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from difftrain.contracts import CaptionSource
from difftrain.data.files.captions import TextfileCaptions
from difftrain.data.files.local_image import LocalImage
from difftrain.data.packed.packed_images import captions_text
from difftrain.data.scanning.begun import Begun
from difftrain.data.scanning.caption_reading import StampedCaptions, captions_beside, captions_stamp, read_captions
from difftrain.data.scanning.file_facts import FileFacts, by_shelf, read_all, read_files, stamp_or_none
from difftrain.data.scanning.index_file import DamagedRow, IndexFile
from difftrain.data.scanning.index_rows import checksum, decoded, encoded, image_facts, image_row, is_empty, rows_of
from difftrain.data.scanning.many_files import ManyFiles, Reading
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
        self._readers: ManyFiles | None = None
        self._in_flight: set[str] = set()
        """Places of images that are being read and will be known: another dataset with them waits."""
        self._captions_in_flight: set[str] = set()

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
        with self.shared_readers():
            return self.begin_examine(images, decode=decode).finish(phase)

    def begin_examine(self, images: Sequence[SourceImage], *, decode: bool = False) -> Begun[Phase, FileFacts]:
        """Begin :meth:`examine`, within :meth:`shared_readers`: processes then read while the caller does something."""
        files = self._readers_for(len(images))
        return Begun(self._examine_chunk(chunk, files, decode=decode) for chunk in _chunks(images, _IMAGES_A_CHUNK))

    @contextmanager
    def shared_readers(self) -> Iterator[None]:
        """Keep reading processes between the calls within: to start them takes as long as to read 10,000 images."""
        if self._readers is not None:
            yield
            return
        try:
            with ManyFiles(0) as self._readers:
                yield
        finally:
            self._readers = None
            self._in_flight.clear()
            self._captions_in_flight.clear()

    def readers_for_files(self, count: int) -> ManyFiles:
        """Return the processes that read within :meth:`shared_readers`; they start if very many files are all new."""
        assert self._readers is not None, "allowed within shared_readers"
        if self._file.is_new:
            self._readers.start_for(count)
        return self._readers

    def _readers_for(self, count: int) -> ManyFiles:
        assert self._readers is not None, "to begin is allowed within shared_readers"
        self._readers.expect(count)
        return self._readers

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
        with self.shared_readers():
            return self.begin_captions(source, images).finish(problems), problems

    def begin_captions(
        self, source: CaptionSource, images: Sequence[SourceImage]
    ) -> Begun[dict[str, str], tuple[str, ...] | None]:
        """Begin :meth:`captions`, within :meth:`shared_readers`; to finish takes what collects the error messages."""
        files = self._readers_for(len(images))
        return Begun(self._captions_of_chunk(source, chunk, files) for chunk in _chunks(images, _IMAGES_A_CHUNK))

    def _examine_chunk(
        self, images: Sequence[SourceImage], files: ManyFiles, *, decode: bool
    ) -> Generator[None, Phase, list[FileFacts]]:
        """Yield when the reading has begun, if processes read; return the facts."""
        places = [image.place for image in images]
        # Pillow decodes in parallel in threads, and more processes would only hold more images
        begins = not decode and files.would_leave(len(images)) and self._in_flight.isdisjoint(places)
        phase = None if begins else (yield)
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
        already = sum(place in facts for place in places)
        if not decode and files.would_leave(len(stale)) and all(_is_new_file(*one) for one in stale.values()):
            reading = files.work(read_files, list(stale), may_leave=True)
        else:
            reading = _read_here(files, stale.values(), decode=decode)
        if phase is None:
            self._in_flight.update(places)
            phase = yield
            self._in_flight.difference_update(places)
        phase.advance(already)
        for unread, read in reading:
            facts.update(zip(unread, read, strict=True))
            phase.advance(len(unread), unread[-1])
        self.hashed += len(stale)
        self.remember((place, facts[place]) for place in stale if not facts[place].refused)
        return [facts[place] for place in places]

    def _known_images(self, places: Sequence[str]) -> dict[str, FileFacts]:
        def select(connection: sqlite3.Connection) -> dict[str, FileFacts]:
            if is_empty(connection, "images"):
                return {}
            return dict(map(image_facts, rows_of(connection, "SELECT * FROM images WHERE", (), places)))

        return self._file.do(select)

    def _captions_of_chunk(
        self,
        source: CaptionSource,
        images: Sequence[SourceImage],
        files: ManyFiles,
    ) -> Generator[None, dict[str, str], list[tuple[str, ...] | None]]:
        """Yield when the reading has begun, if processes read; return the captions."""
        identity = f"{type(source).name}{source.identity()}"
        places = [image.place for image in images]
        begins = files.would_leave(len(images)) and self._captions_in_flight.isdisjoint(places)
        problems = None if begins else (yield)
        known = self._known_captions(identity, places)
        seen = [image for image in images if image.place in known]
        stamps = dict(
            zip((image.place for image in seen), _look_at(files, partial(captions_stamp, source), seen), strict=True)
        )
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
        reading = _reading_of_captions(files, source, stale)
        if problems is None:
            self._captions_in_flight.update(places)
            problems = yield
            self._captions_in_flight.difference_update(places)
        read = chain.from_iterable(results for _, results in reading)
        for image, (stamp, captions) in zip(stale, read, strict=True):
            if isinstance(captions, DataError):
                problems[image.place] = str(captions)
                found[image.key] = None
                continue
            found[image.key] = captions
            if stamp:
                fresh.append((encoded(image.place), identity, stamp, captions_text(captions)))
        self.captions_read += len(fresh)
        if fresh:
            rows = [(*values, checksum(values)) for values in fresh]
            statement = "INSERT OR REPLACE INTO captions VALUES (?, ?, ?, ?, ?)"
            self._file.do(lambda connection: connection.executemany(statement, rows))
        return [found[image.key] for image in images]

    def _known_captions(self, identity: str, places: Sequence[str]) -> dict[str, tuple[str, str]]:
        def select(connection: sqlite3.Connection) -> dict[str, tuple[str, str]]:
            known: dict[str, tuple[str, str]] = {}
            if is_empty(connection, "captions"):
                return known
            statement = "SELECT * FROM captions WHERE source = ? AND"
            for row in rows_of(connection, statement, (identity,), places):
                if checksum(row[:-1]) != row[-1]:
                    raise DamagedRow("a row does not fit its checksum")
                known[decoded(row[0])] = (row[2], row[3])
            return known

        return self._file.do(select)


def _is_new_file(image: SourceImage, stamp: str | None) -> bool:
    """Return whether :func:`read_files` reads this image as :func:`read_all` does."""
    return stamp is None and type(image) is LocalImage and image.panel is None


def _read_here(
    files: ManyFiles, stale: Iterable[tuple[SourceImage, str | None]], *, decode: bool
) -> Reading[str, FileFacts]:
    """Yield places with the facts of their images."""
    for some in by_shelf(stale):
        size = _ROWS_A_TASK if some[0][0].shelf else None
        for unread, read in files.work(partial(read_all, decode=decode), some, size=size):
            yield [image.place for image, _ in unread], read


def _reading_of_captions(
    files: ManyFiles, source: CaptionSource, stale: Sequence[SourceImage]
) -> Reading[Any, StampedCaptions]:
    """Begin to read captions: in other processes, if there are many and the paths of the images say all."""
    is_simple = type(source) is TextfileCaptions and all(type(image) is LocalImage for image in stale)
    if is_simple and files.would_leave(len(stale)):
        return files.work(partial(captions_beside, source), [image.place for image in stale], may_leave=True)
    return files.work(partial(read_captions, source), stale)


def _look_at(files: ManyFiles, look: Callable[[SourceImage], _Result], images: Sequence[SourceImage]) -> list[_Result]:
    """Return a look at every image's files."""
    parts = files.work(lambda part: list(map(look, part)), images, slow=_SLOW_LOOK)
    return [result for _, results in parts for result in results]


def _chunks(items: Sequence[_Item], size: int) -> Iterator[Sequence[_Item]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
