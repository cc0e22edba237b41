"""Names the built-in offline checkpoints, without building them. Light: no torch."""

from __future__ import annotations

import os
from pathlib import Path

TINY = "tiny"
TINY_FOLDER = Path(__file__).parent / "tiny_kontext"
"""A small Kontext that was trained to edit, by tools/tiny_kontext; its metrics.json says how well."""

TINY_RANDOM = "tiny-random"
TINY_RANDOM_VERSION = 1
"""Raise it when the bytes that `tiny_random.py` writes change."""
TINY_RANDOM_WIDTH = 32
"""Numbers of a text token's and of a prompt's embedding."""
TINY_RANDOM_IDENTITY = f"tiny-random-{TINY_RANDOM_VERSION}"

BUILT_IN = (TINY, TINY_RANDOM)
OFFLINE = f", or to {TINY!r} to try things without network"
"""How a hint ends that is given when the hub cannot be reached."""


def tiny_random_folder() -> Path:
    """Where the random checkpoint is kept, whether it is there yet or not."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "difftrain" / TINY_RANDOM_IDENTITY
