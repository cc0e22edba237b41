"""Sets whose images are files on this machine that a CSV table names: ``type: csv``."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from difftrain.config.messages import nearest
from difftrain.contracts import DataSource
from difftrain.data.files.local_image import LocalImage
from difftrain.data.tables.plain_tables import Row, csv_rows
from difftrain.data.tables.table_file import absolute
from difftrain.errors import DataError, printable

_FILE_COLUMNS = ("url", "file_name", "filename", "path", "image")
_CAPTION_COLUMNS = ("caption", "text", "prompt")
_URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_ON_THIS_MACHINE = "file://"


@dataclass(frozen=True, kw_only=True, slots=True)
class ListedImage(LocalImage):
    """An image file that a row of a table names, with the captions of that row."""


class CsvSource(DataSource):
    """Image files on this machine that a CSV table names, with their captions; nothing is downloaded."""

    name: ClassVar[str] = "csv"

    csv_file: Path
    """The table, with a header."""
    csv_url_column: str | None = None
    """Column with the image files, as absolute paths or below instance_data_dir; default: the first that exists of url,
    file_name, filename, path, image."""
    csv_caption_column: str | None = None
    """Column with the captions; default: the first that exists of caption, text, prompt."""
    instance_data_dir: Path | None = None
    """Where relative paths start; default: the table's folder."""

    @property
    def place(self) -> str:
        return f"table {printable(self.csv_file)}"

    def list_images(self) -> Sequence[ListedImage]:
        file = absolute(str(self.csv_file.expanduser()))
        if not os.path.exists(file):  # noqa: PTH110
            raise DataError(
                f"csv_file {printable(self.csv_file)} does not exist\nhint: relative paths start at {Path.cwd()}"
            )
        root = absolute(str(self.instance_data_dir.expanduser())) if self.instance_data_dir else os.path.dirname(file)  # noqa: PTH120
        names: dict[str, list[str]] = {}
        urls: list[tuple[int, str]] = []
        rows = list(csv_rows(file, ()))
        if not rows:
            raise DataError(f"csv_file {printable(file)} has no rows below its header")
        column = self._column("csv_url_column", _FILE_COLUMNS, rows[0][1])
        texts = self._captions_in(rows[0][1])
        for line, row in rows:
            name = str(row[column]).strip().removeprefix(_ON_THIS_MACHINE)
            if not name:
                raise DataError(f"{printable(file)}:{line}: has no {column}")
            if _URL.match(name):
                urls.append((line, name))
                continue
            captions = names.setdefault(os.path.join(root, os.path.expanduser(name)), [])  # noqa: PTH111, PTH118
            if texts is not None and (text := row[texts].strip()):
                captions.append(text)
        if urls:
            raise DataError(_urls_refused(file, urls, len(rows)))
        return [
            ListedImage(key=_key(path, root), file=path, captions=tuple(dict.fromkeys(captions)) or None)
            for path, captions in names.items()
        ]

    def _captions_in(self, row: Row) -> str | None:
        """Return the column of the captions; a table may have none, for references."""
        if self.csv_caption_column is None and not any(name in row for name in _CAPTION_COLUMNS):
            return None
        return self._column("csv_caption_column", _CAPTION_COLUMNS, row)

    def _column(self, key: str, usual: Sequence[str], row: Row) -> str:
        """Return the column that an option names, or the first usual one.

        Raises:
            DataError: If there is none; names the nearest.
        """
        name = getattr(self, key) or next((one for one in usual if one in row), None)
        if name is None:
            raise DataError(
                f"{printable(self.csv_file)}: has none of the columns {', '.join(usual)}, but: {', '.join(row)}\n"
                f"hint: set {key}"
            )
        if name not in row:
            guess = nearest(name, row)
            advice = f"did you mean {guess!r}?" if guess else f"there are: {', '.join(row)}"
            raise DataError(f"{printable(self.csv_file)}: {key} {name!r} does not exist; {advice}")
        return str(name)


def _key(path: str, root: str) -> str:
    """Return the name that pairing compares: below the root, or the whole path of a file elsewhere."""
    path = absolute(path)
    inside = path.startswith(root.rstrip(os.sep) + os.sep)
    return (os.path.relpath(path, root) if inside else path.lstrip(os.sep)).replace(os.sep, "/")


def _urls_refused(file: str, urls: Sequence[tuple[int, str]], total: int) -> str:
    line, first = urls[0]
    return (
        f"{printable(file)}: {len(urls)} of {total} rows name urls, which are not downloaded (line {line}: "
        f"{printable(first)})\nhint: download the images, with img2dataset for example, and name the files instead"
    )
