"""The checkpoint, written once for all tests."""

from __future__ import annotations

import os

import pytest

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """Return its folder."""
    from tiny_checkpoint import save_tiny

    return save_tiny(tmp_path_factory.mktemp("checkpoint") / "tiny")
