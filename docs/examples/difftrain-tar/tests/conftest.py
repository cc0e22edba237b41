"""Tar files of small pairs, and the same pairs as loose files."""

from __future__ import annotations

import io
import json
import os
import random
import tarfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from difftrain.testing import CommandResult, run_command

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ["HF_HUB_OFFLINE"] = "1"

RUN = {
    "model_family": "flux",
    "model_flavour": "kontext",
    "pretrained_model_name_or_path": "tiny-random",
    "data_backend_config": "datasets.json",
    "output_dir": "output",
    "mixed_precision": "no",
    "aspect_bucket_alignment": 16,
    "lora_rank": 4,
    "learning_rate": 1e-3,
    "validation_steps": 0,
    "max_train_steps": 4,
    "checkpoint_step_interval": 2,
}


@pytest.fixture(scope="session", autouse=True)
def _own_cache_folder(tmp_path_factory):
    """Keep the built-in checkpoint out of the user's folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture
def difftrain(tmp_path):
    """Write a run with some dataset entries and start ``difftrain`` on it, with options given by name."""

    def run(*command: str, datasets: list[dict[str, Any]], **options: Any) -> CommandResult:
        common = {"resolution": 64}
        (tmp_path / "datasets.json").write_text(json.dumps([common | entry for entry in datasets]))
        (tmp_path / "config.json").write_text(json.dumps(RUN | options))
        return run_command(tmp_path, *command, config="config.json")

    return run


def new_image(seed: int, size: tuple[int, int] = (64, 64)) -> bytes:
    """Return a PNG of smooth random colours."""
    small = Image.frombytes("RGB", (8, 8), random.Random(seed).randbytes(8 * 8 * 3))
    stream = io.BytesIO()
    small.resize(size, Image.Resampling.BICUBIC).save(stream, "PNG")
    return stream.getvalue()


def rows(count: int = 4) -> dict[str, bytes]:
    """Return members of pairs with captions."""
    members: dict[str, bytes] = {}
    for number in range(count):
        members[f"{number:04}.target.png"] = new_image(number)
        members[f"{number:04}.reference.png"] = new_image(100 + number)
        members[f"{number:04}.txt"] = f"make it edit number {number}".encode()
    return members


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path
