"""The SQLite file of an index: opened, shared with other runs, rebuilt if damaged.

It is only a cache. The program works without whatever it cannot use, and says so once: it rebuilds a damaged file
or one of an older format, leaves one of a newer format alone, and keeps rows in memory where it may not write.
"""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from difftrain.errors import DataError
from difftrain.machine.retries import refusal

_Result = TypeVar("_Result")

FORMAT = 6
"""Version of the tables, kept as the file's user_version."""
BUSY_SECONDS = 60.0
"""Seconds that a run waits for another one that is writing; a write takes well below a second."""
_SCHEMA = """
CREATE TABLE IF NOT EXISTS images (
    place BLOB PRIMARY KEY, stamp TEXT, content_hash TEXT, width INTEGER, height INTEGER, error TEXT, decoded INTEGER,
    is_animated INTEGER, checksum INTEGER
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS captions (
    place BLOB, source TEXT, stamp TEXT, captions TEXT, checksum INTEGER, PRIMARY KEY (place, source)
) WITHOUT ROWID;
"""
_FORBIDDEN = (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH)
_ELSEWHERE = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_PROTOCOL)
_IN_USE = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


class DamagedRow(Exception):
    """A row is not as it was written: the file was damaged without SQLite noticing."""


class IndexFile:
    """The open file, or the memory database that replaces it. Use from one thread."""

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        """Open the file, and make it if it does not exist.

        Args:
            read_only: Work on a copy in memory instead; nothing is written.
        """
        self.path = path
        self.notes: list[str] = []
        """Files that could not be used, for the user."""
        self.is_new = False
        """Whether the file did not exist."""
        self._file: tuple[int, int] | None = None
        self._tries_left = 3
        self._stands_in = read_only
        """Whether the connection is to memory."""
        self._connection = self._copy() if read_only else self._open()

    def close(self) -> None:
        self._connection.close()

    def do(self, work: Callable[[sqlite3.Connection], _Result]) -> _Result:
        """Return the result of ``work``; run it again on a new file if the old one proves damaged.

        Raises:
            DataError: If another program has locked the file, or the disk is full or fails.
        """
        while True:
            try:
                return self._transaction(work)
            except (sqlite3.DatabaseError, DamagedRow) as error:
                code = _code(error)
                if code in _IN_USE or code in _ELSEWHERE or self._tries_left == 0:
                    raise self._unusable(error) from error
                self._tries_left -= 1
                self._connection.close()
                if self._stands_in:  # a copy of a damaged file
                    self._connection = _memory()
                else:
                    self._connection = self._in_memory(error) if code in _FORBIDDEN else self._start_over(error)

    def _transaction(self, work: Callable[[sqlite3.Connection], _Result]) -> _Result:
        with self._connection:
            return work(self._connection)

    def _open(self) -> sqlite3.Connection:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
                return self._in_memory(error)
            raise DataError(refusal(f"{self.path.parent} cannot be created", error)) from error
        try:
            return self._connect()
        except sqlite3.DatabaseError as error:
            code = _code(error)
            if code in _IN_USE or code in _ELSEWHERE:
                raise self._unusable(error) from error
            return self._in_memory(error) if code in _FORBIDDEN else self._start_over(error)

    def _connect(self) -> sqlite3.Connection:
        self._file = _identity(self.path)
        # lock for writing at once: two runs that first read and then write would wait for each other
        connection = sqlite3.connect(self.path, timeout=BUSY_SECONDS, isolation_level="IMMEDIATE")
        try:
            found = _format(connection)
            if found > FORMAT:
                self.notes.append(
                    f"{self.path} was written by a newer version (format {found}, this one reads {FORMAT}); it is left "
                    "unchanged, and files are read again"
                )
                connection.close()
                self._stands_in = True
                return _memory()
            if found not in (0, FORMAT):
                raise sqlite3.DatabaseError(f"format {found} of a version whose caches have other keys")
            # not a write-ahead log, which needs memory shared between machines
            connection.execute("PRAGMA journal_mode = DELETE")
            # a killed run loses nothing by it; what a power cut damages is found by checksums and rebuilt
            connection.execute("PRAGMA synchronous = OFF")
            self.is_new = found == 0
            if self.is_new:
                connection.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version = {FORMAT}; COMMIT;")
            self._file = _identity(self.path)
        except BaseException:
            connection.close()
            raise
        return connection

    def _start_over(self, error: Exception) -> sqlite3.Connection:
        """Replace a damaged file by a new one, unless another run has already done so."""
        self.notes.append(f"{self.path} cannot be used ({error}); it is rebuilt, and files are read again")
        try:
            if _identity(self.path) == self._file:
                for leftover in ("-journal", "-wal", "-shm", ""):
                    with suppress(FileNotFoundError):
                        self.path.with_name(self.path.name + leftover).unlink()
            return self._connect()
        except OSError as refused:
            return self._in_memory(refused)
        except sqlite3.DatabaseError as again:
            if _code(again) in _FORBIDDEN:
                return self._in_memory(again)
            raise self._unusable(again) from again

    def _in_memory(self, error: Exception) -> sqlite3.Connection:
        """Return a copy in memory of a file that cannot be written, as far as it can be read."""
        self._stands_in = True
        why = error.strerror if isinstance(error, OSError) else error
        self.notes.append(f"{self.path} cannot be written ({why}); what is read now is not remembered")
        return self._copy()

    def _copy(self) -> sqlite3.Connection:
        """Return a copy in memory of the file as far as it can be read."""
        for options in ("mode=ro", "mode=ro&immutable=1"):  # immutable: for a disk without locks
            memory = _memory()
            with suppress(sqlite3.DatabaseError):
                source = sqlite3.connect(f"{self.path.absolute().as_uri()}?{options}", uri=True, timeout=BUSY_SECONDS)
                try:
                    if _format(source) == FORMAT:
                        source.backup(memory)
                        return memory
                finally:
                    source.close()
            memory.close()
        return _memory()

    def _unusable(self, error: Exception) -> DataError:
        if _code(error) in _IN_USE:
            return DataError(
                f"{self.path}: another program has locked the index of scanned files for {BUSY_SECONDS:g} seconds\n"
                "hint: end that program; if the disk has no locks, set cache_dir to another disk"
            )
        return DataError(
            f"{self.path}: the index of scanned files cannot be written ({error})\n"
            "hint: free some space, or set cache_dir to another disk"
        )


def _code(error: Exception) -> int:
    """Return SQLite's primary result code; an error of Python's own, for text that is not UTF-8, means damage."""
    return int(getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT)) & 0xFF


def _format(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _identity(path: Path) -> tuple[int, int] | None:
    """Return what distinguishes a file from one that replaced it; None if there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _memory() -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:", isolation_level="IMMEDIATE")
    connection.executescript(_SCHEMA)
    return connection
