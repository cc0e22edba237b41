"""What scans found, remembered in one SQLite file, so that a restart only stats files.

A row stands for a file's bytes as long as its size and mtime_ns stay. Several runs may share the file.
"""

from __future__ import annotations

import json
import os
import sqlite3
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from difftrain.contracts import CaptionSource
from difftrain.data.file_facts import FileFacts, read_all, stat, storable_time
from difftrain.data.index_file import DamagedRow, IndexFile
from difftrain.errors import DataError
from difftrain.types import Phase

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

_FILES_A_CHUNK = 10_000
"""Remembered together, so that a scan that is stopped goes on from there."""
_FILES_A_QUERY = 500
_FILES_A_TASK = 64


@dataclass
class ImageIndex:
    """The open index. Use it as a context manager, from one thread."""

    path: Path
    hashed: int = 0
    """Image files whose bytes were read since the index was opened."""
    captions_read: int = 0
    """Caption files that were read since the index was opened."""

    def __post_init__(self) -> None:
        self._file = IndexFile(self.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    @property
    def notes(self) -> Sequence[str]:
        """What of the file could not be used, for the user."""
        return self._file.notes

    def examine(self, files: Sequence[Path], phase: Phase, *, decode: bool = False) -> list[FileFacts]:
        """Facts of every file, in the order given; only new or changed files are read.

        Args:
            files: Image files.
            phase: Counts the files.
            decode: Decode files wholly that never were, to be sure of their pixels, instead of reading headers only.

        Raises:
            DataError: If the index cannot be used.
        """
        facts: list[FileFacts] = []
        with ThreadPoolExecutor(max_workers=_decoding_threads() if decode else _reading_threads()) as pool:
            for chunk in _chunks(files, _FILES_A_CHUNK):
                facts += self._examine_chunk(chunk, phase, pool, decode=decode)
        return facts

    def remember(self, files: Iterable[tuple[Path, FileFacts]]) -> None:
        """Take facts of files that the caller has just written."""
        rows = [_file_row(_absolute(path), facts) for path, facts in files]
        if rows:
            statement = "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
            self._file.do(lambda connection: connection.executemany(statement, rows))

    def captions(
        self, source: CaptionSource, images: Sequence[tuple[str, Path]]
    ) -> tuple[list[tuple[str, ...] | None], dict[Path, str]]:
        """Captions of each (key, image) and what could not be read; unchanged caption files are not read.

        Returns:
            Captions in the order given (None where an image has none), and error messages by image.
        """
        found: list[tuple[str, ...] | None] = []
        problems: dict[Path, str] = {}
        with ThreadPoolExecutor(max_workers=_reading_threads()) as pool:
            for chunk in _chunks(images, _FILES_A_CHUNK):
                found += self._captions_of_chunk(source, chunk, problems, pool)
        return found, problems

    def _examine_chunk(
        self, files: Sequence[Path], phase: Phase, pool: ThreadPoolExecutor, *, decode: bool
    ) -> list[FileFacts]:
        names = [_absolute(file) for file in files]
        known = self._known_files(names)
        facts: dict[str, FileFacts] = {}
        for part, stamps in _in_threads(pool, lambda part: [stat(name) for name in part], names):
            pairs = zip(part, stamps, strict=True)
            facts.update((name, known[name]) for name, stamp in pairs if _holds(known, name, stamp, decode=decode))
        phase.advance(sum(name in facts for name in names))
        stale = [name for name in names if name not in facts]
        for part, read in _in_threads(pool, lambda part: read_all(part, decode=decode), stale):
            facts.update(zip(part, read, strict=True))
            phase.advance(len(part), part[-1])
        self.hashed += len(stale)
        self.remember((Path(name), facts[name]) for name in stale if not facts[name].refused)
        return [facts[name] for name in names]

    def _known_files(self, names: Sequence[str]) -> dict[str, FileFacts]:
        def select(connection: sqlite3.Connection) -> dict[str, FileFacts]:
            known: dict[str, FileFacts] = {}
            for part in _chunks(names, _FILES_A_QUERY):
                query = f"SELECT * FROM files WHERE path IN ({','.join('?' * len(part))})"
                known.update(map(_file_facts, connection.execute(query, [os.fsencode(name) for name in part])))
            return known

        return self._file.do(select)

    def _captions_of_chunk(
        self,
        source: CaptionSource,
        images: Sequence[tuple[str, Path]],
        problems: dict[Path, str],
        pool: ThreadPoolExecutor,
    ) -> list[tuple[str, ...] | None]:
        identity = f"{type(source).name}{source.identity()}"
        stamps: dict[Path, str] = {}
        for part, some in _in_threads(pool, lambda part: [_stamp(source.files(image)) for _, image in part], images):
            stamps.update((image, stamp) for (_, image), stamp in zip(part, some, strict=True))
        known = self._known_captions(identity, [_absolute(image) for image, stamp in stamps.items() if stamp])
        found: dict[Path, tuple[str, ...] | None] = {}
        stale: list[tuple[str, Path]] = []
        for key, image in images:
            remembered = known.get(_absolute(image))
            if remembered is not None and remembered[0] == stamps[image]:
                text = remembered[1]
                found[image] = None if text == "null" else tuple(json.loads(text))
            else:
                stale.append((key, image))
        fresh: list[tuple[bytes, str, str, str]] = []
        for part, read in _in_threads(pool, lambda part: [_captions(source, *item) for item in part], stale):
            for (_, image), captions in zip(part, read, strict=True):
                if isinstance(captions, DataError):
                    problems[image] = str(captions)
                found[image] = None if isinstance(captions, DataError) else captions
                if stamps[image] and not isinstance(captions, DataError):
                    fresh.append((os.fsencode(_absolute(image)), identity, stamps[image], json.dumps(captions)))
        self.captions_read += len(fresh)
        if fresh:
            rows = [(*values, _checksum(values)) for values in fresh]
            statement = "INSERT OR REPLACE INTO captions VALUES (?, ?, ?, ?, ?)"
            self._file.do(lambda connection: connection.executemany(statement, rows))
        return [found[image] for _, image in images]

    def _known_captions(self, identity: str, names: Sequence[str]) -> dict[str, tuple[str, str]]:
        def select(connection: sqlite3.Connection) -> dict[str, tuple[str, str]]:
            known: dict[str, tuple[str, str]] = {}
            for part in _chunks(names, _FILES_A_QUERY):
                marks = ",".join("?" * len(part))
                query = f"SELECT * FROM captions WHERE source = ? AND path IN ({marks})"
                for *values, checksum in connection.execute(query, (identity, *map(os.fsencode, part))):
                    if _checksum(values) != checksum:
                        raise DamagedRow("a row does not fit its checksum")
                    known[os.fsdecode(values[0])] = (values[2], values[3])
            return known

        return self._file.do(select)


def _file_row(path: str, facts: FileFacts) -> tuple[Any, ...]:
    error = facts.error and facts.error.encode("utf-8", "backslashreplace").decode()
    size, mtime_ns, sha256, width, height = facts[:5]
    flags = int(facts.decoded), int(facts.is_animated)
    values = (os.fsencode(path), size, storable_time(mtime_ns), sha256, width, height, error, *flags)
    return (*values, _checksum(values))


def _file_facts(row: Sequence[Any]) -> tuple[str, FileFacts]:
    """Path and facts of a row.

    Raises:
        DamagedRow: If it is not what was written.
    """
    *values, checksum = row
    if _checksum(values) != checksum:
        raise DamagedRow("a row does not fit its checksum")
    path, size, mtime_ns, sha256, width, height, error, decoded, animated = values
    facts = FileFacts(size, mtime_ns, sha256, width, height, error, decoded=bool(decoded), is_animated=bool(animated))
    return os.fsdecode(path), facts


def _checksum(values: Sequence[Any]) -> int:
    """Tells a row from one that a disk has changed behind SQLite's back."""
    return zlib.crc32(repr(tuple(values)).encode("utf-8", "backslashreplace"))


def _captions(source: CaptionSource, key: str, image: Path) -> tuple[str, ...] | DataError | None:
    try:
        return source.captions(image, key)
    except DataError as error:
        return error


def _holds(known: Mapping[str, FileFacts], name: str, stamp: tuple[int, int] | None, *, decode: bool) -> bool:
    return name in known and known[name][:2] == stamp and (known[name].decoded or not decode)


def _in_threads(
    pool: ThreadPoolExecutor, work: Callable[[Sequence[_Item]], list[_Result]], items: Sequence[_Item]
) -> Iterator[tuple[Sequence[_Item], list[_Result]]]:
    """Work on part after part, several at once since disks and networks have latency; results in order."""
    parts = list(_chunks(items, _FILES_A_TASK))
    return zip(parts, pool.map(work, parts), strict=True)


def _stamp(files: Iterable[Path]) -> str:
    """Changes whenever one of the files is changed, added or removed; empty when there are none."""
    stamps = (stat(str(file)) for file in files)
    return "|".join("absent" if stamp is None else f"{stamp[0]}:{stamp[1]}" for stamp in stamps)


def _absolute(path: Path) -> str:
    name = str(path)
    return name if name.startswith(os.sep) else os.path.abspath(name)  # noqa: PTH100


def _chunks(items: Sequence[_Item], size: int) -> Iterator[Sequence[_Item]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _reading_threads() -> int:
    return min(32, 2 * (os.cpu_count() or 1) + 2)


def _decoding_threads() -> int:
    """Pillow decodes on several cores at once; more threads would only hold more pictures in memory."""
    return min(32, os.cpu_count() or 1)
