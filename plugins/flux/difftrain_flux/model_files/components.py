"""From a location to a local folder with the wanted components: built, downloaded or already there."""

from __future__ import annotations

from pathlib import Path

from difftrain import ModelLocation, fetch_components
from difftrain_flux.built_in import OFFLINE, TINY_RANDOM
from difftrain_flux.model_files.quiet import quiet_libraries


def local_folder(location: ModelLocation, components: tuple[str, ...]) -> Path:
    """Return a folder in diffusers layout with these components.

    Raises:
        ModelError: If a hub model can be neither downloaded nor found in the cache.
    """
    quiet_libraries()
    if location.path is None:
        return fetch_components(location, components, offline=OFFLINE)
    if location.name == TINY_RANDOM:
        from difftrain_flux.model_files.tiny_random import ensure_tiny_random

        return ensure_tiny_random(location.path)
    return location.path
