"""Decides which blocks of the model wait in the host's memory."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

from difftrain.errors import ConfigError
from difftrain.model.block_swapping import memory_of, spread
from difftrain.model.gpu_memory import available
from difftrain.planning.combinations import can_swap
from difftrain.planning.model_plan import ModelPlan
from difftrain.startup.encoded_form import compute_dtype
from difftrain.steps.training_state import TrainingState
from difftrain.types import Reporter

SWAPPED_AT_ONCE = 3
"""Blocks to swap more, at least, when a step does not fit."""
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
        too_many = (
            _too_many(plan, denoiser, device) if count and device.type == "cuda" and can_swap(plan.quantizer) else 0
        )
        return spread(min(too_many, count - 1), range(count)) if too_many else []
    if wanted >= max(1, count):
        raise ConfigError(
            f"blocks_to_swap {wanted}: the model has {count} blocks, and one must stay\n"
            f'hint: set blocks_to_swap to {max(0, count - 1)} or less, or to "auto"'
        )
    return spread(wanted, range(count))


def _too_many(plan: ModelPlan, denoiser: nn.Module, device: torch.device) -> int:
    """Return how many blocks do not fit beside a step."""
    count = len(plan.family.blocks(denoiser))
    each = _bytes(plan, denoiser, blocks_only=True) / count
    too_much = _bytes(plan, denoiser) - (available(device) - ROOM_FOR_A_STEP)
    return max(0, math.ceil(too_much / each))


def swap_what_does_not_fit(
    state: TrainingState, trial_step: Callable[[], float], later: float, reporter: Reporter
) -> None:
    """Compute a step, and swap blocks until it fits, if the config leaves their number open.

    Args:
        trial_step: One forward and backward that changes nothing; gives the bytes at its peak.
        later: Bytes that the first step will need in addition.

    Raises:
        torch.OutOfMemoryError: If it does not fit.
    """
    device, plan, swapped = state.accelerator.device, state.plan, state.swapped
    blocks = plan.family.blocks(state.bare_denoiser)
    may_swap = swapped is not None and plan.config.blocks_to_swap == "auto" and can_swap(plan.quantizer)
    while device.type == "cuda" and swapped is not None and may_swap:
        left = [index for index in range(len(blocks)) if index not in swapped][1:]
        try:
            peak = trial_step()
        except torch.OutOfMemoryError:
            if not left:
                raise
            peak = available(device)
        if peak + later <= available(device) or not left:
            break
        state.optimizer.zero_grad()
        each = max(1, sum(map(memory_of, blocks)) // len(blocks))
        swapped.add(blocks, spread(max(SWAPPED_AT_ONCE, math.ceil((peak + later - available(device)) / each)), left))
        torch.cuda.empty_cache()
    else:
        trial_step()
    if swapped and swapped.indices:
        reporter.say(
            f"{len(swapped.indices)} of {len(blocks)} blocks wait in the host's memory "
            f"({swapped.host_bytes / 2**30:.1f} GiB) and come to the GPU when they are needed"
        )


def _bytes(plan: ModelPlan, denoiser: nn.Module, *, blocks_only: bool = False) -> float:
    """Return the bytes of the weights in the run's number formats."""
    full = getattr(torch, compute_dtype(plan.config)).itemsize
    each = (plan.quantizer and plan.quantizer.bytes_of_weight()) or full
    inside = {id(part) for block in plan.family.blocks(denoiser) for part in block.parameters()}
    linear = {id(part.weight) for part in denoiser.modules() if isinstance(part, nn.Linear)}
    return sum(
        part.numel() * (each if id(part) in linear and id(part) in inside else full)
        for part in denoiser.parameters()
        if id(part) in inside or not blocks_only
    )
