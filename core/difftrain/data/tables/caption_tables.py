"""Captions of local images from a table: parquet, JSON lines or CSV, one file or ``metadata.*`` in the folders."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, ClassVar, Self

from pydantic import Field, PrivateAttr, field_validator, model_validator

from difftrain.config.messages import nearest
from difftrain.config.options import Options
from difftrain.data.files.captions import PromptedCaptions
from difftrain.data.files.local_image import LocalImage, file_stamp
from difftrain.data.tables.csv_set import ListedImage
from difftrain.data.tables.plain_tables import READERS, Row, cannot_read
from difftrain.data.tables.row_filter import one_or_many
from difftrain.data.tables.set_options import need_pyarrow, parse_block
from difftrain.data.tables.table_file import absolute
from difftrain.errors import DataError, printable
from difftrain.types import SourceImage

_NAME_COLUMNS = ("file_name", "filename", "id")
_CAPTION_COLUMNS = ("text", "caption", "prompt", "description")


class TableOptions(Options):
    """The keys of ``parquet``, ``jsonl`` and ``csv``."""

    path: str | None = None
    """The table; default: metadata.parquet, metadata.jsonl or metadata.csv in the image's folder or the nearest above
    it, up to instance_data_dir."""
    filename_column: str | None = None
    """Column with the image's path below instance_data_dir or below the table's folder, or its name; default: the first
    that exists of file_name, filename, id."""
    caption_column: tuple[str, ...] = Field((), max_length=20)
    """Column with a caption or a list of captions, or a list of such columns, tried in order; default: the first that
    exists of text, caption, prompt, description."""
    fallback_caption_column: str | None = None
    """Column used where caption_column is empty."""
    identifier_includes_extension: bool = True
    """False: the names in the table have no extension. Such names are also found without saying so."""
    width_column: str | None = None
    """No effect: sizes are read from the images."""
    height_column: str | None = None
    """No effect: sizes are read from the images."""

    @field_validator("caption_column", mode="before")
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        return one_or_many(value)


class _Table:
    """The captions of one file, by the names of images."""

    def __init__(self, file: str, rows: Iterable[tuple[int, Row]], options: TableOptions) -> None:
        self._file, self._options = file, options
        self._captions: dict[str, list[str]] = defaultdict(list)
        columns: tuple[str, tuple[str, ...]] | None = None
        for number, row in rows:
            columns = columns or self._columns(row)
            name = row.get(columns[0])
            if not isinstance(name, str | int) or name == "":
                raise DataError(f"{printable(file)}: row {number} has no {columns[0]}")
            found = self._captions[os.path.normpath(str(name))]
            found += next((texts for column in columns[1] if (texts := _texts(row.get(column)))), [])

    def find(self, names: Sequence[str]) -> tuple[str, ...] | None:
        """Return the captions under the first name that the table has."""
        for name in names:
            if name in self._captions:
                return tuple(dict.fromkeys(self._captions[name])) or None
        return None

    def _columns(self, row: Row) -> tuple[str, tuple[str, ...]]:
        """Return the column of the names and those of the captions, in the order in which they are tried."""
        name = self._column("filename_column", self._options.filename_column, _NAME_COLUMNS, row)
        wanted = self._options.caption_column or (None,)
        captions = [self._column("caption_column", one, _CAPTION_COLUMNS, row) for one in wanted]
        if self._options.fallback_caption_column:
            captions.append(self._column("fallback_caption_column", self._options.fallback_caption_column, (), row))
        return name, tuple(captions)

    def _column(self, key: str, name: str | None, usual: Sequence[str], row: Row) -> str:
        if name is None:
            name = next((one for one in usual if one in row), None)
            if name is None:
                raise DataError(
                    f"{printable(self._file)}: has none of the columns {', '.join(usual)}, but: {', '.join(row)}\n"
                    f"hint: set {key}"
                )
        elif name not in row:
            guess = nearest(name, row)
            advice = f"did you mean {guess!r}?" if guess else f"there are: {', '.join(row)}"
            raise DataError(f"{printable(self._file)}: {key} {name!r} does not exist; {advice}")
        return name


class _ReadTables:
    """The tables that a process has read; each is read once, whichever thread asks first."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._tables: dict[str, tuple[str, _Table | DataError]] = {}

    def __reduce__(self) -> tuple[type[_ReadTables], tuple[()]]:
        return _ReadTables, ()  # another process reads its own

    def get(self, file: str, stamp: str, read: Callable[[], _Table]) -> _Table:
        """Return the table in a file.

        Raises:
            DataError: If it cannot be read; it is not tried again for every image.
        """
        with self._lock:
            known = self._tables.get(file)
            if known is None or known[0] != stamp:
                try:
                    known = stamp, read()
                except DataError as error:
                    known = stamp, error
                self._tables[file] = known
        if isinstance(known[1], DataError):
            raise DataError(*known[1].problems) from known[1]
        return known[1]


