"""Files of a set on the hub that are read there, a row group at a time, without keeping them: ``streaming``."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote

from difftrain.errors import DataError

_SCHEME = "hf://datasets/"
Version = str
"""``BLOB@COMMIT``: what identifies the bytes of a file, and a commit that has them."""


def is_on_hub(file: str) -> bool:
    """Return whether a name of a file is one of :func:`list_hub_files`."""
    return file.startswith(_SCHEME)


def list_hub_files(name: str, revision: str | None) -> dict[str, tuple[str, Version]]:
    """Return the parquet files of a set by their paths in it, each as a name that :func:`open_hub_file` takes.

    Raises:
        DataError: If there is no such set, or it cannot be reached.
    """
    from huggingface_hub import HfApi

    with hub_errors(name):
        info = HfApi().dataset_info(name, revision=revision, files_metadata=True)
    at = quote(revision or "main", safe="")
    return {
        file.rfilename: (f"{_SCHEME}{name}@{at}/{file.rfilename}", f"{file.blob_id}@{info.sha}")
        for file in info.siblings or ()
        if file.rfilename.endswith(".parquet")
    }


def open_hub_file(file: str, version: Version) -> BinaryIO:
    """Open a file on the hub as it was when it was listed; parts of it are fetched when they are read.

    Raises:
        OSError: If it cannot be opened.
    """
    from huggingface_hub import HfFileSystem

    name, _, rest = file.partition("@")
    path = f"{name.removeprefix('hf://')}@{version.partition('@')[2]}/{rest.partition('/')[2]}"
    with fetched():
        # row groups are read once and in one piece, so nothing is read ahead
        opened: BinaryIO = HfFileSystem().open(path, "rb", cache_type="none")
        return opened


def bytes_version(version: str) -> str:
    """Return the part of a version that changes with the bytes alone; another commit may have the same file."""
    return version.partition("@")[0]


@contextmanager
def fetched() -> Iterator[None]:
    """Turn errors of the network in the block into OSError, which is tried again.

    Raises:
        OSError: With the first line of what failed.
    """
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # that of whichever httpx it uses

    try:
        yield
    except HTTPError as error:
        first = str(error).strip().partition("\n")[0]
        raise OSError(errno.EIO, f"the hub does not give it: {first or type(error).__name__}") from error


@contextmanager
def hub_errors(name: str) -> Iterator[None]:
    """Turn errors of the hub in the block into one that says what to check.

    Raises:
        DataError: If the set does not exist, or the hub cannot be reached.
    """
    from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError  # type: ignore[attr-defined]

    try:
        yield
    except LocalEntryNotFoundError as error:
        raise DataError(
            f"dataset_name {name!r} is no path on this machine, is not in the cache of the hub, and the hub cannot be "
            f"reached\nhint: relative paths start at {Path.cwd()}"
        ) from error
    except (OSError, HTTPError, ValueError) as error:
        first = str(error).strip().partition("\n")[0]
        raise DataError(
            f"dataset_name {name!r} cannot be loaded from the hub ({first})\n"
            "hint: check its name and revision; for a set with restricted access run hf auth login"
        ) from error
