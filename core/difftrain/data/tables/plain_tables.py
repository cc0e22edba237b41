"""The rows of a table file, whatever its format: parquet, JSON lines or CSV."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from difftrain.data.files.local_image import file_stamp
from difftrain.data.files.utf8 import decode_utf8
from difftrain.data.tables.table_file import open_table
from difftrain.errors import DataError, printable
from difftrain.machine.open_file import open_file

Row = Mapping[str, Any]
Rows = Iterator[tuple[int, Row]]
"""Rows with their numbers for messages: lines of a text file from 1, rows of parquet from 0."""


def parquet_rows(file: str, names: Sequence[str]) -> Rows:
    """Yield the rows of a parquet file; needs pyarrow.

    Args:
        names: The columns to read, as far as they exist; all if none does. Others may hold whole images.

    Raises:
        DataError: If it cannot be read.
    """
    try:
        table = open_table(file, file_stamp(file))
        columns = [name for name in table.schema.names if name in names] or table.schema.names
        yield from enumerate(table.values(columns))
    except OSError as error:
        raise DataError(cannot_read(file, error)) from error


def json_rows(file: str, names: Sequence[str]) -> Rows:  # noqa: ARG001 - a line is read whole
    """Yield the objects of a file of JSON lines; a key that some line has is null in those that lack it.

    Raises:
        DataError: If it cannot be read.
    """
    rows: list[tuple[int, Row]] = []
    for number, line in enumerate(_lines(file), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{printable(file)}:{number}: is not JSON ({error})") from error
        if not isinstance(row, dict):
            raise DataError(f"{printable(file)}:{number}: is not an object {{...}}")
        rows.append((number, row))
    everything = dict.fromkeys(key for _, row in rows for key in row)
    for number, row in rows:
        yield number, row if len(row) == len(everything) else {**everything, **row}


def csv_rows(file: str, names: Sequence[str]) -> Rows:  # noqa: ARG001 - a line is read whole
    """Yield the rows of a CSV file with a header.

    Raises:
        DataError: If it cannot be read, or a row has more or fewer fields than the header.
    """
    # strict: a quote that is never closed would take the rest of the file into one text
    reader = csv.DictReader((line + "\n" for line in _lines(file)), restkey="", strict=True)
    try:
        for row in reader:
            if "" in row or None in row.values():
                raise DataError(_wrong_fields(file, reader.line_num, row, reader.fieldnames or ()))
            yield reader.line_num, row
    except csv.Error as error:
        raise DataError(f"{printable(file)}:{reader.line_num}: is not CSV ({error})") from error


def _wrong_fields(file: str, line: int, row: Mapping[str, Any], header: Sequence[str]) -> str:
    count = sum(value is not None for key, value in row.items() if key != "") + len(row.get("") or ())
    return (
        f"{printable(file)}:{line}: has {count} fields, and the header {len(header)}: {', '.join(header)}\n"
        'hint: put texts with commas into quotes: a.png,"red, blue"'
    )


READERS: Mapping[str, Callable[[str, Sequence[str]], Rows]] = {
    "parquet": parquet_rows,
    "jsonl": json_rows,
    "csv": csv_rows,
}
"""By ending."""


def cannot_read(file: str, error: OSError) -> str:
    """Return the message on a table that cannot be read."""
    return f"{printable(file)}: cannot be read ({(error.strerror or str(error)).lower()})"


def _lines(file: str) -> list[str]:
    try:
        with open_file(file) as stream:
            text = decode_utf8(stream.read())
    except OSError as error:
        raise DataError(cannot_read(file, error)) from error
    if text is None:
        raise DataError(f"{printable(file)}: is not UTF-8\nhint: convert it with iconv -t UTF-8")
    return text.split("\n")
