"""Where images come from. Bundled: local folders."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import ClassVar

from difftrain.contracts import DataSource
from difftrain.errors import DataError


class LocalSource(DataSource):
    """A folder of image files, with everything below it."""

    name: ClassVar[str] = "local"

    instance_data_dir: Path
    """Root folder, walked recursively; hidden files and folders are skipped."""

    def list_images(self) -> Iterable[tuple[str, Path]]:
        root = self.instance_data_dir.expanduser()
        if not root.is_dir():
            what = "is not a folder" if root.exists() else "does not exist"
            raise DataError(f"instance_data_dir {root} {what}\nhint: relative paths start at {Path.cwd()}")
        suffixes = _readable_suffixes()
        start = os.path.abspath(root)  # noqa: PTH100
        # Path(text) and not root / text: half the time, for 400,000 files.
        found = [(below, Path(f"{start}/{below}")) for below in _walk(start) if _suffix(below) in suffixes]
        if not found:
            read = ", ".join(sorted(suffixes))
            raise DataError(f"instance_data_dir {root} has no images\nhint: pictures are files that end in {read}")
        found.sort()
        return found


def _suffix(name: str) -> str:
    return "." + name.rpartition(".")[2].lower()


def _readable_suffixes() -> frozenset[str]:
    from PIL import features

    optional = frozenset({".avif"}) if features.check("avif") else frozenset()
    return frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}) | optional


def _walk(root: str) -> Iterator[str]:
    """Files below a folder, relative and posix. Links are followed, but no folder is entered twice."""
    entered: set[tuple[int, int]] = set()
    waiting = [""]
    while waiting:
        below = waiting.pop()
        folder = f"{root}/{below}"
        status = os.stat(folder)  # noqa: PTH116
        if (status.st_dev, status.st_ino) in entered:
            continue
        entered.add((status.st_dev, status.st_ino))
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    waiting.append(f"{below}{entry.name}/")
                elif entry.is_file():
                    yield below + entry.name
