"""Which entries a cache has, found by listing its folders once instead of opening every file."""

from __future__ import annotations

import os
import stat
from collections import defaultdict
from collections.abc import Collection, Iterator

from difftrain.data.caching.tensor_cache import TensorCache
from difftrain.types import Phase

_WORTH_LISTING = 8
"""Keys of one folder from which on it is listed; a cache that others fill too may hold far more than is asked for."""
_UNKNOWN = -1


def absent_keys(
    cache: TensorCache, keys: Collection[str], phase: Phase | None = None, *, needed: Collection[str] = ()
) -> set[str]:
    """Return the keys without a complete entry; remove entries that prove corrupt.

    The first file of each size is judged by its header, as :meth:`TensorCache.holds` does, and others of that size are
    taken for whole: entries of images and captions have few sizes, and one cut short has a size of its own. Reading
    judges every entry again.

    Args:
        cache: Where to look.
        keys: Each once.
        phase: Counts the keys.
        needed: Names that a complete entry has.

    Raises:
        DataError: If a file cannot be examined; it is kept.
    """
    whole_sizes: set[int] = set()
    absent: set[str] = set()
    for part in _by_folder(keys):
        sizes = _sizes(cache, part[0]) if len(part) >= _WORTH_LISTING else None
        for key in part:
            size = _UNKNOWN if sizes is None else sizes.get(f"{key}.safetensors")
            if size in whole_sizes:
                continue
            if size is None or not cache.holds(key, needed=needed):
                absent.add(key)
            elif size != _UNKNOWN:
                whole_sizes.add(size)
        if phase is not None:
            phase.advance(len(part), part[-1])
    return absent


def _by_folder(keys: Collection[str]) -> Iterator[list[str]]:
    """Yield the keys of each folder of the cache."""
    folders: dict[str, list[str]] = defaultdict(list)
    for key in keys:
        folders[key[:2]].append(key)
    yield from folders.values()


def _sizes(cache: TensorCache, key: str) -> dict[str, int] | None:
    """Return the sizes of the files beside a key's entry, by name; None if only a look at each file can tell.

    A size is unknown if the file vanishes meanwhile or is no plain file.
    """
    sizes: dict[str, int] = {}
    try:
        with os.scandir(cache.path(key).parent) as entries:
            for entry in entries:
                try:
                    status = entry.stat()
                except OSError:  # it vanishes meanwhile
                    sizes[entry.name] = _UNKNOWN
                    continue
                sizes[entry.name] = status.st_size if stat.S_ISREG(status.st_mode) else _UNKNOWN
    except FileNotFoundError:
        return {}
    except OSError:  # looking at a file says what is wrong with it
        return None
    return sizes
