"""What scans found, remembered in one SQLite file, so that a restart only stats files.

A row stands for a file's bytes as long as its size and mtime_ns stay. Several runs may share the file.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self, TypeVar

from PIL import Image

from difftrain.contracts import CaptionSource
from difftrain.data.image import UNREADABLE, describe, header_size
from difftrain.errors import DataError
from difftrain.types import Phase

_Item = TypeVar("_Item")

_VERSION = 1
"""Of the tables; a file of another version is only a cache, and is begun anew."""
_FILES_A_QUERY = 500
_FILES_A_TASK = 64
_SCHEMA = """
CREATE TABLE IF NOT EXISTS files (
    path TEXT PRIMARY KEY, size INTEGER, mtime_ns INTEGER, sha256 TEXT, width INTEGER, height INTEGER, error TEXT
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS captions (
    path TEXT, source TEXT, stamp TEXT, captions TEXT, PRIMARY KEY (path, source)
) WITHOUT ROWID;
"""


class FileFacts(NamedTuple):
    """What is known of one image file."""

    size: int
    """Bytes."""
    mtime_ns: int
    sha256: str
    width: int
    """Pixels, after EXIF rotation; 0 when the file is unreadable."""
    height: int
    error: str | None
    """Why the file is unreadable."""


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

    def examine(self, files: Sequence[Path], phase: Phase, *, decode: bool = False) -> list[FileFacts]:
        """Facts of every file, in the order given; only new or changed files are read.

        Args:
            files: Image files.
            phase: Counts the files.
            decode: Decode a new or changed file wholly, to be sure of its pixels, instead of its header only.
        """
        facts: list[FileFacts] = []
        with ThreadPoolExecutor(max_workers=_reading_threads()) as pool:
            for chunk in _chunks(files, _FILES_A_QUERY * 20):
                facts += self._examine_chunk(chunk, phase, pool, decode=decode)
        return facts

    def remember(self, files: Iterable[tuple[Path, FileFacts]]) -> None:
        """Take facts of files that the caller has just written."""
        rows = [(_absolute(path), *facts) for path, facts in files]
        with self._connection:
            self._connection.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?, ?)", rows)

    def captions(
        self, source: CaptionSource, images: Sequence[tuple[str, Path]]
    ) -> tuple[list[tuple[str, ...] | None], list[str]]:
        """Captions of each (key, image) and what could not be read; unchanged caption files are not read.

        Returns:
            Captions in the order given (None where an image has none), and error messages.
        """
        found: list[tuple[str, ...] | None] = []
        problems: list[str] = []
        identity = f"{type(source).name}{source.identity()}"
        for chunk in _chunks(images, _FILES_A_QUERY * 20):
            found += self._captions_of_chunk(source, identity, chunk, problems)
        return found, problems

    def _examine_chunk(
        self, files: Sequence[Path], phase: Phase, pool: ThreadPoolExecutor, *, decode: bool
    ) -> list[FileFacts]:
        names = [_absolute(file) for file in files]
        known = self._known_files(names)
        facts: list[FileFacts | None] = []
        for name in names:
            remembered = known.get(name)
            stamp = _stat(name)
            facts.append(remembered if remembered is not None and stamp == remembered[:2] else None)
        stale = [position for position, remembered in enumerate(facts) if remembered is None]
        phase.advance(len(files) - len(stale))
        tasks = [[names[position] for position in part] for part in _chunks(stale, _FILES_A_TASK)]
        read: list[FileFacts] = []
        for task, part in zip(tasks, pool.map(lambda task: _read_all(task, decode=decode), tasks), strict=True):
            read += part
            phase.advance(len(part), task[-1])
        for position, one in zip(stale, read, strict=True):
            facts[position] = one
        self.hashed += len(read)
        lasting = [(files[position], one) for position, one in zip(stale, read, strict=True) if one.size >= 0]
        if lasting:
            self.remember(lasting)
        return [one for one in facts if one is not None]

    def _known_files(self, names: Sequence[str]) -> dict[str, FileFacts]:
        known: dict[str, FileFacts] = {}
        for part in _chunks(names, _FILES_A_QUERY):
            query = f"SELECT * FROM files WHERE path IN ({','.join('?' * len(part))})"
            known.update((row[0], FileFacts._make(row[1:])) for row in self._connection.execute(query, part))
        return known

    def _captions_of_chunk(
        self, source: CaptionSource, identity: str, images: Sequence[tuple[str, Path]], problems: list[str]
    ) -> list[tuple[str, ...] | None]:
        stamps = [_stamp(source.files(image)) for _, image in images]
        names = [_absolute(image) for _, image in images]
        known = self._known_captions(identity, [name for name, stamp in zip(names, stamps, strict=True) if stamp])
        found: list[tuple[str, ...] | None] = []
        fresh: list[tuple[str, str, str, str]] = []
        for (key, image), name, stamp in zip(images, names, stamps, strict=True):
            remembered = known.get(name)
            if stamp and remembered and remembered[0] == stamp:
                text = remembered[1]
                found.append(None if text == "null" else tuple(json.loads(text)))
                continue
            try:
                captions = source.captions(image, key)
            except DataError as error:
                problems.append(str(error))
                found.append(None)
                continue
            found.append(captions)
            if stamp:
                self.captions_read += 1
                fresh.append((name, identity, stamp, json.dumps(captions)))
        if fresh:
            with self._connection:
                self._connection.executemany("INSERT OR REPLACE INTO captions VALUES (?, ?, ?, ?)", fresh)
        return found

    def _known_captions(self, identity: str, names: Sequence[str]) -> dict[str, tuple[str, str]]:
        known: dict[str, tuple[str, str]] = {}
        for part in _chunks(names, _FILES_A_QUERY):
            marks = ",".join("?" * len(part))
            query = f"SELECT path, stamp, captions FROM captions WHERE source = ? AND path IN ({marks})"
            known.update((row[0], (row[1], row[2])) for row in self._connection.execute(query, (identity, *part)))
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


def _read_all(names: Sequence[str], *, decode: bool) -> list[FileFacts]:
    return [_read(name, decode=decode) for name in names]


def _read(name: str, *, decode: bool) -> FileFacts:
    """Facts from a file's bytes. A size of -1 marks what must not be remembered: the file could not be opened."""
    try:
        with open(name, "rb") as stream:  # noqa: PTH123 -- a Path each is slow for 400,000 files
            status = os.fstat(stream.fileno())
            data = stream.read()
    except OSError as error:
        return FileFacts(-1, 0, "", 0, 0, describe(error))
    width = height = 0
    problem = None
    try:
        width, height = header_size(io.BytesIO(data))
        if decode or not _ends_whole(data):
            with Image.open(io.BytesIO(data)) as image:
                image.load()
    except UNREADABLE as error:
        width = height = 0
        problem = describe(error)
    return FileFacts(status.st_size, status.st_mtime_ns, hashlib.sha256(data).hexdigest(), width, height, problem)


def _ends_whole(data: bytes) -> bool:
    """Whether a file surely is not cut short; False means that only decoding can tell."""
    if data.startswith(b"\xff\xd8"):
        return data.rfind(b"\xff\xd9", data.find(b"\xff\xda")) >= 0
    if data.startswith(b"\x89PNG"):
        return data.rfind(b"IEND", -64) >= 0
    if data.startswith(b"RIFF"):
        return len(data) >= 8 + int.from_bytes(data[4:8], "little")
    return False


def _stat(name: str) -> tuple[int, int] | None:
    try:
        status = os.stat(name)  # noqa: PTH116
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def _stamp(files: Iterable[Path]) -> str:
    """Changes whenever one of the files is changed, added or removed; empty when there are none."""
    stamps = (_stat(str(file)) for file in files)
    return "|".join("absent" if stamp is None else f"{stamp[0]}:{stamp[1]}" for stamp in stamps)


def _absolute(path: Path) -> str:
    return os.path.abspath(path)  # noqa: PTH100


def _chunks(items: Sequence[_Item], size: int) -> Iterator[Sequence[_Item]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _reading_threads() -> int:
    return min(32, 2 * (os.cpu_count() or 1) + 2)
