"""Keeps the libraries quiet while they load: the core shows the progress."""

from __future__ import annotations

import os


def quiet_libraries() -> None:
    """Call before their first import: transformers warns about image libraries that nothing here uses."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
