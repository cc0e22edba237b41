"""Decoded row groups that a process keeps, for all files together: few, and of bounded size."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from functools import lru_cache
from threading import Lock
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa

KEPT_BYTES = 512 * 2**20
"""Decoded bytes that a process keeps; a larger row group is kept alone."""


class KeptGroups:
    """The row groups that were used last. Threads share it."""

    def __init__(self, limit: int = KEPT_BYTES) -> None:
        self._limit = limit
        self._kept: OrderedDict[Hashable, pa.ChunkedArray] = OrderedDict()
        self._lock = Lock()
        self._loading = Lock()

    def get(self, key: Hashable, size: int, load: Callable[[], pa.ChunkedArray]) -> pa.ChunkedArray:
        """Return a row group; decode it if it is not kept.

        Others make room before it is decoded, and groups are decoded one after another: all that is kept and decoded
        at any time is within the limit, or one group.

        Args:
            size: Its decoded bytes, as far as they are known.
        """
        found = self._find(key)
        if found is not None:
            return found
        with self._loading:
            found = self._find(key)  # another thread may have been first
            if found is not None:
                return found
            self._make_room(size)
            made = load()
            self._make_room(made.nbytes)
            with self._lock:
                self._kept[key] = made
            return made

    def _find(self, key: Hashable) -> pa.ChunkedArray | None:
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def _make_room(self, size: int) -> None:
        with self._lock:
            while self._kept and size + sum(kept.nbytes for kept in self._kept.values()) > self._limit:
                self._kept.popitem(last=False)


@lru_cache(maxsize=1)
def kept_groups() -> KeptGroups:
    """Return the row groups that this process keeps."""
    return KeptGroups()
