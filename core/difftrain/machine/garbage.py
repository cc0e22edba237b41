"""Memory after and during phases that make very many objects.

Collections of garbage look at every object in memory, over and over while it fills up, so such phases go without.
"""

from __future__ import annotations

import ctypes
import gc
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
    """Give free memory back to the system, after a phase that needed much: glibc would keep holes between what stays.

    Other C libraries have no such call; then this does nothing.
    """
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
