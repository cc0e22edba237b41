"""An image in a row of a parquet or arrow file, whole or one panel of it."""

from __future__ import annotations

import errno
import io
import os
from dataclasses import dataclass
from typing import BinaryIO

from difftrain.data.files.local_image import file_stamp
from difftrain.data.tables.columns import Column
from difftrain.data.tables.hub_files import bytes_version, is_on_hub
from difftrain.data.tables.table_file import open_table
from difftrain.machine.open_file import open_file
from difftrain.machine.retries import with_retries
from difftrain.types import Shelf, SourceImage


@dataclass(frozen=True, kw_only=True, slots=True)
class RowImage(SourceImage):
    """The image of one row; its key is the number of the row in the whole split, from 0."""

    file: str
    version: str
    """Stamp of the file when it was listed: in another version the row may hold another image."""
    row: int
    """In the file, from 0."""
    column: Column
    group: Shelf | None = None
    """The row group that holds the row."""

    @property
    def shelf(self) -> Shelf | None:
        return self.group

    @property
    def place(self) -> str:
        panel = f", {self.panel}" if self.panel else ""
        return f"{self.file}: row {int(self.key)}, column {self.column.name}{panel}"

    def stamp(self) -> str:
        version = bytes_version(self.version) if is_on_hub(self.file) else file_stamp(self.file)
        return f"{version}:{self.row}"

    def open(self) -> BinaryIO:
        return io.BytesIO(self._bytes())

    def _cell(self) -> object:
        return open_table(self.file, self.version).cell(self.row, self.column.top)

    def _bytes(self) -> bytes:
        # training reads images of the hub hours after the start, and must not end with one that came late
        cell = with_retries(self._cell) if is_on_hub(self.file) else self._cell()
        value = self.column.of(cell)
        if isinstance(value, dict):
            value = value.get("path") if value.get("bytes") is None else value["bytes"]
        if isinstance(value, bytes):
            return value
        if not isinstance(value, str) or not value:
            raise OSError(errno.ENODATA, "the row has no image there")
        if is_on_hub(self.file):
            raise OSError(errno.ENODATA, f"the row names the file {value} instead of holding it; set streaming = false")
        path = os.path.join(os.path.dirname(self.file), value)  # noqa: PTH118, PTH120 - an absolute path stays one
        with open_file(path) as stream:
            return stream.read()
