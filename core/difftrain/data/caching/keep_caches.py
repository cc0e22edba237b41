"""Checks whole caches, and removes what a run does not need from them."""

from __future__ import annotations

import os
import re
import time
from collections import defaultdict
from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from difftrain.data.caching.tensor_cache import AbsentEntry, TensorCache
from difftrain.errors import DataError
from difftrain.machine.retries import refusal
from difftrain.types import Phase

Entries = Iterable[tuple[TensorCache, str]]
"""Caches and keys of entries that a run needs."""
STALE = 24 * 3600
"""Seconds after which a temporary file belongs to no run any more."""


@dataclass(frozen=True, kw_only=True)
class Pruned:
    """What was removed."""

    files: int
    bytes: int


def verify(entries: Entries, phase: Phase | None = None) -> int:
    """Read every entry that exists; remove damaged ones and return their number.

    Raises:
        DataError: If a file cannot be read, which proves nothing; it is kept.
    """

    def damaged(entry: tuple[TensorCache, str]) -> bool:
        cache, key = entry
        if not cache.path(key).exists():
            return False
        try:
            cache.read(key)
        except AbsentEntry:
            return True
        return False

    count = 0
    with ThreadPoolExecutor(max_workers=8, thread_name_prefix="verify") as pool:
        for found in pool.map(damaged, entries):
            count += found
            if phase is not None:
                phase.advance()
    return count


def prune(entries: Entries, folders: Collection[Path], phase: Phase | None = None) -> Pruned:
    """Remove entries of the folders that are not among those, and what killed runs left half written.

    Raises:
        DataError: If a file cannot be removed.
    """
    needed: dict[Path, set[str]] = defaultdict(set)
    for cache, key in entries:
        needed[cache.folder].add(key)
    files = size = 0
    for folder in folders:
        for path, status in _files(folder):
            if _is_entry(path, folder):
                unneeded = path.stem not in needed[folder]
            else:
                unneeded = _is_left_over(path, folder) and time.time() - status.st_mtime > STALE
            if unneeded:
                _remove(path)
                files, size = files + 1, size + status.st_size
            if phase is not None:
                phase.advance()
    return Pruned(files=files, bytes=size)


def _files(folder: Path) -> Iterable[tuple[Path, os.stat_result]]:
    """Yield files one folder deep, where entries lie; links are left alone."""
    for inner in sorted(folder.glob("??")):
        if inner.is_dir() and not inner.is_symlink():
            with os.scandir(inner) as found:
                for entry in found:
                    if entry.is_file(follow_symlinks=False):
                        yield Path(entry.path), entry.stat(follow_symlinks=False)


def _is_entry(path: Path, folder: Path) -> bool:
    """Return whether a file has an entry's name; cache_dir_vae may also hold the user's own weights."""
    return _is_key(path.stem) and TensorCache(folder).path(path.stem) == path


def _is_key(name: str) -> bool:
    return re.fullmatch("[0-9a-f]{40}", name) is not None


def _is_left_over(path: Path, folder: Path) -> bool:
    """Whether it has the name of a file that :func:`write_atomically` had not renamed yet."""
    name, _, rest = path.name.removeprefix(".").partition(".safetensors.")
    return (
        path.name.startswith(".")
        and bool(rest)
        and _is_key(name)
        and TensorCache(folder).path(name).parent == path.parent
    )


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(refusal(f"cache entry {path} cannot be removed", error)) from error
