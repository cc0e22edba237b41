"""Phases without collections of garbage: they look at every object in memory, over and over while it fills up."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


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
