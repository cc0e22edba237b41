"""One parquet or arrow file whose rows are read when they are needed; nothing is copied or converted on disk."""

from __future__ import annotations

import errno
import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import accumulate
from threading import Lock
from typing import TYPE_CHECKING, Any, Protocol

from difftrain.data.files.local_image import file_stamp

if TYPE_CHECKING:
    import pyarrow as pa

_KEPT_BYTES = 256 * 2**20
"""Decoded row groups that a process keeps, so that neighbouring rows are decoded once."""
_KEPT_GROUPS = 2
"""Kept however large they are: threads that read rows on both sides of a border would decode both again and again."""
_ROWS_A_BATCH = 1000


class TableFile(Protocol):
    """The rows of one file."""

    rows: int
    schema: pa.Schema

    def values(self, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Yield all rows with only these columns."""

    def cell(self, row: int, column: str) -> Any:
        """Return one value."""


def open_table(path: str, version: str) -> TableFile:
    """Open a file; called from several threads.

    Args:
        version: Its :func:`~difftrain.data.files.local_image.file_stamp` when its rows were listed.

    Raises:
        OSError: If it cannot be read, or has changed since.
    """
    if file_stamp(path) != version:
        raise OSError(errno.ESTALE, "the file has changed since it was listed")
    return _opened(path, version)


@lru_cache(maxsize=64)
def _opened(path: str, version: str) -> TableFile:  # noqa: ARG001 - another version is another entry
    import pyarrow as pa

    try:
        return _ParquetFile(path) if path.endswith(".parquet") else _ArrowFile(path)
    except pa.ArrowException as error:
        raise OSError(errno.EIO, f"not a readable {path.rpartition('.')[2]} file: {error}") from error


class _ParquetFile:
    def __init__(self, path: str) -> None:
        import pyarrow.parquet as pq

        self._path = path
        self._file = pq.ParquetFile(path, memory_map=False)
        self.schema = self._file.schema_arrow
        counts = [self._file.metadata.row_group(group).num_rows for group in range(self._file.num_row_groups)]
        self._ends = list(accumulate(counts))
        self.rows = self._ends[-1] if self._ends else 0
        self._lock = Lock()
        self._kept: OrderedDict[tuple[int, str], pa.ChunkedArray] = OrderedDict()

    def values(self, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with pq.ParquetFile(self._path, memory_map=False) as file:  # another reader has no need of the lock
                for batch in file.iter_batches(_ROWS_A_BATCH, columns=list(columns), use_threads=False):
                    yield from batch.to_pylist()
        except pa.ArrowException as error:
            raise OSError(errno.EIO, str(error)) from error

    def cell(self, row: int, column: str) -> Any:
        group = bisect_right(self._ends, row)
        start = self._ends[group - 1] if group else 0
        return self._group(group, column)[row - start].as_py()

    def _group(self, group: int, column: str) -> pa.ChunkedArray:
        import pyarrow as pa

        with self._lock:
            if (group, column) not in self._kept:
                try:
                    table = self._file.read_row_group(group, columns=[column], use_threads=False)
                except pa.ArrowException as error:
                    raise OSError(errno.EIO, str(error)) from error
                self._kept[group, column] = table.column(0)
                while len(self._kept) > _KEPT_GROUPS and sum(kept.nbytes for kept in self._kept.values()) > _KEPT_BYTES:
                    self._kept.popitem(last=False)
            self._kept.move_to_end((group, column))
            return self._kept[group, column]


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


def absolute(path: str) -> str:
    return os.path.abspath(path)  # noqa: PTH100 - Path has no way to drop ".." without reading links
