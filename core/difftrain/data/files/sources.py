"""Data sources. Bundled: local folders."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from difftrain.contracts import DataSource, Listing
from difftrain.data.files.image_formats import readable_formats, readable_suffixes
from difftrain.data.files.other_files import note_other_files, note_written
from difftrain.data.files.walk import walk_folder
from difftrain.errors import DataError, printable
from difftrain.types import SourceImage


class LocalSource(DataSource):
    """A folder of image files, with everything below it."""

    name: ClassVar[str] = "local"

    instance_data_dir: Path
    """Root folder, walked recursively; hidden and system files and folders are skipped."""

    @property
    def place(self) -> str:
        return f"folder {printable(self.instance_data_dir)}"

    def list_images(self) -> Sequence[SourceImage]:
        return self.survey({}).images

    def survey(self, written: Mapping[str, Path]) -> Listing:
        root = self.instance_data_dir.expanduser()
        _check_folder(root)
        listing = walk_folder(os.path.abspath(root), readable_suffixes(), written)  # noqa: PTH100
        if not listing.images and not listing.unusable:
            raise DataError(_nothing_found(root, listing))
        return listing


def _check_folder(root: Path) -> None:
    name = f"instance_data_dir {printable(root)}"
    try:
        status = os.stat(root)  # noqa: PTH116
    except FileNotFoundError:
        raise DataError(f"{name} does not exist\nhint: relative paths start at {Path.cwd()}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"{name} cannot be used ({reason.lower()})") from error
    if not stat.S_ISDIR(status.st_mode):
        raise DataError(f"{name} is not a folder\nhint: name the folder that holds the images")


def _nothing_found(root: Path, listing: Listing) -> str:
    lines = [f"instance_data_dir {printable(root)} has no images"]
    if listing.written:
        lines.append(f"left out: {note_written(listing.written)}")
    hints = [f"supported image formats: {', '.join(readable_formats())}"]
    for note in note_other_files(listing):
        text, _, hint = note.partition("\nhint: ")
        lines.append(text)
        if hint:
            hints.append(hint)
    return "; ".join(lines) + f"\nhint: {'; '.join(hints[:2])}"
