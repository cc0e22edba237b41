"""The file of a LoRA in the names of diffusers, which other programs load."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from difftrain.errors import CheckpointError, first_few
from difftrain.model.tensor_file import read_tensors, write_tensors

if TYPE_CHECKING:
    from torch import Tensor

ADAPTER_FILE = "pytorch_lora_weights.safetensors"
"""The file name that diffusers looks for in a folder."""
_HEADER = "lora_adapter_metadata"
"""Entry of a file's header where diffusers looks for an adapter's settings."""


def write_lora(
    weights: Mapping[str, Tensor], file: Path, prefix: str, *, rank: int, strength: float, with_lengths: bool
) -> None:
    """Write one file, with alpha folded into B, so that programs that ignore alpha apply the right change.

    diffusers reads the adapter's settings from the header; without them it assumes alpha = rank, which
    is true for the folded tensors. The header holds nothing else: safetensors writes several entries in
    random order, and equal adapters should be equal files.

    Args:
        weights: By the names ``MODULE.lora_A.weight`` and so for B, and for the lengths of DoRA.
        rank: That of all matrices.
        strength: Factor on ``B @ A``.

    Raises:
        OSError: If it cannot be written.
    """
    tensors = {}
    for name, tensor in weights.items():
        # float32, because alpha / rank may not be exact in the trained dtype: a bfloat16 B is off by up to 2e-3
        folded = tensor.float() * strength if ".lora_B." in name and strength != 1 else tensor
        tensors[f"{prefix}.{name}"] = folded
    targets = sorted({name.split(".lora_")[0] for name in weights})
    settings = {"r": rank, "lora_alpha": rank, "target_modules": targets, "bias": "none"}
    settings |= {"use_dora": True} if with_lengths else {}
    header = json.dumps({f"{prefix}.{key}": value for key, value in settings.items()}, sort_keys=True)
    write_tensors(file, tensors, {_HEADER: header})


def read_lora(file: Path, prefix: str) -> dict[str, Tensor]:
    """Return the weights of a file, named as in :func:`write_lora`, with alpha folded into B.

    Raises:
        CheckpointError: If it is no such file, or damaged.
        OSError: If it cannot be read.
    """
    tensors, header = read_tensors(file)
    strange = [name for name in tensors if not name.startswith(f"{prefix}.") or ".lora_" not in name]
    if strange or not tensors:
        raise CheckpointError(
            f"{file} is not a LoRA file of this model: {len(strange)} of its {len(tensors)} tensors are not named "
            f"{prefix}.MODULE.lora_A.weight or .lora_B.weight: {first_few(strange)}"
        )
    scale = _strength(header, prefix)
    named = {name.removeprefix(f"{prefix}."): tensor for name, tensor in tensors.items()}
    return {
        name: tensor.float() * scale if ".lora_B." in name and scale != 1 else tensor for name, tensor in named.items()
    }


def _strength(header: Mapping[str, str], prefix: str) -> float:
    """Return alpha / rank from the settings in a file's header; 1 if there are none, like diffusers."""
    try:
        settings = json.loads(header[_HEADER])
        return float(settings[f"{prefix}.lora_alpha"] / settings[f"{prefix}.r"])
    except (LookupError, TypeError, ValueError, ArithmeticError):
        return 1.0
