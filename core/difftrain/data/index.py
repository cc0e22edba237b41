"""What scans found, remembered in one SQLite file, so that a restart only stats files.

A row stands for a file's bytes as long as its size and mtime_ns stay. Several runs may share the file.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from difftrain.contracts import CaptionSource
from difftrain.data.file_facts import FileFacts, read_all, stat, storable_time
from difftrain.data.text_encoding import is_utf8
from difftrain.errors import DataError
from difftrain.types import Phase

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

_VERSION = 2
"""Of the tables; a file of another version is only a cache, and is begun anew."""
_FILES_A_CHUNK = 10_000
"""Remembered together, so that a scan that is stopped goes on from there."""
_FILES_A_QUERY = 500
_FILES_A_TASK = 64
_SCHEMA = """
CREATE TABLE IF NOT EXISTS files (
    path TEXT PRIMARY KEY, size INTEGER, mtime_ns INTEGER, sha256 TEXT, width INTEGER, height INTEGER, error TEXT,
    is_animated INTEGER
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS captions (
    path TEXT, source TEXT, stamp TEXT, captions TEXT, PRIMARY KEY (path, source)
) WITHOUT ROWID;
"""


@dataclass
class ImageIndex:
    """The open index. Use it as a context manager, from one thread."""

    path: Path
    hashed: int = 0
    """Image files whose bytes were read since the index was opened."""
    captions_read: int = 0
    """Caption files that were read since the index was opened."""

    def __post_init__(self) -> None:
        self._connection = _open(self.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()
        if isinstance(error, sqlite3.OperationalError):  # a full disk, say
            raise DataError(f"{self.path}: the index of scanned files cannot be used ({error})") from error

    def examine(self, files: Sequence[Path], phase: Phase, *, decode: bool = False) -> list[FileFacts]:
        """Facts of every file, in the order given; only new or changed files are read.

        Args:
            files: Image files.
            phase: Counts the files.
            decode: Decode a new or changed file wholly, to be sure of its pixels, instead of its header only.
        """
        facts: list[FileFacts] = []
        with ThreadPoolExecutor(max_workers=_reading_threads()) as pool:
            for chunk in _chunks(files, _FILES_A_CHUNK):
                facts += self._examine_chunk(chunk, phase, pool, decode=decode)
        return facts

    def remember(self, files: Iterable[tuple[Path, FileFacts]]) -> None:
        """Take facts of files that the caller has just written."""
        rows = [
            (_stored(_absolute(path)), *facts._replace(mtime_ns=storable_time(facts.mtime_ns))) for path, facts in files
        ]
        with self._connection:
            self._connection.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)

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
            facts.update((name, known[name]) for name, stamp in pairs if _holds(known, name, stamp))
        phase.advance(sum(name in facts for name in names))
        stale = [name for name in names if name not in facts]
        for part, read in _in_threads(pool, lambda part: read_all(part, decode=decode), stale):
            facts.update(zip(part, read, strict=True))
            phase.advance(len(part), part[-1])
        self.hashed += len(stale)
        self.remember((Path(name), facts[name]) for name in stale if facts[name].size >= 0)
        return [facts[name] for name in names]

    def _known_files(self, names: Sequence[str]) -> dict[str, FileFacts]:
        known: dict[str, FileFacts] = {}
        for part in _chunks(names, _FILES_A_QUERY):
            query = f"SELECT * FROM files WHERE path IN ({','.join('?' * len(part))})"
            rows = self._connection.execute(query, [_stored(name) for name in part])
            known.update((os.fsdecode(row[0]), FileFacts._make(row[1:])) for row in rows)
        return known

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
        fresh: list[tuple[str | bytes, str, str, str]] = []
        for part, read in _in_threads(pool, lambda part: [_captions(source, *item) for item in part], stale):
            for (_, image), captions in zip(part, read, strict=True):
                if isinstance(captions, DataError):
                    problems[image] = str(captions)
                found[image] = None if isinstance(captions, DataError) else captions
                if stamps[image] and not isinstance(captions, DataError):
                    fresh.append((_stored(_absolute(image)), identity, stamps[image], json.dumps(captions)))
        self.captions_read += len(fresh)
        with self._connection:
            self._connection.executemany("INSERT OR REPLACE INTO captions VALUES (?, ?, ?, ?)", fresh)
        return [found[image] for _, image in images]

    def _known_captions(self, identity: str, names: Sequence[str]) -> dict[str, tuple[str, str]]:
        known: dict[str, tuple[str, str]] = {}
        for part in _chunks(names, _FILES_A_QUERY):
            marks = ",".join("?" * len(part))
            query = f"SELECT path, stamp, captions FROM captions WHERE source = ? AND path IN ({marks})"
            rows = self._connection.execute(query, (identity, *map(_stored, part)))
            known.update((os.fsdecode(row[0]), (row[1], row[2])) for row in rows)
        return known


def _open(path: Path) -> sqlite3.Connection:
    """An index that is damaged or of another version is only a cache: it is begun anew.

    Raises:
        DataError: If the file cannot be opened or written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            return _connect(path)
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError:
            for leftover in (path, path.with_name(path.name + "-wal"), path.with_name(path.name + "-shm")):
                with suppress(FileNotFoundError):
                    leftover.unlink()
            return _connect(path)
    except (sqlite3.OperationalError, OSError) as error:
        raise DataError(f"{path}: the index of scanned files cannot be opened ({error})") from error


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=60)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        if connection.execute("PRAGMA user_version").fetchone()[0] not in (0, _VERSION):
            raise sqlite3.DatabaseError("another version")
        connection.executescript(_SCHEMA)
        connection.execute(f"PRAGMA user_version = {_VERSION}")
    except sqlite3.DatabaseError:
        connection.close()
        raise
    return connection


def _captions(source: CaptionSource, key: str, image: Path) -> tuple[str, ...] | DataError | None:
    try:
        return source.captions(image, key)
    except DataError as error:
        return error


def _holds(known: Mapping[str, FileFacts], name: str, stamp: tuple[int, int] | None) -> bool:
    return name in known and known[name][:2] == stamp


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


def _stored(name: str) -> str | bytes:
    """A path as SQLite takes it: one that is not UTF-8 as its bytes."""
    return name if is_utf8(name) else os.fsencode(name)


def _chunks(items: Sequence[_Item], size: int) -> Iterator[Sequence[_Item]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _reading_threads() -> int:
    return min(32, 2 * (os.cpu_count() or 1) + 2)
