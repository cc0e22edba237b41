"""An image in a row of a parquet or arrow file, whole or one panel of it."""

from __future__ import annotations

import errno
import io
import os
from dataclasses import dataclass, replace
from typing import BinaryIO

from difftrain.data.files.local_image import file_stamp
from difftrain.data.tables.columns import Column
from difftrain.data.tables.table_file import open_table
from difftrain.errors import DataError
from difftrain.machine.open_file import open_file
from difftrain.types import SourceImage


@dataclass(frozen=True, slots=True)
class Panel:
    """One of several images of equal width that stand side by side in one image."""

    index: int
    """From 0, at the left."""
    count: int


@dataclass(frozen=True, kw_only=True, slots=True)
class RowImage(SourceImage):
    """The image of one row; its key is the number of the row in the whole split, from 0."""

    file: str
    version: str
    """Stamp of the file when it was listed: in another version the row may hold another image."""
    row: int
    """In the file, from 0."""
    column: Column
    panel: Panel | None = None

    @property
    def place(self) -> str:
        panel = f", panel {self.panel.index} of {self.panel.count}" if self.panel else ""
        return f"{self.file}: row {int(self.key)}, column {self.column.name}{panel}"

    def stamp(self) -> str:
        return f"{file_stamp(self.file)}:{self.row}"

    def open(self) -> BinaryIO:
        return io.BytesIO(self._bytes()) if self.panel is None else self._cut(self.panel)

    def _bytes(self) -> bytes:
        value = self.column.of(open_table(self.file, self.version).cell(self.row, self.column.top))
        if isinstance(value, dict):
            value = value.get("path") if value.get("bytes") is None else value["bytes"]
        if isinstance(value, bytes):
            return value
        if not isinstance(value, str) or not value:
            raise OSError(errno.ENODATA, "the row has no image there")
        path = os.path.join(os.path.dirname(self.file), value)  # noqa: PTH118, PTH120 - an absolute path stays one
        with open_file(path) as stream:
            return stream.read()

    def _cut(self, panel: Panel) -> BinaryIO:
        """Return one panel as a BMP file, whose bytes depend on the pixels alone and not on a version of an encoder."""
        from difftrain.data.files.pixels import open_upright  # imports Pillow, which a start without images spares

        try:
            whole = open_upright(replace(self, panel=None))
        except DataError as error:
            raise OSError(errno.EIO, _reason(error)) from error
        width = whole.width // panel.count
        if width == 0:
            raise OSError(errno.EINVAL, f"an image {whole.width} pixels wide has no {panel.count} panels")
        stream = io.BytesIO()
        whole.crop((panel.index * width, 0, (panel.index + 1) * width, whole.height)).save(stream, "BMP")
        stream.seek(0)
        return stream


def _reason(error: DataError) -> str:
    """Return the last part in parentheses of a message that also names the place."""
    return str(error).partition(" cannot be read as an image ")[2].strip("()") or str(error)
