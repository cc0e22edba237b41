"""A digest of names, sizes and times of all files in and below a folder, by which unchanged data is recognised.

A small Python runs this file too (`samples/looking_aside.py`), so it imports next to nothing and nothing of difftrain.
"""

from __future__ import annotations

import marshal
import os
import stat
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from xxhash import xxh3_128


class DataFolder(NamedTuple):
    """The folder of a dataset, as another process can look at it too."""

    root: str
    """Absolute path."""
    around: Sequence[tuple[str, str]]
    """Folders that this run writes in or around it, by name; part of the digest."""
    apart: Sequence[tuple[int, int]]
    """Identities of folders that runs write; they are not entered."""


def digest_of_folder(folder: DataFolder, count: Callable[[int], None] = lambda _: None) -> tuple[str, int]:
    """Return a hash of names, sizes and times of all files in and below a folder, and their number; follows links.

    Args:
        folder: Where to look.
        count: Called with the number of files of each folder that was looked at.

    Raises:
        OSError: If something cannot be looked at; the scan will say what.
    """
    digest = xxh3_128(repr(folder.around).encode("utf-8", "backslashreplace"))
    waiting, entered, total = [folder.root], set(folder.apart), 0
    while waiting:
        path = waiting.pop()
        identity = folder_identity(path)
        if identity in entered and path != folder.root:
            continue
        entered.add(identity)
        files, below = _names_sizes_times(path)
        waiting += below
        digest.update(repr((path, files, below)).encode("utf-8", "backslashreplace"))
        count(len(files))
        total += len(files)
    return digest.hexdigest(), total


def folder_identity(folder: str | os.PathLike[str]) -> tuple[int, int]:
    """Return what identifies a folder under all of its names.

    Raises:
        OSError: If it cannot be looked at.
    """
    status = os.stat(folder)  # noqa: PTH116
    return status.st_dev, status.st_ino


def _names_sizes_times(folder: str) -> tuple[list[tuple[str, int, int]], list[str]]:
    """Return the files of a folder and the paths of its folders, both sorted."""
    below: list[str] = []
    files: list[tuple[str, int, int]] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            try:
                status = entry.stat()
            except FileNotFoundError:  # a broken link
                status = entry.stat(follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode):
                below.append(entry.path)
            else:
                files.append((entry.name, status.st_size, status.st_mtime_ns))
    files.sort()
    below.sort()
    return files, below


def _digest_or_none(folder: DataFolder) -> tuple[str, int] | None:
    try:
        return digest_of_folder(folder)
    except OSError:
        return None


def main() -> None:
    """Read folders and write their digests, None for those that cannot be looked at; both as marshal's bytes."""
    folders = [DataFolder(*one) for one in marshal.load(sys.stdin.buffer)]
    marshal.dump(list(map(_digest_or_none, folders)), sys.stdout.buffer)


if __name__ == "__main__":
    main()
