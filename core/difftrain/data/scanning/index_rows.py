"""Rows of the index of scanned files: written, checked when read, and found in as few statements as can be."""

from __future__ import annotations

import operator
import sqlite3
import zlib
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from difftrain.data.scanning.file_facts import FileFacts
from difftrain.data.scanning.index_file import DamagedRow

_IMAGES_A_QUERY = 500


def image_row(place: str, facts: FileFacts) -> tuple[Any, ...]:
    error = facts.error and facts.error.encode("utf-8", "backslashreplace").decode()
    stamp, content_hash, width, height, _, was_decoded, _, animated = facts
    values = (encoded(place), stamp, content_hash, width, height, error, int(was_decoded), int(animated))
    return (*values, checksum(values))


def image_facts(row: tuple[Any, ...]) -> tuple[str, FileFacts]:
    """Return place and facts of a row.

    Raises:
        DamagedRow: If the row is not as it was written.
    """
    if checksum(row[:-1]) != row[-1]:
        raise DamagedRow("a row does not fit its checksum")
    place, stamp, content_hash, width, height, error, was_decoded, animated, _ = row
    facts = FileFacts(stamp, content_hash, width, height, error, was_decoded == 1, 0, animated == 1)
    return decoded(place), facts


def encoded(place: str) -> bytes:
    """Encode for SQLite: paths may contain bytes that are not UTF-8, which Python holds as lone surrogates."""
    return place.encode("utf-8", "surrogatepass")


def decoded(place: bytes) -> str:
    return place.decode("utf-8", "surrogatepass")


def checksum(values: tuple[Any, ...]) -> int:
    """Return a checksum that detects a row which the disk has changed without SQLite noticing."""
    return zlib.crc32(repr(values).encode("utf-8", "backslashreplace"))


def is_empty(connection: sqlite3.Connection, table: str) -> bool:
    """Return whether a table has no rows, so that none need be looked for in a first scan."""
    return connection.execute(f"SELECT 1 FROM {table} LIMIT 1").fetchone() is None


def rows_of(
    connection: sqlite3.Connection, statement: str, values: tuple[str, ...], places: Sequence[str]
) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of these places, and perhaps of others between them.

    Args:
        statement: Ends where the condition on the place follows.
        values: Of the marks in the statement.
        places: One statement reads them all if they are sorted, as those of a folder are.
    """
    keys = [encoded(place) for place in places]
    if len(keys) > _IMAGES_A_QUERY and all(map(operator.le, keys, islice(keys, 1, None))):
        yield from connection.execute(f"{statement} place BETWEEN ? AND ?", (*values, keys[0], keys[-1]))
        return
    for start in range(0, len(keys), _IMAGES_A_QUERY):
        part = keys[start : start + _IMAGES_A_QUERY]
        yield from connection.execute(f"{statement} place IN ({','.join('?' * len(part))})", (*values, *part))
