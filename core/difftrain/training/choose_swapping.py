"""Decides which blocks of the model wait in the host's memory."""

from __future__ import annotations

import math

import torch
from torch import nn

from difftrain.errors import ConfigError
from difftrain.model.block_swapping import spread
from difftrain.model.gpu_memory import available
from difftrain.planning.model_plan import ModelPlan
from difftrain.startup.encoded_form import compute_dtype

ROOM_FOR_A_STEP = 2.5 * 2**30
"""Bytes that loading leaves free for activations, until a step has been measured."""


def swapped_at_first(plan: ModelPlan, denoiser: nn.Module, device: torch.device) -> list[int]:
    """Return the blocks, by place, whose weights are not loaded to the device.

    Args:
        denoiser: Without weights.

    Raises:
        ConfigError: If the config asks for more blocks than the model has.
    """
    wanted = plan.config.blocks_to_swap
    count = len(plan.family.blocks(denoiser))
    if wanted == "auto":
        if device.type != "cuda" or not can_swap(plan):
            return []
        each = _bytes(plan, denoiser, blocks_only=True) / max(1, count)
        too_much = _bytes(plan, denoiser) - (available(device) - ROOM_FOR_A_STEP)
        wanted = max(0, math.ceil(too_much / each)) if each else 0
    elif wanted >= max(1, count):
        raise ConfigError(
            f"blocks_to_swap {wanted}: the model has {count} blocks, and one must stay\n"
            f'hint: set blocks_to_swap to {max(0, count - 1)} or less, or to "auto"'
        )
    return spread(min(wanted, count - 1), range(count)) if count else []


def can_swap(plan: ModelPlan) -> bool:
    """Whether the weights are plain tensors, whose memory can be swapped."""
    return plan.quantizer is None or plan.quantizer.can_compile


def _bytes(plan: ModelPlan, denoiser: nn.Module, *, blocks_only: bool = False) -> float:
    """Return the bytes of the weights in the run's number formats."""
    full = getattr(torch, compute_dtype(plan.config)).itemsize
    each = full if plan.quantizer is None or plan.quantizer.weight_bytes is None else plan.quantizer.weight_bytes
    inside = {id(part) for block in plan.family.blocks(denoiser) for part in block.parameters()}
    linear = {id(part.weight) for part in denoiser.modules() if isinstance(part, nn.Linear)}
    return sum(
        part.numel() * (each if id(part) in linear and id(part) in inside else full)
        for part in denoiser.parameters()
        if id(part) in inside or not blocks_only
    )
