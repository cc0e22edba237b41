"""Captions of local images from a table: parquet, JSON lines or CSV, one file or ``metadata.*`` in the folders."""

from __future__ import annotations

import csv
import json
import os
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, ClassVar, Self

from pydantic import Field, PrivateAttr, field_validator, model_validator

from difftrain.config.messages import nearest
from difftrain.config.options import Options
from difftrain.contracts import CaptionSource
from difftrain.data.files.local_image import LocalImage, file_stamp
from difftrain.data.files.utf8 import decode_utf8
from difftrain.data.tables.set_options import need_pyarrow, parse_block
from difftrain.data.tables.table_file import absolute, open_table
from difftrain.errors import DataError, printable
from difftrain.machine.open_file import open_file
from difftrain.types import SourceImage

_NAME_COLUMNS = ("file_name", "filename", "id")
_CAPTION_COLUMNS = ("text", "caption", "prompt")
Row = Mapping[str, Any]


class TableOptions(Options):
    """The keys of ``parquet``, ``jsonl`` and ``csv``."""

    path: str | None = None
    """The table; default: metadata.parquet, metadata.jsonl or metadata.csv in the image's folder or the nearest above
    it, up to instance_data_dir."""
    filename_column: str | None = None
    """Column with the image's path below instance_data_dir or below the table's folder, or its name; default: the first
    that exists of file_name, filename, id."""
    caption_column: tuple[str, ...] = Field((), max_length=20)
    """Column with a caption or a list of captions, or a list of such columns; default: the first that exists of text,
    caption, prompt."""
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
        if isinstance(value, str):
            return (value,)
        return tuple(value) if isinstance(value, list) else value


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
        self._tables: dict[str, tuple[str, _Table]] = {}

    def __reduce__(self) -> tuple[type[_ReadTables], tuple[()]]:
        return _ReadTables, ()  # another process reads its own

    def get(self, file: str, stamp: str, read: Callable[[], _Table]) -> _Table:
        with self._lock:
            known = self._tables.get(file)
            if known is None or known[0] != stamp:
                known = self._tables[file] = stamp, read()
            return known[1]


class _TableCaptions(CaptionSource):
    """Finds the table of an image."""

    _settings: TableOptions = PrivateAttr(default_factory=TableOptions)
    _tables: _ReadTables = PrivateAttr(default_factory=_ReadTables)

    @model_validator(mode="after")
    def _block_is_right(self) -> Self:
        self._settings = parse_block(TableOptions, getattr(self, self.name), f"{self.name}: ")
        return self

    @abstractmethod
    def _rows(self, file: str) -> Iterator[tuple[int, Row]]:
        """Yield the rows of a table, each with its number for messages.

        Raises:
            DataError: If it cannot be read.
        """

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
                raise DataError(_cannot_read(file, error)) from error
            table = self._tables.get(file, stamp, partial(self._read, file))
            return table.find(_names(image, file, is_named=bool(self._settings.path)))
        if self._settings.path:
            raise DataError(
                f"{self.name}: path {printable(self._settings.path)} does not exist\n"
                f"hint: relative paths start at {Path.cwd()}"
            )
        return None

    def _read(self, file: str) -> _Table:
        return _Table(file, self._rows(file), self._settings)

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


def _cannot_read(file: str, error: OSError) -> str:
    return f"{printable(file)}: cannot be read ({(error.strerror or str(error)).lower()})"


def _lines(file: str) -> list[str]:
    try:
        with open_file(file) as stream:
            text = decode_utf8(stream.read())
    except OSError as error:
        raise DataError(_cannot_read(file, error)) from error
    if text is None:
        raise DataError(f"{printable(file)}: is not UTF-8\nhint: convert it with iconv -t UTF-8")
    return text.split("\n")


class ParquetCaptions(_TableCaptions):
    """A parquet table that names the images; needs the extra ``hf``."""

    name: ClassVar[str] = "parquet"

    parquet: dict[str, Any] = {}
    """A block: the table and its columns."""

    @model_validator(mode="after")
    def _can_be_read(self) -> Self:
        need_pyarrow("caption_strategy = parquet")
        return self

    def _rows(self, file: str) -> Iterator[tuple[int, Row]]:
        wanted = self._settings
        try:
            table = open_table(file, file_stamp(file))
            known = {*_NAME_COLUMNS, *_CAPTION_COLUMNS, wanted.filename_column, *wanted.caption_column}
            known.add(wanted.fallback_caption_column)
            # other columns may hold whole images
            columns = [name for name in table.schema.names if name in known] or table.schema.names
            yield from enumerate(table.values(columns))
        except OSError as error:
            raise DataError(_cannot_read(file, error)) from error


class JsonLinesCaptions(_TableCaptions):
    """A file of JSON objects, one a line, that name the images, such as ``metadata.jsonl``."""

    name: ClassVar[str] = "jsonl"

    jsonl: dict[str, Any] = {}
    """A block: the table and its columns."""

    def _rows(self, file: str) -> Iterator[tuple[int, Row]]:
        for number, line in enumerate(_lines(file), 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise DataError(f"{printable(file)}:{number}: is not JSON ({error})") from error
            if not isinstance(row, dict):
                raise DataError(f"{printable(file)}:{number}: is not an object {{...}}")
            yield number, row


class CsvCaptions(_TableCaptions):
    """A CSV file with a header that names the images, such as ``metadata.csv``."""

    name: ClassVar[str] = "csv"

    csv: dict[str, Any] = {}
    """A block: the table and its columns."""

    def _rows(self, file: str) -> Iterator[tuple[int, Row]]:
        reader = csv.DictReader(line + "\n" for line in _lines(file))
        try:
            for row in reader:
                yield reader.line_num, row
        except csv.Error as error:
            raise DataError(f"{printable(file)}:{reader.line_num}: is not CSV ({error})") from error
