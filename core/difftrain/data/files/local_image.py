"""Images that are files on this machine."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Self

from difftrain.machine.open_file import open_file
from difftrain.types import SourceImage


@dataclass(frozen=True, kw_only=True, slots=True)
class LocalImage(SourceImage):
    """An image file, as the data source ``local`` returns it."""

    file: str
    """Its absolute path. A text takes half the memory and a third of the time of a path object."""

    def __post_init__(self) -> None:
        if not self.file.startswith(os.sep):
            object.__setattr__(self, "file", os.path.abspath(self.file))  # noqa: PTH100

    @classmethod
    def at(cls, path: Path, key: str | None = None) -> Self:
        """Return the image in a file; the key defaults to its name."""
        return cls(key=path.name if key is None else key, file=str(path))

    @property
    def path(self) -> Path:
        return Path(self.file)

    @property
    def place(self) -> str:
        return self.file

    def stamp(self) -> str:
        return file_stamp(self.file)

    def open(self) -> BinaryIO:
        return open_file(self.file)


def file_stamp(name: str | Path) -> str:
    """Return size and modification time of a file, as text.

    Raises:
        OSError: If the system does not give them.
    """
    return stamp_of_status(os.stat(name))  # noqa: PTH116


def stamp_of_status(status: os.stat_result) -> str:
    """Return the :func:`file_stamp` of a file with this status."""
    return f"{status.st_size}:{status.st_mtime_ns}"
