"""One parquet or arrow file whose rows are read when they are needed; nothing is copied or converted on disk."""

from __future__ import annotations

import errno
import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Protocol

from difftrain.data.files.local_image import file_stamp
from difftrain.data.tables.hub_files import fetched, is_on_hub, open_hub_file
from difftrain.data.tables.row_groups import kept_groups
from difftrain.types import Shelf

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

_ROWS_A_BATCH = 1000


class TableFile(Protocol):
    """The rows of one file."""

    rows: int
    schema: pa.Schema

    def values(self, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Yield all rows with only these columns."""

    def cell(self, row: int, column: str) -> Any:
        """Return one value."""

    def shelves(self, column: str) -> Sequence[Shelf]:
        """Return the row groups of a column in order; none if any row is read by itself."""

    def shelf_number(self, row: int) -> int:
        """Return the index of a row's group among :attr:`shelves`."""


def open_table(path: str, version: str) -> TableFile:
    """Open a file; called from several threads.

    Args:
        version: Its :func:`~difftrain.data.files.local_image.file_stamp` when its rows were listed, or what
            :func:`~difftrain.data.tables.hub_files.list_hub_files` gives.

    Raises:
        OSError: If it cannot be read, or has changed since.
    """
    if not is_on_hub(path) and file_stamp(path) != version:
        raise OSError(errno.ESTALE, "the file has changed since it was listed")
    return _opened(path, version)


@lru_cache(maxsize=64)
def _opened(path: str, version: str) -> TableFile:
    with readable(path):
        return _ParquetFile(path, version) if path.endswith(".parquet") else _ArrowFile(path)


@contextmanager
def readable(path: str) -> Iterator[None]:
    """Turn errors of pyarrow and of the network in the block into OSError.

    Raises:
        OSError: If the file is not what its ending says, or cannot be fetched.
    """
    import pyarrow as pa

    try:
        if is_on_hub(path):
            with fetched():
                yield
        else:
            yield
    except pa.ArrowException as error:
        raise OSError(errno.EIO, f"not a readable {path.rpartition('.')[2]} file: {error}") from error


class _ParquetFile:
    def __init__(self, path: str, version: str) -> None:
        self._path, self._version = path, version
        self._file = self._open()
        self.schema = self._file.schema_arrow
        self._metadata = self._file.metadata
        counts = [self._metadata.row_group(group).num_rows for group in range(self._metadata.num_row_groups)]
        self._ends = list(accumulate(counts))
        self.rows = self._ends[-1] if self._ends else 0
        self._shelves: dict[str, Sequence[Shelf]] = {}

    def values(self, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        with readable(self._path), self._open() as file:  # readers are not for several threads
            for batch in file.iter_batches(_ROWS_A_BATCH, columns=list(columns), use_threads=False):
                yield from batch.to_pylist()

    def cell(self, row: int, column: str) -> Any:
        group = self.shelf_number(row)
        start = self._ends[group - 1] if group else 0
        shelf = self.shelves(column)[group]
        return kept_groups().get(shelf, shelf.bytes, lambda: self._group(group, column))[row - start].as_py()

    def shelves(self, column: str) -> Sequence[Shelf]:
        if column not in self._shelves:
            self._shelves[column] = [
                Shelf(place=f"{self._path}, column {column}", number=group, bytes=self._size(group, column))
                for group in range(len(self._ends))
            ]
        return self._shelves[column]

    def shelf_number(self, row: int) -> int:
        return bisect_right(self._ends, row)

    def _open(self) -> pq.ParquetFile:
        import pyarrow.parquet as pq

        if is_on_hub(self._path):
            return pq.ParquetFile(open_hub_file(self._path, self._version), pre_buffer=True)
        return pq.ParquetFile(self._path, memory_map=False)

    def _size(self, group: int, column: str) -> int:
        """Return the decoded bytes of a group's column, with the columns nested in it."""
        facts = self._metadata.row_group(group)
        parts = (facts.column(index) for index in range(facts.num_columns))
        return sum(part.total_uncompressed_size for part in parts if part.path_in_schema.split(".")[0] == column)

    def _group(self, group: int, column: str) -> pa.ChunkedArray:
        with readable(self._path):
            return self._file.read_row_group(group, columns=[column], use_threads=False).column(0)


class _ArrowFile:
    """A mapped file: pages that are not looked at are not read."""

    def __init__(self, path: str) -> None:
        import pyarrow as pa

        mapped = pa.memory_map(path)
        try:
            self._table = pa.ipc.open_file(mapped).read_all()
        except pa.ArrowInvalid:  # sets that the package `datasets` saves are streams
            mapped.seek(0)
            self._table = pa.ipc.open_stream(mapped).read_all()
        self.schema, self.rows = self._table.schema, self._table.num_rows

    def values(self, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        for batch in self._table.select(list(columns)).to_batches(_ROWS_A_BATCH):
            yield from batch.to_pylist()

    def cell(self, row: int, column: str) -> Any:
        return self._table.column(column)[row].as_py()

    def shelves(self, column: str) -> Sequence[Shelf]:
        return ()

    def shelf_number(self, row: int) -> int:
        return 0


def absolute(path: str) -> str:
    return os.path.abspath(path)  # noqa: PTH100 - Path has no way to drop ".." without reading links
