"""Writes a model's weights and config into a folder, as diffusers saves and loads them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from difftrain.model.tensor_file import write_tensors

if TYPE_CHECKING:
    from torch import Tensor, nn

SHARD_BYTES = 5_000_000_000
"""Size from which on a file of weights is followed by another."""
WEIGHTS = "diffusion_pytorch_model"
CONFIG_FILE = "config.json"


def write_shards(weights: Iterable[tuple[str, Tensor]], folder: Path, texts: Mapping[str, str] | None = None) -> None:
    """Write files of at most :data:`SHARD_BYTES`, and an index if there are several.

    Args:
        weights: By name, taken one at a time; the tensors of one file are in memory together.
        texts: For the header of each file.

    Raises:
        OSError: If they cannot be written.
    """
    shards: list[list[str]] = []
    waiting: dict[str, Tensor] = {}
    total = held = 0

    def close() -> None:
        write_tensors(folder / f"{len(shards)}.part", waiting, {"format": "pt", **(texts or {})})
        shards.append([*waiting])
        waiting.clear()

    for name, tensor in weights:
        size = tensor.numel() * tensor.element_size()
        if waiting and held + size > SHARD_BYTES:
            close()
            held = 0
        waiting[name] = tensor.clone()
        held += size
        total += size
    close()
    files = [
        f"{WEIGHTS}.safetensors" if len(shards) == 1 else f"{WEIGHTS}-{number + 1:05}-of-{len(shards):05}.safetensors"
        for number in range(len(shards))
    ]
    for number, file in enumerate(files):
        (folder / f"{number}.part").rename(folder / file)
    if len(files) > 1:
        index = {
            "metadata": {"total_size": total},
            "weight_map": {name: file for file, names in zip(files, shards, strict=True) for name in names},
        }
        (folder / f"{WEIGHTS}.safetensors.index.json").write_text(json.dumps(index, indent=1), encoding="utf-8")


def write_model_config(denoiser: nn.Module, folder: Path) -> bool:
    """Write the model's config as diffusers' models do; return False for a model that has none.

    Raises:
        OSError: If it cannot be written.
    """
    save = getattr(denoiser, "save_config", None)
    if save is None:
        return False
    save(str(folder))
    return True
