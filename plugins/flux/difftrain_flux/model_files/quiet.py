"""Keeps the libraries quiet while they load: the core shows what is going on."""

from __future__ import annotations

import os


def quiet_libraries() -> None:
    """Before their first import: transformers warns of image libraries that nothing here uses."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
