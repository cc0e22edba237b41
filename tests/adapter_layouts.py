"""Small adapter files of every layout, for a transformer of two double and two single blocks and a width of 8."""

from __future__ import annotations

import re

import torch

from difftrain.model.adapter_files.changes import LowRank
from difftrain_flux.model_files.layouts import diffusers_shapes
from difftrain_flux.targets import PATTERNS

WIDTH = 8
CONFIG = {
    "num_layers": 2, "num_single_layers": 2, "num_attention_heads": 2, "attention_head_dim": 4, "in_channels": 64,
    "joint_attention_dim": 6, "pooled_projection_dim": 6, "guidance_embeds": True,
}  # fmt: skip
SHAPES = {
    name.removesuffix(".weight"): shape
    for name, shape in diffusers_shapes(CONFIG).items()
    if name.endswith(".weight") and len(shape) == 2
}
"""Outputs and inputs of every linear layer, by module."""


def modules_of(target: str) -> list[str]:
    """Return the modules of a target set, or all linear layers for ``every``."""
    patterns = PATTERNS[target] if target != "every" else (".*",)
    return [name for name in SHAPES if any(re.fullmatch(pattern, name) for pattern in patterns)]


def low_rank(target: str, rank: int = 2, *, dtype: torch.dtype = torch.float32) -> dict[str, LowRank]:
    """Return a random change of each module of a target set."""
    generator = torch.Generator().manual_seed(3)
    return {
        name: LowRank(
            down=torch.randn(rank, SHAPES[name][1], generator=generator).to(dtype),
            up=torch.randn(SHAPES[name][0], rank, generator=generator).to(dtype),
        )
        for name in modules_of(target)
    }