class _TableCaptions(PromptedCaptions):
    """Finds the table of an image."""

    remedy: ClassVar[str] = "name each one in the table, with a caption"

    _settings: TableOptions = PrivateAttr(default_factory=TableOptions)
    _tables: _ReadTables = PrivateAttr(default_factory=_ReadTables)

    @model_validator(mode="after")
    def _block_is_right(self) -> Self:
        self._settings = parse_block(TableOptions, getattr(self, self.name), f"{self.name}: ")
        return self

    def files(self, image: SourceImage) -> tuple[str | Path, ...]:
        return tuple(self._places(image)) if isinstance(image, LocalImage) else ()

    def captions(self, image: SourceImage) -> tuple[str, ...] | None:
        if not isinstance(image, LocalImage):
            raise DataError(
                f"{printable(image.place)}: is not a file, so no table names it\n"
                f"hint: {self.name!r} works only for images that are files; set another caption_strategy, or null"
            )
        for file in self._places(image):
            try:
                stamp = file_stamp(file)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise DataError(cannot_read(file, error)) from error
            table = self._tables.get(file, stamp, partial(self._read, file))
            found = table.find(_names(image, file, is_named=bool(self._settings.path)))
            return tuple(map(self._prompted, found)) if found else None
        if self._settings.path:
            raise DataError(
                f"{self.name}: path {printable(self._settings.path)} does not exist\n"
                f"hint: relative paths start at {Path.cwd()}"
            )
        return None

    def _read(self, file: str) -> _Table:
        wanted = self._settings
        columns = (wanted.filename_column, *wanted.caption_column, wanted.fallback_caption_column)
        names = [*_NAME_COLUMNS, *_CAPTION_COLUMNS, *(name for name in columns if name)]
        return _Table(file, READERS[self._kind(file)](file, names), wanted)

    def _kind(self, file: str) -> str:
        """Return how a table is read: as its ending says, whichever block names it."""
        ending = file.lower().rpartition(".")[2]
        return ending if ending in READERS else self.name

    def _places(self, image: LocalImage) -> list[str]:
        """Return where the image's table may be, the nearest first."""
        path = self._settings.path
        if path:
            return [absolute(os.path.expanduser(path))]  # noqa: PTH111
        folders = [image.key.rpartition("/")[0]]
        while folders[-1]:
            folders.append(folders[-1].rpartition("/")[0])
        root = image.file.removesuffix(image.key)
        return [os.path.join(root, folder, f"metadata.{self.name}") for folder in folders]  # noqa: PTH118


def _names(image: LocalImage, table: str, *, is_named: bool) -> list[str]:
    """Return the names that a table may use for an image, the most exact first.

    Args:
        is_named: Whether the user names the table, which may then lie anywhere and use bare names.
    """
    names = [os.path.relpath(image.file, os.path.dirname(table)), image.key]  # noqa: PTH120
    if is_named:
        names.append(image.key.rpartition("/")[2])
    return [*names, *(name.removesuffix(image.extension) for name in names)]


def _texts(value: object) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [text.strip() for text in values if isinstance(text, str) and text.strip()]


class ParquetCaptions(_TableCaptions):
    """A parquet table that names the images; needs the extra ``hf``. Its path may also be a .jsonl or .csv file."""

    name: ClassVar[str] = "parquet"

    parquet: dict[str, Any] = {}
    """A block: the table and its columns."""

    @model_validator(mode="after")
    def _can_be_read(self) -> Self:
        if self._kind(self._settings.path or "") == self.name:
            need_pyarrow("caption_strategy = parquet")
        return self


class JsonLinesCaptions(_TableCaptions):
    """A file of JSON objects, one a line, that name the images, such as ``metadata.jsonl``."""

    name: ClassVar[str] = "jsonl"

    jsonl: dict[str, Any] = {}
    """A block: the table and its columns."""


class CsvCaptions(_TableCaptions):
    """A CSV file with a header that names the images, such as ``metadata.csv``. With type = csv, the captions are in
    the same file as the names."""

    name: ClassVar[str] = "csv"

    csv: dict[str, Any] = {}
    """A block: the table and its columns."""

    def files(self, image: SourceImage) -> tuple[str | Path, ...]:
        # the row's own captions are not remembered: they change with csv_caption_column
        return () if self._are_own(image) else super().files(image)

    def captions(self, image: SourceImage) -> tuple[str, ...] | None:
        if not self._are_own(image):
            return super().captions(image)
        return tuple(map(self._prompted, image.captions)) if image.captions else None

    def _are_own(self, image: SourceImage) -> bool:
        """Return whether the captions of an image are those of the row that names it."""
        return isinstance(image, ListedImage) and not self._settings.path
