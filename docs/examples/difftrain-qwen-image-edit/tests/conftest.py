"""Both checkpoints, written once for all tests."""

from __future__ import annotations

import os

import pytest

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    """Return folders by flavour."""
    from diffusers import QwenImageEditPipeline, QwenImageEditPlusPipeline
    from tiny_checkpoint import save_tiny

    folder = tmp_path_factory.mktemp("checkpoints")
    kinds = {"edit": QwenImageEditPipeline, "edit-2509": QwenImageEditPlusPipeline}
    return {name: save_tiny(folder / name, kind) for name, kind in kinds.items()}
