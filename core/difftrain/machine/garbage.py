"""Memory after and during phases that make very many objects.

Collections of garbage look at every object in memory, over and over while it fills up, so such phases go without.
"""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def paused_garbage_collection() -> Iterator[None]:
    """Collect no garbage within; for phases that make many objects and keep them, such as reading long lists.

    Objects that refer to each other in a ring stay in memory until the end of the phase.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def give_back_memory() -> None:
    """Give free memory back to the system, after a phase that needed much: holes between what stays would be kept.

    Python's memory consists of pieces of 1 MB, which one living object keeps. Its cache of attributes keeps a class
    name of each result from another process, and so half the memory of a scan; lists of free objects keep some more.
    glibc keeps holes too. Where a call does not exist, memory stays.
    """
    clear_caches = getattr(sys, "_clear_internal_caches", None) or getattr(sys, "_clear_type_cache", None)
    if clear_caches is not None:
        clear_caches()
    gc.collect()
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
