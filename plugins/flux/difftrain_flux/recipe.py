"""Names the built-in offline checkpoints, without building them. Light: no torch."""

from __future__ import annotations

import os
from pathlib import Path

TINY = "tiny"
TINY_VERSION = 1
"""Raise it when the bytes that `tiny.py` writes change."""
TINY_IDENTITY = f"tiny-flux-{TINY_VERSION}"

TINY_EDIT = "tiny-edit"
TINY_EDIT_FOLDER = Path(__file__).parent / "tiny_kontext"
"""A small Kontext that was trained to edit, by tools/tiny_kontext; its metrics.json says how well."""


def tiny_folder() -> Path:
    """Where the checkpoint is kept, whether it is there yet or not."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "difftrain" / TINY_IDENTITY
