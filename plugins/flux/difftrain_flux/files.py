"""From a location to a local folder with the wanted components: built, downloaded or simply there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from difftrain import ModelLocation, fetch_components
from difftrain_flux.recipe import OFFLINE, TINY_RANDOM


def local_folder(location: ModelLocation, components: tuple[str, ...]) -> Path:
    """Folder in diffusers layout that holds these components.

    Raises:
        ModelError: If a hub model can be neither downloaded nor found in the cache.
    """
    quiet_libraries()
    if location.path is None:
        return fetch_components(location, components, offline=OFFLINE)
    if location.name == TINY_RANDOM:
        from difftrain_flux.tiny_random import ensure_tiny_random

        return ensure_tiny_random(location.path)
    return location.path


def quiet_libraries() -> None:
    """Before their first import: transformers warns of image libraries that nothing here uses."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


@contextmanager
def without_bars() -> Iterator[None]:
    """No bars of components and shards within it: the core shows what is being loaded. Downloads keep theirs."""
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    shown = [library for library in (of_diffusers, of_transformers) if library.is_progress_bar_enabled()]
    for library in shown:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in shown:
            library.enable_progress_bar()
