"""Names the built-in offline checkpoints, without building them. Light: no torch."""

from __future__ import annotations

import os
from pathlib import Path

TINY = "tiny"
TINY_FOLDER = Path(__file__).parent / "tiny_kontext"
"""A small Kontext trained to edit by tools/tiny_kontext; its metrics.json says how well."""

TINY_RANDOM = "tiny-random"
TINY_RANDOM_VERSION = 1
"""Raise it when `tiny_random.py` writes other bytes."""
TINY_RANDOM_WIDTH = 32
"""Width of the text token and prompt embeddings."""
TINY_RANDOM_IDENTITY = f"tiny-random-{TINY_RANDOM_VERSION}"

BUILT_IN = (TINY, TINY_RANDOM)
OFFLINE = f", or to {TINY!r} to try things without network"
"""End of a hint given when the hub cannot be reached."""


def tiny_random_folder() -> Path:
    """Return the folder of the random checkpoint, which may not exist yet."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "difftrain" / TINY_RANDOM_IDENTITY
